//! Where a message body ends (RFC 9112 section 6).

use super::chunked::{Chunked, TrailerLine};
use super::error::Http1Error;

/// How the end of a body is found. Decided once, from the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// So many bytes; never 0.
    Length(u64),
    Chunked,
    /// All that comes until the peer closes (responses only).
    UntilClose,
}

/// Follows one body through the bytes of a connection.
#[derive(Debug, Clone)]
pub struct Body {
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Done,
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
}

/// A run of bytes at the front of the input that belongs to the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes that belong to the body, framing included: to be passed on verbatim.
    pub consumed: usize,
    /// How many of them, counted from the end of the run, are content.
    pub payload: usize,
}

impl Body {
    pub fn new(framing: BodyFraming) -> Self {
        let state = match framing {
            BodyFraming::None | BodyFraming::Length(0) => State::Done,
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunked(Box::new(Chunked::new())),
            BodyFraming::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Has the fields of a trailer section kept for [`Body::take_trailers`].
    pub fn keep_trailers(&mut self) {
        if let State::Chunked(chunked) = &mut self.state {
            chunked.keep_trailers();
        }
    }

    /// The fields of the trailer section, if they were kept and the body is done.
    pub fn take_trailers(&mut self) -> Vec<TrailerLine> {
        match &mut self.state {
            State::Chunked(chunked) => chunked.take_trailers(),
            State::Done | State::Length(_) | State::UntilClose => Vec::new(),
        }
    }

    /// True once the last byte has been consumed. A body that lasts until close is done only by [`Body::close`].
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Done => true,
            State::Chunked(chunked) => chunked.is_done(),
            State::Length(_) | State::UntilClose => false,
        }
    }

    /// Takes the next run. Consumes nothing only if the body is done or `input` is empty.
    pub fn step(&mut self, input: &[u8]) -> Result<Piece, Http1Error> {
        match &mut self.state {
            State::Done => Ok(Piece { consumed: 0, payload: 0 }),
            State::UntilClose => Ok(Piece { consumed: input.len(), payload: input.len() }),
            State::Length(remaining) => {
                let taken = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
                *remaining -= taken as u64;
                if *remaining == 0 {
                    self.state = State::Done;
                }
                Ok(Piece { consumed: taken, payload: taken })
            }
            State::Chunked(chunked) => {
                let step = chunked.step(input)?;
                Ok(Piece { consumed: step.consumed, payload: step.payload })
            }
        }
    }

    /// Takes all of the body that `input` holds and returns its length in bytes, for verbatim forwarding.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, Http1Error> {
        let mut consumed = 0;
        while !self.is_done() {
            let rest = input.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            consumed += self.step(rest)?.consumed;
        }
        Ok(consumed)
    }

    /// The peer has closed its side.
    pub fn close(&mut self) -> Result<(), Http1Error> {
        if matches!(self.state, State::UntilClose) {
            self.state = State::Done;
        }
        if self.is_done() { Ok(()) } else { Err(Http1Error::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(
        framing: BodyFraming,
        input: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, usize, bool), Http1Error> {
        let (mut body, mut content, mut consumed) = (Body::new(framing), Vec::new(), 0);
        while !body.is_done() && consumed < input.len() {
            let end = input.len().min(consumed + step);
            let piece = body.step(&input[consumed..end])?;
            consumed += piece.consumed;
            content.extend_from_slice(&input[consumed - piece.payload..consumed]);
        }
        Ok((content, consumed, body.is_done()))
    }

    #[test]
    fn chunked_bodies_end_at_their_last_line() {
        let input = b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\nGET /next";
        for step in 1..=input.len() {
            let (body, consumed, done) = content(BodyFraming::Chunked, input, step).unwrap();
            assert_eq!((body.as_slice(), consumed, done), (&b"abc0123456789"[..], input.len() - 9, true));
        }
    }

    #[test]
    fn trailers_are_kept_where_somebody_wants_them() {
        let input = b"3\r\nabc\r\n0\r\nX-T:  1 \r\nY:\r\n\r\n";
        let mut body = Body::new(BodyFraming::Chunked);
        body.keep_trailers();
        assert_eq!(body.take(input), Ok(input.len()));
        let kept = body.take_trailers();
        let expected: [(&[u8], &[u8]); 2] = [(b"X-T", b"1"), (b"Y", b"")];
        assert_eq!(kept, expected.map(|(name, value)| (Box::from(name), Box::from(value))));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for (bad, error) in [
            (&b"+3\r\nabc\r\n"[..], Http1Error::Chunk),
            (b"0x3\r\n", Http1Error::Chunk),
            (b"-1\r\n", Http1Error::Chunk),
            (b" 3\r\n", Http1Error::Chunk),
            (b"3 \r\n", Http1Error::Chunk),
            (b"\r\n", Http1Error::Chunk),
            (b"10000000000000003\r\n", Http1Error::Chunk),
            (b"3\nabc", Http1Error::Chunk),
            (b"3\r\nabcX", Http1Error::Chunk),
            (b"3;\rx", Http1Error::Chunk),
            (b"3;a\nb", Http1Error::Chunk),
            (b"0\r\nHost: evil\r\n\r\n", Http1Error::Trailer),
            (b"0\r\ncontent-LENGTH: 9\r\n\r\n", Http1Error::Trailer),
            (b"0\r\nX\r\n\r\n", Http1Error::Malformed),
            (b"0\r\nX: a\n\r\n", Http1Error::BareLineEnd),
            (b"0\r\nX: a\r\n b\r\n\r\n", Http1Error::FoldedLine),
            (b"0\r\n\n", Http1Error::BareLineEnd),
        ] {
            let got = content(BodyFraming::Chunked, bad, bad.len());
            assert_eq!(got, Err(error), "{:?}", String::from_utf8_lossy(bad));
        }
        let long = [b"3;".as_slice(), &vec![b'a'; 20_000], b"\r\nabc\r\n0\r\n\r\n"].concat();
        assert_eq!(content(BodyFraming::Chunked, &long, long.len()), Err(Http1Error::Chunk));
        let trailers = [b"0\r\n".as_slice(), &b"a: b\r\n".repeat(101), b"\r\n"].concat();
        assert_eq!(content(BodyFraming::Chunked, &trailers, 7), Err(Http1Error::HeadTooLarge));
    }

    #[test]
    fn a_length_is_counted_and_a_short_body_is_truncated() {
        let (body, consumed, done) = content(BodyFraming::Length(3), b"abcdef", 2).unwrap();
        assert_eq!((body.as_slice(), consumed, done), (&b"abc"[..], 3, true));
        let mut short = Body::new(BodyFraming::Length(3));
        assert_eq!(short.take(b"ab"), Ok(2));
        assert_eq!(short.close(), Err(Http1Error::Truncated));
        let mut open = Body::new(BodyFraming::UntilClose);
        assert_eq!(open.take(b"ab"), Ok(2));
        assert!(!open.is_done());
        assert_eq!(open.close(), Ok(()));
        assert!(open.is_done());
    }

    #[test]
    fn fuzz_splits_do_not_change_what_is_read() {
        bolero::check!().with_type::<(Vec<u8>, u8)>().for_each(|(input, step)| {
            let whole = content(BodyFraming::Chunked, input, input.len().max(1));
            let split = content(BodyFraming::Chunked, input, usize::from(*step).max(1));
            assert_eq!(whole, split);
        });
    }

    #[test]
    fn fuzz_encoded_chunks_decode_to_the_same_content() {
        bolero::check!().with_type::<Vec<Vec<u8>>>().for_each(|chunks| {
            let mut wire = Vec::new();
            for chunk in chunks.iter().filter(|c| !c.is_empty()) {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (body, consumed, done) = content(BodyFraming::Chunked, &wire, wire.len()).unwrap();
            assert_eq!((body, consumed, done), (chunks.concat(), wire.len(), true));
        });
    }
}
