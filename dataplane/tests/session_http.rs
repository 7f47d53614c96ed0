//! HTTP at the node: requests are routed at the client's proxy and authorized at the server's, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::mpsc::{Receiver, channel};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::Node;
use dataplane::worker::DriverChoice;
use session_support::{Bed, PATIENCE, Setup, checksum, inside, is_refused, pattern, ping, pods, policy};

/// Allows some paths of the server, and none that end in `/admin`.
const PATHS: &str = "[{ to: [{ operation: { paths: ['/v1/*', '/{**}/users'], notPaths: ['*/admin'] } }] }]";

/// One address in front of three services, of which the last has no endpoint.
fn routes() -> String {
    let mut yaml = pods();
    for (name, ip, port, selected) in [
        ("web", 1, 80, "none"),
        ("v1", 2, 8080, "server"),
        ("v2", 3, 8080, "other"),
        ("empty", 4, 8080, "none"),
    ] {
        yaml += &service(name, ip, selected, &format!("port: {port}, targetPort: 8080"));
    }
    yaml += "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
";
    for (path, backend) in [("/v1", "v1"), ("/v2", "v2"), ("/empty", "empty")] {
        let rule = ["  - matches: [{ path: { type: PathPrefix, value: ", path, " } }]\n"];
        let backend = ["    backendRefs: [{ name: ", backend, ", port: 8080 }]\n"];
        yaml.extend(rule.into_iter().chain(backend));
    }
    yaml += "  - matches: [{ path: { type: PathPrefix, value: /invalid } }]\n";
    yaml
}

fn service(name: &str, ip: u8, selected: &str, port: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {selected} }}, ports: [{{ {port} }}] }}
"
    )
}

/// A node with both HTTP servers, and what they tell.
struct Web {
    bed: Bed,
    service: SocketAddr,
    server: SocketAddr,
    told: Receiver<String>,
}

impl Web {
    fn new(yaml: &str) -> Self {
        Self::with(yaml, &Setup::default())
    }

    fn with(yaml: &str, setup: &Setup) -> Self {
        let bed = Bed::with(yaml, setup);
        let (tell, told) = channel();
        let server = bed.serve_http("server", 8080, tell.clone());
        bed.serve_http("other", 8080, tell);
        Self { bed, service: "10.96.1.1:80".parse().unwrap(), server, told }
    }

    /// Waits until a server has told of `line`.
    fn wait_for(&self, line: &str) {
        while self.told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("not told: {line}")) != line {}
    }
}

/// Routed at the client's proxy and authorized at the server's.
fn both() -> String {
    routes() + &policy("paths", "ALLOW", "[{ to: [{ operation: { paths: ['/v1/*', '/v1'] } }] }]")
}

#[test]
fn requests_of_one_connection_are_routed_each_on_its_own() {
    inside("requests_of_one_connection_are_routed_each_on_its_own", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut web = Web::with(&routes(), &Setup { driver, ..Setup::default() });
            let mut client = web.bed.client("client", web.service);
            for _ in 0..3 {
                for (path, status, begin) in [
                    ("/v1/a", 200, "server GET /v1/a 10.244.1.1 "),
                    ("/v2/b?q=1", 200, "other GET /v2/b?q=1 10.244.1.1 "),
                    ("/nowhere", 404, ""),
                    ("/empty", 503, ""),
                    ("/invalid", 500, ""),
                    ("/x/../v1//c", 200, "server GET /v1/"),
                ] {
                    let response = client.get(path);
                    assert_eq!(response.status, status, "{path}: {response:?}");
                    assert!(response.text().starts_with(begin) && !response.closes(), "{response:?}");
                }
            }
            drop(client);
            let is = |status| {
                move |it: &dataplane::access_log::Record| {
                    it.http.as_ref().is_some_and(|http| http.status == status)
                }
            };
            let routed = web.bed.record("a routed request", is(200));
            let facts = routed.http.unwrap();
            assert_eq!(facts.route.unwrap().0.as_ref(), "app/web");
            assert_eq!((&*facts.method, facts.path.as_str()), ("GET", "/v1/a"));
            assert_eq!(routed.destination.identity, Some(web.bed.identity("server")));
            assert_eq!(&*routed.service.unwrap().key.hostname, "v1.app.svc.cluster.local");
            let lost = web.bed.record("no route", is(404));
            assert_eq!(lost.cause, CloseCause::NoRoute);
            assert_eq!(lost.destination.address, Some(web.service));
            assert!(
                lost.destination.identity.is_none() && lost.tls.is_none(),
                "not those of the request before"
            );
            assert_eq!(&*lost.service.unwrap().key.hostname, "web.app.svc.cluster.local");
            web.bed.until_idle();
            let routed = ["reporter=\"source\"", "response_code=\"200\"", "destination_service_name=\"v1\""];
            assert_eq!(web.bed.metric("istio_requests_total", &routed), 6, "{}", web.bed.metrics());
            let lost = ["response_code=\"404\"", "response_flags=\"NR\"", "request_protocol=\"http\""];
            assert_eq!(web.bed.metric("istio_requests_total", &lost), 3, "{}", web.bed.metrics());
            for size in ["istio_request_bytes_count", "istio_response_bytes_count"] {
                assert_eq!(web.bed.metric(size, &routed), 6, "{}", web.bed.metrics());
            }
        }
    });
}

#[test]
fn paths_are_allowed_and_denied_request_by_request() {
    inside("paths_are_allowed_and_denied_request_by_request", || {
        let mut web = Web::new(&(pods() + &policy("paths", "ALLOW", PATHS)));
        // Through the tunnel, and in plain text.
        for pod in ["client", "plain"] {
            let mut client = web.bed.client(pod, web.server);
            for (path, status) in [
                ("/v1/a", 200),
                ("/v1/admin", 403),
                ("/v2/users", 200),
                ("/v2/admin/../users", 200),
                ("/users", 403),
                ("/v2", 403),
                ("/v1/../v2", 403),
                ("/v1/%61", 200),
                ("/v1", 403),
            ] {
                let response = client.get(path);
                assert_eq!(response.status, status, "{pod} {path}: {response:?}");
                if status == 403 {
                    assert_eq!(response.text(), "RBAC: access denied");
                }
            }
        }
        let denied = web.bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        assert_eq!(denied.http.unwrap().status, 403);
        let is_allowed =
            |it: &dataplane::access_log::Record| it.cause == CloseCause::Finished && it.http.is_some();
        let allowed = web.bed.record("an allowed request", is_allowed);
        assert_eq!(allowed.http.unwrap().policy.as_deref(), Some("app/paths"));
        web.bed.until_idle();
        let labels = ["reporter=\"destination\"", "response_code=\"403\""];
        assert_eq!(web.bed.metric("istio_requests_total", &labels), 10, "{}", web.bed.metrics());
    });
}

#[test]
fn a_changed_policy_decides_the_next_request_and_cuts_the_one_in_flight() {
    inside("a_changed_policy_decides_the_next_request_and_cuts_the_one_in_flight", || {
        let mut web = Web::new(&(pods() + &policy("paths", "ALLOW", PATHS)));
        let mut kept = web.bed.client("client", web.server);
        assert_eq!(kept.get("/v1/a").status, 200);
        let mut waiting = web.bed.client("client", web.server);
        waiting.send("GET /v1/hold HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        web.wait_for("GET /v1/hold HTTP/1.1");
        let mut spared = web.bed.client("client", web.server);
        spared.send("GET /v2/hold/users HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\n").unwrap();
        web.wait_for("GET /v2/hold/users HTTP/1.1");

        let rules = "[{ to: [{ operation: { paths: ['/v2/*'] } }] }]";
        web.bed.apply(&(pods() + &policy("paths", "ALLOW", rules)));
        assert!(waiting.response().is_err(), "it is cut");
        let cut = web.bed.ended(Direction::Inbound, CloseCause::PolicyChanged);
        assert_eq!(cut.http.unwrap().path.as_str(), "/v1/hold");
        assert_eq!(kept.get("/v1/a").status, 403);
        assert_eq!(kept.get("/v2/a").status, 200);
        spared.send("abc").unwrap();
        assert_eq!(spared.response().unwrap().status, 200);
    });
}

#[test]
fn large_bodies_pass_both_ways_unchanged() {
    inside("large_bodies_pass_both_ways_unchanged", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        let body = pattern(5_000_003);
        for _ in 0..2 {
            client
                .send(format!("POST /v1/x HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n", body.len()))
                .unwrap();
            client.send(&body).unwrap();
            let answer = client.response().unwrap();
            assert!(answer.text().contains(&checksum(&body)), "{}", answer.text());

            client.send("POST /v1/x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            for piece in body.chunks(33_333) {
                client.send(format!("{:x}\r\n", piece.len())).unwrap();
                client.send(piece).unwrap();
                client.send("\r\n").unwrap();
            }
            client.send("0\r\n\r\n").unwrap();
            assert!(client.response().unwrap().text().contains(&checksum(&body)));

            let answer = client.get("/v1/chunks");
            assert!(answer.body == pattern(3_000_001), "{} bytes", answer.body.len());
        }
    });
}

#[test]
fn responses_are_framed_as_each_client_understands() {
    inside("responses_are_framed_as_each_client_understands", || {
        let web = Web::new(&both());
        // The end of the connection ends the body, so the connection must end.
        let answer = web.bed.client("client", web.service).get("/v1/until-close");
        assert_eq!((answer.text(), answer.closes()), ("all of it", true));

        let mut old = web.bed.client("client", web.service);
        old.send("GET /v1/chunks HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let answer = old.response().unwrap();
        assert!(!answer.head.to_ascii_lowercase().contains("transfer-encoding"), "{}", answer.head);
        assert!(answer.body == pattern(3_000_001));

        let mut old = web.bed.client("client", web.service);
        old.send("GET /v1/x HTTP/1.0\r\nHost: web\r\n\r\n").unwrap();
        assert!(old.response().unwrap().closes());
        assert_eq!(old.rest().unwrap(), b"");

        let mut client = web.bed.client("client", web.service);
        client
            .send("HEAD /v1/x HTTP/1.1\r\nHost: web\r\n\r\nGET /v1/y HTTP/1.1\r\nHost: web\r\n\r\n")
            .unwrap();
        let mut head = [0; 17];
        client.reader.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK\r\n");
        let rest = loop {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut client.reader, &mut line).unwrap();
            if line == "\r\n" {
                break client.response().unwrap();
            }
        };
        assert!(rest.text().contains("GET /v1/y"), "{rest:?}");

        let mut last = web.bed.client("client", web.service);
        last.send("GET /v1/x HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
        assert!(last.response().unwrap().closes());
        assert_eq!(last.rest().unwrap(), b"");
    });
}

#[test]
fn a_client_that_has_ended_its_side_gets_its_response() {
    inside("a_client_that_has_ended_its_side_gets_its_response", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        client.send("GET /v1/x HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        assert_eq!(client.rest().unwrap(), b"");
        web.bed.until_idle();
    });
}

#[test]
fn expectations_are_met_end_to_end() {
    inside("expectations_are_met_end_to_end", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        client
            .send("POST /v1/x HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .unwrap();
        assert_eq!(client.response().unwrap().status, 100);
        client.send("body").unwrap();
        let answer = client.response().unwrap();
        assert!(answer.text().contains(&checksum(b"body")), "{answer:?}");
        assert_eq!(client.get("/v1/again").status, 200);

        // A refusal instead of 100: the body never comes, so the connection cannot go on.
        client
            .send("POST /v1/413 HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .unwrap();
        assert_eq!(client.response().unwrap().status, 413);
        assert_eq!(client.rest().unwrap(), b"");
        web.bed.until_idle();
    });
}

#[test]
fn an_early_response_arrives_whole_while_the_body_is_still_coming() {
    inside("an_early_response_arrives_whole_while_the_body_is_still_coming", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        client.send("POST /v1/413 HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\n").unwrap();
        // Some of it, which nobody reads.
        client.send(pattern(2_000_000)).unwrap();
        let answer = client.response().unwrap();
        assert_eq!((answer.status, answer.text()), (413, "big"));
        assert!(web.told.iter().any(|line| line == "end"));
    });
}

#[test]
fn upgrades_switch_only_when_the_server_agrees() {
    inside("upgrades_switch_only_when_the_server_agrees", || {
        let web = Web::new(&both());
        let ask = "Host: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        let mut client = web.bed.client("client", web.service);
        client.send(format!("GET /v1/switch HTTP/1.1\r\n{ask}")).unwrap();
        let answer = client.response().unwrap();
        assert_eq!(answer.status, 101);
        assert!(answer.head.to_ascii_lowercase().contains("upgrade: echo"), "{}", answer.head);
        let bytes = pattern(1_000_003);
        client.send(&bytes).unwrap();
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(client.rest().unwrap() == bytes, "half-close is kept");

        // Refused: what follows is another request, decided like any other.
        let mut client = web.bed.client("client", web.service);
        client
            .send(format!("GET /v1/x HTTP/1.1\r\n{ask}GET /v2/secret HTTP/1.1\r\nHost: web\r\n\r\n"))
            .unwrap();
        let first = client.response().unwrap();
        assert!(first.status == 200 && first.text().ends_with(" echo"), "{first:?}");
        let second = client.response().unwrap();
        assert!(second.text().starts_with("other GET /v2/secret"), "{second:?}");
    });
}

#[test]
fn a_switch_to_another_version_of_http_is_not_asked_for() {
    inside("a_switch_to_another_version_of_http_is_not_asked_for", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        for protocol in ["h2c", "H2C, echo", "TLS/1.3, HTTP/2.0"] {
            client
                .send(format!("GET /v1/x HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"))
                .unwrap();
            let answer = client.response().unwrap();
            assert!(answer.status == 200 && answer.text().ends_with(' '), "{protocol}: {answer:?}");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    inside("pipelined_requests_are_answered_in_order", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        let mut requests = String::new();
        for number in 0..40 {
            let version = 1 + number % 2;
            write!(
                requests,
                "POST /v{version}/{number} HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc"
            )
            .unwrap();
        }
        client.send(requests).unwrap();
        for number in 0..40 {
            let answer = client.response().unwrap();
            assert!(answer.text().contains(&format!("/{number} ")), "{number}: {answer:?}");
        }
    });
}

#[test]
fn malformed_requests_are_refused_and_neighbours_go_on() {
    inside("malformed_requests_are_refused_and_neighbours_go_on", || {
        let mut web = Web::new(&both());
        let mut neighbour = web.bed.client("client", web.service);
        assert_eq!(neighbour.get("/v1/x").status, 200);
        let noise: String =
            (0..600).map(|at| char::from(b'!' + u8::try_from(at * 7 % 90).unwrap())).collect();
        for bad in [
            format!("{noise}\r\n\r\n"),
            "POST /v1/x HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            "POST /v1/x HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".into(),
            "GET /v1/x HTTP/1.1\nHost: web\n\r\n\r\n".into(),
            "GET /v1/x HTTP/1.1\r\n\r\n".into(),
            "CONNECT web:80 HTTP/1.1\r\nHost: web\r\n\r\n".into(),
            "POST /v1/x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
        ] {
            // At the client's proxy, which routes, and at the server's, which authorizes.
            for to in [web.service, web.server] {
                let mut client = web.bed.client("client", to);
                client.send(&bad).unwrap();
                if bad.starts_with(&noise) && to == web.service {
                    // Its port does not say that it speaks HTTP: bytes that cannot be any are the service's own.
                    assert!(client.response().is_err(), "and it has no endpoint");
                    continue;
                }
                let answer = client.response().unwrap();
                assert!((400..=505).contains(&answer.status) && answer.status != 403, "{bad:?}: {answer:?}");
                assert!(answer.closes() && client.rest().unwrap().is_empty(), "{bad:?}");
            }
            assert_eq!(neighbour.get("/v1/x").status, 200);
        }
        web.bed.ended(Direction::Outbound, CloseCause::InvalidHttp);
        web.bed.ended(Direction::Inbound, CloseCause::InvalidHttp);
    });
}

#[test]
fn a_server_that_breaks_off_is_told_as_unavailable() {
    inside("a_server_that_breaks_off_is_told_as_unavailable", || {
        let mut web = Web::new(&both());
        web.bed.serve("server", 8081, |socket, _| drop(socket));
        let mut client = web.bed.client("client", SocketAddr::new(web.bed.ip("server"), 8081));
        assert_eq!(client.get("/v1/x").status, 503);
        assert_eq!(web.bed.ended(Direction::Inbound, CloseCause::ServerReset).http.unwrap().status, 503);
    });
}

#[test]
fn a_client_that_breaks_off_takes_its_request_along() {
    inside("a_client_that_breaks_off_takes_its_request_along", || {
        let web = Web::new(&both());
        let mut client = web.bed.client("client", web.service);
        client.send("GET /v1/hold HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        web.wait_for("GET /v1/hold HTTP/1.1");
        let socket = socket2::SockRef::from(client.reader.get_ref());
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        web.wait_for("end");
        web.bed.until_idle();
    });
}

#[test]
fn a_service_without_routes_is_carried_as_bytes() {
    inside("a_service_without_routes_is_carried_as_bytes", || {
        let web = Web::new(&routes());
        let direct = "10.96.1.2:8080".parse().unwrap();
        let mut client = web.bed.client("client", direct);
        assert_eq!(client.get("/v9/anything").status, 200);
        let mut odd = web.bed.client("client", direct);
        odd.reader.get_mut().write_all(b"GET\t/odd\r\n\r\n").unwrap();
        web.wait_for("GET\t/odd");
    });
}

#[test]
fn denied_requests_leave_the_applications_connection_open() {
    inside("denied_requests_leave_the_applications_connection_open", || {
        let web = Web::new(&(pods() + &policy("paths", "ALLOW", PATHS)));
        let mut client = web.bed.client("client", web.server);
        for (path, status) in
            [("/v1/a", 200), ("/v1/admin", 403), ("/v1/b", 200), ("/no", 403), ("/v1/c", 200)]
        {
            assert_eq!(client.get(path).status, status);
        }
        drop(client);
        let told: Vec<_> = std::iter::from_fn(|| web.told.recv_timeout(PATIENCE).ok()).take(4).collect();
        let request = |path| format!("GET {path} HTTP/1.1");
        assert_eq!(told, [request("/v1/a"), request("/v1/b"), request("/v1/c"), "end".into()]);
    });
}

#[test]
fn requests_over_ipv6_are_authorized_alike() {
    inside("requests_over_ipv6_are_authorized_alike", || {
        let web = Web::new(&(pods() + &policy("paths", "ALLOW", PATHS)));
        for pod in ["client", "plain"] {
            let mut client = web.bed.client(pod, "[fd00::1:2]:8080".parse().unwrap());
            let allowed = client.get("/v1/a");
            assert!(allowed.text().starts_with("server GET /v1/a fd00::1:"), "{allowed:?}");
            assert_eq!(client.get("/v1/admin").status, 403);
        }
    });
}

#[test]
fn request_policies_are_not_asked_of_bytes_of_a_declared_tcp_port() {
    inside("request_policies_are_not_asked_of_bytes_of_a_declared_tcp_port", || {
        let tcp = service("bytes", 7, "server", "port: 9000, targetPort: 9000, appProtocol: tcp");
        let rules = "[{ from: [{ source: { principals: [cluster.local/ns/app/sa/client] } }], \
                     to: [{ operation: { ports: ['9000'] } }] }, { to: [{ operation: { paths: ['/v1'] } }] }]";
        let yaml = |more: &str| pods() + &tcp + &policy("mixed", "ALLOW", rules) + more;
        let mut bed = Bed::new(&yaml(""));
        let bytes = bed.serve_pieces("server", 9000);
        let socket = bed.connect("client", bytes).unwrap();
        ping(&socket).unwrap();
        // Without a request its paths match nothing.
        assert!(is_refused(bed.network("other"), bytes));
        // Each new state asks the same question again.
        bed.apply(&yaml(&service("more", 8, "server", "port: 1")));
        ping(&socket).unwrap();
    });
}

#[test]
fn a_response_that_breaks_off_does_not_look_whole() {
    inside("a_response_that_breaks_off_does_not_look_whole", || {
        let web = Web::new(&both());
        // Routed and authorized; authorized alone; in plain text.
        for (pod, to) in [("client", web.service), ("client", web.server), ("plain", web.server)] {
            let mut client = web.bed.client(pod, to);
            client.send("POST /v1/torn HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\n").unwrap();
            let mut head = [0; 17];
            client.reader.read_exact(&mut head).unwrap();
            client.send("x").unwrap();
            let end = client.rest();
            assert!(end.is_err(), "{pod} {to}: {end:?}");
        }
    });
}

#[test]
fn a_slow_reader_gets_all_of_a_response_that_ended_long_ago() {
    inside("a_slow_reader_gets_all_of_a_response_that_ended_long_ago", || {
        let web = Web::new(&both());
        for to in [web.service, web.server] {
            let mut client = web.bed.client("client", to);
            client.send("GET /v1/bulk-until-close HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
            web.wait_for("end");
            // The server's side is done with it, and the client has not read a byte.
            web.bed.until("only the client's side is left", Node::live_connections, |live| {
                live.iter().sum::<usize>() == 1
            });
            let answer = client.response().unwrap();
            assert!(answer.body == pattern(4_000_001), "{} bytes", answer.body.len());
        }
    });
}
