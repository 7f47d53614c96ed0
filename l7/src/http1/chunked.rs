//! The chunked transfer coding (RFC 9112 section 7.1), validated byte by byte so that it can be passed on verbatim.

use super::error::Http1Error;
use super::{CHUNK_EXTENSION_BYTES_MAX, CHUNK_EXTENSIONS_TOTAL_MAX, HEADERS_MAX, TRAILER_BYTES_MAX};

/// Whether a field may stand in a trailer section.
pub fn may_trail(name: &[u8]) -> bool {
    !FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
}

/// Fields that would change framing or routing if a recipient merged them into the head (RFC 9110 section 6.5.1).
const FORBIDDEN_TRAILERS: [&str; 12] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Position within a chunked body.
#[derive(Debug, Clone)]
pub(super) struct Chunked {
    state: State,
    /// Payload bytes that remain of the chunk, or the size read so far.
    size: u64,
    extension_bytes: usize,
    extensions_total: usize,
    trailer: Vec<u8>,
    trailer_bytes: usize,
    trailer_fields: usize,
    /// The trailer fields, where somebody wants them.
    kept: Option<Vec<TrailerLine>>,
}

/// A line of a trailer section: name and value.
pub type TrailerLine = (Box<[u8]>, Box<[u8]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    SizeStart,
    Size,
    Extension,
    SizeLineFeed,
    Payload,
    PayloadCarriageReturn,
    PayloadLineFeed,
    /// At the start of a trailer line or of the final empty line.
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    FinalLineFeed,
    Done,
}

/// What one step consumed: `payload` of it is content and stands at the end of the `consumed` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) payload: usize,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self {
            state: State::SizeStart,
            size: 0,
            extension_bytes: 0,
            extensions_total: 0,
            trailer: Vec::new(),
            trailer_bytes: 0,
            trailer_fields: 0,
            kept: None,
        }
    }

    /// Has the trailer fields kept for [`Self::take_trailers`].
    pub(super) fn keep_trailers(&mut self) {
        self.kept.get_or_insert_default();
    }

    pub(super) fn take_trailers(&mut self) -> Vec<TrailerLine> {
        self.kept.take().unwrap_or_default()
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Consumes framing bytes and then at most one run of payload.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, Http1Error> {
        let mut consumed = 0;
        for &byte in input {
            match self.state {
                State::Done => break,
                State::Payload => {
                    let rest = input.get(consumed..).unwrap_or_default().len();
                    let payload = usize::try_from(self.size).unwrap_or(usize::MAX).min(rest);
                    self.size -= payload as u64;
                    if self.size == 0 {
                        self.state = State::PayloadCarriageReturn;
                    }
                    return Ok(Step { consumed: consumed + payload, payload });
                }
                _ => self.framing_byte(byte)?,
            }
            consumed += 1;
        }
        Ok(Step { consumed, payload: 0 })
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), Http1Error> {
        self.state = match (self.state, byte) {
            (State::SizeStart, _) => {
                self.size = hex(byte)?;
                State::Size
            }
            (State::Size, b';') => {
                self.extension_bytes = 0;
                State::Extension
            }
            (State::Size | State::Extension, b'\r') => State::SizeLineFeed,
            (State::Size, _) => {
                if self.size > u64::MAX >> 4 {
                    return Err(Http1Error::Chunk);
                }
                self.size = self.size << 4 | hex(byte)?;
                State::Size
            }
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.extension_bytes += 1;
                self.extensions_total += 1;
                if self.extension_bytes > CHUNK_EXTENSION_BYTES_MAX
                    || self.extensions_total > CHUNK_EXTENSIONS_TOTAL_MAX
                {
                    return Err(Http1Error::Chunk);
                }
                State::Extension
            }
            (State::SizeLineFeed, b'\n') if self.size == 0 => State::TrailerStart,
            (State::SizeLineFeed, b'\n') => State::Payload,
            (State::PayloadCarriageReturn, b'\r') => State::PayloadLineFeed,
            (State::PayloadLineFeed, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::FinalLineFeed,
            (State::TrailerStart | State::Trailer, b'\n') => return Err(Http1Error::BareLineEnd),
            (State::TrailerStart, b' ' | b'\t') => return Err(Http1Error::FoldedLine),
            (State::Trailer, b'\r') => State::TrailerLineFeed,
            (State::TrailerStart | State::Trailer, _) => self.trailer_byte(byte)?,
            (State::TrailerLineFeed, b'\n') => self.trailer_line()?,
            (State::FinalLineFeed, b'\n') => State::Done,
            _ => return Err(Http1Error::Chunk),
        };
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, Http1Error> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Http1Error::HeadTooLarge);
        }
        self.trailer.push(byte);
        Ok(State::Trailer)
    }

    fn trailer_line(&mut self) -> Result<State, Http1Error> {
        self.trailer_fields += 1;
        if self.trailer_fields > HEADERS_MAX {
            return Err(Http1Error::HeadTooLarge);
        }
        let line = std::mem::take(&mut self.trailer);
        let colon = memchr::memchr(b':', &line).ok_or(Http1Error::Malformed)?;
        let (name, value) = line.split_at_checked(colon).ok_or(Http1Error::Malformed)?;
        let value = value.get(1..).unwrap_or_default();
        if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
            return Err(Http1Error::Malformed);
        }
        if !may_trail(name) {
            return Err(Http1Error::Trailer);
        }
        if !value.iter().all(|&b| is_field_value(b)) {
            return Err(Http1Error::Malformed);
        }
        if let Some(kept) = &mut self.kept {
            kept.push((name.into(), value.trim_ascii().into()));
        }
        Ok(State::TrailerStart)
    }
}

fn hex(byte: u8) -> Result<u64, Http1Error> {
    char::from(byte).to_digit(16).map(u64::from).ok_or(Http1Error::Chunk)
}

/// `tchar` of RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte < 128 && TOKEN >> byte & 1 == 1
}

/// A bit for each ASCII character.
const TOKEN: u128 = {
    let mut bits = 0;
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            bits |= 1_u128 << byte;
        }
        byte += 1;
    }
    bits
};

/// A byte that may stand in a field value: visible, space, tab or obs-text (RFC 9110 section 5.5).
pub(crate) fn is_field_value(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::is_token;

    #[test]
    fn tokens_are_those_of_the_rfc() {
        for byte in 0..=255_u8 {
            let named = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_token(byte), named, "{byte}");
        }
    }
}
