//! One end of an exchange: a connection that speaks HTTP/1.1, or one stream of a connection that speaks HTTP/2.

use l7::http1::{BodyFraming, may_trail};
use tunnel::h2::{ErrorCode, Headers};

use super::Wire;
use super::body::{Broken, Fault};
use crate::access_log::cause::CloseCause;
use crate::link::TunnelStream;

/// Where a message comes from or goes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side<'a> {
    Http1(&'a Wire),
    Http2(&'a TunnelStream),
}

/// How a body is written to an end that speaks HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// As it was received, framing included.
    Verbatim,
    /// The content alone: a length was announced, or the end of the connection ends it.
    Bare,
    Chunked,
    /// There is no room for any: the head said so.
    Nothing,
}

/// An end that a body is written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sink<'a> {
    pub(super) side: Side<'a>,
    /// Means nothing in HTTP/2.
    pub(super) framing: Framing,
}

impl Framing {
    /// For a body that was taken out of its own framing.
    pub(super) fn of(body: BodyFraming) -> Self {
        match body {
            BodyFraming::None | BodyFraming::Length(0) => Self::Nothing,
            BodyFraming::Length(_) | BodyFraming::UntilClose => Self::Bare,
            BodyFraming::Chunked => Self::Chunked,
        }
    }
}

impl Side<'_> {
    /// Makes the end a reset, so that the peer does not take what it got for the whole.
    pub(super) fn reset(self, code: ErrorCode) {
        match self {
            Self::Http1(wire) => wire.reset(),
            Self::Http2(stream) => stream.stop(code),
        }
    }

    /// Resolves when the peer has broken off. Never, as long as it is quiet, has ended in order, or has sent more.
    pub(super) async fn broken_off(self) {
        match self {
            Self::Http1(wire) => wire.broken_off().await,
            Self::Http2(stream) => {
                let _end = stream.wait_broken().await;
            }
        }
    }
}

impl Sink<'_> {
    /// Writes content; `Last` if its end is known to follow, without trailers. Then [`Sink::end`] is not called.
    pub(super) async fn write(self, content: &[u8], place: Place) -> Result<(), Broken> {
        let written = match (self.side, place) {
            (Side::Http1(wire), _) => match self.framing {
                // It would be read as another message.
                Framing::Nothing if !content.is_empty() => {
                    return Err(Broken::From(Fault::of(CloseCause::InvalidHttp)));
                }
                Framing::Nothing => true,
                Framing::Verbatim | Framing::Bare => wire.write_all(content).await.is_ok(),
                Framing::Chunked => wire.write_all(&chunk(content, place)).await.is_ok(),
            },
            (Side::Http2(stream), Place::Within) => stream.write_all(content).await.is_ok(),
            (Side::Http2(stream), Place::Last) => stream.write_last(content).await.is_ok(),
        };
        if written { Ok(()) } else { Err(Broken::To) }
    }

    /// Ends the message.
    pub(super) async fn end(self, trailers: Option<Headers>) -> Result<(), Broken> {
        let written = match self.side {
            Side::Http1(wire) if self.framing == Framing::Chunked => {
                wire.write_all(&last_chunk(trailers.as_ref())).await.is_ok()
            }
            Side::Http1(_) => true,
            Side::Http2(stream) => match trailers.filter(|trailers| trailers.field_count() > 0) {
                Some(trailers) => stream.send_trailers(&trailers).is_ok(),
                None => stream.finish().is_ok(),
            },
        };
        if written { Ok(()) } else { Err(Broken::To) }
    }
}

/// Where a piece of content stands in its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Within,
    Last,
}

/// One chunk (RFC 9112 section 7.1), with the last one behind it if it is the end. Empty content is no chunk.
fn chunk(content: &[u8], place: Place) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 32);
    if !content.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", content.len()).as_bytes());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    }
    if place == Place::Last {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    out
}

/// The last chunk and the trailer section. Fields that may not stand there stay behind.
fn last_chunk(trailers: Option<&Headers>) -> Vec<u8> {
    let mut out = b"0\r\n".to_vec();
    let is_printable = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    for field in trailers.into_iter().flat_map(Headers::fields) {
        if may_trail(field.name) && field.value.iter().all(is_printable) {
            out.extend_from_slice(field.name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_with_their_trailers() {
        assert_eq!(chunk(b"abc", Place::Within), b"3\r\nabc\r\n");
        assert_eq!(chunk(b"abc", Place::Last), b"3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(chunk(b"", Place::Last), b"0\r\n\r\n");
        let mut trailers = Headers::trailers();
        for (name, value) in [("grpc-status", "0"), ("content-length", "9"), ("x", "\u{1}"), ("y", "z")] {
            trailers.push(name, value).unwrap();
        }
        assert_eq!(last_chunk(Some(&trailers)), b"0\r\ngrpc-status: 0\r\ny: z\r\n\r\n");
        assert_eq!(last_chunk(None), b"0\r\n\r\n");
    }
}
