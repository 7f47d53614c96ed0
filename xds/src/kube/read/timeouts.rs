//! Timeouts of HTTPRoute rules, in the durations of the Gateway API (GEP-2257).

use std::num::NonZeroU32;

use l7::ir::Timeouts;

use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;

/// Digits of one number, and numbers of one duration.
const DIGITS_MAX: usize = 5;
const PARTS_MAX: usize = 4;

pub(super) fn timeouts(fields: &mut Fields<'_>, findings: &mut Findings) -> Timeouts {
    let Some(item) = fields.optional("timeouts") else {
        return Timeouts::default();
    };
    let Some(mut fields) = item.fields(findings) else {
        return Timeouts::default();
    };
    let request_ms = fields.optional("request").and_then(|item| limit(&item, findings));
    let backend_request_ms = fields.optional("backendRequest").and_then(|item| limit(&item, findings));
    fields.finish(findings);
    if let (Some(request), Some(try_limit)) = (request_ms, backend_request_ms)
        && try_limit > request
    {
        let message = "backendRequest is longer than request, so it would never be reached";
        item.error(findings, message, "make backendRequest at most as long as request");
    }
    Timeouts { request_ms, backend_request_ms }
}

/// Zero, and what has been reported, is no limit.
pub(super) fn limit(item: &Item<'_>, findings: &mut Findings) -> Option<NonZeroU32> {
    let text = item.text(findings)?;
    let Some(milliseconds) = milliseconds(text) else {
        let fix =
            "write up to four numbers of at most five digits with their units h, m, s, ms, such as 1m30s";
        item.error(findings, format!("{:?} is no duration", shortened(text)), fix);
        return None;
    };
    let Ok(milliseconds) = u32::try_from(milliseconds) else {
        let fix = "write at most 1193h, or 0s for no limit";
        item.error(findings, format!("{text:?} is longer than 49 days"), fix);
        return None;
    };
    NonZeroU32::new(milliseconds)
}

/// `([0-9]{1,5}(h|m|s|ms)){1,4}`.
fn milliseconds(text: &str) -> Option<u64> {
    let mut total = 0;
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() || parts == 0 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let factor = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        parts += 1;
        if digits > DIGITS_MAX || parts > PARTS_MAX {
            return None;
        }
        total += number.parse::<u64>().ok()? * factor;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("10s10s", Some(20_000)),
            ("99999h", Some(359_996_400_000)),
            ("", None),
            ("1", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("1 s", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            ("1s\u{e9}", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text:?}");
        }
    }
}
