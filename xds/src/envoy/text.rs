//! Small things that many resources hold: tests on texts, blocks of addresses, durations, shares.

use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;
use l7::ir::{Fraction, Test};
use prost_types::Duration;

use super::Refusal;
use crate::proto::waypoint::fractional_percent::Denominator;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::{CidrRange, FractionalPercent, StringMatcher};

/// The expression that istiod writes for "not empty".
const NOT_EMPTY: &str = ".+";

/// Whether a test heeds the case of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Heeded,
    Ignored,
}

/// The pattern of a matcher that treats letters as `case` says.
pub(super) fn pattern(matcher: &StringMatcher, case: Case) -> Result<&Pattern, Refusal> {
    if matcher.ignore_case != (case == Case::Ignored) {
        return Err(Refusal::at("ignore_case", format!("{} is not supported here", matcher.ignore_case)));
    }
    matcher.pattern.as_ref().ok_or_else(|| Refusal::new("the matcher has no pattern"))
}

/// A test of an authorization rule.
pub(super) fn test(matcher: &StringMatcher, case: Case) -> Result<Test, Refusal> {
    Ok(match pattern(matcher, case)? {
        Pattern::Exact(text) => Test::Exact(text.as_str().into()),
        Pattern::Prefix(text) => Test::Prefix(text.as_str().into()),
        Pattern::Suffix(text) => Test::Suffix(text.as_str().into()),
        Pattern::Contains(text) if !text.contains('*') => Test::Glob(format!("*{text}*").into()),
        Pattern::SafeRegex(regex) if regex.regex == NOT_EMPTY => Test::Present,
        Pattern::SafeRegex(regex) => return Err(expression(&regex.regex)),
        Pattern::Contains(_) => return Err(Refusal::at("contains", "a star is not supported here")),
    })
}

/// The refusal of a regular expression whose meaning is not one of those that istiod writes.
pub(super) fn expression(regex: &str) -> Refusal {
    Refusal::at("safe_regex", format!("regular expression {regex:?} is not supported here"))
}

/// Letters of a regular expression that mean themselves, or the text that they make.
pub(super) fn literal(regex: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.' | ':');
    regex.chars().all(plain).then_some(regex)
}

pub(super) fn block(range: &CidrRange) -> Result<IpNet, Refusal> {
    let refused = |error: String| Refusal::at("address_prefix", format!("{}: {error}", range.address_prefix));
    let ip: std::net::IpAddr =
        range.address_prefix.parse().map_err(|_| refused("is no address".to_owned()))?;
    let bits = u8::try_from(range.prefix_len.unwrap_or(0)).unwrap_or(u8::MAX);
    IpNet::new(ip, bits).map(|block| block.trunc()).map_err(|error| refused(error.to_string()))
}

/// In milliseconds, at least one; `None` for zero.
pub(super) fn milliseconds(duration: &Duration) -> Result<Option<NonZeroU32>, Refusal> {
    let wrong = || Refusal::new(format!("a duration of {} s is not supported", duration.seconds));
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err(wrong());
    }
    let whole = duration.seconds.checked_mul(1000).ok_or_else(wrong)?;
    let milliseconds = whole.checked_add(i64::from(duration.nanos).div_ceil_million()).ok_or_else(wrong)?;
    Ok(NonZeroU32::new(u32::try_from(milliseconds).map_err(|_| wrong())?))
}

trait DivCeilMillion {
    fn div_ceil_million(self) -> i64;
}

impl DivCeilMillion for i64 {
    fn div_ceil_million(self) -> i64 {
        (self + 999_999) / 1_000_000
    }
}

/// A share of requests. What is left out stands for none of them.
pub(super) fn share(percent: Option<&FractionalPercent>) -> Result<Fraction, Refusal> {
    let Some(percent) = percent else { return Ok(Fraction::percent(0)) };
    let denominator = match Denominator::try_from(percent.denominator) {
        Ok(Denominator::Hundred) => 100,
        Ok(Denominator::TenThousand) => 10_000,
        Ok(Denominator::Million) => 1_000_000,
        Err(_) => {
            return Err(Refusal::at("denominator", format!("{} is not supported", percent.denominator)));
        }
    };
    let denominator = NonZeroU32::new(denominator).unwrap_or(NonZeroU32::MIN);
    Ok(Fraction { numerator: percent.numerator.min(denominator.get()), denominator })
}

/// Header names are compared in lower case.
pub(super) fn lower(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::waypoint::RegexMatcher;

    #[test]
    fn only_the_expressions_of_istiod_are_tests() {
        let regex = |regex: &str| StringMatcher {
            pattern: Some(Pattern::SafeRegex(RegexMatcher { regex: regex.into() })),
            ignore_case: false,
        };
        assert_eq!(test(&regex(".+"), Case::Heeded).unwrap(), Test::Present);
        let refusal = test(&regex("a|b"), Case::Heeded).unwrap_err().to_string();
        assert_eq!(refusal, r#"safe_regex: regular expression "a|b" is not supported here"#);
        assert!(test(&regex(".+"), Case::Ignored).is_err());
    }

    #[test]
    fn durations_are_rounded_up_and_bounded() {
        let of =
            |seconds, nanos| milliseconds(&Duration { seconds, nanos }).map(|it| it.map(NonZeroU32::get));
        assert_eq!(of(0, 0), Ok(None));
        assert_eq!(of(0, 1), Ok(Some(1)));
        assert_eq!(of(2, 500_000_000), Ok(Some(2500)));
        assert!(of(-1, 0).is_err() && of(i64::MAX, 0).is_err() && of(1 << 40, 0).is_err());
    }

    #[test]
    fn shares_are_never_above_one() {
        let of = |numerator, denominator| share(Some(&FractionalPercent { numerator, denominator }));
        assert_eq!(
            of(100_000, 2).unwrap(),
            Fraction { numerator: 100_000, denominator: NonZeroU32::new(1_000_000).unwrap() }
        );
        assert_eq!(of(500, 0).unwrap(), Fraction::percent(100));
        assert!(of(1, 7).is_err());
        assert!(!share(None).unwrap().takes(0));
    }

    #[test]
    fn blocks_need_an_address_and_a_length_that_fits() {
        let of = |prefix: &str, bits| block(&CidrRange { address_prefix: prefix.into(), prefix_len: bits });
        assert_eq!(of("10.1.2.3", Some(8)).unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(of("fd00::1", Some(128)).unwrap().to_string(), "fd00::1/128");
        assert!(
            of("x", None).is_err() && of("10.0.0.1", Some(33)).is_err() && of("10.0.0.1", Some(300)).is_err()
        );
    }
}
