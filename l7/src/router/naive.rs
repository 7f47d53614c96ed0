//! The twin of the router, which ranks every match against every other, and what it is compared on.

use std::cmp::Reverse;
use std::sync::Arc;

use super::*;
use crate::ir::{
    Header, HttpMatch, HttpRoute, HttpRule, PathMatch, RequestHead, RouteKind, RouteOrder, ValueMatch,
    ValueTest,
};
use crate::random::Random;

/// Whole-text match of the few expressions that the generator draws.
fn regex(pattern: &str, text: &str) -> bool {
    match pattern {
        ".*" => true,
        "/a/.+" => text.len() > 3 && text.starts_with("/a/"),
        "[ab]" => text == "a" || text == "b",
        "/b|/bb" => text == "/b" || text == "/bb",
        other => panic!("{other}"),
    }
}

fn path_holds(path: &PathMatch, sent: &str) -> bool {
    match path {
        PathMatch::Exact(own) => **own == *sent,
        PathMatch::Prefix(own) => {
            let own = own.strip_suffix('/').unwrap_or(own);
            sent == own || sent.starts_with(&format!("{own}/"))
        }
        PathMatch::TextPrefix(own) => sent.starts_with(&**own),
        PathMatch::Regex(own) => regex(own, sent),
        PathMatch::GrpcMethod(own) => {
            matches!(sent.split('/').collect::<Vec<_>>()[..], ["", service, method] if !service.is_empty() && *method == **own)
        }
    }
}

fn value_holds(test: &ValueTest, value: &str) -> bool {
    match test {
        ValueTest::Exact(own) => **own == *value,
        ValueTest::Prefix(own) => value.starts_with(&**own),
        ValueTest::Suffix(own) => value.ends_with(&**own),
        ValueTest::Present => true,
        ValueTest::Regex(own) => regex(own, value),
    }
}

fn unique(entries: &[ValueMatch]) -> Vec<&ValueMatch> {
    let mut kept: Vec<&ValueMatch> = Vec::new();
    for entry in entries {
        if kept.iter().all(|earlier| earlier.name != entry.name) {
            kept.push(entry);
        }
    }
    kept
}

fn match_holds(entry: &HttpMatch, head: &RequestHead<'_>) -> bool {
    let header = |name: &str| {
        let lines: Vec<_> = head
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| String::from_utf8(header.value.to_vec()).unwrap())
            .collect();
        (!lines.is_empty()).then(|| lines.join(","))
    };
    let parameter = |name: &str| {
        let query = head.query.unwrap_or_default();
        query.split('&').find_map(|pair| match pair.split_once('=') {
            Some((own, value)) => (own == name).then(|| value.to_owned()),
            None => (pair == name).then(String::new),
        })
    };
    path_holds(&entry.path, head.path)
        && entry.method.as_deref().is_none_or(|method| method == head.method)
        && unique(&entry.headers)
            .iter()
            .all(|own| header(&own.name).is_some_and(|value| value_holds(&own.value, &value)))
        && unique(&entry.query)
            .iter()
            .all(|own| parameter(&own.name).is_some_and(|value| value_holds(&own.value, &value)))
        && !entry
            .without_headers
            .iter()
            .any(|own| header(&own.name).is_some_and(|value| value_holds(&own.value, &value)))
}

/// Class (smaller ranks higher) and length of the hostname that takes the request.
fn host_rank(hostnames: &[Arc<str>], authority: &str) -> Option<(u8, Reverse<usize>)> {
    let host = authority.split(':').next().unwrap().trim_end_matches('.').to_ascii_lowercase();
    if hostnames.is_empty() {
        return Some((2, Reverse(0)));
    }
    let rank = |own: &Arc<str>| {
        let own = own.to_ascii_lowercase();
        match own.strip_prefix('*') {
            Some(suffix) => {
                (host.len() > suffix.len() && host.ends_with(suffix)).then_some((1, Reverse(own.len())))
            }
            None => (own == host).then_some((0, Reverse(own.len()))),
        }
    };
    hostnames.iter().filter_map(rank).min()
}

fn naive(routes: &[Arc<HttpRoute>], head: &RequestHead<'_>) -> Option<(String, usize, usize)> {
    let mut found = Vec::new();
    for route in routes {
        let Some(host) = host_rank(&route.hostnames, head.authority) else { continue };
        for (rule_index, rule) in route.rules.iter().enumerate() {
            for (match_index, entry) in rule.matches.iter().enumerate() {
                if !match_holds(entry, head) {
                    continue;
                }
                let path = match &entry.path {
                    PathMatch::Exact(_) => (0, Reverse(0)),
                    PathMatch::Regex(own) | PathMatch::TextPrefix(own) => (1, Reverse(own.len())),
                    PathMatch::Prefix(own) if &**own != "/" => {
                        (2, Reverse(own.strip_suffix('/').unwrap_or(own).len()))
                    }
                    PathMatch::GrpcMethod(_) => (3, Reverse(0)),
                    PathMatch::Prefix(_) => (4, Reverse(0)),
                };
                let name = format!("{}/{}", route.namespace, route.name);
                let counts = (Reverse(unique(&entry.headers).len()), Reverse(unique(&entry.query).len()));
                let is_ranked = route.order.is_ranked();
                let rank = (
                    ((route.consumer_namespace.is_none(), route.kind.is_http()), host, is_ranked),
                    is_ranked.then_some((path, entry.method.is_none(), counts)),
                    (route.created, name.clone(), rule_index, match_index),
                );
                found.push((rank, (name, rule_index, match_index)));
            }
        }
    }
    found.into_iter().min().map(|(_, id)| id)
}

// === Generation ===

struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn roll(&mut self, sides: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % sides
    }

    fn pick<'b>(&mut self, words: &[&'b str]) -> &'b str {
        words[self.roll(words.len())]
    }

    fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.roll(most + 1)).map(|_| item(self)).collect()
    }
}

const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/b", "/bb", "/a/b/c", "//", "/a//b"];

fn value(dice: &mut Dice<'_>) -> ValueMatch {
    let value = match dice.roll(6) {
        0 => ValueTest::Regex("[ab]".into()),
        1 => ValueTest::Exact("a".into()),
        2 => ValueTest::Prefix("a".into()),
        3 => ValueTest::Suffix("b".into()),
        4 => ValueTest::Present,
        _ => ValueTest::Exact("a,b".into()),
    };
    ValueMatch { name: dice.pick(&["x", "y"]).into(), value }
}

/// With one path for all matches, lists of them get long enough to be indexed.
fn entry(dice: &mut Dice<'_>, one_path: bool) -> HttpMatch {
    let path = match dice.roll(7) {
        _ if one_path => PathMatch::Prefix("/".into()),
        0 | 1 => PathMatch::Prefix(dice.pick(PATHS).into()),
        2 | 3 => PathMatch::Exact(dice.pick(PATHS).into()),
        4 => PathMatch::GrpcMethod(dice.pick(&["b", "c"]).into()),
        5 => PathMatch::TextPrefix(dice.pick(PATHS).into()),
        _ => PathMatch::Regex(dice.pick(&[".*", "/a/.+", "/b|/bb"]).into()),
    };
    let method = (dice.roll(3) == 1).then(|| "POST".into());
    HttpMatch {
        path,
        method,
        headers: dice.list(2, value),
        query: dice.list(1, value),
        without_headers: dice.list(1, value),
        source: None,
    }
}

fn route(dice: &mut Dice<'_>, name: usize) -> Arc<HttpRoute> {
    let one_path = dice.roll(2) == 1;
    const HOSTS: &[&str] = &["h.example", "*.example", "*.h.example", "H"];
    Arc::new(HttpRoute {
        kind: if dice.roll(4) == 1 { RouteKind::Grpc } else { RouteKind::Http },
        namespace: dice.pick(&["n", "n-a"]).into(),
        name: format!("r{name}").into(),
        parent: model::NamespacedHostname::new("n", "s"),
        parent_port: None,
        consumer_namespace: (dice.roll(4) == 1).then(|| "n-a".into()),
        order: [RouteOrder::Ranked, RouteOrder::Listed][dice.roll(2)],
        created: dice.roll(2) as u64,
        hostnames: dice.list(2, |dice| dice.pick(HOSTS).into()),
        rules: dice.list(3, |dice| HttpRule {
            matches: dice.list(8, |dice| entry(dice, one_path)),
            ..HttpRule::default()
        }),
        source: None,
    })
}

#[test]
fn fuzz_router_agrees_with_the_naive_twin() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(config, traffic)| {
        compare(&mut Dice(config), &mut Dice(traffic), 8);
    });
}

/// The same pairs on every machine. `CORELANE_PAIRS` asks for another number of them.
#[test]
fn router_and_twin_agree_on_many_pairs() {
    let wanted = std::env::var("CORELANE_PAIRS").map_or(20_000, |pairs| pairs.parse().unwrap());
    let mut random = Random(2);
    let (mut pairs, mut taken) = (0, 0);
    while pairs < wanted {
        let (config, traffic) = (random.bytes(600), random.bytes(600));
        taken += compare(&mut Dice(&config), &mut Dice(&traffic), 20);
        pairs += 20;
    }
    println!("{pairs} pairs: {taken} taken by a rule, {} by none", pairs - taken);
    // Pairs that all end alike would compare nothing.
    assert!(taken > pairs / 5 && pairs - taken > pairs / 5);
}

/// Compares the router with its twin on one set of routes and some requests, and tells how many a rule takes.
fn compare(config: &mut Dice<'_>, traffic: &mut Dice<'_>, requests: usize) -> usize {
    let count = config.roll(5);
    let routes: Vec<_> = (0..count).map(|name| route(config, name)).collect();
    let router = Router::compile(routes.iter().cloned()).unwrap();
    let found = (0..requests).filter(|_| {
        let headers = traffic.list(3, |dice| Header {
            name: dice.pick(&["x", "X", "y"]),
            value: dice.pick(&["a", "b"]).as_bytes(),
        });
        let head = RequestHead {
            method: traffic.pick(&["GET", "POST"]),
            authority: traffic.pick(&["h", "h.example:80", "g.h.EXAMPLE.", "other", "example"]),
            path: traffic.pick(PATHS),
            query: [None, Some("x=a"), Some("x"), Some("y=b&x=a&x=b")][traffic.roll(4)],
            headers: &headers,
            token: None,
        };
        let found = match router.route(&head) {
            RouteMatch::Matched(found) => {
                let name = format!("{}/{}", found.route.namespace, found.route.name);
                assert_eq!(
                    (&name, found.rule),
                    (&found.name.to_string(), &found.route.rules[found.rule_index])
                );
                assert!(match_holds(found.matched().unwrap(), &head));
                Some((name, found.rule_index, found.match_index))
            }
            RouteMatch::NotFound => None,
        };
        assert_eq!(found, naive(&routes, &head), "{routes:#?} {head:?}");
        found.is_some()
    });
    found.count()
}

#[test]
fn ten_thousand_routes_find_their_own() {
    let routes = (0..10_000).map(|number| {
        let path = PathMatch::Prefix(format!("/service-{number}/v1").into());
        let matches = vec![HttpMatch { path, ..HttpMatch::default() }];
        Arc::new(HttpRoute {
            kind: RouteKind::Http,
            namespace: "n".into(),
            name: format!("r{number}").into(),
            parent: model::NamespacedHostname::new("n", "s"),
            parent_port: None,
            consumer_namespace: None,
            order: RouteOrder::Ranked,
            created: 0,
            hostnames: vec![],
            rules: vec![HttpRule { matches, ..HttpRule::default() }],
            source: None,
        })
    });
    let router = Router::compile(routes).unwrap();
    let head =
        |path| RequestHead { method: "GET", authority: "s", path, query: None, headers: &[], token: None };
    let RouteMatch::Matched(found) = router.route(&head("/service-7777/v1/users/1")) else { panic!() };
    assert_eq!(&*found.route.name, "r7777");
    assert!(matches!(router.route(&head("/service-7777/v10")), RouteMatch::NotFound));
}

#[test]
fn a_route_governs_its_port_and_its_consumers() {
    let mut dice = Dice(&[]);
    let mut own = (*route(&mut dice, 0)).clone();
    assert!(governs(&own, 80, "any"));
    own.parent_port = Some(80);
    own.consumer_namespace = Some("client".into());
    assert!(governs(&own, 80, "client"));
    assert!(!governs(&own, 81, "client"));
    assert!(!governs(&own, 80, "other"));
}

#[test]
fn a_bad_route_is_refused_by_name() {
    let mut dice = Dice(&[]);
    let mut own = (*route(&mut dice, 7)).clone();
    let with = |path: PathMatch| HttpRule {
        name: None,
        matches: vec![HttpMatch { path, ..HttpMatch::default() }],
        ..HttpRule::default()
    };
    own.rules = vec![with(PathMatch::Exact("/".into())), with(PathMatch::Regex("(".into()))];
    let error = Router::compile([Arc::new(own.clone())]).unwrap_err().to_string();
    assert!(error.contains("n/r7, rule 1") && error.contains("\"(\""), "{error}");
    own.rules = vec![with(PathMatch::Prefix("v1".into()))];
    assert!(Router::compile([Arc::new(own)]).is_err());
}
