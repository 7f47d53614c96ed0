//! The twin of the engine, written as plainly as the semantics read, and what it is compared on.

mod generate;

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::ir::{
    Action, Attribute, AuthorizationPolicy, Condition, ConnectionAttributes, RequestHead, Rule, Test,
};
use crate::random::Random;
use generate::{Bearer, Dice, Peer};
use serde_json::Value;

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
    // Nobody has been asked; a trial asks nobody.
    if let Some(rule) = first(Action::Custom).filter(|_| !dry_run) {
        return (false, Some(rule));
    }
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
        Attribute::RequestPrincipal => {
            let own = |claim: &str| bearer_of(r).get(claim)?.as_str().filter(|text| !text.is_empty());
            // A slash of the subject never stands for the one between issuer and subject.
            let written = own("iss").zip(own("sub"));
            one(written.map(|(issuer, subject)| format!("{issuer}/{}", subject.replace('/', "\0"))))
        }
        Attribute::RequestAudiences => texts(&bearer_of(r)["aud"]),
        Attribute::RequestPresenter => one(bearer_of(r)["azp"].as_str().map(str::to_owned)),
        Attribute::RequestClaim(path) => {
            let claims = bearer_of(r);
            let found = path.iter().fold(claims, |at, name| &at[&**name]);
            match path.as_slice() {
                [name] if matches!(&**name, "scope" | "permission") => {
                    let words = texts(found).join(" ");
                    words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
                }
                _ => texts(found),
            }
        }
        Attribute::FilterMetadata(_) => Vec::new(),
    }
}

/// The claims of the request's token, as its issuer signed them.
fn bearer_of(request: Option<&RequestHead<'_>>) -> &'static Value {
    let token = request.and_then(|request| request.token);
    let bearer = token.map(|token| Bearer::all().iter().find(|it| it.token == *token).unwrap());
    bearer.map_or(&Value::Null, |bearer| &bearer.claims)
}

/// A text, or the texts among a list; numbers and truth values are none.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
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
        Test::Template(text) => crate::template::tests::naive(text, value),
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

// === Comparison ===

#[test]
fn fuzz_engine_agrees_with_the_naive_twin() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(config, traffic)| {
        compare(&mut Dice::new(config), &mut Dice::new(traffic), 8);
    });
}

/// The same pairs on every machine. `CORELANE_PAIRS` asks for another number of them.
#[test]
fn engine_and_twin_agree_on_many_pairs() {
    let wanted = std::env::var("CORELANE_PAIRS").map_or(20_000, |pairs| pairs.parse().unwrap());
    let mut random = Random(1);
    let (mut pairs, mut allowed, mut decided) = (0, 0, 0);
    while pairs < wanted {
        let (config, traffic) = (random.bytes(600), random.bytes(600));
        let outcomes = compare(&mut Dice::new(&config), &mut Dice::new(&traffic), 20);
        pairs += outcomes.len();
        allowed += outcomes.iter().filter(|(allow, _)| *allow).count();
        decided += outcomes.iter().filter(|(_, rule)| rule.is_some()).count();
    }
    println!("{pairs} pairs: {allowed} allowed, {} denied, {decided} by a rule", pairs - allowed);
    // Pairs that all end alike would compare nothing.
    assert!(allowed > pairs / 5 && pairs - allowed > pairs / 5 && decided > pairs / 5);
}

/// Compares the engine with its twin on one set of policies, one connection and some requests, and tells the outcomes.
fn compare(
    config: &mut Dice<'_>,
    traffic: &mut Dice<'_>,
    requests: usize,
) -> Vec<(bool, Option<(usize, usize)>)> {
    let policies = config.policies();
    let set = PolicySet::compile(policies.iter().cloned()).unwrap();
    let peer = Peer::draw(traffic);
    let connection = peer.attributes();
    let before = set.evaluate_connection(&connection);
    let outcomes = (0..requests).map(|_| {
        let headers = traffic.headers();
        let head = traffic.head(&headers);
        let after = set.evaluate(&connection, Some(&head)).is_allowed();
        match before {
            ConnectionVerdict::Allow(_) => assert!(after),
            ConnectionVerdict::Deny(_) => assert!(!after),
            ConnectionVerdict::NeedsRequest => assert!(set.needs_request()),
        }
        check(&set, &policies, &connection, Some(&head))
    });
    let outcomes = outcomes.collect();
    check(&set, &policies, &connection, None);
    outcomes
}

fn check(
    set: &PolicySet,
    policies: &[Arc<AuthorizationPolicy>],
    connection: &ConnectionAttributes<'_>,
    head: Option<&RequestHead<'_>>,
) -> (bool, Option<(usize, usize)>) {
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
    let outcome = naive(policies, connection, head, false);
    assert_eq!(plain(set.evaluate(connection, head)), outcome, "{policies:#?} {connection:?} {head:?}");
    let shadow = policies
        .iter()
        .any(|p| p.dry_run && matches!(p.action, Action::Allow | Action::Deny))
        .then(|| naive(policies, connection, head, true));
    assert_eq!(set.shadow(connection, head).map(plain), shadow);
    let audited = policies.iter().filter(|p| p.action == Action::Audit);
    let audited = audited.flat_map(|p| &p.rules).any(|rule| rule_holds(rule, connection, head));
    assert_eq!(set.audit(connection, head).is_some(), audited);
    outcome
}
