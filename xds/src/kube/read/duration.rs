//! Durations as Istio writes them: `1h30m`, `0.5s`, `100ms`.

use std::num::NonZeroU32;

use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;

/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 32;

/// In milliseconds; what is shorter than one counts as one. Zero is reported.
pub(super) fn duration(item: &Item<'_>, findings: &mut Findings) -> Option<NonZeroU32> {
    let found = duration_or_zero(item, findings)?;
    if found == 0 {
        item.error(findings, "this must be longer than nothing", "write a duration such as 5s");
    }
    NonZeroU32::new(found)
}

pub(super) fn duration_or_zero(item: &Item<'_>, findings: &mut Findings) -> Option<u32> {
    let text = item.text(findings)?;
    let Some(milliseconds) = milliseconds(text) else {
        let message = format!("{:?} is no duration", shortened(text));
        item.error(findings, message, "write numbers with their units h, m, s, ms, such as 1m30s or 0.5s");
        return None;
    };
    if milliseconds > f64::from(u32::MAX) {
        item.error(findings, format!("{:?} is longer than 49 days", shortened(text)), "write at most 1193h");
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, as was just seen
    Some(milliseconds.ceil() as u32)
}

/// The field, where it is written.
pub(super) fn optional(
    fields: &mut Fields<'_>,
    name: &'static str,
    findings: &mut Findings,
) -> Option<NonZeroU32> {
    fields.optional(name).and_then(|item| duration(&item, findings))
}

fn milliseconds(text: &str) -> Option<f64> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let factor = match unit {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            "us" => 1e-3,
            "ns" => 1e-6,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, expected) in [
            ("0s", Some(0.0)),
            ("0.5s", Some(500.0)),
            ("1m30s", Some(90_000.0)),
            ("1.5h", Some(5_400_000.0)),
            ("500us", Some(0.5)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("1s\u{e9}", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text:?}");
        }
    }
}
