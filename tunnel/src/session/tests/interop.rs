//! Against tokio-rustls and the h2 crate, the stack of other proxies, in both roles.

use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::tls::testing::{Leaf, uri};

const TOTAL: usize = 9_000_000;

fn payload() -> Vec<u8> {
    (0..TOTAL).map(|at| (at ^ at >> 9).to_le_bytes()[0]).collect()
}

/// The shell of a test: moves bytes between a session and a stream, and lets `act` answer the events.
async fn shell(mut session: Session, mut io: DuplexStream, mut act: impl FnMut(&mut Session, Seen) -> bool) {
    let mut buffer = vec![0; 100_000];
    let mut running = true;
    loop {
        while !session.output().is_empty() {
            let count = io.write(session.output()).await.unwrap();
            session.consumed(count);
        }
        if !running {
            session.close(CloseCause::LocalClose);
            // The peer may have gone first.
            let _gone = io.write_all(session.output()).await;
            return;
        }
        let kept = session.prepare_input(&mut buffer);
        let count = io.read(&mut buffer[kept..]).await.unwrap();
        assert_ne!(count, 0, "the peer went away");
        let mut ingest = session.ingest(&mut buffer[..kept + count], Instant::now());
        while let Some(event) = ingest.next().unwrap() {
            let seen = match event {
                SessionEvent::Established { .. } => Seen::Established,
                SessionEvent::Http(h2::Event::Headers { stream, headers, .. }) => {
                    Seen::Headers(stream, headers)
                }
                SessionEvent::Http(h2::Event::Data { stream, bytes, end_stream }) => {
                    ingest.session().release(stream, bytes.len());
                    Seen::Data(stream, bytes.to_vec(), end_stream)
                }
                SessionEvent::Http(h2::Event::Writable { stream }) => Seen::Writable(stream),
                SessionEvent::Http(h2::Event::Reset { stream, code, .. }) => Seen::Reset(stream, code),
                _ => Seen::Other,
            };
            running &= act(ingest.session(), seen);
        }
    }
}

/// Sends what is left of `pending`; the end of the stream with the last byte.
fn pump(session: &mut Session, stream: StreamId, pending: &mut Vec<u8>, last: bool) {
    let accepted = session.send_data(stream, pending, last).unwrap();
    pending.drain(..accepted);
}

fn roots(authority: &CertificateAuthority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).unwrap();
    roots
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[tokio::test]
async fn our_client_speaks_with_tokio_rustls_and_the_h2_crate() {
    let authority = CertificateAuthority::new();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&authority)), provider()).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(authority.identity(SERVER).resolver());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (ours, theirs) = tokio::io::duplex(64 * 1024);

    let peer = async move {
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(theirs).await.unwrap();
        let mut connection = ::h2::server::handshake(tls).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.method(), http::Method::CONNECT);
        assert_eq!(request.uri().authority().unwrap(), "10.0.0.1:80");
        let echo = async move {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            let mut body = request.into_body();
            while let Some(bytes) = body.data().await {
                let bytes = bytes.unwrap();
                body.flow_control().release_capacity(bytes.len()).unwrap();
                send.send_data(bytes, false).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
        };
        tokio::join!(echo, async { while let Some(Ok(_)) = connection.accept().await {} });
    };

    let context = client(&authority.identity(CLIENT));
    let session =
        Session::client(&context, &expecting(&[SERVER]), Config::hbone_client(), Instant::now()).unwrap();
    let (mut pending, mut echoed) = (payload(), Vec::new());
    let act = |session: &mut Session, seen: Seen| {
        match seen {
            Seen::Established => {
                session.open(&connect(), false).unwrap();
            }
            Seen::Headers(stream, headers) => {
                assert_eq!(headers.status(), Some(200));
                pump(session, stream, &mut pending, true);
            }
            Seen::Writable(stream) => pump(session, stream, &mut pending, true),
            Seen::Data(_, bytes, ended) => {
                echoed.extend_from_slice(&bytes);
                return !ended;
            }
            Seen::Other => {}
            other => panic!("{other:?}"),
        }
        true
    };
    tokio::join!(peer, shell(session, ours, act));
    assert!(echoed == payload());
}

#[tokio::test]
async fn our_server_speaks_with_tokio_rustls_and_the_h2_crate() {
    let authority = CertificateAuthority::new();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(&authority))
        .with_client_cert_resolver(authority.identity(CLIENT).resolver());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (ours, theirs) = tokio::io::duplex(64 * 1024);

    let peer = async move {
        let name = ServerName::try_from("server.test").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, theirs).await.unwrap();
        let (send_request, connection) = ::h2::client::handshake(tls).await.unwrap();
        let exchange = async move {
            let mut send_request = send_request.ready().await.unwrap();
            let request = http::Request::connect("10.0.0.1:80").body(()).unwrap();
            let (response, mut send) = send_request.send_request(request, false).unwrap();
            send.send_data(Bytes::from(payload()), true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            let (mut body, mut echoed) = (response.into_body(), Vec::new());
            while let Some(bytes) = body.data().await {
                let bytes = bytes.unwrap();
                body.flow_control().release_capacity(bytes.len()).unwrap();
                echoed.extend_from_slice(&bytes);
            }
            assert!(echoed == payload());
        };
        // The connection ends with the last handle, or with our close.
        let ((), _ended) = tokio::join!(exchange, connection);
    };

    let dns = rcgen::SanType::DnsName("server.test".try_into().unwrap());
    let credentials = authority.issue(&Leaf { names: vec![dns, uri(SERVER)], ..Leaf::of(SERVER) });
    let session = Session::server(&server(&credentials), Config::hbone_server(), Instant::now()).unwrap();
    let (mut pending, mut received, mut ended) = (Vec::new(), 0, false);
    let act = |session: &mut Session, seen: Seen| {
        match seen {
            Seen::Headers(stream, headers) => {
                assert_eq!(ConnectRequest::parse(&headers).unwrap().authority().to_string(), "10.0.0.1:80");
                session.respond(stream, &accept("").unwrap(), false).unwrap();
            }
            Seen::Data(stream, bytes, end) => {
                received += bytes.len();
                ended = end;
                pending.extend_from_slice(&bytes);
                pump(session, stream, &mut pending, ended);
            }
            Seen::Writable(stream) => pump(session, stream, &mut pending, ended),
            Seen::Established | Seen::Other => {}
            other => panic!("{other:?}"),
        }
        !(ended && pending.is_empty())
    };
    tokio::join!(peer, shell(session, ours, act));
    assert_eq!(received, TOTAL);
}
