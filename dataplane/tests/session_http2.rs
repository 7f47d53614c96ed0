//! HTTP/2 and gRPC at the node, in any combination with HTTP/1.1, against a foreign implementation at both ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::Node;
use h2::Reason;
use http::HeaderMap;
use session_support::http2::{Asked, extended, read, request, trailers};
use session_support::versions::{Web, both, routes};
use session_support::{PATIENCE, checksum, inside, pattern, pods, policy};

const GRPC: &str = "application/grpc";

#[test]
fn requests_of_one_connection_are_routed_each_on_its_own() {
    inside("requests_of_one_connection_are_routed_each_on_its_own", || {
        let mut web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for _ in 0..3 {
            for (path, status, begin) in [
                ("/plain/a?q=1", 200, "server GET /plain/a?q=1 10.244.1.1 "),
                ("/grpc/b", 200, "other GET /grpc/b 10.244.1.1 "),
                ("/old/c", 200, "server GET /old/c 10.244.1.1 "),
                ("/x/../plain//d", 200, "server GET /plain//d "),
                ("/nowhere", 404, "no route matches"),
                ("/empty", 503, "no healthy upstream"),
            ] {
                let answer = client.get(path).unwrap();
                assert_eq!(answer.status, status, "{path}: {answer:?}");
                assert!(answer.text().starts_with(begin), "{}", answer.text());
            }
        }
        let answer = client.get("/plain/a").unwrap();
        assert!(answer.text().contains(" at=web ") && answer.text().ends_with(" host="), "{}", answer.text());

        // A client of HTTP/1.1 on the same port, and the same service of gRPC.
        let mut older = web.bed.client("client", web.service);
        let answer = older.get("/grpc/e");
        assert!(answer.status == 200 && answer.text().starts_with("other GET /grpc/e"), "{answer:?}");
        assert!(older.get("/old/f").text().starts_with("server GET /old/f"));
        drop((client, older));
        let routed = web.bed.record("a routed request", |it| {
            it.http.as_ref().is_some_and(|http| http.path.as_str() == "/grpc/b")
        });
        assert_eq!(routed.destination.identity, Some(web.bed.identity("other")));
        assert_eq!(&*routed.service.unwrap().key.hostname, "greeter.app.svc.cluster.local");
        let lost = web.bed.record("no route", |it| it.cause == CloseCause::NoRoute);
        assert!(lost.destination.identity.is_none(), "not that of another request");
        web.bed.until_idle();
    });
}

#[test]
fn requests_run_at_the_same_time() {
    inside("requests_run_at_the_same_time", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let held: Vec<_> = (0..20).map(|_| client.ask(request("GET", "/plain/hold", ""), true)).collect();
        for _ in &held {
            web.wait_for("GET /plain/hold");
        }
        assert_eq!(client.get("/plain/x").unwrap().status, 200);
        assert_eq!(client.get("/old/x").unwrap().status, 200);
        for Asked { mut body, .. } in held {
            body.send_reset(Reason::CANCEL);
        }
        client.run(client.flush());
        for _ in 0..20 {
            web.wait_for("reset /plain/hold CANCEL");
        }
        assert_eq!(client.get("/plain/y").unwrap().status, 200, "the connection goes on");
        drop(client);
        web.bed.until_idle();
    });
}

#[test]
fn large_bodies_pass_both_ways_unchanged() {
    inside("large_bodies_pass_both_ways_unchanged", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let body = pattern(5_000_003);
        for path in ["/plain/x", "/grpc/x", "/old/x"] {
            let answer = client.post(path, "", &body, HeaderMap::new()).unwrap();
            assert!(answer.text().contains(&checksum(&body)), "{path}: {}", answer.text());
        }
        for path in ["/plain/bulk", "/grpc/bulk", "/old/chunks"] {
            assert!(client.get(path).unwrap().body == pattern(3_000_001), "{path}");
        }
        let mut older = web.bed.client("client", web.service);
        older
            .send(format!("POST /grpc/x HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n", body.len()))
            .unwrap();
        older.send(&body).unwrap();
        assert!(older.response().unwrap().text().contains(&checksum(&body)));
        assert!(older.get("/grpc/bulk").body == pattern(3_000_001));
        drop((client, older));
        web.bed.until_idle();
    });
}

#[test]
fn trailers_pass_in_every_combination() {
    inside("trailers_pass_in_every_combination", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/x", "/grpc/x"] {
            let answer = client.post(path, "", b"body", trailers("x-sum", "17")).unwrap();
            assert!(answer.text().contains(&checksum(b"body")));
            assert_eq!(answer.trailers.unwrap()["x-sum"], "17");
        }
        let mut older = web.bed.client("client", web.service);
        let asked = "POST /grpc/x HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n";
        older.send(format!("{asked}4\r\nbody\r\n0\r\nX-Sum: 18\r\n\r\n")).unwrap();
        let mut all = String::new();
        while !all.ends_with("x-sum: 18\r\n\r\n") {
            let mut byte = [0];
            older.reader.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {all}"));
            all.push(char::from(byte[0]));
        }
        assert!(all.contains(&checksum(b"body")) && all.contains(" te=trailers connection= "), "{all}");
        assert_eq!(older.get("/grpc/y").status, 200, "what follows is another response");
    });
}

#[test]
fn calls_of_grpc_stream_both_ways_and_end_with_their_status() {
    inside("calls_of_grpc_stream_both_ways_and_end_with_their_status", || {
        let mut web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let Asked { response, mut body } = client.ask(request("POST", "/grpc/stream", GRPC), false);
        client.run(async {
            body.send_data("first".into(), false).unwrap();
            let mut answer = response.await.unwrap().into_body();
            assert_eq!(answer.data().await.unwrap().unwrap(), "first");
            for number in 0..50 {
                let piece = format!("piece {number}");
                body.send_data(piece.clone().into(), false).unwrap();
                assert_eq!(answer.data().await.unwrap().unwrap(), piece);
            }
            body.send_data(Bytes::new(), true).unwrap();
            assert!(answer.data().await.is_none());
            assert_eq!(answer.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        });
        let answer = client.post("/grpc/status", GRPC, b"x", HeaderMap::new()).unwrap();
        assert_eq!((answer.field("grpc-status"), answer.body.len()), (Some("5"), 0));
        let message = [&[0, 0, 0, 0, 2][..], b"ab"].concat();
        client.post("/grpc/stream", GRPC, &message.repeat(3), HeaderMap::new()).unwrap();
        for (path, status, messages) in [("/grpc/status", 5, [0, 0]), ("/grpc/stream", 0, [3, 3])] {
            let told = web.bed.record("a call", |it| {
                it.http.as_ref().is_some_and(|http| {
                    let ended = http.grpc_status.map(dataplane::metrics::GrpcStatus::code) == Some(status);
                    http.path.as_str() == path && ended && http.messages == messages
                })
            });
            assert_eq!(told.cause, CloseCause::Finished);
        }
    });
}

#[test]
fn refusals_are_told_to_grpc_in_its_own_words() {
    inside("refusals_are_told_to_grpc_in_its_own_words", || {
        let mut web = Web::new(
            &(routes() + &policy("paths", "ALLOW", "[{ to: [{ operation: { paths: ['/plain/a'] } }] }]")),
        );
        let client = web.bed.client2("client", web.service);
        for (path, status) in [("/nowhere", "12"), ("/empty", "14"), ("/plain/b", "7")] {
            let answer = client.post(path, GRPC, b"x", HeaderMap::new()).unwrap();
            assert_eq!((answer.status, answer.field("grpc-status")), (200, Some(status)), "{path}");
            assert_eq!(answer.field("content-type"), Some(GRPC));
            assert!(answer.body.is_empty() && answer.trailers.is_none());
        }
        let answer = client.post("/plain/b", GRPC, b"x", HeaderMap::new()).unwrap();
        assert_eq!(answer.field("grpc-message"), Some("RBAC: access denied"));
        assert_eq!(client.get("/plain/b").unwrap().status, 403);
        assert_eq!(client.get("/plain/a").unwrap().status, 200, "others go on");
        let mut older = web.bed.client("client", web.service);
        older.send(format!("GET /nowhere HTTP/1.1\r\nHost: web\r\nContent-Type: {GRPC}\r\n\r\n")).unwrap();
        let answer = older.response().unwrap();
        assert!(answer.status == 200 && answer.head.contains("grpc-status: 12\r\n"), "{}", answer.head);
        web.bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
    });
}

#[test]
fn an_early_response_arrives_whole_while_the_body_is_still_coming() {
    inside("an_early_response_arrives_whole_while_the_body_is_still_coming", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/413", "/old/413"] {
            let answer = client.post(path, "", &pattern(3_000_000), HeaderMap::new()).unwrap();
            assert_eq!((answer.status, answer.text()), (413, "big"), "{path}");
        }
        let mut older = web.bed.client("client", web.service);
        older.send("POST /grpc/413 HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\n").unwrap();
        older.send(pattern(100_000)).unwrap();
        let answer = older.response().unwrap();
        assert_eq!((answer.status, answer.text()), (413, "big"));
    });
}

#[test]
fn a_response_that_breaks_off_does_not_look_whole() {
    inside("a_response_that_breaks_off_does_not_look_whole", || {
        let mut web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        for path in ["/plain/torn", "/old/torn"] {
            let Asked { response, mut body } = client.ask(request("POST", path, ""), false);
            let error = client.run(async {
                let mut answer = response.await.unwrap().into_body();
                assert_eq!(answer.data().await.unwrap().unwrap(), "the first part", "{path}");
                body.send_data("go on".into(), false).unwrap();
                loop {
                    match answer.data().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break error,
                        None => panic!("{path} looks whole"),
                    }
                }
            });
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{path}: {error}");
        }
        let mut older = web.bed.client("client", web.service);
        older.send("POST /grpc/torn HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\n").unwrap();
        let mut part = [0; 16];
        older.reader.read_exact(&mut part).unwrap();
        older.send("go on").unwrap();
        let rest = older.rest();
        assert!(rest.as_ref().map_or(true, |rest| !rest.ends_with(b"0\r\n\r\n")), "{rest:?}");
        assert_eq!(client.get("/plain/x").unwrap().status, 200);
        web.bed.ended(Direction::Outbound, CloseCause::ServerReset);
    });
}

#[test]
fn a_request_that_was_not_looked_at_is_sent_once_more() {
    inside("a_request_that_was_not_looked_at_is_sent_once_more", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let answer = client.post("/grpc/reset-once", GRPC, b"kept", trailers("x-sum", "1")).unwrap();
        assert!(answer.text().contains(&checksum(b"kept")), "{}", answer.text());
        assert_eq!(answer.field("x-sum"), Some("1"));
    });
}

#[test]
fn other_protocols_are_switched_to() {
    inside("other_protocols_are_switched_to", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let Asked { response, body } = client.ask(extended("/old/switch", "echo"), false);
        let bytes = pattern(300_003);
        client.run(async {
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(response.headers().get("sec-websocket-accept").is_none());
            let sent = Bytes::from(bytes.clone());
            let sending = tokio::spawn(session_support::http2::send(body, sent, HeaderMap::new()));
            let (echoed, _) = session_support::http2::drain(&mut response.into_body()).await.unwrap();
            sending.await.unwrap().unwrap();
            assert!(echoed == bytes, "{} bytes", echoed.len());
        });
        // Nothing that would hide requests is switched to, and CONNECT is not served.
        let Asked { response, .. } = client.ask(extended("/old/switch", "h2c"), false);
        assert_eq!(client.run(read(response)).unwrap().status, 405);
    });
}

#[test]
fn a_client_of_http1_switches_with_a_server_of_http2() {
    inside("a_client_of_http1_switches_with_a_server_of_http2", || {
        let web = Web::new(&both());
        let ask = |path: &str, protocol: &str| {
            let mut client = web.bed.client("client", web.service);
            let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
            let fields = format!("Host: web\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{key}");
            client.send(format!("GET {path} HTTP/1.1\r\n{fields}\r\n")).unwrap();
            let answer = client.response().unwrap();
            (client, answer)
        };
        let (mut client, answer) = ask("/grpc/stream", "websocket");
        assert_eq!(answer.status, 101, "{answer:?}");
        let head = answer.head.to_ascii_lowercase();
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        // RFC 6455 section 1.3.
        let proof = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(answer.head.contains(proof), "{answer:?}");
        let bytes = pattern(300_003);
        client.send(&bytes).unwrap();
        client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.rest().unwrap() == bytes, "half-close is kept");

        // A refusal is an ordinary answer, after which the connection goes on; a list of protocols is not asked for.
        let (mut client, answer) = ask("/grpc/413", "websocket");
        assert_eq!(answer.status, 413, "{answer:?}");
        assert_eq!(client.get("/grpc/x").status, 200);
        let (_, answer) = ask("/grpc/x", "a, b");
        assert!(answer.status == 200 && answer.text().contains(" GET "), "{answer:?}");
    });
}

#[test]
fn heads_are_held_to_the_rules_and_cookies_are_joined() {
    inside("heads_are_held_to_the_rules_and_cookies_are_joined", || {
        let web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let mut asked = request("GET", "/grpc/x", "");
        for crumb in ["a=1", "b=2"] {
            asked.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        asked.headers_mut().insert("te", "trailers".parse().unwrap());
        let Asked { response, .. } = client.ask(asked, true);
        let answer = client.run(read(response)).unwrap();
        assert!(answer.text().contains(" cookie=a=1; b=2 te=trailers "), "{}", answer.text());

        let mut asked = request("GET", "/plain/x", "");
        asked.headers_mut().insert("expect", "magic".parse().unwrap());
        let Asked { response, .. } = client.ask(asked, true);
        assert_eq!(client.run(read(response)).unwrap().status, 417);

        // Bytes that are not HTTP/2 behind its preface end that connection alone.
        let mut raw = web.bed.connect("client", web.service).unwrap();
        raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
        let mut all = Vec::new();
        drop(raw.read_to_end(&mut all));
        assert_eq!(client.get("/plain/x").unwrap().status, 200);
    });
}

#[test]
fn a_changed_policy_ends_the_request_that_it_denies_and_no_other() {
    inside("a_changed_policy_ends_the_request_that_it_denies_and_no_other", || {
        let allow = |paths: &str| {
            pods()
                + &policy("paths", "ALLOW", &format!("[{{ to: [{{ operation: {{ paths: {paths} }} }}] }}]"))
        };
        let mut web = Web::new(&allow("['/a/*', '/b/*']"));
        let client = web.bed.client2("client", web.server);
        let denied = client.ask(request("POST", "/a/stream", GRPC), false);
        let mut spared = client.ask(request("POST", "/b/stream", GRPC), false);
        web.wait_for("POST /a/stream");
        web.wait_for("POST /b/stream");
        web.bed.apply(&allow("['/b/*']"));
        let error = client.run(async {
            let mut answer = denied.response.await?.into_body();
            while let Some(piece) = answer.data().await {
                piece?;
            }
            Ok::<(), h2::Error>(())
        });
        assert_eq!(error.unwrap_err().reason(), Some(Reason::CANCEL));
        client.run(async {
            spared.body.send_data("still here".into(), true).unwrap();
        });
        let answer = client.run(read(spared.response)).unwrap();
        assert_eq!((answer.text(), answer.field("grpc-status")), ("still here", Some("0")));
        assert_eq!(client.get("/a/x").unwrap().status, 403);
        let cut = web.bed.ended(Direction::Inbound, CloseCause::PolicyChanged);
        assert_eq!(cut.http.unwrap().path.as_str(), "/a/stream");
    });
}

#[test]
fn what_is_no_http_on_an_undeclared_port_goes_to_the_service_itself() {
    inside("what_is_no_http_on_an_undeclared_port_goes_to_the_service_itself", || {
        let yaml = routes().replace(
            "clusterIP: 10.96.1.1, selector: { app: none }",
            "clusterIP: 10.96.1.1, selector: { app: plain }",
        );
        let mut web = Web::new(&yaml);
        web.bed.serve_echo("plain", 8080);
        let socket = web.bed.connect("client", web.service).unwrap();
        let asked = b"\x01\x02 no request at all";
        let answer = session_support::exchange(&socket, asked).unwrap();
        assert!(answer.ends_with(asked), "{}", String::from_utf8_lossy(&answer));
        let carried = web.bed.ended(Direction::Outbound, CloseCause::Finished);
        assert!(carried.http.is_none());
        assert_eq!(carried.bytes_sent, asked.len() as u64);

        // What may be a request is one, or is refused.
        let mut client = web.bed.client("client", web.service);
        client.send("GET @ HTTP/2.0\r\nHost: web\r\n\r\n").unwrap();
        assert_eq!(client.response().unwrap().status, 505);
        assert_eq!(web.bed.client("client", web.service).get("/old/x").status, 200);
        web.bed.until_idle();
    });
}

#[test]
fn what_runs_goes_on_through_a_drain() {
    inside("what_runs_goes_on_through_a_drain", || {
        let mut web = Web::new(&both());
        let client = web.bed.client2("client", web.service);
        let Asked { response, mut body } = client.ask(request("POST", "/grpc/stream", GRPC), false);
        web.wait_for("POST /grpc/stream");
        web.bed.drain(PATIENCE);
        client.run(async {
            let mut answer = response.await.unwrap().into_body();
            tokio::time::sleep(Duration::from_millis(300)).await;
            body.send_data("late".into(), true).unwrap();
            assert_eq!(answer.data().await.unwrap().unwrap(), "late");
            assert!(answer.data().await.is_none());
            assert_eq!(answer.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        });
        web.bed.join();
    });
}

#[test]
fn a_flood_ends_its_connection_and_no_other() {
    inside("a_flood_ends_its_connection_and_no_other", || {
        let web = Web::new(&both());
        let other = web.bed.client2("client", web.service);
        let mut flooding = web.bed.connect("client", web.service).unwrap();
        // GET http://web/plain/hold, and its reset.
        let head = [&b"\x82\x86\x41\x03web\x04\x0b"[..], b"/plain/hold"].concat();
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for stream in (1..40_000_u32).step_by(2) {
            frames.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5]);
            frames.extend(stream.to_be_bytes());
            frames.extend(&head);
            frames.extend([0, 0, 4, 3, 0]);
            frames.extend(stream.to_be_bytes());
            frames.extend(8_u32.to_be_bytes());
        }
        // It may be closed before all is sent.
        drop(flooding.write_all(&frames));
        let mut told = Vec::new();
        drop(flooding.read_to_end(&mut told));
        let calm = [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..]].concat();
        let at =
            told.windows(9).position(|frame| frame == calm).expect("a client that resets all is sent away");
        assert_eq!(told[at + 13..at + 17], 11_u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
        assert_eq!(other.get("/plain/x").unwrap().status, 200);
        drop((other, flooding));
        web.bed.until("nothing is left", Node::live_connections, |live| live.iter().all(|it| *it == 0));
    });
}
