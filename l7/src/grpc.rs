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
    fn messages_hold_printable_ascii() {
        assert_eq!(message("RBAC: access denied"), "RBAC: access denied");
        assert_eq!(message("50% \u{e9}\n"), "50%25 %C3%A9%0A");
    }
}
