//! The `traceparent` header (W3C Trace Context section 3.2). Randomness comes from outside.

use std::fmt;

/// Position in a distributed trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: u128,
    pub parent: u64,
    pub sampled: bool,
}

impl TraceParent {
    /// A new, unsampled trace from random numbers; zero, which the format forbids, becomes one.
    pub fn unsampled(trace: u128, parent: u64) -> Self {
        Self { trace: trace.max(1), parent: parent.max(1), sampled: false }
    }

    /// Reads version 00, and of later versions the part that they share.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = (version.len(), trace.len(), parent.len(), flags.len());
        if lengths != (2, 32, 16, 2) || ![version, trace, parent, flags].iter().all(|part| is_hex(part)) {
            return None;
        }
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let parent = u64::from_str_radix(parent, 16).ok().filter(|parent| *parent != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace, parent, sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_fixed_width_and_read_back() {
        let parent = TraceParent::unsampled(0xab, 0);
        assert_eq!(parent.to_string(), "00-000000000000000000000000000000ab-0000000000000001-00");
        assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
    }

    #[test]
    fn forbidden_forms_are_none() {
        let good = "00-000000000000000000000000000000ab-0000000000000001-01";
        assert!(TraceParent::parse(good.as_bytes()).unwrap().sampled);
        for bad in [
            good.replace("00-", "ff-"),
            good.replace("ab", "AB"),
            good.replace("ab", "00"),
            format!("{good}-x"),
            good.replace("-01", "-1"),
            String::new(),
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
