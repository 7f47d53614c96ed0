//! One end of an exchange: a connection that speaks HTTP/1.1, or one stream of a connection that speaks HTTP/2.

use std::cell::Cell;

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

/// Content up to this length leaves in one write with the head before it: copying it costs less than another packet.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// An end that a message is written to.
pub(super) struct Sink<'a> {
    pub(super) side: Side<'a>,
    /// Means nothing in HTTP/2.
    framing: Framing,
    /// A head of HTTP/1.1 that waits for the first content, for no longer than until the source has none.
    head: Cell<Vec<u8>>,
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

    /// Whether bytes go to a socket as they are.
    pub(super) fn is_socket(self) -> bool {
        matches!(self, Self::Http1(Wire::Socket(_)))
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

impl<'a> Sink<'a> {
    pub(super) fn new(side: Side<'a>, framing: Framing) -> Self {
        Self { side, framing, head: Cell::default() }
    }

    /// The same with a head that goes before the content. [`Sink::flush`] sees to it that it is written.
    pub(super) fn after(self, head: Vec<u8>) -> Self {
        self.head.set(head);
        self
    }

    pub(super) fn is_verbatim(&self) -> bool {
        self.framing == Framing::Verbatim
    }

    /// Writes a head that still waits for its content.
    pub(super) async fn flush(&self) -> Result<(), Broken> {
        let head = self.head.take();
        match self.side {
            Side::Http1(wire) if !head.is_empty() => wire.write_all(&head).await.map_err(|_| Broken::To),
            _ => Ok(()),
        }
    }

    /// Writes content; `Last` if its end is known to follow, without trailers. Then [`Sink::end`] is not called.
    pub(super) async fn write(&self, content: &[u8], place: Place) -> Result<(), Broken> {
        let written = match (self.side, place) {
            (Side::Http1(wire), _) => match self.framing {
                // It would be read as another message.
                Framing::Nothing if !content.is_empty() => {
                    return Err(Broken::From(Fault::of(CloseCause::InvalidHttp)));
                }
                Framing::Nothing => true,
                Framing::Verbatim | Framing::Bare => self.join(wire, content).await?,
                Framing::Chunked => self.join(wire, &chunk(content, place)).await?,
            },
            (Side::Http2(stream), Place::Within) => stream.write_all(content).await.is_ok(),
            (Side::Http2(stream), Place::Last) => stream.write_last(content).await.is_ok(),
        };
        if written { Ok(()) } else { Err(Broken::To) }
    }

    /// Writes bytes to an end that speaks HTTP/1.1, with the head that waits for them.
    async fn join(&self, wire: &Wire, bytes: &[u8]) -> Result<bool, Broken> {
        let mut head = self.head.take();
        if head.is_empty() {
            return Ok(wire.write_all(bytes).await.is_ok());
        }
        if bytes.len() > JOINED_BYTES_MAX {
            self.head.set(head);
            self.flush().await?;
            return Ok(wire.write_all(bytes).await.is_ok());
        }
        head.extend_from_slice(bytes);
        Ok(wire.write_all(&head).await.is_ok())
    }

    /// Ends the message.
    pub(super) async fn end(&self, trailers: Option<Headers>) -> Result<(), Broken> {
        let written = match self.side {
            Side::Http1(wire) if self.framing == Framing::Chunked => {
                self.join(wire, &last_chunk(trailers.as_ref())).await?
            }
            Side::Http1(_) => return self.flush().await,
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
    use std::os::fd::AsFd;

    use rustix::io::{Errno, read};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::net::{Socket, testing::on_each_driver};

    /// What was sent, call by call: these sockets keep the calls apart.
    fn messages(from: impl AsFd) -> Vec<String> {
        let mut buffer = vec![0; 64 * 1024];
        let mut messages = Vec::new();
        loop {
            match read(&from, &mut buffer) {
                Ok(count) => messages.push(String::from_utf8(buffer[..count].to_vec()).unwrap()),
                Err(Errno::AGAIN) => return messages,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_head_leaves_with_its_first_content_or_before_content_that_is_waited_for() {
        on_each_driver(|_worker| async {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (ours, peer) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let wire = Wire::Socket(Socket::new(ours).unwrap());
            let sink = |framing| Sink::new(Side::Http1(&wire), framing).after(b"head ".to_vec());

            let bare = sink(Framing::Bare);
            bare.write(b"one", Place::Within).await.unwrap();
            bare.write(b"two", Place::Within).await.unwrap();
            bare.end(None).await.unwrap();
            assert_eq!(messages(&peer), ["head one", "two"]);

            let chunked = sink(Framing::Chunked);
            chunked.flush().await.unwrap();
            chunked.end(None).await.unwrap();
            assert_eq!(messages(&peer), ["head ", "0\r\n\r\n"]);

            let long = "x".repeat(JOINED_BYTES_MAX + 1);
            sink(Framing::Verbatim).write(long.as_bytes(), Place::Within).await.unwrap();
            assert_eq!(messages(&peer), ["head ", &long]);

            sink(Framing::Nothing).end(None).await.unwrap();
            assert_eq!(messages(&peer), ["head "]);
        });
    }

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
