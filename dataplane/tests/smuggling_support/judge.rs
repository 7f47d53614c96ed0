//! Sends the corpora over any way to an application that records what it gets, and compares.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};

use super::corpus::{CASES, Outcome, SMUGGLED};
use super::corpus2::{self, Case2};
use super::recorder::{Recorder, Request};
use crate::flood_support::{Peer, request, trailers};
use crate::message::Client;

/// How a client comes to the application; policy denies [`super::SMUGGLED_PATHS`] on it.
pub struct Way<'w> {
    pub name: &'static str,
    pub connect: &'w dyn Fn() -> TcpStream,
}

impl Way<'_> {
    fn client(&self) -> Client {
        Client::new((self.connect)())
    }
}

// === HTTP/1.1 ===

/// Each case on each way: what is refused does not reach the application, what passes does so as it must.
pub fn requests(recorder: &Recorder, ways: &[Way<'_>]) {
    assert!(CASES.len() >= 60);
    let mut failures = Vec::new();
    let mut expected: BTreeMap<String, Outcome> = BTreeMap::new();
    for way in ways {
        let mut neighbour = way.client();
        for (name, raw, outcome) in CASES {
            let path = format!("/{}/{name}", way.name);
            let raw = raw.replace("{S}", SMUGGLED).replace('@', &path);
            let got = statuses(&mut way.client(), &latin1(&raw));
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
    println!("{} cases on {} ways", CASES.len(), ways.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Sends bytes, ends, and reads whole responses to the end; their statuses.
fn statuses(client: &mut Client, bytes: &[u8]) -> Vec<u16> {
    // We may be refused before all is sent.
    if client.send(bytes).is_ok() {
        let _ = client.reader.get_ref().shutdown(Shutdown::Write);
    }
    std::iter::from_fn(|| client.response().ok()).map(|response| response.status).take(10).collect()
}

/// The cases are written in characters of one byte each.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

// === From HTTP/2 to HTTP/1.1 ===

/// Each case on a way that leads to an application of HTTP/1.1.
pub fn requests_of_http2(recorder: &Recorder, way: &Way<'_>) {
    let mut failures = Vec::new();
    for case in corpus2::CASES {
        let answered = Peer::clear((way.connect)()).exchange(&frames_of(case, &path_of(way, case)));
        if case.passes && !answered {
            failures.push(format!("{}: not answered", case.name));
        }
    }
    let seen = recorder.finished();
    failures.extend(seen.complaints.iter().cloned());
    for case in corpus2::CASES {
        let path = path_of(way, case);
        let of_case = |it: &&Request| {
            let within = [format!("{path} "), format!("{path}/")];
            it.line.ends_with(&path) || within.iter().any(|path| it.line.contains(path))
        };
        let got: Vec<_> = seen.requests.iter().filter(of_case).collect();
        if got.len() != usize::from(case.passes) {
            failures.push(format!("{}: the application got {got:?}", case.name));
        }
    }
    let smuggled: Vec<_> = seen.requests.iter().filter(|it| it.line.ends_with("/smuggled")).collect();
    assert!(smuggled.is_empty(), "{smuggled:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    println!("{} cases", corpus2::CASES.len());
}

fn path_of(way: &Way<'_>, case: &Case2) -> String {
    format!("/{}/{}", way.name, case.name)
}

fn frames_of(case: &Case2, path: &str) -> Vec<u8> {
    let fields: Vec<_> = case.fields.iter().map(|(name, value)| (*name, value.replace('@', path))).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body = case.body.map(|body| body.replace("{S}", SMUGGLED).replace('@', path));
    let mut bytes = request(&fields, body.as_deref().map(str::as_bytes));
    if !case.trailers.is_empty() {
        // The body does not end before them.
        let data = bytes.windows(9).rposition(|head| head[3..] == [0, 1, 0, 0, 0, 1]).unwrap();
        bytes[data + 4] = 0;
        bytes.extend(trailers(case.trailers));
    }
    bytes
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

/// An application that answers so.
pub fn hostile_application() -> Recorder {
    Recorder::answering(RESPONSES.iter().map(|(name, bytes, _)| (*name, *bytes)))
}

/// Asks [`hostile_application`] for each of its answers on each way: none is taken for the answer to another request.
pub fn responses(ways: &[Way<'_>]) {
    for way in ways {
        for (name, _, status) in RESPONSES {
            let way_name = way.name;
            let mut client = way.client();
            client.send(format!("GET /{way_name}/{name} HTTP/1.1\r\nHost: web\r\n\r\n")).unwrap();
            let answer = client.response().unwrap_or_else(|error| panic!("{way_name} {name}: {error}"));
            assert_eq!(answer.status, *status, "{way_name} {name}: {answer:?}");
            // Whatever else the application said belongs to nobody.
            let _ = client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n");
            if let Ok(next) = client.response() {
                assert_eq!(next.text(), "ok", "{way_name} {name}");
            }
            assert_eq!(way.client().get("/next").text(), "ok", "{way_name} {name}");
        }
    }
}
