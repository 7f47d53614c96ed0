//! Filters on whole messages: what is written, and that nothing they hold can break it.

use std::sync::Arc;

use super::*;
use crate::http1::{
    HeadScanner, Rewritten, Version, empty_headers, parse_request, parse_response, redirect_reply,
    write_rewritten_request, write_rewritten_response,
};
use crate::ir::{
    BackendTarget, HeaderEdits, HeaderValue, HttpRoute, HttpRule, PathRewrite, RequestHead, RouteOrder,
    Scheme,
};
use crate::router::{RouteMatch, Router, Taken};

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: name.into(), value: value.into() }
}

fn edits(remove: &[&str], set: &[(&str, &str)], add: &[(&str, &str)]) -> HeaderEdits {
    HeaderEdits {
        remove: remove.iter().map(|name| Arc::from(*name)).collect(),
        set: set.iter().map(|(name, text)| value(name, text)).collect(),
        add: add.iter().map(|(name, text)| value(name, text)).collect(),
    }
}

fn on_request(request_headers: HeaderEdits) -> Arc<Filters> {
    Arc::new(Filters { request_headers, ..Filters::default() })
}

fn on_url(url: UrlAction) -> Arc<Filters> {
    Arc::new(Filters { url: Some(url), ..Filters::default() })
}

fn rewrite(hostname: Option<&str>, path: Option<PathRewrite>) -> Arc<Filters> {
    on_url(UrlAction::Rewrite(UrlRewrite { hostname: hostname.map(Arc::from), path }))
}

fn redirect(path: Option<PathRewrite>) -> Redirect {
    Redirect { scheme: None, hostname: None, port: None, path, status: 302 }
}

fn backend(filters: Option<Arc<Filters>>) -> Backend {
    let service = model::NamespacedHostname::new("n", "s");
    Backend {
        target: BackendTarget::Service { service, port: 80 },
        subset: None,
        weight: 1,
        filters,
        tls: None,
        retry_budget: None,
        session: None,
    }
}

fn rule(path: PathMatch, filters: Option<Arc<Filters>>, backends: Vec<Backend>) -> HttpRule {
    let matches = vec![HttpMatch { path, ..HttpMatch::default() }];
    HttpRule { matches, filters, backends, ..HttpRule::default() }
}

fn router(rule: HttpRule) -> Result<Router, crate::router::RouteError> {
    Router::compile([Arc::new(HttpRoute {
        kind: crate::ir::RouteKind::Http,
        namespace: "n".into(),
        name: "r".into(),
        parent: model::NamespacedHostname::new("n", "s"),
        parent_port: None,
        consumer_namespace: None,
        order: RouteOrder::Ranked,
        created: 0,
        hostnames: vec![],
        rules: vec![rule],
        source: None,
    })])
}

/// The request as the backend gets it.
fn forwarded(rule: HttpRule, received: &str) -> String {
    let router = router(rule).unwrap();
    let mut storage = empty_headers();
    let request = parse_request(received.as_bytes(), &mut storage).unwrap();
    let (path, query) = request.target.split_once('?').map_or((request.target, None), |(p, q)| (p, Some(q)));
    let head = RequestHead {
        method: request.method,
        authority: request.authority,
        path,
        query,
        headers: request.headers,
        token: None,
    };
    let RouteMatch::Matched(found) = router.route(&head) else { panic!("no match for {path}") };
    let Taken::Forwarded { filters, .. } = found.take(0) else { panic!("not forwarded") };
    let mut out = Vec::new();
    let target = filters.path(path);
    let fields = filters.request_fields(request.headers);
    let authority = filters.authority(request.authority);
    let rewritten = Rewritten { authority, target: &target, fields: fields.iter() };
    write_rewritten_request(&mut out, &request, rewritten);
    String::from_utf8(out).unwrap()
}

fn root() -> PathMatch {
    PathMatch::Prefix("/".into())
}

#[test]
fn headers_are_removed_set_and_added() {
    let filters = on_request(edits(&["X-Gone"], &[("X-Set", "new")], &[("X-Add", "two"), ("X-New", "1")]));
    let out = forwarded(
        rule(root(), Some(filters), vec![backend(None)]),
        "GET / HTTP/1.1\r\nHost: a\r\nx-gone: 1\r\nx-set: a\r\nX-SET: b\r\nx-add: one\r\nx-keep: k\r\n\r\n",
    );
    assert_eq!(
        out,
        "GET / HTTP/1.1\r\nhost: a\r\nx-add: one,two\r\nx-keep: k\r\nX-Set: new\r\nX-New: 1\r\n\r\n"
    );
}

#[test]
fn the_filters_of_the_backend_come_after_those_of_the_rule() {
    let of_rule = on_request(edits(&[], &[("x-a", "rule")], &[("x-b", "rule")]));
    let of_backend = on_request(edits(&["x-b"], &[("x-a", "backend")], &[]));
    let out = forwarded(
        rule(root(), Some(of_rule), vec![backend(Some(of_backend))]),
        "GET / HTTP/1.1\r\nHost: a\r\nX-B: client\r\n\r\n",
    );
    assert_eq!(out, "GET / HTTP/1.1\r\nhost: a\r\nx-a: backend\r\n\r\n");
}

#[test]
fn cookies_are_never_joined_by_a_comma() {
    let added = [("Cookie", "b=2"), ("Set-Cookie", "d"), ("x-empty", "v")];
    let filters = on_request(edits(&[], &[], &added));
    let out = forwarded(
        rule(root(), Some(filters), vec![backend(None)]),
        "GET / HTTP/1.1\r\nHost: a\r\ncookie: a=1\r\nset-cookie: c\r\nx-empty:\r\n\r\n",
    );
    assert_eq!(
        out,
        "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; b=2\r\nset-cookie: c\r\nx-empty: v\r\nSet-Cookie: d\r\n\r\n"
    );
}

#[test]
fn a_client_cannot_strip_what_a_filter_sets() {
    let filters = on_request(edits(&[], &[("x-tenant", "blue")], &[]));
    let out = forwarded(
        rule(root(), Some(filters), vec![backend(None)]),
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-tenant, x-hop\r\nx-tenant: red\r\nx-hop: 1\r\n\r\n",
    );
    assert_eq!(out, "GET / HTTP/1.1\r\nhost: a\r\nx-tenant: blue\r\n\r\n");
}

#[test]
fn a_rewrite_changes_path_and_authority_and_keeps_framing() {
    let of_rule = rewrite(Some("one.example"), Some(PathRewrite::Prefix("/new".into())));
    let received =
        "POST /old/x HTTP/1.1\r\nHost: a:80\r\nTE: trailers\r\nConnection: te\r\nContent-Length: 3\r\n\r\n";
    let old = || PathMatch::Prefix("/old".into());
    let out = forwarded(rule(old(), Some(of_rule.clone()), vec![backend(None)]), received);
    assert_eq!(
        out,
        "POST /new/x HTTP/1.1\r\nhost: one.example\r\ncontent-length: 3\r\nte: trailers\r\nconnection: te\r\n\r\n"
    );
    // What the backend's rewrite says replaces what the rule's says; the rest stands.
    let of_backend = rewrite(None, Some(PathRewrite::Full("/full".into())));
    let out = forwarded(rule(old(), Some(of_rule), vec![backend(Some(of_backend))]), received);
    assert!(out.starts_with("POST /full HTTP/1.1\r\nhost: one.example\r\n"), "{out}");
}

#[test]
fn rules_and_backends_redirect() {
    let action = || on_url(UrlAction::Redirect(redirect(Some(PathRewrite::Prefix("/new".into())))));
    let old = || PathMatch::Prefix("/old".into());
    for rule in [rule(old(), Some(action()), vec![]), rule(old(), None, vec![backend(Some(action()))])] {
        let router = router(rule).unwrap();
        let head = RequestHead {
            method: "GET",
            authority: "a:8080",
            path: "/old/x",
            query: Some("q"),
            headers: &[],
            token: None,
        };
        let RouteMatch::Matched(found) = router.route(&head) else { panic!() };
        let Taken::Redirected(chain) = found.take(0) else { panic!() };
        let dialled = Dialled { scheme: Scheme::Http, port: 8080 };
        let location =
            chain.location(chain.redirect().unwrap(), dialled, head.authority, head.path, head.query);
        assert_eq!(location, "http://a:8080/new/x?q");
    }
}

#[test]
fn an_invalid_backend_fails_before_its_redirect() {
    let mut own = backend(Some(on_url(UrlAction::Redirect(redirect(None)))));
    own.target = BackendTarget::Invalid("gone".into());
    let router = router(rule(root(), None, vec![own])).unwrap();
    let head =
        RequestHead { method: "GET", authority: "a", path: "/", query: None, headers: &[], token: None };
    let RouteMatch::Matched(found) = router.route(&head) else { panic!() };
    assert_eq!(found.take(0), Taken::Failed(Some(&"gone".into())));
}

#[test]
fn what_could_break_a_message_or_mean_nothing_is_refused() {
    let with = |filters| rule(root(), Some(filters), vec![]);
    let headers = |remove: &[&str], set: &[(&str, &str)]| with(on_request(edits(remove, set, &[])));
    let redirected = |action: Redirect| with(on_url(UrlAction::Redirect(action)));
    let full = |path: &str| with(rewrite(None, Some(PathRewrite::Full(path.into()))));
    let long = "x".repeat(5000);
    let many: Vec<(&str, &str)> = vec![("x-a", "1"); 17];
    for (rule, expected) in [
        (headers(&["Host"], &[]), "\"Host\" belongs to the connection"),
        (headers(&[], &[("Content-Length", "0")]), "belongs to the connection"),
        (headers(&[], &[("transfer-encoding", "chunked")]), "belongs to the connection"),
        (headers(&["connection"], &[]), "belongs to the connection"),
        (headers(&[":path"], &[]), "cannot be a header name"),
        (headers(&[""], &[]), "cannot be a header name"),
        (headers(&[], &[("x y", "1")]), "cannot be a header name"),
        (headers(&[], &[("x\r\ny", "1")]), "cannot be a header name"),
        (headers(&[], &[("x", "1\r\nset-cookie: a")]), "the value of header \"x\""),
        (headers(&[], &[("x", "1\0")]), "the value of header"),
        (headers(&[], &[("x", " 1")]), "the value of header"),
        (headers(&[], &[("x", "\u{e9}")]), "the value of header"),
        (headers(&[], &[("x", "")]), "the value of header"),
        (headers(&[], &[("x", &long)]), "the value of header"),
        (headers(&[], &many), "17 header edits"),
        (full(""), "cannot stand in"),
        (full("x"), "cannot stand in"),
        (full("//x"), "cannot stand in"),
        (full("/a/../b"), "cannot stand in"),
        (full("/a?b"), "cannot stand in"),
        (full("/a b"), "cannot stand in"),
        (full("/a\r\n"), "cannot stand in"),
        (full("/a%2"), "cannot stand in"),
        (with(rewrite(Some("a:80"), None)), "host name \"a:80\""),
        (with(rewrite(Some("a\r\nb"), None)), "host name"),
        (with(rewrite(Some(""), None)), "host name"),
        (redirected(Redirect { status: 200, ..redirect(None) }), "status 200"),
        (redirected(Redirect { port: Some(0), ..redirect(None) }), "port 0"),
        (
            rule(root(), Some(on_url(UrlAction::Redirect(redirect(None)))), vec![backend(None)]),
            "cannot have backends",
        ),
        (
            rule(
                PathMatch::Exact("/a".into()),
                None,
                vec![backend(Some(rewrite(None, Some(PathRewrite::Prefix("/b".into())))))],
            ),
            "only be replaced where every match is one of a path prefix",
        ),
    ] {
        let shown = format!("{rule:?}");
        let error = router(rule).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("n/r, rule 0"), "{shown}: {error}");
    }
}

#[test]
fn filters_survive_their_text_and_unknown_ones_do_not() {
    let filters = Filters {
        request_headers: edits(&["x"], &[("y", "1")], &[("z", "2")]),
        response_headers: HeaderEdits::default(),
        url: Some(UrlAction::Redirect(redirect(Some(PathRewrite::Prefix("".into()))))),
        ..Filters::default()
    };
    let own = rule(root(), Some(Arc::new(filters)), vec![]);
    let text = serde_json::to_string(&own).unwrap();
    assert_eq!(serde_json::from_str::<HttpRule>(&text).unwrap(), own);
    let bare = serde_json::to_string(&rule(root(), None, vec![backend(None)])).unwrap();
    assert!(!bare.contains("filters"), "{bare}");
    for unknown in [
        text.replace("\"url\"", "\"mirror\""),
        text.replace("Redirect", "Teleport"),
        text.replace("\"filters\"", "\"filter\""),
    ] {
        assert!(serde_json::from_str::<HttpRule>(&unknown).is_err(), "{unknown}");
    }
}

// === Fuzz ===

/// Texts that stand for themselves, and all of which some message or filter might choke on.
const TEXTS: &[&str] = &[
    "a",
    "x-a",
    "X-A",
    "host",
    "te",
    "content-length",
    "Transfer-Encoding",
    "connection",
    "upgrade",
    "set-cookie",
    "/",
    "/a",
    "/a/",
    "//a",
    "/a/b",
    "",
    " ",
    "a\r\nb: c",
    "\r\n\r\n",
    "7",
    "chunked",
    "close, x-a",
    "h.example",
    "h:80",
    "\u{e9}",
    "/a?b#c",
    "/../a",
    "location",
];

struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn roll(&mut self, sides: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % sides
    }

    /// Mostly one of the good ones, so that most filters pass the check.
    fn text(&mut self, good: &[&str]) -> Arc<str> {
        let texts = if self.roll(12) == 11 { TEXTS } else { good };
        Arc::from(texts[self.roll(texts.len())])
    }

    fn word(&mut self) -> Arc<str> {
        self.text(&["a", "x-a", "X-A", "set-cookie", "location"])
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.roll(3)).map(|_| one(self)).collect()
    }

    fn maybe<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.roll(2) == 1).then(|| one(self))
    }

    fn edits(&mut self) -> HeaderEdits {
        let value = |dice: &mut Self| HeaderValue { name: dice.word(), value: dice.word() };
        HeaderEdits { remove: self.list(Self::word), set: self.list(value), add: self.list(value) }
    }

    fn path(&mut self) -> PathRewrite {
        let path = self.text(&["/", "/a", "/a/", "/a/b"]);
        if self.roll(2) == 0 { PathRewrite::Full(path) } else { PathRewrite::Prefix(path) }
    }

    fn filters(&mut self) -> Arc<Filters> {
        let (request_headers, response_headers) = (self.edits(), self.edits());
        let url = match self.roll(3) {
            0 => None,
            1 => Some(UrlAction::Rewrite(UrlRewrite {
                hostname: self.maybe(|dice| dice.text(&["h.example", "a"])),
                path: self.maybe(Self::path),
            })),
            _ => Some(UrlAction::Redirect(Redirect {
                scheme: self.maybe(|_| Scheme::Https),
                hostname: self.maybe(|dice| dice.text(&["h.example", "a"])),
                port: self.maybe(|dice| u16::try_from(dice.roll(3)).unwrap()),
                path: self.maybe(Self::path),
                status: [301, 302, 303, 307, 308, 200][self.roll(6)],
            })),
        };
        Arc::new(Filters { request_headers, response_headers, url, ..Filters::default() })
    }
}

const REQUESTS: [&str; 4] = [
    "GET /a/b?q HTTP/1.1\r\nHost: a\r\nx-a: 1\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a:80\r\nContent-Length: 7\r\nConnection: x-a\r\nTE: trailers\r\n\r\n",
    "PUT /a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n",
    "GET // HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
];

const RESPONSES: [&str; 5] = [
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nx-a: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-a\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nSet-Cookie: a\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx-a: 1\r\n\r\n",
];

/// One head and nothing after it, so that no filter has ended it early.
fn is_one_head(wire: &[u8]) -> bool {
    HeadScanner::default().find(wire) == Ok(Some(wire.len()))
}

fn check_request(chain: &Chain, received: &str, lines_max: usize) {
    let mut storage = empty_headers();
    let before = parse_request(received.as_bytes(), &mut storage).unwrap();
    let path = before.target.split('?').next().unwrap();
    let target = chain.path(path);
    let fields = chain.request_fields(before.headers);
    let mut wire = Vec::new();
    let authority = chain.authority(before.authority);
    let rewritten = Rewritten { authority, target: &target, fields: fields.iter() };
    write_rewritten_request(&mut wire, &before, rewritten);
    assert!(is_one_head(&wire));
    let mut storage = empty_headers();
    let after = parse_request(&wire, &mut storage).unwrap();
    assert_eq!((before.body, before.upgrade, before.method), (after.body, after.upgrade, after.method));
    assert_eq!((after.target, after.authority), (&*target, authority));
    assert!(after.target.starts_with('/') && after.headers.len() <= before.headers.len() + lines_max);
    assert!(chain.is_empty() || path == "//" || !after.target.starts_with("//"));
}

fn check_response(chain: &Chain, received: &str) {
    let mut storage = empty_headers();
    let before = parse_response(received.as_bytes(), "GET", &mut storage).unwrap();
    let fields = chain.response_fields(before.headers);
    let mut wire = Vec::new();
    write_rewritten_response(&mut wire, &before, Version::Http11, before.keep_alive, fields.iter());
    assert!(is_one_head(&wire));
    let mut storage = empty_headers();
    let after = parse_response(&wire, "GET", &mut storage).unwrap();
    assert_eq!((before.status, before.body), (after.status, after.body));
    assert_eq!(before.keep_alive, after.keep_alive);
}

fn check_redirect(chain: &Chain, redirect: &Redirect) {
    let dialled = Dialled { scheme: Scheme::Http, port: 8080 };
    let location = chain.location(redirect, dialled, "a:8080", "/a/b", Some("q"));
    let location = [Header { name: "location", value: location.as_bytes() }];
    let fields = chain.response_fields(&location);
    let mut wire = Vec::new();
    redirect_reply(&mut wire, redirect.status, fields.iter(), true);
    assert!(is_one_head(&wire));
    let mut storage = empty_headers();
    let reply = parse_response(&wire, "GET", &mut storage).unwrap();
    assert_eq!((reply.status, reply.keep_alive), (redirect.status, true));
    assert_eq!(reply.body, crate::http1::BodyFraming::None);
}

#[test]
fn fuzz_no_filter_breaks_the_framing_of_a_message() {
    bolero::check!().for_each(|input: &[u8]| {
        let mut dice = Dice(input);
        let prefix = PathMatch::Prefix(["/", "/a", "/a/"][dice.roll(3)].into());
        let own = rule(prefix, dice.maybe(Dice::filters), vec![backend(dice.maybe(Dice::filters))]);
        if check(&own).is_err() {
            return;
        }
        let mut chain = Chain::of_rule(own.filters.as_ref(), own.matches.first());
        chain.push_backend(&own.backends[0], own.matches.first());
        for received in REQUESTS {
            check_request(&chain, received, 8);
        }
        for received in RESPONSES {
            check_response(&chain, received);
        }
        if let Some(redirect) = chain.redirect() {
            check_redirect(&chain, redirect);
        }
    });
}

/// Values by name, edited as plainly as possible.
fn naive(headers: &[(&str, &str)], edits: &HeaderEdits) -> Vec<(String, String)> {
    let mut values: Vec<(String, Vec<String>)> = Vec::new();
    let push = |values: &mut Vec<(String, Vec<String>)>, name: &str, value: &str| {
        let name = name.to_lowercase();
        match values.iter_mut().find(|(own, _)| *own == name) {
            Some((_, list)) => list.push(value.to_owned()),
            None => values.push((name, vec![value.to_owned()])),
        }
    };
    for (name, value) in headers {
        push(&mut values, name, value);
    }
    for name in edits.remove.iter().chain(edits.set.iter().map(|header| &header.name)) {
        values.retain(|(own, _)| *own != name.to_lowercase());
    }
    for header in edits.set.iter().chain(&edits.add) {
        push(&mut values, &header.name, &header.value);
    }
    let mut joined: Vec<_> = values.into_iter().map(|(name, list)| (name, list.join(","))).collect();
    joined.sort();
    joined
}

#[test]
fn fuzz_edits_agree_with_the_naive_twin() {
    const NAMES: [&str; 5] = ["a", "A", "b", "B-c", "set-cookie"];
    bolero::check!().for_each(|input: &[u8]| {
        let mut dice = Dice(input);
        let name = |dice: &mut Dice<'_>| NAMES[dice.roll(NAMES.len())];
        let headers: Vec<(&str, &str)> =
            (0..dice.roll(6)).map(|_| (name(&mut dice), ["1", "2", "3,4"][dice.roll(3)])).collect();
        let header = |dice: &mut Dice<'_>| value(NAMES[dice.roll(NAMES.len())], ["5", "6"][dice.roll(2)]);
        let edits = HeaderEdits {
            remove: dice.list(|dice| Arc::from(name(dice))),
            set: dice.list(header),
            add: dice.list(header),
        };
        let received: Vec<Header<'_>> =
            headers.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        let mut fields = Fields::received(&received);
        fields.edit(&edits);
        let lines: Vec<(&str, &str)> =
            fields.iter().map(|line| (line.name, std::str::from_utf8(line.value).unwrap())).collect();
        assert_eq!(naive(&lines, &HeaderEdits::default()), naive(&headers, &edits), "{headers:?} {edits:?}");
    });
}

#[test]
fn what_is_said_before_a_request_is_routed_adds_up() {
    let mut chain = Chain::default();
    chain.put_first(on_request(edits(&["x-token"], &[("x-a", "later")], &[])));
    chain.put_first(on_request(edits(&[], &[("x-a", "sooner"), ("x-b", "1")], &[])));
    let received = [Header { name: "X-Token", value: b"t" }];
    let fields = chain.request_fields(&received);
    let fields: Vec<_> = fields.iter().map(|it| (it.name.to_owned(), it.value.to_vec())).collect();
    assert_eq!(fields, [("x-b".into(), b"1".to_vec()), ("x-a".into(), b"later".to_vec())]);
}

#[test]
fn a_parameter_that_would_end_the_query_is_no_parameter() {
    let checked = |name: &str, value: &str| query_parameter(&name.into(), value).is_ok();
    assert!(checked("a", "") && checked("a%20", "b=c/?d"));
    for (name, value) in
        [("", "b"), ("a=", "b"), ("a&b", "c"), ("a", "b&c=d"), ("a", "b#"), ("a", "b c"), ("a", "\r\n")]
    {
        assert!(!checked(name, value), "{name:?} {value:?}");
    }
}
