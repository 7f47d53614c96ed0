//! The twin of the engine, written as plainly as the semantics read, and what it is compared on.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::ir::{
    Action, Attribute, AuthorizationPolicy, Clause, Condition, ConnectionAttributes, Header, Match,
    RequestHead, Rule, Test,
};
use crate::template::Template;

/// Index of the policy and rule that decide, or none, with the outcome.
fn naive(
    policies: &[Arc<AuthorizationPolicy>],
    connection: &ConnectionAttributes<'_>,
    request: Option<&RequestHead<'_>>,
    dry_run: bool,
) -> (bool, Option<(usize, usize)>) {
    let first = |action: Action| {
        policies.iter().enumerate().filter(|(_, p)| p.action == action && p.dry_run == dry_run).find_map(
            |(index, policy)| {
                policy
                    .rules
                    .iter()
                    .position(|rule| rule_holds(rule, connection, request))
                    .map(|rule| (index, rule))
            },
        )
    };
    if let Some(rule) = first(Action::Deny) {
        return (false, Some(rule));
    }
    if !policies.iter().any(|p| p.action == Action::Allow && p.dry_run == dry_run) {
        return (true, None);
    }
    let rule = first(Action::Allow);
    (rule.is_some(), rule)
}

fn rule_holds(rule: &Rule, c: &ConnectionAttributes<'_>, r: Option<&RequestHead<'_>>) -> bool {
    rule.clauses.iter().all(|clause| {
        clause.matches.is_empty()
            || clause.matches.iter().any(|entry| {
                !entry.conditions.is_empty()
                    && entry.conditions.iter().all(|condition| condition_holds(condition, c, r))
            })
    })
}

fn condition_holds(condition: &Condition, c: &ConnectionAttributes<'_>, r: Option<&RequestHead<'_>>) -> bool {
    let values = values(&condition.attribute, c, r);
    let holds = |test: &Test| values.iter().any(|value| test_holds(test, value, &condition.attribute));
    (condition.any_of.is_empty() || condition.any_of.iter().any(holds))
        && !condition.none_of.iter().any(holds)
}

fn values(attribute: &Attribute, c: &ConnectionAttributes<'_>, r: Option<&RequestHead<'_>>) -> Vec<String> {
    let header = |wanted: &str| -> Vec<String> {
        r.map(|r| {
            r.headers
                .iter()
                .filter(|h| h.name.eq_ignore_ascii_case(wanted))
                .map(|h| String::from_utf8_lossy(h.value).into_owned())
                .collect()
        })
        .unwrap_or_default()
    };
    let one = |value: Option<String>| value.into_iter().collect::<Vec<_>>();
    match attribute {
        Attribute::SourcePrincipal => {
            one(c.source.map(|i| i.uri().trim_start_matches("spiffe://").to_owned()))
        }
        Attribute::SourceNamespace => vec![c.source.map(|i| i.namespace().to_owned()).unwrap_or_default()],
        Attribute::SourceServiceAccount => {
            one(c.source.map(|i| format!("{}/{}", i.namespace(), i.service_account())))
        }
        Attribute::SourceTrustDomain => one(c.source.map(|i| i.trust_domain().to_owned())),
        Attribute::SourceIp => vec![c.source_ip.to_string()],
        Attribute::RemoteIp => {
            let last = header("x-forwarded-for").pop();
            let last = last.and_then(|line| line.split(',').next_back().map(|entry| entry.trim().to_owned()));
            let address = last.and_then(|text| text.parse::<IpAddr>().ok()).unwrap_or(c.source_ip);
            vec![address.to_string()]
        }
        Attribute::DestinationIp => vec![c.destination_ip.to_string()],
        Attribute::DestinationPort => vec![c.destination_port.to_string()],
        Attribute::ConnectionSni => one(c.sni.map(str::to_owned)),
        Attribute::RequestHost => one(r.map(|r| r.authority.to_ascii_lowercase())),
        Attribute::RequestMethod => one(r.map(|r| r.method.to_owned())),
        Attribute::RequestPath => one(r.map(|r| r.path.to_owned())),
        Attribute::RequestHeader(name) => header(name),
        _ => Vec::new(),
    }
}

fn test_holds(test: &Test, value: &str, attribute: &Attribute) -> bool {
    let fold = |text: &str| match attribute {
        Attribute::RequestHost => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    match test {
        Test::Exact(text) => value == fold(text),
        Test::Prefix(text) => value.starts_with(&fold(text)),
        Test::Suffix(text) => value.ends_with(&fold(text)),
        Test::Present => matches!(attribute, Attribute::RequestHeader(_)) || !value.is_empty(),
        Test::Glob(text) => !value.is_empty() && glob(&fold(text), value),
        Test::Template(text) => Template::compile(text).unwrap().matches(value),
        Test::Ip(network) => network.contains(&value.parse::<IpAddr>().unwrap().to_canonical()),
        Test::Port(port) => value == port.to_string(),
    }
}

fn glob(pattern: &str, value: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(rest) => (0..=value.len()).any(|at| value.get(at..).is_some_and(|tail| glob(rest, tail))),
        None => match (pattern.chars().next(), value.chars().next()) {
            (None, None) => true,
            (Some(p), Some(v)) => p == v && glob(&pattern[p.len_utf8()..], &value[v.len_utf8()..]),
            _ => false,
        },
    }
}

// === Generation: few words, so that they meet ===

/// Draws choices from a byte string; runs dry into zeros.
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

const PRINCIPALS: &[&str] = &["td/ns/a/sa/x", "td/ns/b/sa/x", "td2/ns/a/sa/y"];
const NAMESPACES: &[&str] = &["a", "b", "", "ab"];
const PATHS: &[&str] = &["/", "/a", "/a/b", "/ab", "/b/c/d", "/a/x/b"];
const HOSTS: &[&str] = &["h", "H.example", "h.example:80", "x.H"];
const ADDRESSES: &[&str] = &["10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "fd00::1"];

fn condition(dice: &mut Dice<'_>) -> Condition {
    let texts: (Attribute, &[&str]) = match dice.roll(11) {
        0 => (Attribute::SourcePrincipal, PRINCIPALS),
        1 => (Attribute::SourceNamespace, NAMESPACES),
        2 => (Attribute::SourceServiceAccount, &["a/x", "b/x", "a/y"]),
        3 => (Attribute::RequestPath, PATHS),
        4 => (Attribute::RequestPath, &["/{*}", "/a/{**}", "/a/{*}/b", "/{**}/d"]),
        5 => (Attribute::RequestHost, HOSTS),
        6 => (Attribute::RequestMethod, &["GET", "POST", "get"]),
        7 => (Attribute::RequestHeader("v".into()), &["", "1", "2", "1*"]),
        8 => (Attribute::SourceIp, ADDRESSES),
        9 => (Attribute::RemoteIp, ADDRESSES),
        _ => (Attribute::DestinationPort, &["80", "81"]),
    };
    let test = |dice: &mut Dice<'_>| {
        let text: Arc<str> = dice.pick(texts.1).into();
        match &texts.0 {
            Attribute::SourceIp | Attribute::RemoteIp => {
                let address = text.parse::<IpAddr>().unwrap().to_canonical();
                let length = [8, 24, 32][dice.roll(3)];
                Test::Ip(ipnet::IpNet::new(address, length).unwrap())
            }
            Attribute::DestinationPort => Test::Port(text.parse().unwrap()),
            _ if text.contains('{') => Test::Template(text),
            _ => match dice.roll(6) {
                0 => Test::Prefix(text.get(..text.len() / 2).unwrap().into()),
                1 => Test::Suffix(text.get(text.len() / 2..).unwrap().into()),
                2 => Test::Present,
                3 => Test::Glob(format!("*{}*", text.get(..1).unwrap_or("")).into()),
                _ => Test::Exact(text),
            },
        }
    };
    let (any_of, none_of) = (dice.list(3, test), dice.list(1, test));
    Condition { attribute: texts.0.clone(), any_of, none_of }
}

fn policy(dice: &mut Dice<'_>) -> Arc<AuthorizationPolicy> {
    let action = [Action::Allow, Action::Deny, Action::Audit][dice.roll(3)];
    let dry_run = dice.roll(4) == 1;
    let rules = dice.list(3, |dice| Rule {
        clauses: dice.list(2, |dice| Clause {
            matches: dice.list(2, |dice| Match { conditions: dice.list(2, condition) }),
        }),
    });
    Arc::new(AuthorizationPolicy {
        namespace: "ns".into(),
        name: "p".into(),
        action,
        dry_run,
        rules,
        source: None,
    })
}

#[test]
fn fuzz_engine_agrees_with_the_naive_twin() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(config, traffic)| {
        let mut dice = Dice(config);
        let policies: Vec<_> = (0..=dice.roll(4)).map(|_| policy(&mut dice)).collect();
        let set = PolicySet::compile(policies.iter().cloned()).unwrap();
        let mut dice = Dice(traffic);
        let source: Option<model::Identity> = [None, Some(0), Some(1), Some(2)][dice.roll(4)]
            .map(|i: usize| format!("spiffe://{}", PRINCIPALS[i]).parse().unwrap());
        let connection = ConnectionAttributes {
            source: source.as_ref(),
            source_ip: dice.pick(ADDRESSES).parse().unwrap(),
            destination_ip: "10.0.0.9".parse().unwrap(),
            destination_port: [80, 81][dice.roll(2)],
            sni: None,
        };
        let before = set.evaluate_connection(&connection);
        for _ in 0..8 {
            let headers: Vec<Header<'_>> = dice.list(3, |dice| Header {
                name: dice.pick(&["v", "V", "x-forwarded-for"]),
                value: dice.pick(&["", "1", "2", "10.0.1.1", "9.9.9.9, 10.0.0.1"]).as_bytes(),
            });
            let head = RequestHead {
                method: dice.pick(&["GET", "POST"]),
                authority: dice.pick(HOSTS),
                path: dice.pick(PATHS),
                query: None,
                headers: &headers,
                token: None,
            };
            check(&set, &policies, &connection, Some(&head));
            let after = set.evaluate(&connection, Some(&head)).is_allowed();
            match before {
                ConnectionVerdict::Allow(_) => assert!(after),
                ConnectionVerdict::Deny(_) => assert!(!after),
                ConnectionVerdict::NeedsRequest => assert!(set.needs_request()),
            }
        }
        check(&set, &policies, &connection, None);
    });
}

fn check(
    set: &PolicySet,
    policies: &[Arc<AuthorizationPolicy>],
    connection: &ConnectionAttributes<'_>,
    head: Option<&RequestHead<'_>>,
) {
    let plain = |verdict: Verdict<'_>| {
        let index = |rule: MatchedRule<'_>| {
            (policies.iter().position(|p| Arc::ptr_eq(p, rule.policy)).unwrap(), rule.rule)
        };
        match verdict {
            Verdict::Allow(rule) => (true, rule.map(index)),
            Verdict::Deny(Denial::Matched(rule)) => (false, Some(index(rule))),
            Verdict::Deny(_) => (false, None),
        }
    };
    assert_eq!(plain(set.evaluate(connection, head)), naive(policies, connection, head, false));
    let shadow = policies
        .iter()
        .any(|p| p.dry_run && p.action != Action::Audit)
        .then(|| naive(policies, connection, head, true));
    assert_eq!(set.shadow(connection, head).map(plain), shadow);
    let audited = policies.iter().filter(|p| p.action == Action::Audit);
    let audited = audited.flat_map(|p| &p.rules).any(|rule| rule_holds(rule, connection, head));
    assert_eq!(set.audit(connection, head).is_some(), audited);
}
