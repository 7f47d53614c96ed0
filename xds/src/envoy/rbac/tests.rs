//! Rules that no capture shows.

use l7::authz::PolicySet;
use l7::ir::{ConnectionAttributes, Header, RequestHead};

use super::*;
use crate::proto::waypoint::header_matcher::Specifier;
use crate::proto::waypoint::permission::Rule as Wire;
use crate::proto::waypoint::principal::Identifier;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::{
    CidrRange, FilterStateMatcher, HeaderMatcher, Permission, Principal, RegexMatcher, StringMatcher,
    permission, principal,
};

fn text(pattern: Pattern) -> StringMatcher {
    StringMatcher { pattern: Some(pattern), ignore_case: false }
}

fn regex(regex: &str) -> StringMatcher {
    text(Pattern::SafeRegex(RegexMatcher { regex: regex.into() }))
}

fn peer(string_match: StringMatcher) -> Principal {
    let key = "io.istio.peer_principal".into();
    let state = FilterStateMatcher { key, string_match: Some(string_match) };
    Principal { identifier: Some(Identifier::FilterState(state)) }
}

fn any_permission() -> Permission {
    Permission { rule: Some(Wire::Any(true)) }
}

fn any_principal() -> Principal {
    Principal { identifier: Some(Identifier::Any(true)) }
}

fn rbac(action: WireAction, permission: Permission, principal: Principal) -> HttpRbac {
    let policy = Policy { permissions: vec![permission], principals: vec![principal] };
    let name = "ns[app]-policy[p]-rule[0]".to_owned();
    let rules = Rbac { action: action.into(), policies: [(name, policy)].into() };
    HttpRbac { rules: Some(rules), ..HttpRbac::default() }
}

fn read(filter: &HttpRbac) -> Result<PolicySet, String> {
    let policies = Rules::from(filter).policies().map_err(|refusal| refusal.to_string())?;
    Ok(PolicySet::compile(shared(policies)).unwrap())
}

/// Whether a peer passes with a request.
fn passes(set: &PolicySet, peer: Option<&str>, headers: &[Header<'_>]) -> bool {
    let identity = peer.map(|peer| format!("spiffe://{peer}").parse::<model::Identity>().unwrap());
    let connection = ConnectionAttributes {
        source: identity.as_ref(),
        source_ip: [10, 0, 0, 1].into(),
        destination_ip: [10, 0, 0, 2].into(),
        destination_port: 80,
        sni: None,
    };
    let (method, authority, path) = ("GET", "host", "/");
    let head = RequestHead { method, authority, path, query: None, headers, token: None };
    set.evaluate(&connection, Some(&head)).is_allowed()
}

#[test]
fn each_kind_of_source_has_the_meaning_that_istio_gives_it() {
    let client = "cluster.local/ns/app/sa/client";
    let other = "other.domain/ns/app-2/sa/x.y";
    for (matcher, expected) in [
        (text(Pattern::Exact("spiffe://cluster.local/ns/app/sa/client".into())), [true, false, false]),
        (text(Pattern::Prefix("spiffe://other.domain/".into())), [false, true, false]),
        (regex("spiffe://.*/sa/x.y"), [false, true, false]),
        (regex(".+"), [true, true, false]),
        (regex(".*/ns/app/.*"), [true, false, false]),
        (regex(".*/ns/app.*/.*"), [true, true, false]),
        (regex("spiffe://.+/ns/app/(.+/|)sa/client(/.+)?"), [true, false, false]),
        (regex("spiffe://other.domain/.+"), [false, true, false]),
    ] {
        let set = read(&rbac(WireAction::Allow, any_permission(), peer(matcher.clone()))).unwrap();
        let got = [Some(client), Some(other), None].map(|peer| passes(&set, peer, &[]));
        assert_eq!(got, expected, "{matcher:?}");
        let not = Principal { identifier: Some(Identifier::NotId(Box::new(peer(matcher.clone())))) };
        let set = read(&rbac(WireAction::Deny, any_permission(), not)).unwrap();
        let got = [Some(client), Some(other), None].map(|peer| passes(&set, peer, &[]));
        assert_eq!(got, expected, "not {matcher:?}");
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_path() {
    let header = |name: &str, invert_match| HeaderMatcher {
        name: name.into(),
        specifier: Some(Specifier::PresentMatch(true)),
        invert_match,
        treat_missing_header_as_empty: false,
    };
    let of_header = |matcher| Principal { identifier: Some(Identifier::Header(matcher)) };
    for (principal, place) in [
        (peer(regex("spiffe://.*[a-z]")), "principals.filter_state.string_match.safe_regex: "),
        (
            peer(text(Pattern::Exact("cluster.local/ns/a/sa/b".into()))),
            "principals.filter_state.string_match: ",
        ),
        (peer(text(Pattern::Contains("x".into()))), "principals.filter_state.string_match.contains: "),
        (of_header(header(":path", false)), "principals.header.name: "),
        (of_header(header("x", true)), "principals.header.invert_match: "),
        (Principal { identifier: None }, "principals: "),
        (
            Principal { identifier: Some(Identifier::AndIds(principal::Set { ids: Vec::new() })) },
            "principals.and_ids.ids: ",
        ),
        (
            Principal {
                identifier: Some(Identifier::RemoteIp(CidrRange {
                    address_prefix: "x".into(),
                    prefix_len: None,
                })),
            },
            "principals.remote_ip.address_prefix: ",
        ),
    ] {
        let refusal = read(&rbac(WireAction::Allow, any_permission(), principal)).unwrap_err();
        let place = format!("rules.policies[\"ns[app]-policy[p]-rule[0]\"].{place}");
        assert!(refusal.starts_with(&place), "{refusal}");
    }
    let port = Permission { rule: Some(Wire::DestinationPort(70_000)) };
    assert!(read(&rbac(WireAction::Allow, port, any_principal())).is_err());
    let unknown = Rbac { action: 9, policies: <_>::default() };
    let refusal = read(&HttpRbac { rules: Some(unknown), ..HttpRbac::default() }).unwrap_err();
    assert_eq!(refusal, "rules.action: 9 is not supported");
    let shadow = HttpRbac { shadow_rules: Some(Rbac::default()), ..HttpRbac::default() };
    assert!(read(&shadow).unwrap_err().starts_with("shadow_rules_stat_prefix: "));
}

#[test]
fn no_rules_allow_nothing_and_a_rule_that_never_holds_denies_nothing() {
    let none = HttpRbac { rules: Some(Rbac::default()), ..HttpRbac::default() };
    assert!(!passes(&read(&none).unwrap(), None, &[]));
    let never = Permission { rule: Some(Wire::NotRule(Box::new(any_permission()))) };
    assert!(passes(&read(&rbac(WireAction::Deny, never, any_principal())).unwrap(), None, &[]));
    assert!(passes(&read(&HttpRbac::default()).unwrap(), None, &[]));
}

#[test]
fn dry_run_rules_are_not_enforced() {
    let rules = rbac(WireAction::Deny, any_permission(), any_principal()).rules;
    let prefix = "istio_dry_run_deny_".into();
    let filter = HttpRbac { rules: None, shadow_rules: rules, shadow_rules_stat_prefix: prefix };
    let set = read(&filter).unwrap();
    assert!(passes(&set, None, &[]) && set.policies()[0].dry_run);
}

#[test]
fn policies_are_put_together_by_name_and_keep_the_indices_of_their_rules() {
    let policy = || Policy { permissions: vec![any_permission()], principals: vec![any_principal()] };
    let names = ["ns[a]-policy[p]-rule[10]", "ns[a]-policy[p]-rule[2]", "ns[b]-policy[p]-rule[0]", "odd"];
    let policies = names.iter().map(|name| ((*name).to_owned(), policy())).collect();
    let policies = self::policies(&Rbac { action: 1, policies }, Action::Deny).unwrap();
    let found: Vec<_> = policies.iter().map(|it| (&*it.namespace, &*it.name, it.rules.len())).collect();
    assert_eq!(found, [("", "odd", 1), ("a", "p", 11), ("b", "p", 1)]);
    assert_eq!(policies[1].rules[3], never());
    assert_ne!(policies[1].rules[2], never());
}

#[test]
fn headers_are_tested_as_the_policy_says() {
    let matcher = HeaderMatcher {
        name: "X-Token".into(),
        specifier: Some(Specifier::StringMatch(text(Pattern::Prefix("admin".into())))),
        ..HeaderMatcher::default()
    };
    let permission = Permission { rule: Some(permission::Rule::Header(matcher)) };
    let set = read(&rbac(WireAction::Allow, permission, any_principal())).unwrap();
    assert!(passes(&set, None, &[Header { name: "x-token", value: b"admin-1" }]));
    assert!(!passes(&set, None, &[Header { name: "x-token", value: b"user" }]));
}
