//! A waypoint between two node proxies, each a process of its own: requests are decided by who calls, and routed.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use node_support::raw::RawClient;
use node_support::resources::{hostname, identity};
use node_support::waypoint::{WAYPOINT, ask, client_of};
use node_support::{Bed, Both, PATIENCE, inside};
use tunnel::h2::Headers;
use xds::proto::workload::AppProtocol;

/// What is allowed: the client on paths of a template, everybody on `/open`; and what nobody may.
const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: app}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v2}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-routed, value: 'yes'}]}}]
    backendRefs: [{name: second, port: 80}]
  - backendRefs: [{name: web, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: app}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  rules:
  - from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]
    to: [{operation: {methods: [GET], paths: ['/v1/{*}/items', '/v2/{**}', '/long/{**}']}}]
  - to: [{operation: {paths: [/open]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: app}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{to: [{operation: {paths: ['/never*']}}]}]
---
";

/// Clients on node `a`, servers on node `b`, HTTP behind the waypoint.
fn bed() -> (Bed, Both) {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("a", "other"), ("b", "server"), ("b", "second")] {
        bed.pod(node, pod);
    }
    let web = bed.service("web", &["server"], 8080, false);
    bed.service("second", &["second"], 8080, false);
    for pod in ["server", "second"] {
        bed.http_echo(pod, 8080);
    }
    bed.waypoint(|_| {});
    bed.ready();
    bed.stand_before(&["web", "second"], AppProtocol::Http11, RULES);
    (bed, web)
}

#[test]
fn requests_are_decided_by_who_calls_and_routed_and_say_who_called() {
    inside("requests_are_decided_by_who_calls_and_routed_and_say_who_called", || {
        let (bed, web) = bed();
        let forged = [("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/app/sa/admin")];
        for to in web {
            let answer = bed.http("client", to, "/v1/7/items", &forged).unwrap();
            assert_eq!(answer.status, 200, "{answer:?}\n{}", bed.nodes[WAYPOINT].log());
            assert!(answer.body.starts_with("server "), "{answer:?}");
            // The application sees the waypoint as its peer, and is told of the client.
            assert!(bed.ips(WAYPOINT).contains(&client_of(&answer)), "{answer:?}");
            let told =
                format!("x-forwarded-client-cert: by={};uri={}\r\n", identity(WAYPOINT), identity("client"));
            assert!(answer.body.contains(&told), "{answer:?}");
            assert!(!answer.body.contains("sa/admin"), "{answer:?}");
            for (pod, path, status) in [
                ("client", "/v2/any/thing", 200),
                ("client", "/open", 200),
                ("other", "/open", 200),
                // Of another caller, and of paths beside the template.
                ("other", "/v1/7/items", 403),
                ("client", "/v1/7/8/items", 403),
                ("client", "/v1//items", 403),
                ("client", "/other", 403),
                ("client", "/never", 403),
            ] {
                let answer = bed.http(pod, to, path, &[]).unwrap();
                assert_eq!(answer.status, status, "{pod} {path}: {answer:?}");
                let by = if path.starts_with("/v2") { "second " } else { "server " };
                assert_eq!(answer.body.starts_with(by), status == 200, "{pod} {path}: {answer:?}");
                assert_eq!(answer.body.contains("x-routed: yes"), path.starts_with("/v2"));
            }
        }
        // One connection, each request on its own.
        let socket = bed.connect("client", web.v4).unwrap();
        for (path, status) in [("/v1/7/items", 200), ("/other", 403), ("/v2/x", 200), ("/v1/8/items", 200)] {
            assert_eq!(ask(&socket, "GET", path, &[]).unwrap().status, status, "{path}");
        }
        assert_eq!(ask(&socket, "POST", "/v1/8/items", &[]).unwrap().status, 403);
        // The waypoint has one certificate, and the server's node saw it, not the client.
        assert_eq!(bed.control.authority.issued().iter().filter(|it| **it == identity(WAYPOINT)).count(), 1);
        bed.nodes["b"].until_logged(&["dst.workload=\"server\"", &identity(WAYPOINT)]);
        bed.nodes[WAYPOINT].until_logged(&[&identity("client"), "403"]);
        let labels = ["reporter=\"waypoint\"", "source_workload=\"client\"", "response_code=\"403\""];
        assert!(bed.nodes[WAYPOINT].metric("istio_requests_total", &labels) > 0);
    });
}

#[test]
fn only_what_is_behind_the_waypoint_is_served_and_never_in_circles() {
    inside("only_what_is_behind_the_waypoint_is_served_and_never_in_circles", || {
        let (mut bed, web) = bed();
        let bare = bed.service("bare", &["server"], 8080, false);
        // Its own pods as a service behind itself.
        let own = bed.service("own", &[WAYPOINT], 15008, false);
        bed.stand_before(&["own"], AppProtocol::Http11, RULES);
        let ask = |authorities: &[String]| -> Vec<u16> {
            let client = RawClient {
                from: bed.network("client").clone(),
                credentials: bed.control.authority.credentials(&identity("client")),
                to: SocketAddr::new(bed.v4(WAYPOINT), 15008),
                expected: identity(WAYPOINT).parse().unwrap(),
            };
            client.ask(authorities.iter().map(|it| Headers::connect(it.clone()).unwrap()).collect())
        };
        let name = |service: &str, port: u16| format!("{}:{port}", hostname(service));
        let asked = [
            (web.v4.to_string(), 200),
            (name("web", 80), 200),
            (format!("{}:81", web.v4.ip()), 503),
            (name("web", 81), 503),
            (bare.v4.to_string(), 404),
            (name("bare", 80), 404),
            (bed.address("server", 8080).v4.to_string(), 404),
            (bed.address("second", 15001).v4.to_string(), 404),
            ("127.0.0.1:15000".to_owned(), 404),
            (format!("{}:15008", bed.v4(WAYPOINT)), 404),
            ("192.0.2.1:80".to_owned(), 404),
        ];
        let authorities: Vec<_> = asked.iter().map(|(authority, _)| authority.clone()).collect();
        let statuses = ask(&authorities);
        for ((authority, status), got) in asked.iter().zip(statuses) {
            assert_eq!(got, *status, "{authority}");
        }
        assert_eq!(bed.http("client", own.v4, "/open", &[]).unwrap().status, 503);
        // What has left the waypoint is reached without it.
        bed.change_service("web", |service| service.waypoint = None);
        let answer = bed.until_status("client", web.v4, "/never", 200);
        assert_eq!(client_of(&answer), bed.v4("client"));
    });
}

#[test]
fn a_changed_policy_ends_what_it_denies_and_the_next_request_is_denied() {
    inside("a_changed_policy_ends_what_it_denies_and_the_next_request_is_denied", || {
        let (bed, web) = bed();
        // An answer that is not read: it runs on.
        let mut running = bed.connect("client", web.v4).unwrap();
        write!(running, "GET /long/bytes/50000000 HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        running.read_exact(&mut [0; 100]).unwrap();
        let idle = bed.connect("client", web.v4).unwrap();
        assert_eq!(ask(&idle, "GET", "/v1/7/items", &[]).unwrap().status, 200);
        let fewer = RULES.replace("sa/client", "sa/nobody");
        bed.enforce(&["web", "second"], &fewer);
        let mut rest = Vec::new();
        let end = running.read_to_end(&mut rest);
        assert!(end.is_err() || rest.len() < 49_000_000, "{end:?} after {} bytes", rest.len());
        assert_eq!(ask(&idle, "GET", "/v1/7/items", &[]).unwrap().status, 403);
        assert_eq!(ask(&idle, "GET", "/open", &[]).unwrap().status, 200);
        bed.nodes[WAYPOINT].until_logged(&["/long", "policy"]);
    });
}

#[test]
fn a_draining_waypoint_ends_what_it_has_begun_and_then_its_clients_see_an_error() {
    inside("a_draining_waypoint_ends_what_it_has_begun_and_then_its_clients_see_an_error", || {
        let (mut bed, web) = bed();
        let mut running = bed.connect("client", web.v4).unwrap();
        write!(running, "GET /long/bytes/30000000 HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        running.read_exact(&mut [0; 100]).unwrap();
        bed.at(WAYPOINT).terminate();
        bed.nodes[WAYPOINT].until_logged(&["draining"]);
        let mut rest = Vec::new();
        while rest.len() < 30_000_000 {
            let mut piece = vec![0; 1 << 20];
            let count = running.read(&mut piece).unwrap();
            assert!(count > 0, "cut after {} bytes:\n{}", rest.len(), bed.nodes[WAYPOINT].log());
            rest.extend_from_slice(&piece[..count]);
            if rest.len() + 100 > 30_000_000 {
                break;
            }
        }
        drop(running);
        let status = bed.at(WAYPOINT).until_ended();
        assert!(status.success(), "{status}");
        // Nobody goes round it.
        assert!(bed.http("client", web.v4, "/open", &[]).is_err());
        bed.at(WAYPOINT).start();
        bed.at(WAYPOINT).until_ready(true);
        bed.until_status("client", web.v4, "/open", 200);
        bed.at(WAYPOINT).kill();
        assert!(bed.http("client", web.v4, "/open", &[]).is_err());
    });
}

#[test]
fn requests_of_one_http2_connection_are_each_decided_and_reach_servers_of_http1() {
    inside("requests_of_one_http2_connection_are_each_decided_and_reach_servers_of_http1", || {
        let (bed, web) = bed();
        let paths = ["/v1/7/items", "/other", "/v2/x", "/never", "/open"];
        let answers = ask_http2(bed.connect("client", web.v4).unwrap(), &paths);
        let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
        assert_eq!(statuses, [200, 403, 200, 403, 200], "{answers:?}");
        assert!(answers[0].1.starts_with("server ") && answers[2].1.starts_with("second "), "{answers:?}");
        let told = format!("by={};uri={}", identity(WAYPOINT), identity("client"));
        assert!(answers[0].1.contains(&told), "{answers:?}");
        // What is not declared is spoken to the server as the client speaks it, which is more than this server knows.
        bed.stand_before(&["web", "second"], AppProtocol::Unknown, RULES);
        let answers = ask_http2(bed.connect("client", web.v4).unwrap(), &paths);
        let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
        assert_eq!(statuses, [503, 403, 503, 403, 503], "{answers:?}");
    });
}

/// Asks for paths, all at once, on one connection of HTTP/2 with prior knowledge; status and body of each.
fn ask_http2(socket: TcpStream, paths: &[&str]) -> Vec<(u16, String)> {
    socket.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asking = async {
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let (client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let mut client = client.ready().await.unwrap();
        let mut waiting = Vec::new();
        for path in paths {
            let request = http::Request::get(format!("http://web{path}")).body(()).unwrap();
            waiting.push(client.send_request(request, true).unwrap().0);
        }
        let mut answers = Vec::new();
        for answer in waiting {
            let mut answer = answer.await.unwrap();
            let mut body = Vec::new();
            while let Some(piece) = answer.body_mut().data().await {
                let piece = piece.unwrap();
                answer.body_mut().flow_control().release_capacity(piece.len()).unwrap();
                body.extend_from_slice(&piece);
            }
            answers.push((answer.status().as_u16(), String::from_utf8(body).unwrap()));
        }
        answers
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await }).unwrap()
}
