//! Asking another name server: the query as it came under an id of our own, from a socket of its own.
//!
//! UDP first; an answer that was cut short is asked for again over TCP. A server that is silent, unreachable or says
//! that it cannot answer is followed by the next. What comes back is believed only from the asked address, under the
//! id sent and about the question asked (RFC 5452).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

use super::message::{Header, set_id};
use super::resolv_conf::ResolvConf;
use crate::net::{
    ConnectError, ConnectOptions, Datagram, DatagramOptions, NetworkNamespace, Socket, SocketOptions, connect,
};
use crate::worker::Worker;

/// How long a query may take in all.
const TOTAL: Duration = Duration::from_secs(10);
/// Datagrams that answer no question of ours before a server is given up.
const STRAY_MAX: u32 = 64;
/// Codes by which a server says that another may know better: format error, failure, not implemented, refused.
const NEXT_SERVER: [u8; 4] = [1, 2, 4, 5];

/// Why no server has answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::session) enum UpstreamError {
    #[error("the node's resolv.conf names no server")]
    NoServer,
    #[error("no server answers: {0}")]
    Unanswered(String),
}

/// Why one server has not.
#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error("nothing came in time")]
    Silent,
    #[error("it answers with code {0}")]
    Failure(u8),
    #[error("it sends what is no answer")]
    Stray,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Connect(#[from] ConnectError),
}

/// Where questions are asked from.
#[derive(Debug)]
pub(super) struct Upstream<'a> {
    pub(super) worker: &'a Worker,
    pub(super) conf: &'a ResolvConf,
    pub(super) mark: Option<u32>,
    /// `None` is the proxy's own.
    pub(super) namespace: Option<&'a NetworkNamespace>,
    pub(super) random: u64,
}

impl Upstream<'_> {
    /// The first usable answer to a query, still under the id of ours.
    pub(super) async fn ask(&self, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        if self.conf.servers.is_empty() {
            return Err(UpstreamError::NoServer);
        }
        let mut last = String::from("nothing came in time");
        let asking = async {
            for server in self.conf.turns(self.random) {
                match self.ask_server(server, query).await {
                    Ok(answer) => return Some(answer),
                    Err(error) => {
                        tracing::debug!(%server, %error, "a name server does not answer");
                        last = format!("{server}: {error}");
                    }
                }
            }
            None
        };
        match monoio::time::timeout(TOTAL, asking).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(UpstreamError::Unanswered(last)),
        }
    }

    async fn ask_server(&self, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, Attempt> {
        let mut query = query.to_vec();
        set_id(&mut query, unpredictable()?);
        let by_udp = monoio::time::timeout(self.conf.timeout, self.by_udp(server, &query));
        let mut answer = by_udp.await.map_err(|_| Attempt::Silent)??;
        if Header::of(&answer).is_some_and(Header::is_truncated) {
            let by_tcp = monoio::time::timeout(self.conf.timeout, self.by_tcp(server, &query));
            answer = by_tcp.await.map_err(|_| Attempt::Silent)??;
        }
        let code = Header::of(&answer).map_or(0, Header::response_code);
        if NEXT_SERVER.contains(&code) {
            return Err(Attempt::Failure(code));
        }
        Ok(answer)
    }

    async fn by_udp(&self, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, Attempt> {
        let options = DatagramOptions { mark: self.mark, namespace: self.namespace.cloned() };
        let socket = Datagram::connect(server, &options)?;
        socket.try_send(query)?;
        for _ in 0..STRAY_MAX {
            let received = self.worker.lend(|buffer| {
                let count = socket.try_recv(buffer)?;
                Ok::<_, io::Error>(count.and_then(|count| buffer.get(..count)).map(<[u8]>::to_vec))
            })?;
            match received {
                Some(answer) if is_answer(query, &answer) => return Ok(answer),
                Some(_) => {}
                None => socket.readable().await?,
            }
        }
        Err(Attempt::Stray)
    }

    async fn by_tcp(&self, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, Attempt> {
        let options = ConnectOptions {
            socket: SocketOptions { mark: self.mark, ..SocketOptions::default() },
            namespace: self.namespace.cloned(),
            timeout: Some(self.conf.timeout),
            ..ConnectOptions::default()
        };
        let socket = connect(server, &options).await?;
        socket.write_all(&framed(query)).await?;
        let answer = read_framed(&socket, usize::from(u16::MAX)).await?.ok_or(Attempt::Stray)?;
        if is_answer(query, &answer) { Ok(answer) } else { Err(Attempt::Stray) }
    }
}

/// The message as it goes over TCP, behind its length (RFC 1035 section 4.2.2). Longer ones than fit are cut.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(2 + usize::from(length));
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message.get(..usize::from(length)).unwrap_or_default());
    framed
}

/// The next message of a TCP connection; `None` at its end, or where a message is announced that is longer than `max`.
pub(super) async fn read_framed(socket: &Socket, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if !read_exact(socket, &mut length).await? {
        return Ok(None);
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > max {
        return Ok(None);
    }
    let mut message = vec![0; length];
    let whole = read_exact(socket, &mut message).await?;
    Ok(whole.then_some(message))
}

async fn read_exact(socket: &Socket, mut buffer: &mut [u8]) -> io::Result<bool> {
    while !buffer.is_empty() {
        let count = socket.read(buffer).await?;
        if count == 0 {
            return Ok(false);
        }
        buffer = buffer.get_mut(count..).unwrap_or_default();
    }
    Ok(true)
}

/// An id that nobody can foresee: whoever guesses it can answer in the server's place.
pub(super) fn unpredictable() -> io::Result<u16> {
    let mut bytes = [0; 2];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// Whether a message answers a query: the same id and the same question. A server that could not read the question may
/// leave it out of its refusal.
pub(super) fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(header)) = (Header::of(query), Header::of(answer)) else { return false };
    if !header.is_response() || header.id() != asked.id() {
        return false;
    }
    match header.questions() {
        0 => header.response_code() != 0,
        1 => match (question(query), question(answer)) {
            (Some(asked), Some(answered)) => asked.eq_ignore_ascii_case(answered),
            _ => false,
        },
        _ => false,
    }
}

/// The bytes of the first question. Its name is the first of the message, so it cannot point to an earlier one.
fn question(message: &[u8]) -> Option<&[u8]> {
    let all = message.get(12..)?;
    let mut at = 0;
    loop {
        let length = usize::from(*all.get(at)?);
        at += 1 + length;
        match length {
            // Type and class follow the root label.
            0 => return all.get(..at + 4),
            1..=63 => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Family, address_query};
    use super::*;

    fn query(name: &str) -> Vec<u8> {
        address_query(name.parse().unwrap(), Family::V4, 7)
    }

    fn response(name: &str) -> Vec<u8> {
        let mut answer = query(name);
        answer[2] |= 0x80;
        answer
    }

    #[test]
    fn only_the_answer_to_the_very_question_is_believed() {
        let asked = query("www.example.com.");
        assert!(is_answer(&asked, &response("www.example.com.")));
        assert!(is_answer(&asked, &response("WWW.example.COM.")));
        assert!(!is_answer(&asked, &asked), "a query is no answer");
        assert!(!is_answer(&asked, &response("www.example.org.")));
        let mut other_id = response("www.example.com.");
        set_id(&mut other_id, 8);
        assert!(!is_answer(&asked, &other_id));
        let mut other_type = response("www.example.com.");
        let type_at = 12 + "www.example.com.".len() + 1 + 1;
        other_type[type_at] = 28;
        assert!(!is_answer(&asked, &other_type));
        assert!(!is_answer(&asked, &[0; 11]));
    }

    #[test]
    fn a_refusal_may_leave_the_question_out() {
        let asked = query("www.example.com.");
        let mut refusal = [0, 7, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(is_answer(&asked, &refusal));
        refusal[3] = 0;
        assert!(!is_answer(&asked, &refusal), "but no success may");
    }

    #[test]
    fn fuzz_any_bytes_are_judged() {
        let asked = query("www.example.com.");
        bolero::check!().for_each(|bytes: &[u8]| {
            if is_answer(&asked, bytes) {
                assert_eq!(Header::of(bytes).map(Header::id), Some(7));
            }
            let _ = question(bytes);
        });
    }

    #[test]
    fn a_message_over_tcp_stands_behind_its_length() {
        assert_eq!(framed(b"abc"), b"\0\x03abc");
        assert_eq!(framed(&vec![0; 70_000]).len(), 2 + 65_535);
    }
}
