//! Links and pools over real sockets, both roles on one worker.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use model::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tunnel::h2::{Config, ErrorCode, Headers};
use tunnel::pool::PoolConfig;
use tunnel::tls::{ClientContext, CloseCause, Credentials, CryptoPolicy, ServerContext};

mod within;

use super::*;
use crate::net::testing::on_each_driver;
use crate::net::{ConnectOptions, ListenOptions, Listener};
use crate::worker::{Signal, Worker};

const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";

/// Credentials of both ends under one root.
fn credentials() -> (Credentials, Credentials) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let leaf = |identity: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        Credentials::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes(), root.as_bytes())
            .unwrap()
    };
    (leaf(CLIENT), leaf(SERVER))
}

/// Keeps what arrives, for the test to act on.
#[derive(Default)]
struct Inbox {
    requests: RefCell<Vec<IncomingRequest>>,
    ended: RefCell<Vec<LinkEnd>>,
    links: RefCell<Vec<Rc<Link>>>,
    arrived: Signal,
}

impl Handler for Inbox {
    fn request(&self, request: IncomingRequest) {
        self.requests.borrow_mut().push(request);
        self.arrived.raise();
    }

    fn ended(&self, _link: &Rc<Link>, end: &LinkEnd) {
        self.ended.borrow_mut().push(end.clone());
        self.arrived.raise();
    }
}

impl Inbox {
    async fn next(&self) -> IncomingRequest {
        loop {
            if let Some(request) = self.requests.borrow_mut().pop() {
                return request;
            }
            self.arrived.wait().await;
        }
    }

    async fn end(&self) -> LinkEnd {
        loop {
            if let Some(end) = self.ended.borrow_mut().pop() {
                return end;
            }
            self.arrived.wait().await;
        }
    }
}

/// A server on the worker, and how to dial it.
fn lab(worker: &Worker) -> (Rc<Inbox>, DialOptions) {
    let (client, server) = credentials();
    let inbox = Rc::new(Inbox::default());
    let to = listen(worker, &server, inbox.clone(), Some(inbox.clone()));
    (inbox, dial_options(&client, to, SERVER))
}

/// Serves the links that come to a new port; `keeper` keeps them.
fn listen(
    worker: &Worker,
    server: &Credentials,
    handler: Rc<dyn Handler>,
    keeper: Option<Rc<Inbox>>,
) -> SocketAddr {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
    let at = listener.local_address().unwrap();
    let context = ServerContext::new(server, CryptoPolicy::default()).unwrap();
    let serving = worker.clone();
    worker.spawn(async move {
        while let Some(Ok((socket, from))) = serving.unless_draining(listener.accept()).await {
            let link =
                serve(&serving, socket, from, &context, &ServerOptions::default(), handler.clone()).unwrap();
            if let Some(keeper) = &keeper {
                keeper.links.borrow_mut().push(link);
            }
        }
    });
    at
}

fn dial_options(client: &Credentials, to: SocketAddr, expected: &str) -> DialOptions {
    DialOptions {
        to,
        connect: ConnectOptions::default(),
        context: Arc::new(ClientContext::new(client, CryptoPolicy::default()).unwrap()),
        expected: Arc::from([expected.parse::<Identity>().unwrap()]),
        workload: None,
        http: Config::hbone_client(),
    }
}

fn request() -> Headers {
    Headers::connect("10.0.0.1:80").unwrap()
}

fn ok() -> Headers {
    Headers::response(200).unwrap()
}

/// Opens a stream; both ends of it.
async fn stream(link: &Rc<Link>, inbox: &Inbox) -> (TunnelStream, TunnelStream) {
    let headers = request();
    let (client, server) = futures::join!(link.request(&headers), async {
        let request = inbox.next().await;
        assert_eq!(request.peer().identity.uri(), CLIENT);
        assert_eq!(request.headers().authority(), Some(&b"10.0.0.1:80"[..]));
        request.accept(&ok()).unwrap()
    });
    (client.unwrap().0, server)
}

async fn read_all(stream: &TunnelStream) -> Result<Vec<u8>, StreamError> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 50_000]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn both_ends_read_what_the_other_writes_beyond_all_windows() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let link = Link::dial(&worker, &options).await.unwrap();
        assert_eq!(link.peer().unwrap().identity.uri(), SERVER);
        let (client, server) = stream(&link, &inbox).await;
        // Larger than the windows of stream and connection, so that credit must come back.
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
        let (sent, received) = futures::join!(
            async {
                client.write_all(&bytes).await?;
                client.finish()
            },
            read_all(&server)
        );
        sent.unwrap();
        assert!(received.unwrap() == bytes);
        // The other direction is still open.
        server.write_all(b"answer").await.unwrap();
        server.finish().unwrap();
        assert_eq!(read_all(&client).await.unwrap(), b"answer");
        drop((client, server));
        assert_eq!(link.stream_count(), 0);
    });
}

#[test]
fn a_dropped_or_cut_stream_is_not_taken_for_an_ended_one() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let link = Link::dial(&worker, &options).await.unwrap();
        let (client, server) = stream(&link, &inbox).await;
        client.write_all(b"part").await.unwrap();
        drop(client);
        let end = read_all(&server).await.unwrap_err();
        assert_eq!(end, StreamError::Ended(StreamEnd::Reset(ErrorCode::CANCEL)));

        let (client, server) = stream(&link, &inbox).await;
        let cutter = server.cutter();
        assert!(cutter.is_alive());
        cutter.cut(ErrorCode::CONNECT_ERROR);
        let end = read_all(&client).await.unwrap_err();
        assert_eq!(end, StreamError::Ended(StreamEnd::Reset(ErrorCode::CONNECT_ERROR)));
        drop((client, server));
        assert!(!cutter.is_alive());
        // The link has not suffered.
        let (client, server) = stream(&link, &inbox).await;
        server.write_all(b"on").await.unwrap();
        let mut two = [0; 2];
        assert_eq!(client.read(&mut two).await.unwrap(), 2);
    });
}

#[test]
fn a_refused_or_unanswered_request_gives_its_status() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let link = Link::dial(&worker, &options).await.unwrap();
        for (answer, status) in [(Some(401), 401), (None, 503)] {
            let headers = request();
            let (result, ()) = futures::join!(link.request(&headers), async {
                let request = inbox.next().await;
                match answer {
                    Some(status) => request.refuse(status),
                    None => drop(request),
                }
            });
            let refused = result.unwrap_err();
            assert!(matches!(refused, RequestError::Refused { status: s, .. } if s == status), "{refused}");
        }
    });
}

#[test]
fn the_end_of_a_link_reaches_its_streams_and_its_peer() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let link = Link::dial(&worker, &options).await.unwrap();
        let (client, server) = stream(&link, &inbox).await;
        link.close(CloseCause::LocalClose, "told to");
        assert!(matches!(client.read(&mut [0]).await, Err(StreamError::Ended(StreamEnd::Link(_)))));
        assert!(matches!(server.read(&mut [0]).await, Err(StreamError::Ended(_))));
        assert_eq!(inbox.end().await.cause, CloseCause::Clean);
        assert_eq!(link.end().unwrap().cause, CloseCause::LocalClose);
        assert!(!link.takes_streams());
    });
}

#[test]
fn a_pool_shares_a_link_and_dials_another_when_it_goes_away() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let pool = Pool::new(&worker, PoolConfig::DEFAULT);
        let headers = request();
        let answer = async || inbox.next().await.accept(&ok()).unwrap();
        // Three at once: one dials, two wait for it.
        let opened = futures::join!(
            pool.open(&options, &headers),
            pool.open(&options, &headers),
            pool.open(&options, &headers),
            async { (answer().await, answer().await, answer().await) }
        );
        let first = opened.0.unwrap().0;
        let others = (opened.1.unwrap().0, opened.2.unwrap().0);
        assert_eq!(pool.link_count(), 1);
        assert!(Rc::ptr_eq(first.link(), others.0.link()) && Rc::ptr_eq(first.link(), others.1.link()));

        let old = first.link().clone();
        old.drain();
        let (next, _server) = futures::join!(pool.open(&options, &headers), answer());
        let next = next.unwrap().0;
        assert!(!Rc::ptr_eq(next.link(), &old));
        // Streams of the old link live on until they end.
        assert!(first.try_read(&mut [0]).unwrap().is_none());
    });
}

#[test]
fn a_drain_that_began_during_the_handshake_is_announced_after_it() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let (client, server) = futures::join!(Link::dial(&worker, &options), async {
            while inbox.links.borrow().is_empty() {
                worker.yield_now().await;
            }
            let link = inbox.links.borrow()[0].clone();
            assert!(link.peer().is_none(), "the handshake is over already");
            link.drain();
            link
        });
        let client = client.unwrap();
        server.settled().await.unwrap();
        // As each tick of a draining worker does.
        server.drain();
        while client.takes_streams() {
            worker.yield_now().await;
        }
    });
}

#[test]
fn a_workload_with_the_address_of_another_gets_links_of_its_own() {
    on_each_driver(|worker| async move {
        let (inbox, options) = lab(&worker);
        let pool = Pool::new(&worker, PoolConfig::DEFAULT);
        let headers = request();
        let of = |uid: &str| DialOptions { workload: Some(Arc::from(uid)), ..options.clone() };
        let (old, new) = (of("old"), of("new"));
        let answer = async || inbox.next().await.accept(&ok()).unwrap();
        let (before, _server) = futures::join!(pool.open(&old, &headers), answer());
        let (again, _server) = futures::join!(pool.open(&old, &headers), answer());
        let (after, _server) = futures::join!(pool.open(&new, &headers), answer());
        let (before, again, after) = (before.unwrap().0, again.unwrap().0, after.unwrap().0);
        assert!(Rc::ptr_eq(before.link(), again.link()));
        assert!(!Rc::ptr_eq(before.link(), after.link()));
    });
}

#[test]
fn a_pool_tells_all_who_wait_why_there_is_no_link() {
    on_each_driver(|worker| async move {
        let (_inbox, options) = lab(&worker);
        let (client, _) = credentials();
        let pool = Pool::new(&worker, PoolConfig::DEFAULT);
        let headers = request();
        let other = "spiffe://cluster.local/ns/app/sa/other".parse::<Identity>().unwrap();
        let expects_other = DialOptions { expected: Arc::from([other]), ..options.clone() };
        let (one, two) =
            futures::join!(pool.open(&expects_other, &headers), pool.open(&expects_other, &headers));
        for error in [one.unwrap_err(), two.unwrap_err()] {
            assert_eq!(error.close_cause(), Some(CloseCause::TlsIdentityUnexpected), "{error}");
        }
        let untrusting = dial_options(&client, options.to, SERVER);
        let error = pool.open(&untrusting, &headers).await.unwrap_err();
        assert_eq!(error.close_cause(), Some(CloseCause::TlsCertificateUntrusted), "{error}");
        assert_eq!(pool.link_count(), 0);
    });
}
