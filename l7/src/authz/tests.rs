//! Properties of the engine that a reader should find stated; the whole of it is compared with its twin in
//! [`super::naive`].

use std::num::NonZeroU32;
use std::sync::Arc;

use super::*;
use crate::ir::{
    Action, Attribute, AuthorizationPolicy, Authorizer, CheckProtocol, Clause, Condition,
    ConnectionAttributes, Header, HttpCheck, Match, RequestHead, Rule, Test,
};

fn rule(attribute: Attribute, test: Test) -> Rule {
    let condition = Condition { attribute, any_of: vec![test], none_of: vec![] };
    Rule { clauses: vec![Clause { matches: vec![Match { conditions: vec![condition] }] }] }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    let name = name.into();
    Arc::new(AuthorizationPolicy {
        namespace: "ns".into(),
        name,
        action,
        dry_run: false,
        rules,
        authorizer: None,
        source: None,
    })
}

fn connection(source: Option<&model::Identity>) -> ConnectionAttributes<'_> {
    ConnectionAttributes {
        source,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination_ip: "10.0.0.2".parse().unwrap(),
        destination_port: 80,
        sni: None,
    }
}

fn head<'a>(path: &'a str, headers: &'a [Header<'a>]) -> RequestHead<'a> {
    RequestHead { method: "GET", authority: "h", path, query: None, headers, token: None }
}

#[test]
fn allow_without_rules_allows_nothing_and_no_policy_allows_all() {
    let set = PolicySet::compile([policy("none", Action::Allow, vec![])]).unwrap();
    assert_eq!(set.evaluate(&connection(None), None), Verdict::Deny(Denial::NoAllowMatched));
    assert_eq!(PolicySet::allow_all().evaluate(&connection(None), None), Verdict::Allow(None));
}

#[test]
fn deny_all_never_allows_and_says_why() {
    let set = PolicySet::deny_all("policy ns/p is not held");
    let connection = connection(None);
    assert_eq!(set.evaluate(&connection, None), Verdict::Deny(Denial::Closed("policy ns/p is not held")));
    assert!(matches!(set.evaluate_connection(&connection), ConnectionVerdict::Deny(Denial::Closed(_))));
}

#[test]
fn a_connection_is_decided_early_only_where_no_request_can_change_it() {
    let spiffe: model::Identity = "spiffe://td/ns/a/sa/x".parse().unwrap();
    let on_path = rule(Attribute::RequestPath, Test::Exact("/admin".into()));
    let from_a = rule(Attribute::SourceNamespace, Test::Exact("a".into()));
    let set = PolicySet::compile([
        policy("deny-path", Action::Deny, vec![on_path]),
        policy("allow-a", Action::Allow, vec![from_a]),
    ])
    .unwrap();
    assert!(set.needs_request());
    assert_eq!(set.evaluate_connection(&connection(Some(&spiffe))), ConnectionVerdict::NeedsRequest);
    let admin = head("/admin", &[]);
    let denied = set.evaluate(&connection(Some(&spiffe)), Some(&admin));
    let Verdict::Deny(Denial::Matched(found)) = denied else { panic!("{denied:?}") };
    assert_eq!((&*found.policy.name, found.rule), ("deny-path", 0));
    let allowed = set.evaluate(&connection(Some(&spiffe)), Some(&head("/", &[])));
    assert!(matches!(allowed, Verdict::Allow(Some(_))));

    let set = PolicySet::compile([policy(
        "deny-both",
        Action::Deny,
        vec![
            rule(Attribute::RequestMethod, Test::Exact("GET".into())),
            rule(Attribute::SourceNamespace, Test::Exact("a".into())),
        ],
    )])
    .unwrap();
    let early = set.evaluate_connection(&connection(Some(&spiffe)));
    assert!(matches!(early, ConnectionVerdict::Deny(Denial::Matched(_))), "{early:?}");
}

#[test]
fn a_repeated_header_hides_no_value() {
    let red = rule(Attribute::RequestHeader("team".into()), Test::Exact("red".into()));
    let set = PolicySet::compile([policy("deny", Action::Deny, vec![red])]).unwrap();
    let headers = [Header { name: "Team", value: b"blue" }, Header { name: "TEAM", value: b"red" }];
    assert!(!set.evaluate(&connection(None), Some(&head("/", &headers))).is_allowed());
    assert!(set.evaluate(&connection(None), Some(&head("/", &headers[..1]))).is_allowed());
}

#[test]
fn a_test_that_does_not_fit_its_attribute_is_refused_by_name() {
    for (attribute, test) in [
        (Attribute::RequestMethod, Test::Template("/{*}".into())),
        (Attribute::RequestPath, Test::Template("/{x}".into())),
        (Attribute::RequestPath, Test::Port(80)),
        (Attribute::SourceIp, Test::Exact("10.0.0.1".into())),
        (Attribute::DestinationPort, Test::Present),
    ] {
        let bad = policy("bad", Action::Deny, vec![Rule::default(), rule(attribute, test)]);
        let error = PolicySet::compile([bad]).unwrap_err();
        assert!(error.to_string().contains("ns/bad, rule 1"), "{error}");
    }
}

#[test]
fn the_first_of_many_rules_is_reported() {
    let policies = (0..1000).map(|n| {
        let text = format!("/p{}", n % 500).into();
        policy(&format!("p{n}"), Action::Deny, vec![rule(Attribute::RequestPath, Test::Exact(text))])
    });
    let set = PolicySet::compile(policies).unwrap();
    let verdict = set.evaluate(&connection(None), Some(&head("/p77", &[])));
    let Verdict::Deny(Denial::Matched(found)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(&*found.policy.name, "p77");
    assert!(set.evaluate(&connection(None), Some(&head("/p500", &[]))).is_allowed());
}

#[test]
fn tokens_make_every_request_be_read_before_a_connection_is_allowed() {
    let rules = ir::RequestAuthentication {
        namespace: "app".into(),
        name: "ra".into(),
        rules: vec![ir::TokenRule::default()],
        source: None,
    };
    let set = PolicySet::allow_all().with_tokens(Authenticator::compile([&rules]));
    assert!(set.needs_request());
    let connection = connection(None);
    assert_eq!(set.evaluate_connection(&connection), ConnectionVerdict::NeedsRequest);
    assert!(set.evaluate(&connection, None).is_allowed());
}

// === CUSTOM ===

fn authorizer(name: &str) -> Arc<Authorizer> {
    Arc::new(Authorizer {
        name: name.into(),
        service: model::NamespacedHostname::new("ns", name),
        port: 80,
        timeout_ms: NonZeroU32::MIN,
        fail_open: false,
        status_on_error: 403,
        body: None,
        protocol: CheckProtocol::Http(HttpCheck::default()),
    })
}

fn custom(name: &str, path: &str, authorizer: Option<Arc<Authorizer>>) -> Arc<AuthorizationPolicy> {
    let rules = vec![rule(Attribute::RequestPath, Test::Exact(path.into()))];
    let plain = policy(name, Action::Custom, rules);
    Arc::new(AuthorizationPolicy { authorizer, ..(*plain).clone() })
}

#[test]
fn each_authorizer_is_asked_once_and_only_about_what_its_rules_take() {
    let (one, other) = (authorizer("one"), authorizer("other"));
    let set = PolicySet::compile([
        custom("a", "/a", Some(one.clone())),
        custom("b", "/b", Some(other.clone())),
        custom("c", "/a", Some(one.clone())),
        custom("d", "/b", None),
        policy("deny", Action::Deny, vec![rule(Attribute::RequestMethod, Test::Exact("POST".into()))]),
    ])
    .unwrap();
    let asked = |path: &str| {
        let (connection, request) = (connection(None), head(path, &[]));
        let asks = set.asks(&connection, &request);
        let shown: Vec<_> = asks
            .map(|ask| (ask.authorizer.map(|it| it.name.to_string()), ask.rule.policy.name.to_string()))
            .collect();
        shown
    };
    assert_eq!(asked("/a"), [(Some("one".to_owned()), "a".to_owned())]);
    assert_eq!(asked("/b"), [(Some("other".to_owned()), "b".to_owned()), (None, "d".to_owned())]);
    assert!(asked("/c").is_empty());
    assert!(set.needs_request());
    assert_eq!(set.evaluate_connection(&connection(None)), ConnectionVerdict::NeedsRequest);
    let connection = connection(None);
    let judged = |path, approved: &[Arc<Authorizer>]| {
        set.evaluate_asked(&connection, Some(&head(path, &[])), approved).is_allowed()
    };
    assert!(!judged("/a", &[]), "nobody has been asked");
    assert!(judged("/a", std::slice::from_ref(&one)), "the rest allows it");
    assert!(!judged("/b", &[one, other]), "nobody can be asked");
    assert!(judged("/c", &[]));
}

#[test]
fn traffic_that_nobody_can_be_asked_about_is_denied() {
    let everything = Arc::new(AuthorizationPolicy {
        authorizer: Some(authorizer("one")),
        rules: vec![rule(Attribute::DestinationPort, Test::Port(80))],
        ..(*policy("all", Action::Custom, vec![])).clone()
    });
    let set = PolicySet::compile([everything.clone()]).unwrap();
    assert!(matches!(set.evaluate(&connection(None), None), Verdict::Deny(Denial::Matched(_))));
    assert_eq!(set.evaluate_connection(&connection(None)), ConnectionVerdict::NeedsRequest);
    let other_port = ConnectionAttributes { destination_port: 81, ..connection(None) };
    assert!(set.evaluate(&other_port, None).is_allowed());
    assert_eq!(set.evaluate_connection(&other_port), ConnectionVerdict::Allow(None));
    let trial = Arc::new(AuthorizationPolicy { dry_run: true, ..(*everything).clone() });
    let set = PolicySet::compile([trial]).unwrap();
    assert!(set.evaluate(&connection(None), None).is_allowed(), "a trial is never asked");
}

#[test]
fn a_request_is_needed_only_where_a_rule_looks_at_one() {
    let on_port = policy("port", Action::Deny, vec![rule(Attribute::DestinationPort, Test::Port(22))]);
    let on_path = policy("path", Action::Deny, vec![rule(Attribute::RequestPath, Test::Exact("/a".into()))]);
    let set = PolicySet::compile([on_port.clone()]).unwrap();
    assert!(!set.needs_request() && !PolicySet::allow_all().needs_request());
    assert_eq!(set.policies(), std::slice::from_ref(&on_port));
    let set = PolicySet::compile([on_port.clone(), on_path.clone()]).unwrap();
    assert!(set.needs_request());
    assert_eq!(set.policies(), [on_port, on_path]);
}

#[test]
fn a_host_of_any_length_is_denied() {
    // Some are found by their first octets, hosts beyond the bound of a name are not.
    for length in [1, 16, 253, 254, 255, 256, 300, 1000] {
        let host = "a".repeat(length);
        let rules = vec![rule(Attribute::RequestHost, Test::Exact((&*host).into()))];
        let set = PolicySet::compile([policy("host", Action::Deny, rules)]).unwrap();
        let asked = RequestHead { authority: &host, ..head("/", &[]) };
        assert!(!set.evaluate(&connection(None), Some(&asked)).is_allowed(), "{length}");
    }
}
