//! gRPC as load generator and backend speak it: HTTP/2 in the clear with prior knowledge, through the `h2` crate.
//!
//! A message is five octets (not compressed, and its length; gRPC over HTTP/2, "Length-Prefixed-Message") and what it
//! says. A request says how many bytes it wants and its number; the reply repeats the number and has the bytes of
//! [`crate::wire`]'s pattern. Both sides check every byte.

pub(crate) mod backend;
pub(super) mod client;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Failure;

const PREFIX_BYTES: usize = 5;
const REQUEST_BYTES: usize = 16;
const NUMBER_BYTES: usize = 8;
/// Larger ones are nobody's here.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Windows that no message of these sizes fills.
const WINDOW_BYTES: u32 = 4 << 20;

fn message(parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for part in parts {
        bytes.put_slice(part);
    }
    bytes.freeze()
}

/// Puts messages together from the pieces in which they come.
#[derive(Debug, Default)]
struct Messages {
    held: BytesMut,
}

impl Messages {
    fn push(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
    }

    /// The next whole message without its prefix.
    fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some((prefix, _)) = self.held.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        if compressed != 0 || length > MESSAGE_BYTES_MAX {
            return Err("a message has a prefix that nobody wrote".into());
        }
        if self.held.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.held.advance(PREFIX_BYTES);
        Ok(Some(self.held.split_to(length).freeze()))
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::super::http::Ask;
    use super::super::http::client::Target;
    use super::client::{Calls, load, status_of};
    use super::*;

    #[test]
    fn messages_come_in_any_pieces() {
        let bytes = [message(&[b"one"]), message(&[b"", b"two"])].concat();
        for size in 1..bytes.len() {
            let (mut messages, mut seen) = (Messages::default(), Vec::new());
            for piece in bytes.chunks(size) {
                messages.push(piece);
                seen.extend(std::iter::from_fn(|| messages.next().unwrap()));
            }
            assert_eq!(seen, [&b"one"[..], b"two"]);
            assert!(messages.is_empty());
        }
        let mut messages = Messages::default();
        messages.push(&[1, 0, 0, 0, 0]);
        assert!(messages.next().is_err());
    }

    #[test]
    fn calls_and_streams_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || panic!("the backend ended: {:?}", backend::serve(listener).err()));
        let (host, path) = ("app".to_owned(), "/v1/perf.Echo/users/Echo".to_owned());
        let target = Target { address, ask: Ask { host, path, fields: String::new() } };
        assert_eq!(status_of(&target).unwrap(), 200);
        for calls in [Calls::Unary, Calls::Streams] {
            let mut begun = 0;
            let outcome = load(&target, calls, 1024, Duration::from_millis(100), || begun += 1).unwrap();
            assert!(outcome.requests > 64 && outcome.latencies.len() == outcome.requests, "{outcome:?}");
            assert_eq!(begun, 1);
        }
    }
}
