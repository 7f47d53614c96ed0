//! What protocol a client speaks, from its first bytes.
//!
//! The answer is only as sure as the bytes allow: what might still become a known protocol is [`Sniffed::NeedMore`],
//! and the shell decides how long to wait for more, since some clients let the server speak first.

/// The client preface of HTTP/2, RFC 9113 section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this is not waited for.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Registered methods have at most 17 letters; longer tokens are other protocols.
const METHOD_BYTES_MAX: usize = 24;

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// More bytes are needed to tell.
    NeedMore,
    /// A TLS ClientHello, RFC 8446 section 4.1.2.
    Tls,
    /// An HTTP/1.0 or HTTP/1.1 request line, RFC 9112 section 3.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Unknown,
}

/// Judges the first bytes of a connection. More bytes never change a verdict other than `NeedMore`.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let Some(first) = bytes.first() else { return Sniffed::NeedMore };
    match first {
        0x16 => tls(bytes),
        _ if prefix_of_preface(bytes) => {
            if bytes.len() < HTTP2_PREFACE.len() {
                Sniffed::NeedMore
            } else {
                Sniffed::Http2
            }
        }
        _ => http1(bytes),
    }
}

fn prefix_of_preface(bytes: &[u8]) -> bool {
    bytes.iter().zip(HTTP2_PREFACE).all(|(byte, expected)| byte == expected)
}

/// Record type handshake, version 3.x, a length, and the message type client_hello.
fn tls(bytes: &[u8]) -> Sniffed {
    let fits = |index: usize, test: fn(u8) -> bool| bytes.get(index).is_none_or(|byte| test(*byte));
    let length_fits = match (bytes.get(3), bytes.get(4)) {
        // A ClientHello has more than 40 bytes, and no record has more than 2^14.
        (Some(high), Some(low)) => (40..=1 << 14).contains(&u16::from_be_bytes([*high, *low])),
        (Some(high), None) => *high <= 0x40,
        _ => true,
    };
    if !fits(1, |b| b == 3) || !fits(2, |b| b <= 4) || !length_fits || !fits(5, |b| b == 1) {
        return Sniffed::Unknown;
    }
    if bytes.len() < 6 { Sniffed::NeedMore } else { Sniffed::Tls }
}

/// The whole first line is looked at: `GET key` is also a command of other protocols, only the version tells.
fn http1(bytes: &[u8]) -> Sniffed {
    let method = bytes.iter().take_while(|byte| is_method(**byte)).count();
    if method == 0 || method > METHOD_BYTES_MAX {
        return Sniffed::Unknown;
    }
    match bytes.get(method) {
        None => return Sniffed::NeedMore,
        Some(b' ') => {}
        Some(_) => return Sniffed::Unknown,
    }
    let line = bytes.get(..bytes.len().min(REQUEST_LINE_BYTES_MAX)).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', line) else {
        let clean = line.iter().all(|byte| *byte >= b' ' || *byte == b'\r');
        let open = clean && bytes.len() < REQUEST_LINE_BYTES_MAX;
        return if open { Sniffed::NeedMore } else { Sniffed::Unknown };
    };
    let line = line.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_http1 = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    let clean = line.iter().all(|byte| *byte >= b' ');
    if is_http1 && clean { Sniffed::Http1 } else { Sniffed::Unknown }
}

const fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-' || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_HELLO: &[u8] = &[0x16, 3, 1, 0, 200, 1, 0, 0, 196];

    #[test]
    fn known_protocols_are_recognised() {
        assert_eq!(sniff(CLIENT_HELLO), Sniffed::Tls);
        assert_eq!(sniff(b"GET / HTTP/1.1\r\nhost: a\r\n"), Sniffed::Http1);
        assert_eq!(sniff(b"M-SEARCH * HTTP/1.0\n"), Sniffed::Http1);
        assert_eq!(sniff(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nabc"), Sniffed::Http2);
    }

    #[test]
    fn lookalikes_are_unknown() {
        for bytes in [
            &b"GET key\r\n"[..],
            b"HELO mail\r\n",
            b"SSH-2.0-x\r\n",
            b"get / HTTP/1.1\r\n",
            b"GET\t/ HTTP/1.1\r\n",
            b"GET / HTTP/2.0\r\n",
            b"PRI * HTTP/1.x",
            b"G\0",
            &[0x16, 3, 1, 0, 200, 2],
            &[0x16, 3, 9],
            &[0x16, 3, 1, 0xff],
            &[0x80, 1],
        ] {
            let verdict = sniff(bytes);
            assert!(matches!(verdict, Sniffed::Unknown | Sniffed::NeedMore), "{bytes:?}");
            assert_eq!(sniff(&[bytes, b"\r\n\r\n"].concat()), Sniffed::Unknown, "{bytes:?}");
        }
        assert_eq!(sniff(&[b"GET /".as_slice(), &[b'a'; REQUEST_LINE_BYTES_MAX]].concat()), Sniffed::Unknown);
    }

    #[test]
    fn every_prefix_of_a_known_protocol_asks_for_more() {
        for whole in [CLIENT_HELLO.get(..6).unwrap(), b"GET / HTTP/1.1\r\n", HTTP2_PREFACE] {
            for length in 0..whole.len() {
                assert_eq!(sniff(&whole[..length]), Sniffed::NeedMore, "{length} of {whole:?}");
            }
        }
    }

    #[test]
    fn fuzz_sniff_verdicts_are_final() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut verdict = Sniffed::NeedMore;
            for length in 0..=bytes.len() {
                let next = sniff(&bytes[..length]);
                assert!(verdict == Sniffed::NeedMore || verdict == next, "{bytes:?}");
                verdict = next;
            }
        });
    }
}
