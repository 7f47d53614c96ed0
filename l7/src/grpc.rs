//! gRPC as far as a proxy must know it: whose requests they are, and how a refusal is told to them.

use crate::ir::Header;

/// The value of Content-Type in a reply of the proxy's own.
pub const CONTENT_TYPE: &str = "application/grpc";

/// Whether a request is one of gRPC, by its Content-Type: `application/grpc`, alone or with a format behind it.
/// gRPC-Web is another protocol, whose clients read HTTP statuses.
pub fn is_request(headers: &[Header<'_>]) -> bool {
    let kind = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-type"));
    let Some((start, rest)) = kind.and_then(|kind| kind.value.split_at_checked(CONTENT_TYPE.len())) else {
        return false;
    };
    start.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
        && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
}

/// The status that is told in these fields, which are trailers or the head of a response of trailers only.
pub fn status_in(fields: &[Header<'_>]) -> Option<u16> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case("grpc-status"))?;
    std::str::from_utf8(field.value).ok()?.parse().ok()
}

// Status codes of gRPC.
const OK: u8 = 0;
const UNKNOWN: u8 = 2;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// The gRPC status that tells a client what the HTTP status would have (gRPC's "HTTP to gRPC Status Code Mapping"), but for
/// a timeout, which has a status of its own.
pub fn status_of(http: u16) -> u8 {
    match http {
        200 => OK,
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        504 => DEADLINE_EXCEEDED,
        429 | 502 | 503 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// A text as `grpc-message` carries it: bytes that are not printable ASCII, and `%`, are percent-encoded.
pub fn message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.extend([byte >> 4, byte & 15].map(hex));
        }
    }
    encoded.trim_end().to_owned()
}

/// Counts the messages of one direction in its payload: each has a byte of flags and four of length in front.
#[derive(Debug, Clone, Copy, Default)]
pub struct Messages {
    count: u64,
    /// Of the prefix that has not all come, how many bytes have, and the length so far.
    prefix: (u8, u32),
    /// Bytes left of the message.
    rest: u64,
}

impl Messages {
    pub fn feed(&mut self, mut payload: &[u8]) {
        loop {
            let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(payload.len());
            self.rest -= skipped as u64;
            payload = payload.get(skipped..).unwrap_or_default();
            let Some((byte, behind)) = payload.split_first() else { return };
            payload = behind;
            let (seen, length) = self.prefix;
            let length = if seen == 0 { 0 } else { length << 8 | u32::from(*byte) };
            self.prefix = (seen + 1, length);
            if seen == 4 {
                self.count += 1;
                (self.prefix, self.rest) = ((0, 0), length.into());
            }
        }
    }

    /// Those that have begun.
    pub fn count(&self) -> u64 {
        self.count
    }
}

fn hex(digit: u8) -> char {
    char::from_digit(digit.into(), 16).unwrap_or('0').to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_their_content_type() {
        let is = |value: &str| is_request(&[Header { name: "Content-Type", value: value.as_bytes() }]);
        for grpc in ["application/grpc", "application/grpc+proto", "Application/gRPC;x=y"] {
            assert!(is(grpc), "{grpc}");
        }
        for other in ["application/grpc-web", "application/grpcx", "application/json", "grpc", ""] {
            assert!(!is(other), "{other}");
        }
        assert!(!is_request(&[]));
    }

    #[test]
    fn statuses_are_those_that_clients_expect() {
        for (http, grpc) in
            [(200, 0), (400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (504, 4), (500, 2)]
        {
            assert_eq!(status_of(http), grpc, "{http}");
        }
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let payload = [&[0, 0, 0, 0, 3][..], b"abc", &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        for size in [1, 2, 5, 7, 300] {
            let mut messages = Messages::default();
            payload.chunks(size).for_each(|piece| messages.feed(piece));
            assert_eq!((messages.count(), messages.rest, messages.prefix.0), (3, 0, 0), "{size}");
        }
    }

    #[test]
    fn messages_hold_printable_ascii() {
        assert_eq!(message("RBAC: access denied"), "RBAC: access denied");
        assert_eq!(message("50% \u{e9}\n"), "50%25 %C3%A9%0A");
    }
}
