//! Messages that are more than a request and its response, between every pair of versions of HTTP: interim responses,
//! switches of protocol, bodies that nobody reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use session_support::http2::{Asked, drain, extended, interim, read, request, send};
use session_support::message::{field, read_head};
use session_support::versions::{Web, both};
use session_support::{checksum, inside, pattern};

#[test]
fn interim_responses_arrive_in_every_combination() {
    inside("interim_responses_arrive_in_every_combination", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/hints", "/grpc/hints", "/old/hints"] {
            let mut asked = request("POST", path, "");
            asked.headers_mut().insert("expect", "100-continue".parse().unwrap());
            let Asked { mut response, mut body } = client.ask(asked, false);
            client.run(async {
                // The body does not go before it is wanted.
                assert_eq!(interim(&mut response).await.unwrap().status(), 100, "{path}");
                body.send_data("body".into(), true).unwrap();
                let hints = interim(&mut response).await.unwrap();
                assert_eq!(
                    (hints.status().as_u16(), &hints.headers()["link"]),
                    (103, &"</a.css>".parse().unwrap())
                );
                assert!(
                    !hints.headers().contains_key("connection") && !hints.headers().contains_key("x"),
                    "{hints:?}"
                );
                let answer = read(response).await.unwrap();
                assert!(
                    answer.status == 200 && answer.text().contains(&checksum(b"body")),
                    "{path}: {answer:?}"
                );
            });
        }
        let mut older = web.bed.client("client", web.service);
        for path in ["/grpc/hints", "/old/hints"] {
            let fields = "Host: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n";
            older.send(format!("POST {path} HTTP/1.1\r\n{fields}\r\n")).unwrap();
            assert_eq!(older.response().unwrap().status, 100, "{path}");
            older.send("body").unwrap();
            let hints = read_head(&mut older.reader).unwrap();
            assert!(hints.starts_with("HTTP/1.1 103 "), "{path}: {hints}");
            assert_eq!(
                (field(&hints, "link").as_deref(), field(&hints, "x")),
                (Some("</a.css>"), None),
                "{hints}"
            );
            let answer = older.response().unwrap();
            assert!(answer.status == 200 && answer.text().contains(&checksum(b"body")), "{path}: {answer:?}");
        }
        // RFC 9110 section 15.2: a client of HTTP/1.0 would take one for the response.
        for path in ["/grpc/hints", "/old/hints"] {
            let mut oldest = web.bed.client("client", web.service);
            oldest.send(format!("GET {path} HTTP/1.0\r\nHost: web\r\n\r\n")).unwrap();
            assert_eq!(oldest.response().unwrap().status, 200, "{path}");
        }
        // A server that says nothing else is not listened to for ever.
        assert_eq!(client.get("/grpc/hints-forever").unwrap().status, 502);
        assert_eq!(client.get("/plain/x").unwrap().status, 200);
        drop((client, older));
        web.bed.until_idle();
    });
}

#[test]
fn a_websocket_of_http2_passes_to_a_server_of_http2() {
    inside("a_websocket_of_http2_passes_to_a_server_of_http2", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/stream", "/grpc/stream"] {
            let Asked { response, mut body } = client.ask(extended(path, "websocket"), false);
            web.wait_for(&format!("CONNECT {path}"));
            let bytes = pattern(300_003);
            client.run(async {
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200, "{path}");
                let mut answer = response.into_body();
                // Both ways at once, then to the end of one.
                body.send_data("ping".into(), false).unwrap();
                assert_eq!(answer.data().await.unwrap().unwrap(), "ping");
                let sending = tokio::spawn(send(body, Bytes::from(bytes.clone()), HeaderMap::new()));
                let (echoed, _) = drain(&mut answer).await.unwrap();
                sending.await.unwrap().unwrap();
                assert!(echoed == bytes, "{path}: {} bytes", echoed.len());
            });
        }
        // A refusal is an ordinary answer.
        let Asked { response, .. } = client.ask(extended("/grpc/413", "websocket"), false);
        assert_eq!(client.run(read(response)).unwrap().status, 413);
        // The client breaks off: so does the switched stream behind us.
        let Asked { response, mut body } = client.ask(extended("/grpc/hold", "websocket"), false);
        web.wait_for("CONNECT /grpc/hold");
        body.send_reset(Reason::CANCEL);
        client.run(client.flush());
        web.wait_for("reset /grpc/hold CANCEL");
        drop((response, body, client));
        web.bed.until_idle();
    });
}

#[test]
fn a_server_that_does_not_switch_is_not_taken_for_one_that_does() {
    inside("a_server_that_does_not_switch_is_not_taken_for_one_that_does", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        // In HTTP/2 any success agrees to the switch: that of a server of HTTP/1.1 that has ignored it must not arrive.
        let Asked { response, .. } = client.ask(extended("/old/x", "websocket"), false);
        assert_eq!(client.run(read(response)).unwrap().status, 502);
        // A server of HTTP/2 says before that it knows of no switch: it is not asked.
        let Asked { response, .. } = client.ask(extended("/fixed/x", "websocket"), false);
        assert_eq!(client.run(read(response)).unwrap().status, 501);
        for path in ["/old/x", "/fixed/x"] {
            assert_eq!(client.get(path).unwrap().status, 200, "{path}: the connection goes on");
        }
        // To a client of HTTP/1.1 another answer than 101 is no switch, whatever it is.
        let mut older = web.bed.client("client", web.service);
        for path in ["/old/x", "/fixed/x"] {
            let fields = "Host: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
            older.send(format!("GET {path} HTTP/1.1\r\n{fields}\r\n")).unwrap();
            let status = older.response().unwrap().status;
            assert!(status == 200 || status == 501, "{path}: {status}");
        }
    });
}

#[test]
fn an_early_answer_ends_the_upload_without_an_error() {
    inside("an_early_answer_ends_the_upload_without_an_error", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/413", "/grpc/413", "/old/413", "/nowhere"] {
            let Asked { response, mut body } = client.ask(request("POST", path, ""), false);
            client.run(async {
                // The answer may be sooner.
                let _ = body.send_data(Bytes::from(pattern(10_000)), false);
                let answer = read(response).await.unwrap();
                let expected = if path == "/nowhere" { 404 } else { 413 };
                assert_eq!(answer.status, expected, "{path}");
                // RFC 9113 section 8.1: the rest is not wanted, and nothing went wrong.
                let reason = poll_fn(|context| body.poll_reset(context)).await;
                assert_eq!(reason.unwrap(), Reason::NO_ERROR, "{path}");
            });
        }
        assert_eq!(client.get("/plain/x").unwrap().status, 200);
        drop(client);
        web.bed.until_idle();
    });
}

#[test]
fn a_body_that_is_not_read_waits_with_its_sender() {
    inside("a_body_that_is_not_read_waits_with_its_sender", || {
        const BODY: usize = 40_000_000;
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let body = Bytes::from(pattern(BODY));
        let sum = checksum(&body);
        for path in ["/old/late", "/plain/late"] {
            let Asked { response, body: mut to } = client.ask(request("POST", path, ""), false);
            client.run(async {
                // As much as is taken while the server does not read.
                let mut left = body.clone();
                let filling = async {
                    while !left.is_empty() {
                        to.reserve_capacity(left.len().min(100_000));
                        let room = poll_fn(|context| to.poll_capacity(context)).await.unwrap().unwrap();
                        to.send_data(left.split_to(room.min(left.len())), false).unwrap();
                    }
                };
                let stalled = tokio::time::timeout(Duration::from_millis(250), filling).await;
                assert!(stalled.is_err(), "{path}: nobody has read {BODY} bytes, and they are gone");
                let sending = tokio::spawn(send(to, left, HeaderMap::new()));
                let answer = read(response).await.unwrap();
                sending.await.unwrap().unwrap();
                assert!(answer.text().contains(&sum), "{path}: {}", answer.text());
            });
        }
        // The other way: one response of which nothing is read, and others on the same connection.
        let Asked { response, .. } = client.ask(request("GET", "/old/chunks", ""), true);
        let mut unread = client.run(response).unwrap().into_body();
        for path in ["/plain/x", "/old/x"] {
            assert_eq!(client.get(path).unwrap().status, 200, "{path}");
        }
        assert!(client.get("/plain/bulk").unwrap().body == pattern(3_000_001));
        let (whole, _) = client.run(drain(&mut unread)).unwrap();
        assert!(whole == pattern(3_000_001));
        drop((unread, client));
        web.bed.until_idle();
    });
}
