//! Links within streams of other links, through a gateway that knows nothing of them.

use futures::FutureExt;

use super::*;
use crate::net::connect;

/// A gateway: connects each request to one place and relays its bytes, whatever they are.
struct Gateway {
    worker: Worker,
    to: SocketAddr,
    streams: RefCell<Vec<StreamCutter>>,
}

impl Handler for Gateway {
    fn request(&self, request: IncomingRequest) {
        let to = self.to;
        let stream = request.accept(&ok()).unwrap();
        self.streams.borrow_mut().push(stream.cutter());
        self.worker.spawn(async move {
            let socket = connect(to, &ConnectOptions::default()).await.unwrap();
            let counters = Rc::default();
            stream.relay(socket, Flow::Upstream, &counters).await;
        });
    }
}

/// A gateway in front of a server, a link to the gateway, and who the server is expected to be.
struct Lab {
    inbox: Rc<Inbox>,
    gateway: Rc<Gateway>,
    link: Rc<Link>,
    options: DialOptions,
}

async fn behind_gateway(worker: &Worker) -> Lab {
    let (client, server) = credentials();
    let inbox = Rc::new(Inbox::default());
    let to = listen(worker, &server, inbox.clone(), Some(inbox.clone()));
    let gateway = Rc::new(Gateway { worker: worker.clone(), to, streams: RefCell::default() });
    let at = listen(worker, &server, gateway.clone(), None);
    let options = dial_options(&client, at, SERVER);
    let link = Link::dial(worker, &options).await.unwrap();
    Lab { inbox, gateway, link, options }
}

impl Lab {
    async fn within(&self, expected: &Arc<[Identity]>) -> Result<InnerLink, DialError> {
        let (outer, _) = self.link.request(&request()).await.unwrap();
        Link::within(outer, &self.options.context, expected).await
    }

    /// Both ends of a stream through the gateway.
    async fn stream(&self) -> (TunnelStream, TunnelStream) {
        let inner = self.within(&self.options.expected).await.unwrap();
        let headers = Headers::connect("web.app:80").unwrap();
        let (client, server) = futures::join!(inner.request(&headers), async {
            let request = self.inbox.next().await;
            assert_eq!(request.peer().identity.uri(), CLIENT);
            assert_eq!(request.headers().authority(), Some(&b"web.app:80"[..]));
            request.accept(&ok()).unwrap()
        });
        (client.unwrap().0, server)
    }

    /// Waits until the gateway's link carries nothing.
    async fn until_empty(&self) {
        while self.link.stream_count() > 0 {
            monoio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

#[test]
fn a_stream_within_a_stream_carries_more_than_all_windows_both_ways() {
    on_each_driver(|worker| async move {
        let lab = behind_gateway(&worker).await;
        let (client, server) = lab.stream().await;
        assert_eq!(client.link().peer().unwrap().identity.uri(), SERVER);
        assert!(!Rc::ptr_eq(client.link(), &lab.link));
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
        let there = async |from: &TunnelStream, to: &TunnelStream| {
            let (sent, received) = futures::join!(
                async {
                    from.write_all(&bytes).await?;
                    from.finish()
                },
                read_all(to)
            );
            sent.unwrap();
            assert!(received.unwrap() == bytes);
        };
        // One after the other: the end of one direction leaves the other open.
        there(&client, &server).await;
        there(&server, &client).await;
        // The link and its carrier go with the stream.
        drop((client, server));
        lab.until_empty().await;
        assert_eq!(lab.inbox.end().await.cause, CloseCause::Clean);
        assert!(lab.link.takes_streams());
    });
}

#[test]
fn a_relayed_stream_within_a_stream_keeps_the_end_of_each_direction() {
    on_each_driver(|worker| async move {
        let lab = behind_gateway(&worker).await;
        let (client, server) = lab.stream().await;
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
        let at = listener.local_address().unwrap();
        let application = connect(at, &ConnectOptions::default()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let counters = Rc::default();
        let relay = client.relay(accepted, Flow::Downstream, &counters);
        let talk = async {
            application.write_all(b"question").await.unwrap();
            application.shutdown_write().unwrap();
            assert_eq!(read_all(&server).await.unwrap(), b"question");
            server.write_all(b"answer").await.unwrap();
            server.finish().unwrap();
            let mut answer = [0; 16];
            assert_eq!(application.read(&mut answer).await.unwrap(), 6);
            assert_eq!(application.read(&mut answer).await.unwrap(), 0);
        };
        let (end, ()) = futures::join!(relay, talk);
        assert!(matches!(end, StreamRelayEnd::Complete), "{end}");
        assert_eq!((counters.sent.get(), counters.received.get()), (8, 6));
        drop(server);
        lab.until_empty().await;
    });
}

#[test]
fn a_reader_that_rests_holds_the_writer_back_through_both_links() {
    on_each_driver(|worker| async move {
        let lab = behind_gateway(&worker).await;
        let (client, server) = lab.stream().await;
        let bytes = vec![7; 10_000];
        let mut written = 0;
        // Nobody reads at the other end: at some point nothing is taken any more.
        while let Some(result) = client.write_all(&bytes).now_or_never() {
            result.unwrap();
            written += bytes.len();
            worker.yield_now().await;
        }
        assert!(written <= 4 << 20, "{written} bytes are more than the window of the stream");
        drop(client);
        drop(server);
        lab.until_empty().await;
    });
}

#[test]
fn somebody_else_behind_the_gateway_is_not_taken_and_nothing_is_left_behind() {
    on_each_driver(|worker| async move {
        let lab = behind_gateway(&worker).await;
        let other = Arc::from(["spiffe://cluster.local/ns/app/sa/other".parse::<Identity>().unwrap()]);
        let error = lab.within(&other).await.unwrap_err();
        assert_eq!(error.close_cause(), Some(CloseCause::TlsIdentityUnexpected), "{error}");
        lab.until_empty().await;
        // One that is made and not used leaves nothing behind either.
        drop(lab.within(&lab.options.expected).await.unwrap());
        lab.until_empty().await;
    });
}

#[test]
fn a_cut_at_the_gateway_is_a_cut_of_the_stream_within() {
    on_each_driver(|worker| async move {
        let lab = behind_gateway(&worker).await;
        let (client, server) = lab.stream().await;
        client.write_all(b"part").await.unwrap();
        let mut part = [0; 4];
        assert_eq!(server.read(&mut part).await.unwrap(), 4);
        for cutter in lab.gateway.streams.borrow().iter() {
            cutter.cut(ErrorCode::CONNECT_ERROR);
        }
        let end = read_all(&client).await.unwrap_err();
        assert!(matches!(end, StreamError::Ended(StreamEnd::Link(_))), "{end}");
        assert!(read_all(&server).await.is_err());
    });
}
