//! The header `traceparent` of W3C Trace Context, level 1. <https://www.w3.org/TR/trace-context/>
//!
//! `tracestate` and the headers of other formats (B3) are never touched: they pass as they came.

use std::fmt::{self, Write};

use l7::ir::Header;

/// The bit of the flags that says that the caller recorded the request.
const SAMPLED: u8 = 1;
/// Length of a header of version 0.
const LENGTH: usize = 55;
/// The version that no header may have.
const INVALID_VERSION: u8 = 0xff;

/// A span, as its callee is told of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
}

/// Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

// === impl TraceId, SpanId ===

impl TraceId {
    /// Of two random numbers.
    pub fn of(high: u64, low: u64) -> Self {
        let [high, low] = [high.to_be_bytes(), low.max(1).to_be_bytes()];
        let mut bytes = [0; 16];
        for (byte, from) in bytes.iter_mut().zip(high.into_iter().chain(low)) {
            *byte = from;
        }
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SpanId {
    /// Of a random number.
    pub fn of(random: u64) -> Self {
        Self(random.max(1).to_be_bytes())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hexadecimal(f, &self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hexadecimal(f, &self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hexadecimal(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

// === impl TraceContext ===

impl TraceContext {
    /// That of a request. A header that is not valid, or of which there are several, is as none (section 3.2.2.5).
    pub fn of_headers(headers: &[Header<'_>]) -> Option<Self> {
        let mut found = headers.iter().filter(|it| it.name.eq_ignore_ascii_case("traceparent"));
        match (found.next(), found.next()) {
            (Some(header), None) => Self::parse(header.value),
            _ => None,
        }
    }

    /// The value of a header. One of a later version is read as far as version 0 goes (section 3.2.4).
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let mut parts = known.split(|byte| *byte == b'-');
        let [version] = octets(parts.next()?)?;
        let trace: [u8; 16] = octets(parts.next()?)?;
        let span: [u8; 8] = octets(parts.next()?)?;
        let [flags] = octets(parts.next()?)?;
        let ends = rest.is_empty() || (version != 0 && rest.starts_with(b"-"));
        let is_valid = parts.next().is_none()
            && ends
            && version != INVALID_VERSION
            && trace != [0; 16]
            && span != [0; 8];
        is_valid.then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled: flags & SAMPLED != 0 })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        fmt::Display::fmt(self, f)?;
        f.write_char('"')
    }
}

/// Lower-case hexadecimal digits of exactly so many octets.
fn octets<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut octets = [0; N];
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (octet, [high, low]) in octets.iter_mut().zip(pairs) {
        *octet = digit(*high)? << 4 | digit(*low)?;
    }
    Some(octets)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let context = TraceContext::parse(VALID.as_bytes()).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), VALID);
        // Flags that are not known are not passed on.
        let flagged = TraceContext::parse(VALID.replace("-01", "-02").as_bytes()).unwrap();
        assert!(!flagged.sampled && flagged.to_string().ends_with("-00"));
        let later = format!("{}-more", VALID.replacen("00", "cc", 1));
        assert_eq!(TraceContext::parse(later.as_bytes()).unwrap().trace, context.trace);
    }

    #[test]
    fn what_is_no_header_is_none() {
        let wrong = [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}x"),
            &VALID.replacen("00", "ff", 1),
            &VALID.to_uppercase(),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &VALID.replace("00f067aa0ba902b7", "0000000000000000"),
            &VALID.replace('-', "_"),
            &VALID.replace("4bf9", "4bg9"),
            &format!("{}x", VALID.replacen("00", "cc", 1)),
            "00-4bf92f3577b34da6a3ce929d0e0e47-3600f067aa0ba902b7-01",
        ];
        for value in wrong {
            assert_eq!(TraceContext::parse(value.as_bytes()), None, "{value}");
        }
        let header = |name| Header { name, value: VALID.as_bytes() };
        assert!(TraceContext::of_headers(&[header("b3"), header("TraceParent")]).is_some());
        assert_eq!(TraceContext::of_headers(&[header("traceparent"), header("traceparent")]), None);
        assert_eq!(TraceContext::of_headers(&[]), None);
    }

    #[test]
    fn identifiers_are_never_zero() {
        assert_eq!(SpanId::of(0).to_string(), "0000000000000001");
        assert_eq!(TraceId::of(0, 0).to_string(), "00000000000000000000000000000001");
        let context = TraceContext { trace: TraceId::of(1, 2), span: SpanId::of(3), sampled: true };
        assert_eq!(TraceContext::parse(context.to_string().as_bytes()), Some(context));
    }
}
