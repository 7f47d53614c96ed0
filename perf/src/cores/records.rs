//! TLS: handshakes, and payload framed, sealed and opened.

use std::sync::Arc;
use std::time::Instant;

use model::Identity;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::PrivateKeyDer;
use tunnel::h2::{Config, Event, Headers};
use tunnel::session::{Session, SessionEvent};
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy, ServerContext};

use super::Step;
use super::http2::connect_request;

/// Both ends of a full handshake.
pub(super) fn handshake() -> Step {
    let mut ends = Ends::new();
    Box::new(move || {
        drop(ends.connect());
    })
}

pub(super) fn sealed(size: usize) -> Step {
    let mut ends = Ends::new();
    let (mut client, mut server) = ends.connect();
    let stream = client.open(&connect_request(), false).expect("a stream");
    let payload = vec![7; size];
    Box::new(move || {
        assert_eq!(client.send_data(stream, &payload, false).expect("sent"), size);
        assert_eq!(deliver(&mut client, &mut server, &mut ends.buffer), size);
        deliver(&mut server, &mut client, &mut ends.buffer);
    })
}

struct Ends {
    client: ClientContext,
    server: ServerContext,
    expected: Arc<[Identity]>,
    buffer: Vec<u8>,
}

impl Ends {
    fn new() -> Self {
        let (client, server, expected) = contexts();
        Self { client, server, expected, buffer: vec![0; 512 * 1024] }
    }

    fn connect(&mut self) -> (Session, Session) {
        let now = Instant::now();
        let client = Session::client(&self.client, &self.expected, Config::hbone_client(), now);
        let mut client = client.expect("a client");
        let mut server = Session::server(&self.server, Config::hbone_server(), now).expect("a server");
        for _ in 0..3 {
            deliver(&mut client, &mut server, &mut self.buffer);
            deliver(&mut server, &mut client, &mut self.buffer);
        }
        assert!(client.peer().is_some() && server.peer().is_some());
        (client, server)
    }
}

fn contexts() -> (ClientContext, ServerContext, Arc<[Identity]>) {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root =
        CertifiedIssuer::self_signed(root, KeyPair::generate().expect("sound input")).expect("sound input");
    let issue = |account: &str| {
        let mut leaf = CertificateParams::default();
        let uri = format!("spiffe://cluster.local/ns/app/sa/{account}");
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().expect("sound input"))];
        let key = KeyPair::generate().expect("sound input");
        let certificate = leaf.signed_by(&key, &root).expect("sound input").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("sound input");
        Credentials::from_der(vec![certificate], key, std::slice::from_ref(root.der())).expect("sound input")
    };
    let (client, server) = (issue("client"), issue("server"));
    let expected = Arc::from([server.identity().clone()]);
    let standard = CryptoPolicy::Standard;
    (
        ClientContext::new(&client, standard).expect("sound input"),
        ServerContext::new(&server, standard).expect("sound input"),
        expected,
    )
}

/// Hands all output of one session to the other; counts payload bytes and gives their credit back.
fn deliver(from: &mut Session, to: &mut Session, buffer: &mut [u8]) -> usize {
    let mut payload = 0;
    loop {
        let start = to.prepare_input(buffer);
        let count = {
            let output = from.output();
            let count = output.len().min(buffer.len() - start);
            buffer[start..start + count].copy_from_slice(&output[..count]);
            count
        };
        if count == 0 {
            return payload;
        }
        from.consumed(count);
        let mut ingest = to.ingest(&mut buffer[..start + count], Instant::now());
        while let Some(event) = ingest.next().expect("sound input") {
            match event {
                SessionEvent::Http(Event::Data { stream, bytes, .. }) => {
                    payload += bytes.len();
                    ingest.session().release(stream, bytes.len());
                }
                SessionEvent::Http(Event::Headers { stream, .. }) => {
                    let answer = Headers::response(200).expect("sound input");
                    // Only the server is sent a request; the client gets its answer here.
                    let _ = ingest.session().respond(stream, &answer, false);
                }
                _ => {}
            }
        }
    }
}
