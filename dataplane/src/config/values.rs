//! How single values are written.

use std::time::Duration;

pub(super) const DURATION_ALLOWED: &str = "it must be a duration such as 90s, 5m, 1h30m or 250ms \
    (units: ns, us, ms, s, m, h, d; seconds where none is given)";

/// Longest duration taken, a hundred years: beyond it clocks overflow.
const DURATION_MAX: Duration = Duration::from_hours(100 * 365 * 24);

/// Numbers with units, added up; a number alone is seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        total = total.checked_add(part(number, unit.trim())?).filter(|sum| *sum <= DURATION_MAX)?;
        rest = after;
    }
    Some(total)
}

fn part(number: &str, unit: &str) -> Option<Duration> {
    let nanoseconds: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "" | "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(nanoseconds).map(Duration::from_nanos);
    }
    let fraction: f64 = number.parse().ok()?;
    #[allow(clippy::cast_precision_loss)] // Fractions of a unit are rounded anyway.
    Duration::try_from_secs_f64(fraction * nanoseconds as f64 / 1e9).ok()
}

pub(super) const CORES_ALLOWED: &str = "it must be a number of CPUs such as 2, 0.5 or 500m";

/// CPUs as Kubernetes writes them, rounded up to whole ones.
pub(super) fn cores(text: &str) -> Option<usize> {
    let thousandths = match text.strip_suffix('m') {
        Some(number) => number.parse::<u64>().ok()?,
        None => match text.split_once('.') {
            None => text.parse::<u64>().ok()?.checked_mul(1000)?,
            Some((whole, fraction)) => {
                let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
                whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(digits.parse().ok()?)?
            }
        },
    };
    usize::try_from(thousandths.div_ceil(1000)).ok()
}

pub(super) const PERCENT_ALLOWED: &str =
    "it must be a number of threads (0: one for each CPU) or a share of the CPUs from 1% to 100%";

/// `N` threads, or `N%` of the CPUs but at least one.
pub(super) fn threads(text: &str, cpus: usize) -> Option<usize> {
    let Some(percent) = text.strip_suffix('%') else {
        return text.parse().ok().map(|count| if count == 0 { cpus } else { count });
    };
    let percent: usize = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
    Some((cpus * percent).div_ceil(100).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, seconds) in [
            ("180s", 180.0),
            ("5m", 300.0),
            ("24h", 86_400.0),
            ("1h30m", 5_400.0),
            ("250ms", 0.25),
            ("1.5s", 1.5),
            ("7", 7.0),
            ("2d", 172_800.0),
            ("0s", 0.0),
            ("1m 30s", 90.0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "s", "5x", "-1s", "1..5s", "5 parsecs", "99999999999h", "inf", ".5s", "1e3s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn cpus_are_rounded_up() {
        for (text, cpus) in
            [("2", 2), ("500m", 1), ("1500m", 2), ("0.5", 1), ("2.0", 2), ("2.001", 3), ("0", 0)]
        {
            assert_eq!(cores(text), Some(cpus), "{text}");
        }
        for bad in ["", "m", "two", "-1", "1.x", "1g"] {
            assert_eq!(cores(bad), None, "{bad}");
        }
    }

    #[test]
    fn threads_are_a_number_or_a_share() {
        for (text, count) in [("4", 4), ("0", 16), ("25%", 4), ("1%", 1), ("100%", 16), ("26%", 5)] {
            assert_eq!(threads(text, 16), Some(count), "{text}");
        }
        for bad in ["", "%", "0%", "101%", "-1", "25 %"] {
            assert_eq!(threads(bad, 16), None, "{bad}");
        }
    }

    #[test]
    fn fuzz_no_value_is_too_strange_to_be_refused() {
        bolero::check!().with_type::<String>().for_each(|text| {
            assert!(duration(text).is_none_or(|duration| duration <= DURATION_MAX));
            let _ = cores(text);
            assert!(threads(text, 8).is_none_or(|count| count > 0));
        });
    }
}
