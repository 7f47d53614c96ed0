//! Traffic policies (DestinationRule) at the client's node, over sockets: how requests and connections are spread over
//! endpoints, which of them are left out, and what is bounded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use session_support::http::Client;
use session_support::{Bed, PATIENCE, Setup, inside, pods};

/// Two servers behind one service of several ports, governed by `policy`.
fn world(policy: &str, http: &str) -> String {
    let pods = pods()
        .replace("app: server,", "app: web, version: v1,")
        .replace("app: other,", "app: web, version: v2,");
    format!(
        "{pods}---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: app }}
spec:
  clusterIP: 10.96.2.2
  selector: {{ app: web }}
  ports:
  - {{ name: http, port: 80, targetPort: 8080 }}
  - {{ name: http-second, port: 81, targetPort: 8080 }}
  - {{ name: tcp, port: 82, targetPort: 8080 }}
  - {{ name: http2, port: 83, targetPort: 8083 }}
  - {{ name: http2-second, port: 84, targetPort: 8083 }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: web, namespace: app }}
spec:
  host: web
{policy}
{http}"
    )
}

/// What the servers do.
#[derive(Default)]
struct Servers {
    /// Connections that each has taken, and those that have ended.
    taken: AtomicUsize,
    ended: AtomicUsize,
    /// Requests for `/wait` are answered when it is set.
    go: AtomicBool,
    waiting: AtomicUsize,
    /// Names of servers that answer 503.
    bad: Mutex<BTreeSet<String>>,
}

impl Servers {
    /// Answers `NAME` to each request, until its client ends.
    fn serve(&self, name: &str, mut socket: TcpStream) {
        self.taken.fetch_add(1, Ordering::SeqCst);
        let mut reader = BufReader::new(socket.try_clone().unwrap());
        while let Some(first) = next_head(&mut reader) {
            if first.contains("/wait") {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                until(|| self.go.load(Ordering::SeqCst));
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            let is_bad = self.bad.lock().unwrap().contains(name);
            let status = if is_bad { "503 Bad" } else { "200 OK" };
            let length = name.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{name}");
            if socket.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// The first line of a head; `None` at the end.
fn next_head(reader: &mut impl BufRead) -> Option<String> {
    let mut first = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if line == "\r\n" {
            return first;
        }
        first.get_or_insert(line);
    }
}

fn until(mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "it does not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One worker, so that all requests are counted together.
fn bed(policy: &str, http: &str) -> (Bed, Arc<Servers>) {
    let mut setup = Setup { workers: 1, ..Setup::default() };
    setup.options.workers = 1;
    let bed = Bed::with(&world(policy, http), &setup);
    let servers = Arc::new(Servers::default());
    for pod in ["server", "other"] {
        let servers = servers.clone();
        bed.serve(pod, 8080, move |socket, _| servers.serve(pod, socket));
    }
    (bed, servers)
}

fn to(port: u16) -> SocketAddr {
    SocketAddr::new("10.96.2.2".parse().unwrap(), port)
}

fn ask(client: &mut Client, path: &str, fields: &str) -> session_support::http::Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n{fields}\r\n")).unwrap();
    client.response().unwrap()
}

#[test]
fn requests_are_spread_as_the_port_says() {
    inside("requests_are_spread_as_the_port_says", || {
        let policy = "
  trafficPolicy:
    loadBalancer: { simple: ROUND_ROBIN }
    portLevelSettings:
    - { port: { number: 81 }, loadBalancer: { consistentHash: { httpHeaderName: X-User } } }
    - { port: { number: 82 }, loadBalancer: { simple: ROUND_ROBIN } }";
        let (bed, _) = bed(policy, "");
        let mut client = bed.client("client", to(80));
        let told: Vec<_> = (0..10).map(|_| ask(&mut client, "/", "").text().to_owned()).collect();
        assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "each in its turn: {told:?}");

        // By hash: whoever asks, from whichever connection.
        let mut homes: BTreeMap<usize, String> = BTreeMap::new();
        for round in 0..3 {
            let mut client = bed.client("client", to(81));
            for user in 0..24 {
                let answer = ask(&mut client, "/", &format!("x-user: user-{user}\r\n"));
                let home = homes.entry(user).or_insert_with(|| answer.text().to_owned());
                assert_eq!(home, answer.text(), "user {user}, round {round}");
            }
        }
        assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
        // Nothing to be hashed: anywhere.
        let mut client = bed.client("client", to(81));
        let told: BTreeSet<_> = (0..64).map(|_| ask(&mut client, "/", "").text().to_owned()).collect();
        assert_eq!(told.len(), 2);

        // Connections without requests.
        let told: Vec<_> = (0..6)
            .map(|_| {
                let mut socket = bed.connect("client", to(82)).unwrap();
                socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                let mut answer = [0; 256];
                let count = socket.read(&mut answer).unwrap();
                String::from_utf8_lossy(&answer[..count]).rsplit('\n').next().unwrap().to_owned()
            })
            .collect();
        assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");
    });
}

#[test]
fn a_cookie_that_is_made_leads_back_to_the_same_endpoint() {
    inside("a_cookie_that_is_made_leads_back_to_the_same_endpoint", || {
        let policy = "
  trafficPolicy:
    loadBalancer: { consistentHash: { httpCookie: { name: user, path: /p, ttl: 60s }, maglev: {} } }
  subsets:
  - { name: v1, labels: { version: v1 } }
  - { name: all, labels: { }, trafficPolicy: { loadBalancer: { consistentHash: { httpQueryParameterName: u } } } }";
        let http = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web, namespace: app }
spec:
  hosts: [web]
  http:
  - { match: [{ uri: { prefix: /one } }], route: [{ destination: { host: web, subset: v1 } }] }
  - { match: [{ uri: { prefix: /all } }], route: [{ destination: { host: web, subset: all } }] }
  - { route: [{ destination: { host: web } }] }";
        let (bed, _) = bed(policy, http);
        let mut homes = BTreeSet::new();
        for _ in 0..12 {
            let mut client = bed.client("client", to(80));
            let first = ask(&mut client, "/", "");
            let cookie = first.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
            assert!(cookie.ends_with("; Max-Age=60; Path=/p; HttpOnly"), "{cookie}");
            let fields = format!("cookie: a=b; {}\r\n", cookie.split(';').next().unwrap());
            homes.insert(first.text().to_owned());
            for _ in 0..4 {
                let again = ask(&mut client, "/", &fields);
                assert_eq!(again.text(), first.text());
                assert!(!again.head.contains("set-cookie"), "{}", again.head);
            }
            assert_eq!(ask(&mut client, "/one", &fields).text(), "server", "a subset stays one");
        }
        assert_eq!(homes.len(), 2);
        // The subset has a policy of its own.
        let mut client = bed.client("client", to(80));
        let home =
            |client: &mut Client, user| ask(client, &format!("/all?a=1&u={user}"), "").text().to_owned();
        for user in 0..10 {
            let first = home(&mut client, user);
            assert!((0..4).all(|_| home(&mut client, user) == first));
        }
        let homes: BTreeSet<_> = (0..24).map(|user| home(&mut client, user)).collect();
        assert_eq!(homes.len(), 2);
    });
}

#[test]
fn an_endpoint_that_fails_is_left_out_until_its_time_is_over() {
    inside("an_endpoint_that_fails_is_left_out_until_its_time_is_over", || {
        let policy = "
  trafficPolicy:
    loadBalancer: { simple: ROUND_ROBIN }
    outlierDetection: { consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, maxEjectionPercent: 50 }";
        let (bed, servers) = bed(policy, "");
        servers.bad.lock().unwrap().insert("server".into());
        let mut client = bed.client("client", to(80));
        let failed = (0..6).filter(|_| ask(&mut client, "/", "").status == 503).count();
        assert_eq!(failed, 3);
        let left: Vec<_> = (0..10).map(|_| ask(&mut client, "/", "").text().to_owned()).collect();
        assert!(left.iter().all(|name| name == "other"), "{left:?}");
        // No more than half of them may be out.
        servers.bad.lock().unwrap().insert("other".into());
        assert!((0..10).all(|_| ask(&mut client, "/", "").text() == "other"));
        servers.bad.lock().unwrap().clear();
        until(|| ask(&mut bed.client("client", to(80)), "/", "").text() == "server");
    });
}

#[test]
fn a_further_try_goes_to_another_endpoint() {
    inside("a_further_try_goes_to_another_endpoint", || {
        let http = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web, namespace: app }
spec:
  hosts: [web]
  http: [{ retries: { attempts: 1, retryOn: 5xx }, route: [{ destination: { host: web } }] }]";
        let (bed, servers) = bed("", http);
        servers.bad.lock().unwrap().insert("server".into());
        let mut client = bed.client("client", to(80));
        for _ in 0..20 {
            let answer = ask(&mut client, "/", "");
            assert_eq!((answer.status, answer.text()), (200, "other"));
        }
        // With none left that has not failed, one of those that have is tried.
        servers.bad.lock().unwrap().insert("other".into());
        assert_eq!(ask(&mut client, "/", "").status, 503);
        drop(client);
        bed.until_idle();
    });
}

#[test]
fn what_is_beyond_the_limits_is_refused_and_waiting_ends() {
    inside("what_is_beyond_the_limits_is_refused_and_waiting_ends", || {
        let policy = "
  trafficPolicy:
    connectionPool: { http: { http2MaxRequests: 2 } }
    portLevelSettings:
    - port: { number: 81 }
      connectionPool: { tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 1 } }
    - port: { number: 82 }
      connectionPool: { tcp: { maxConnections: 1 } }";
        let (mut bed, servers) = bed(policy, "");
        let begin = |bed: &Bed, port| {
            let mut client = bed.client("client", to(port));
            client.send("GET /wait HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
            client
        };
        let mut running = [begin(&bed, 80), begin(&bed, 80)];
        until(|| servers.waiting.load(Ordering::SeqCst) == 2);
        let mut third = bed.client("client", to(80));
        let refused = ask(&mut third, "/", "");
        assert_eq!(refused.status, 503);
        assert!(refused.head.contains("x-envoy-overloaded: true"), "{}", refused.head);
        assert!(refused.text().contains("overflow"), "{}", refused.text());
        let record = bed.ended(Direction::Outbound, CloseCause::UpstreamOverflow);
        assert_eq!(record.flags(), "UO");
        servers.go.store(true, Ordering::SeqCst);
        for client in &mut running {
            assert_eq!(client.response().unwrap().status, 200);
        }
        assert_eq!(ask(&mut third, "/", "").status, 200);

        // One connection, one that waits for it, and no more.
        servers.go.store(false, Ordering::SeqCst);
        let mut first = begin(&bed, 81);
        until(|| servers.waiting.load(Ordering::SeqCst) == 1);
        let mut second = begin(&bed, 81);
        let mut third = bed.client("client", to(81));
        until(|| ask(&mut third, "/wait", "").status == 503);
        assert_eq!(servers.waiting.load(Ordering::SeqCst), 1);
        servers.go.store(true, Ordering::SeqCst);
        assert_eq!(first.response().unwrap().status, 200);
        assert_eq!(second.response().unwrap().status, 200);
        // A connection that has no request gives way to one that wants it, though both clients stay.
        assert_eq!(ask(&mut third, "/", "").status, 200);
        assert_eq!(ask(&mut first, "/", "").status, 200);

        // Bytes that are no requests.
        let held = bed.connect("client", to(82)).unwrap();
        (&held).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 64];
        assert!((&held).read(&mut answer).unwrap() > 0);
        assert!(is_refused(&bed));
        drop(held);
        until(|| !is_refused(&bed));
    });
}

#[test]
fn an_endpoint_that_cannot_be_connected_to_in_time_is_told_as_unavailable() {
    inside("an_endpoint_that_cannot_be_connected_to_in_time_is_told_as_unavailable", || {
        let policy = "
  trafficPolicy:
    connectionPool: { tcp: { connectTimeout: 200ms } }";
        let yaml = world(policy, "").replace("selector: { app: web }", "selector: { app: plain }");
        let mut bed = Bed::with(&yaml, &Setup { workers: 1, ..Setup::default() });
        // Nobody accepts, and the queue is full: the kernel answers no further SYN.
        let _full = bed.network("plain").within(|| {
            let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let listener = socket();
            listener.bind(&SocketAddr::from(([0, 0, 0, 0], 8080)).into()).unwrap();
            listener.listen(0).unwrap();
            let to = SocketAddr::from(([127, 0, 0, 1], 8080)).into();
            let mut waiting = Vec::new();
            while waiting.len() < 16 {
                let next = socket();
                if next.connect_timeout(&to, Duration::from_millis(200)).is_err() {
                    return (listener, waiting);
                }
                waiting.push(next);
            }
            panic!("the queue takes {} connections", waiting.len());
        });
        let mut client = bed.client("client", to(80));
        assert_eq!(ask(&mut client, "/", "").status, 503);
        let record = bed.ended(Direction::Outbound, CloseCause::ConnectTimedOut);
        assert_eq!(record.flags(), "UF");
        let told = ask(&mut client, "/", "content-type: application/grpc\r\n");
        assert!(told.status == 200 && told.head.contains("grpc-status: 14\r\n"), "{}", told.head);
    });
}

/// Whether another connection to the bounded port is refused: it may be reset before it is looked at.
fn is_refused(bed: &Bed) -> bool {
    let Ok(mut socket) = bed.connect("client", to(82)) else { return true };
    let mut answer = [0; 64];
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").is_err() || socket.read(&mut answer).unwrap_or(0) == 0
}

#[test]
fn connections_end_after_their_requests_and_their_rest() {
    inside("connections_end_after_their_requests_and_their_rest", || {
        let policy = "
  trafficPolicy:
    connectionPool: { http: { maxRequestsPerConnection: 2 } }
    portLevelSettings:
    - { port: { number: 81 }, connectionPool: { http: { idleTimeout: 300ms } } }
  subsets: [{ name: one, labels: { version: v1 } }]";
        let http = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web, namespace: app }
spec:
  hosts: [web]
  http: [{ route: [{ destination: { host: web, subset: one } }] }]";
        let (bed, servers) = bed(policy, http);
        let mut client = bed.client("client", to(80));
        assert!((0..6).all(|_| ask(&mut client, "/", "").status == 200));
        assert_eq!(servers.taken.load(Ordering::SeqCst), 3);
        until(|| servers.ended.load(Ordering::SeqCst) == 3);
        let mut client = bed.client("client", to(81));
        assert!((0..6).all(|_| ask(&mut client, "/", "").status == 200));
        assert_eq!(servers.taken.load(Ordering::SeqCst), 4);
        until(|| servers.ended.load(Ordering::SeqCst) == 4);
        assert_eq!(ask(&mut client, "/", "").status, 200, "the client's own connection lives on");
        assert_eq!(servers.taken.load(Ordering::SeqCst), 5);
    });
}

#[test]
fn links_that_requests_share_are_used_up_and_end_and_take_their_turns() {
    inside("links_that_requests_share_are_used_up_and_end_and_take_their_turns", || {
        let policy = "
  trafficPolicy:
    portLevelSettings:
    - port: { number: 83 }
      loadBalancer: { simple: ROUND_ROBIN }
      connectionPool: { tcp: { maxConnections: 1 }, http: { maxRequestsPerConnection: 2, http2MaxRequests: 3 } }
    - port: { number: 84 }
      loadBalancer: { consistentHash: { useSourceIp: true } }
      connectionPool: { http: { idleTimeout: 300ms } }";
        let (bed, _) = bed(policy, "");
        let (tell, told) = std::sync::mpsc::channel();
        for pod in ["server", "other"] {
            bed.serve_http2(pod, 8083, tell.clone());
        }
        let ask = |client: &session_support::http2::Client| {
            let answer = client.get("/").unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.text().split(' ').next().unwrap().to_owned()
        };
        // Each link to a server is a stream of a tunnel.
        let opened = || bed.metric("corelane_streams_total", &["client"]);
        let client = bed.client2("client", to(83));
        let before = opened();
        let names: Vec<_> = (0..8).map(|_| ask(&client)).collect();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert_eq!(opened() - before, 4, "two requests for each link");
        // Three run, and no more.
        let other = bed.client2("client", to(83));
        let held: Vec<_> = (0..3)
            .map(|_| other.ask(session_support::http2::request("GET", "/hold", "text/plain"), true))
            .collect();
        let holds = || told.recv_timeout(PATIENCE).unwrap() == "GET /hold";
        let mut count = 0;
        until(|| {
            count += usize::from(holds());
            count == 3
        });
        let refused = client.get("/").unwrap();
        assert_eq!((refused.status, refused.field("x-envoy-overloaded")), (503, Some("true")));
        let refused = client.post("/", "application/grpc", b"x", http::HeaderMap::new()).unwrap();
        let told = ["grpc-status", "x-envoy-overloaded"].map(|name| refused.field(name));
        assert_eq!((refused.status, told), (200, [Some("14"), Some("true")]));
        drop(held);
        drop(other);
        until(|| client.get("/").unwrap().status == 200);

        let client = bed.client2("client", to(84));
        let (home, before) = (ask(&client), opened());
        assert_eq!((ask(&client), opened()), (home.clone(), before));
        until(|| {
            std::thread::sleep(Duration::from_millis(700));
            assert_eq!(ask(&client), home, "the same client, the same server");
            opened() > before
        });
    });
}
