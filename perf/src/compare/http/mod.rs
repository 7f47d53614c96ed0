//! HTTP/1.1 as load generator and backend speak it: little, and each byte of it checked.
//!
//! The last two segments of a request's path say how many bytes the response shall have and which request it is. The
//! response repeats the latter in `x-sequence`. Bodies in both directions are the pattern of [`crate::wire`]. Client and
//! backend are loops around epoll(7) with one read and one write a message, so that they cost less than what they
//! measure.

pub(crate) mod backend;
pub(super) mod client;
pub(super) mod crowd;
mod poll;
#[cfg(test)]
mod tests;

use crate::Failure;
use crate::wire::is_pattern;

/// Longest head that is taken from a proxy.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// One read takes so much.
const READ_BYTES: usize = 512 * 1024;

/// What a request says beside its path's end.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) host: String,
    /// Begins and ends with a slash.
    pub(super) path: String,
    /// Further fields, each with its line end.
    pub(super) fields: String,
}

/// Bytes of one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// A GET whose response has so many bytes.
    Down(u64),
    /// A POST of so many bytes.
    Up(u64),
}

/// Body bytes that are still to come, and where they are in the pattern.
#[derive(Debug, Clone, Copy, Default)]
struct Body {
    position: u64,
    rest: u64,
}

impl Body {
    /// Takes what belongs to it from the front of `bytes`; the remainder.
    fn take<'a>(&mut self, block: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        let count = bytes.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        let (own, rest) = bytes.split_at(count);
        if !is_pattern(block, self.position, own) {
            return Err("a byte of a body is wrong".into());
        }
        self.position += count as u64;
        self.rest -= count as u64;
        Ok(rest)
    }

    /// The next piece that is to be sent.
    fn piece<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let start = usize::try_from(self.position % block.len() as u64).unwrap_or(0);
        let end = block.len().min(start.saturating_add(usize::try_from(self.rest).unwrap_or(usize::MAX)));
        block.get(start..end).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.position += count as u64;
        self.rest = self.rest.saturating_sub(count as u64);
    }
}

/// A request's or a response's head, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// Bytes of it, the empty line included.
    length: usize,
    /// Of a response.
    status: u16,
    /// Of a request: how many bytes it asks for.
    wanted: u64,
    sequence: u64,
    /// Bytes of the body that follows.
    body: u64,
    closes: bool,
}

/// The head at the front of `bytes`; `None` if it is not whole yet.
fn parse_request(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes)? else { return whole_or_more(bytes) };
    let path = request.path.unwrap_or_default();
    let mut segments = path.rsplit('/');
    let sequence = segments.next().and_then(|text| text.parse().ok());
    let wanted = segments.next().and_then(|text| text.parse().ok());
    let (Some(sequence), Some(wanted)) = (sequence, wanted) else {
        return Err(format!("the path {path:?} does not end in numbers").into());
    };
    let mut head = Head { length, status: 0, wanted, sequence, body: 0, closes: false };
    read_fields(request.headers, &mut head)?;
    Ok(Some(head))
}

fn parse_response(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes)? else { return whole_or_more(bytes) };
    let status = response.code.unwrap_or(0);
    let mut head = Head { length, status, wanted: 0, sequence: u64::MAX, body: 0, closes: false };
    read_fields(response.headers, &mut head)?;
    Ok(Some(head))
}

fn whole_or_more(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    if bytes.len() < HEAD_BYTES_MAX { Ok(None) } else { Err("a head has no end".into()) }
}

fn read_fields(fields: &[httparse::Header<'_>], head: &mut Head) -> Result<(), Failure> {
    let number = |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            head.body = number(field.value).ok_or("a content-length is no number")?;
        } else if field.name.eq_ignore_ascii_case("x-sequence") {
            head.sequence = number(field.value).ok_or("a sequence is no number")?;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a proxy made a body of known length chunked".into());
        } else if field.name.eq_ignore_ascii_case("connection") {
            head.closes = field.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(())
}

#[cfg(test)]
mod parsing_tests {
    use super::*;
    use crate::wire::block;

    #[test]
    fn heads_are_read_when_they_are_whole() {
        let text = b"GET /v1/a/users/1024/7 HTTP/1.1\r\nhost: x\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..text.len() - 3 {
            assert_eq!(parse_request(&text[..end]).unwrap(), None);
        }
        let head = parse_request(text).unwrap().unwrap();
        assert_eq!((head.length, head.wanted, head.sequence, head.body), (text.len() - 3, 1024, 7, 3));
        assert!(parse_request(b"GET /nothing HTTP/1.1\r\n\r\n").is_err());
        let response = b"HTTP/1.1 503 No\r\nX-Sequence: 9\r\nconnection: close\r\n\r\n";
        let head = parse_response(response).unwrap().unwrap();
        assert_eq!((head.status, head.sequence, head.closes), (503, 9, true));
        assert!(parse_response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn a_body_is_sent_and_checked_in_any_pieces() {
        let block = block();
        let total = block.len() as u64 * 2 + 17;
        let (mut sent, mut taken) = (Body { position: 0, rest: total }, Body { position: 0, rest: total });
        while sent.rest > 0 {
            let piece = sent.piece(&block);
            let piece = &piece[..piece.len().min(10_007)];
            assert!(taken.take(&block, piece).unwrap().is_empty());
            sent.advance(piece.len());
        }
        assert_eq!(taken.rest, 0);
        assert_eq!(taken.take(&block, b"next").unwrap(), b"next");
        let mut body = Body { position: 0, rest: 4 };
        assert!(body.take(&block, &[9, 9]).is_err());
    }
}
