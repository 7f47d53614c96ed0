//! A tunnel client without a node proxy around it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use dataplane::link::{DialOptions, Link, RequestError};
use dataplane::net::{ConnectOptions, NetworkNamespace};
use dataplane::worker::{DriverChoice, Supervisor, WorkerOptions};
use model::Identity;
use tunnel::h2::{Config, Headers};
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy};

use super::PATIENCE;
use super::pki::{Leaf, Pki};

/// Who asks, from where, whom.
pub struct RawClient {
    pub from: NetworkNamespace,
    pub credentials: Credentials,
    pub to: SocketAddr,
    pub expected: Identity,
}

/// What a request brought.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Of an accepted request.
    pub headers: Option<Headers>,
    pub body: Vec<u8>,
}

impl RawClient {
    /// The status that each request is answered with, all on one tunnel.
    pub fn ask(&self, requests: Vec<Headers>) -> Vec<u16> {
        let silent = requests.into_iter().map(|headers| (headers, None)).collect();
        self.run(silent).into_iter().map(|answer| answer.status).collect()
    }

    /// Sends `bytes` on one request and ends; reads to the end.
    pub fn exchange(&self, request: Headers, bytes: &[u8]) -> Answer {
        self.run(vec![(request, Some(bytes.to_vec()))]).remove(0)
    }

    fn run(&self, requests: Vec<(Headers, Option<Vec<u8>>)>) -> Vec<Answer> {
        let context = Arc::new(ClientContext::new(&self.credentials, CryptoPolicy::default()).unwrap());
        let options = DialOptions {
            to: self.to,
            connect: ConnectOptions { namespace: Some(self.from.clone()), ..ConnectOptions::default() },
            context,
            expected: Arc::from([self.expected.clone()]),
            workload: None,
            http: Config::hbone_client(),
        };
        let (tell, answers) = mpsc::channel();
        let job = Mutex::new(Some((options, requests, tell)));
        let workers = WorkerOptions { workers: Some(1), driver: DriverChoice::Epoll };
        let start = move |worker: &dataplane::worker::Worker| {
            let (options, requests, tell) = job.lock().unwrap().take().unwrap();
            let dialling = worker.clone();
            worker.spawn(async move {
                let link = Link::dial(&dialling, &options).await.unwrap();
                let mut answers = Vec::new();
                for (headers, bytes) in requests {
                    answers.push(request(&link, &headers, bytes.as_deref()).await);
                }
                link.close(dataplane::link::CloseCause::LocalClose, "asked enough");
                tell.send(answers).unwrap();
            });
            Ok(())
        };
        let supervisor = Supervisor::start(&workers, start).unwrap();
        let answers = answers.recv_timeout(PATIENCE).unwrap();
        supervisor.drain(Instant::now());
        supervisor.join();
        answers
    }
}

async fn request(link: &Rc<Link>, headers: &Headers, bytes: Option<&[u8]>) -> Answer {
    match link.request(headers).await {
        Ok((stream, headers)) => {
            let mut body = Vec::new();
            if let Some(bytes) = bytes {
                stream.write_all(bytes).await.unwrap();
                stream.finish().unwrap();
                let mut piece = [0; 4096];
                while let count @ 1.. = stream.read(&mut piece).await.unwrap() {
                    body.extend_from_slice(&piece[..count]);
                }
            }
            Answer { status: 200, headers: Some(headers), body }
        }
        Err(RequestError::Refused { status, .. }) => Answer { status, headers: None, body: Vec::new() },
        Err(error) => panic!("{error}"),
    }
}

/// Shows a certificate to a server and says whether it was taken: it sends its settings only to a client that it knows.
pub fn is_taken(leaf: Leaf, socket: std::net::TcpStream) -> bool {
    let config = Arc::new(Pki::client(leaf, &rustls::version::TLS13));
    let name = "server.invalid".try_into().unwrap();
    let session = rustls::ClientConnection::new(config, name).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut answer = [0; 9];
    match stream.write_all(preface).and_then(|()| stream.read_exact(&mut answer)) {
        Ok(()) => true,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            panic!("neither taken nor refused: {error}")
        }
        Err(_refused) => false,
    }
}

/// Asks for a tunnel with nothing but TLS 1.2, sends `bytes` in it and ends; what comes back until its end.
pub fn ask_in_tls12(
    leaf: Leaf,
    socket: std::net::TcpStream,
    authority: &str,
    bytes: &[u8],
) -> io::Result<Vec<u8>> {
    let config = Arc::new(Pki::client(leaf, &rustls::version::TLS12));
    let session = rustls::ClientConnection::new(config, "server.invalid".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    // Literal fields without indexing (RFC 7541 section 6.2.2): 2 is :method, 1 is :authority.
    let head = [&[2, 7][..], b"CONNECT", &[1, u8::try_from(authority.len()).unwrap()], authority.as_bytes()];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    for (kind, flags, id, payload) in [(4, 0, 0, &[][..]), (1, 4, 1, &head.concat()), (0, 1, 1, bytes)] {
        let length = u8::try_from(payload.len()).unwrap();
        stream.write_all(&[0, 0, length, kind, flags, 0, 0, 0, id])?;
        stream.write_all(payload)?;
    }
    let mut answer = Vec::new();
    loop {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame)?;
        let [a, b, c, kind, flags, ..] = frame;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        if kind == 0 {
            answer.extend(payload);
            if flags & 1 == 1 {
                return Ok(answer);
            }
        }
    }
}
