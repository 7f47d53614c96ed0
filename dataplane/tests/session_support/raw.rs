//! A tunnel client without a node proxy around it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
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

impl RawClient {
    /// The status that each request is answered with, all on one tunnel.
    pub fn ask(&self, requests: Vec<Headers>) -> Vec<u16> {
        let context = Arc::new(ClientContext::new(&self.credentials, CryptoPolicy::default()).unwrap());
        let options = DialOptions {
            to: self.to,
            connect: ConnectOptions { namespace: Some(self.from.clone()), ..ConnectOptions::default() },
            context,
            expected: Arc::from([self.expected.clone()]),
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
                let mut statuses = Vec::new();
                for headers in requests {
                    statuses.push(match link.request(&headers).await {
                        Ok(_) => 200,
                        Err(RequestError::Refused { status, .. }) => status,
                        Err(error) => panic!("{error}"),
                    });
                }
                link.close(dataplane::link::CloseCause::LocalClose, "asked enough");
                tell.send(statuses).unwrap();
            });
            Ok(())
        };
        let supervisor = Supervisor::start(&workers, start).unwrap();
        let statuses = answers.recv_timeout(PATIENCE).unwrap();
        supervisor.drain(Instant::now());
        supervisor.join();
        statuses
    }
}

/// Shows a certificate to a server and says whether it was taken: it sends its settings only to a client that it knows.
pub fn is_taken(leaf: Leaf, socket: std::net::TcpStream) -> bool {
    let config = Arc::new(Pki::client(leaf));
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
