//! Messages that two parsers could read in two ways: each is refused, or passed on in the one way that leaves nothing to
//! read into it. What reaches the application is recorded byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod flood_support;
mod session_support;
mod smuggling_support;

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};

use flood_support::{Peer, request, trailers};
use session_support::http::Client;
use session_support::{Bed, inside, pods, policy};
use smuggling_support::corpus::{CASES, Outcome, SMUGGLED};
use smuggling_support::corpus2::{self, Case2};
use smuggling_support::recorder::{Recorder, Request};

/// All but what is smuggled is allowed, so only what nobody has looked at gets there.
const RULES: &str = "[{ to: [{ operation: { paths: ['/*'], notPaths: ['*/smuggled'] } }] }]";

/// A service with a route, so that the client's proxy reads requests as well as the server's.
fn yaml() -> String {
    let service = |name: &str, ip: u8, selected: &str| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {selected} }}, ports: [{{ port: 8080, appProtocol: http }}] }}
"
        )
    };
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8080 }]
  rules: [{ backendRefs: [{ name: real, port: 8080 }] }]
";
    [
        pods(),
        service("web", 1, "none"),
        service("real", 2, "server"),
        route.to_owned(),
        policy("all", "ALLOW", RULES),
    ]
    .concat()
}

/// Ways to the application: routed and authorized, authorized behind a tunnel, authorized in plain text.
fn ways(server: SocketAddr) -> [(&'static str, &'static str, SocketAddr); 3] {
    [
        ("routed", "client", "10.96.1.1:8080".parse().unwrap()),
        ("tunnelled", "client", server),
        ("plain", "plain", server),
    ]
}

/// Sends bytes, ends, and reads whole responses to the end; their statuses.
fn statuses(client: &mut Client, bytes: &[u8]) -> Vec<u16> {
    // We may be refused before all is sent.
    if client.send(bytes).is_ok() {
        let _ = client.reader.get_ref().shutdown(Shutdown::Write);
    }
    std::iter::from_fn(|| client.response().ok()).map(|response| response.status).take(10).collect()
}

#[test]
fn no_request_hides_in_another() {
    inside("no_request_hides_in_another", || {
        assert!(CASES.len() >= 60);
        let bed = Bed::new(&yaml());
        let recorder = Recorder::default();
        let server = recorder.serve(&bed, "server", 8080);
        let mut failures = Vec::new();
        let mut expected: BTreeMap<String, Outcome> = BTreeMap::new();
        for (way, pod, to) in ways(server) {
            let mut neighbour = bed.client(pod, to);
            for (name, raw, outcome) in CASES {
                let path = format!("/{way}/{name}");
                let raw = raw.replace("{S}", SMUGGLED).replace('@', &path);
                let got = statuses(&mut bed.client(pod, to), &latin1(&raw));
                let fits = match outcome {
                    Outcome::Refused => got.iter().all(|status| *status >= 400),
                    Outcome::Passed(all) => got.iter().filter(|status| **status == 200).count() == all.len(),
                };
                if !fits {
                    failures.push(format!("{path}: {outcome:?}, answered {got:?}"));
                }
                expected.insert(path, *outcome);
            }
            assert_eq!(neighbour.get("/neighbour").status, 200, "neighbours go on");
        }
        bed.until_idle();
        let seen = recorder.finished();
        failures.extend(seen.complaints.iter().cloned());
        for (path, outcome) in &expected {
            let wanted = match outcome {
                Outcome::Refused => &[][..],
                Outcome::Passed(all) => all,
            };
            let of_case = |request: &&Request| {
                let rest = request.line.split(' ').nth(1).unwrap_or_default();
                rest.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let got: Vec<_> =
                seen.requests.iter().filter(of_case).map(|it| (it.line.clone(), it.body.clone())).collect();
            let wanted: Vec<_> =
                wanted.iter().map(|(line, body)| (line.replace('@', path), (*body).to_owned())).collect();
            // The one case whose path leads out of its own.
            if got != wanted && !path.ends_with("line-backslash") {
                failures.push(format!("{path}: wanted {wanted:?}, the application got {got:?}"));
            }
        }
        println!("{} cases on {} ways", CASES.len(), 3);
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    });
}

/// The cases are written in characters of one byte each.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

// === From HTTP/2 to HTTP/1.1 ===

#[test]
fn no_request_hides_in_one_of_http2() {
    inside("no_request_hides_in_one_of_http2", || {
        let bed = Bed::new(&yaml());
        let recorder = Recorder::default();
        recorder.serve(&bed, "server", 8080);
        let service: SocketAddr = "10.96.1.1:8080".parse().unwrap();
        let mut failures = Vec::new();
        for Case2 { name, fields, body, trailers: after, passes } in corpus2::CASES {
            let path = format!("/routed/{name}");
            let filled: Vec<_> =
                fields.iter().map(|(name, value)| (*name, value.replace('@', &path))).collect();
            let filled: Vec<_> = filled.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let body = body.map(|body| body.replace("{S}", SMUGGLED).replace('@', &path));
            let mut bytes = request(&filled, body.as_deref().map(str::as_bytes));
            if !after.is_empty() {
                // The body does not end before them.
                let data = bytes.windows(9).rposition(|head| head[3..] == [0, 1, 0, 0, 0, 1]).unwrap();
                bytes[data + 4] = 0;
                bytes.extend(trailers(after));
            }
            let answered = Peer::clear(bed.connect("client", service).unwrap()).exchange(&bytes);
            if *passes && !answered {
                failures.push(format!("{name}: not answered"));
            }
        }
        bed.until_idle();
        let seen = recorder.finished();
        failures.extend(seen.complaints.iter().cloned());
        for case in corpus2::CASES {
            let path = format!("/routed/{}", case.name);
            let got: Vec<_> = seen
                .requests
                .iter()
                .filter(|it| {
                    it.line.contains(&format!("{path} "))
                        || it.line.ends_with(&path)
                        || it.line.contains(&format!("{path}/"))
                })
                .collect();
            if got.len() != usize::from(case.passes) {
                failures.push(format!("{}: the application got {got:?}", case.name));
            }
        }
        let smuggled: Vec<_> = seen.requests.iter().filter(|it| it.line.ends_with("/smuggled")).collect();
        assert!(smuggled.is_empty(), "{smuggled:?}");
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
        println!("{} cases", corpus2::CASES.len());
    });
}

// === Responses ===

/// What an application may answer to a request for the name, and whether the client gets 502 for it.
const RESPONSES: &[(&str, &str, u16)] = &[
    (
        "length-and-chunks",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        502,
    ),
    ("two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 502),
    ("bad-length", "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc", 502),
    ("other-coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", 502),
    ("chunks-of-old", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 502),
    ("bare-lf", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", 502),
    ("lf-in-value", "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 9\r\nContent-Length: 3\r\n\r\nabc", 502),
    ("folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc", 502),
    ("space-before-colon", "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc", 502),
    ("bad-status", "HTTP/1.1 2OO OK\r\nContent-Length: 3\r\n\r\nabc", 502),
    (
        "unasked-switch",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nabc",
        502,
    ),
    (
        "two-responses",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        200,
    ),
    (
        "response-in-none",
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        204,
    ),
];

#[test]
fn no_response_hides_in_another() {
    inside("no_response_hides_in_another", || {
        let bed = Bed::new(&yaml());
        let recorder = Recorder::answering(RESPONSES.iter().map(|(name, bytes, _)| (*name, *bytes)));
        let server = recorder.serve(&bed, "server", 8080);
        for (way, pod, to) in ways(server) {
            for (name, _, status) in RESPONSES {
                let mut client = bed.client(pod, to);
                client.send(format!("GET /{way}/{name} HTTP/1.1\r\nHost: web\r\n\r\n")).unwrap();
                let answer = client.response().unwrap_or_else(|error| panic!("{way} {name}: {error}"));
                assert_eq!(answer.status, *status, "{way} {name}: {answer:?}");
                // Whatever else the application said belongs to nobody.
                let _ = client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n");
                if let Ok(next) = client.response() {
                    assert_eq!(next.text(), "ok", "{way} {name}");
                }
                assert_eq!(bed.client(pod, to).get("/next").text(), "ok", "{way} {name}");
            }
        }
    });
}
