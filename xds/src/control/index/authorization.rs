//! A policy of the intermediate form as `istio.security.Authorization`.

use l7::ir::{self, Action, Attribute, Condition, Test};

use crate::control::desired::ip_bytes;
use crate::kube::convert::Scope;
use crate::proto::security::{self, string_match::MatchType};

/// The policy in the type that knows connections only; `None` if it says something that this type cannot.
///
/// Nothing is ever left out: a condition without a field of its own makes the whole policy inexpressible.
pub(super) fn authorization(
    policy: &ir::AuthorizationPolicy,
    scope: Scope,
) -> Option<security::Authorization> {
    let action = match policy.action {
        Action::Allow => security::Action::Allow,
        Action::Deny => security::Action::Deny,
        Action::Audit | Action::Custom => return None,
    };
    Some(security::Authorization {
        name: policy.name.to_string(),
        namespace: policy.namespace.to_string(),
        scope: wire_scope(scope).into(),
        action: action.into(),
        rules: policy.rules.iter().map(rule).collect::<Option<_>>()?,
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    })
}

pub(super) fn wire_scope(scope: Scope) -> security::Scope {
    match scope {
        Scope::Global => security::Scope::Global,
        Scope::Namespace => security::Scope::Namespace,
        Scope::WorkloadSelector => security::Scope::WorkloadSelector,
    }
}

fn rule(rule: &ir::Rule) -> Option<security::Rule> {
    let clause = |clause: &ir::Clause| {
        let matches = clause.matches.iter().map(entry).collect::<Option<_>>()?;
        Some(security::Clause { matches })
    };
    Some(security::Rule { clauses: rule.clauses.iter().map(clause).collect::<Option<_>>()? })
}

fn entry(entry: &ir::Match) -> Option<security::Match> {
    let mut converted = security::Match::default();
    for (index, condition) in entry.conditions.iter().enumerate() {
        // One list a field: two conditions on one attribute would become one, with another meaning.
        let earlier = entry.conditions.iter().take(index);
        if earlier.into_iter().any(|other| other.attribute == condition.attribute) {
            return None;
        }
        add(&mut converted, condition)?;
    }
    Some(converted)
}

fn add(entry: &mut security::Match, condition: &Condition) -> Option<()> {
    let Condition { attribute, any_of, none_of } = condition;
    match attribute {
        Attribute::SourcePrincipal => {
            entry.principals = all(any_of, string)?;
            entry.not_principals = all(none_of, string)?;
        }
        Attribute::SourceNamespace => {
            entry.namespaces = all(any_of, string)?;
            entry.not_namespaces = all(none_of, string)?;
        }
        Attribute::SourceServiceAccount => {
            entry.service_accounts = all(any_of, service_account)?;
            entry.not_service_accounts = all(none_of, service_account)?;
        }
        Attribute::SourceIp => {
            entry.source_ips = all(any_of, address)?;
            entry.not_source_ips = all(none_of, address)?;
        }
        Attribute::DestinationIp => {
            entry.destination_ips = all(any_of, address)?;
            entry.not_destination_ips = all(none_of, address)?;
        }
        Attribute::DestinationPort => {
            entry.destination_ports = all(any_of, port)?;
            entry.not_destination_ports = all(none_of, port)?;
        }
        _ => return None,
    }
    Some(())
}

fn all<T>(tests: &[Test], convert: fn(&Test) -> Option<T>) -> Option<Vec<T>> {
    tests.iter().map(convert).collect()
}

fn string(test: &Test) -> Option<security::StringMatch> {
    let match_type = match test {
        Test::Exact(text) => MatchType::Exact(text.to_string()),
        Test::Prefix(text) => MatchType::Prefix(text.to_string()),
        Test::Suffix(text) => MatchType::Suffix(text.to_string()),
        Test::Present => MatchType::Presence(()),
        Test::Glob(_) | Test::Template(_) | Test::Ip(_) | Test::Port(_) => return None,
    };
    Some(security::StringMatch { match_type: Some(match_type) })
}

fn service_account(test: &Test) -> Option<security::ServiceAccountMatch> {
    let Test::Exact(text) = test else { return None };
    let (namespace, account) = text.split_once('/')?;
    Some(security::ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    })
}

fn address(test: &Test) -> Option<security::Address> {
    let Test::Ip(network) = test else { return None };
    Some(security::Address { address: ip_bytes(network.addr()), length: network.prefix_len().into() })
}

fn port(test: &Test) -> Option<u32> {
    let Test::Port(port) = test else { return None };
    Some(u32::from(*port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(conditions: Vec<Condition>) -> ir::AuthorizationPolicy {
        ir::AuthorizationPolicy {
            namespace: "app".into(),
            name: "p".into(),
            action: Action::Deny,
            dry_run: true,
            rules: vec![ir::Rule { clauses: vec![ir::Clause { matches: vec![ir::Match { conditions }] }] }],
            authorizer: None,
            source: None,
        }
    }

    fn condition(attribute: Attribute, any_of: Vec<Test>, none_of: Vec<Test>) -> Condition {
        Condition { attribute, any_of, none_of }
    }

    #[test]
    fn every_connection_attribute_has_its_pair_of_lists() {
        let network = || Test::Ip("10.0.0.0/8".parse().unwrap());
        let converted = authorization(
            &policy(vec![
                condition(Attribute::SourcePrincipal, vec![Test::Exact("a".into())], vec![Test::Present]),
                condition(Attribute::SourceNamespace, vec![Test::Prefix("a".into())], vec![]),
                condition(Attribute::SourceServiceAccount, vec![Test::Exact("n/a".into())], vec![]),
                condition(Attribute::SourceIp, vec![], vec![network()]),
                condition(Attribute::DestinationIp, vec![network()], vec![]),
                condition(Attribute::DestinationPort, vec![Test::Port(80)], vec![Test::Port(81)]),
            ]),
            Scope::WorkloadSelector,
        )
        .unwrap();
        assert_eq!(converted.scope(), security::Scope::WorkloadSelector);
        assert_eq!(converted.action(), security::Action::Deny);
        assert!(converted.dry_run);
        let entry = &converted.rules[0].clauses[0].matches[0];
        assert_eq!(entry.principals[0].match_type, Some(MatchType::Exact("a".into())));
        assert_eq!(entry.not_principals[0].match_type, Some(MatchType::Presence(())));
        assert_eq!(entry.namespaces[0].match_type, Some(MatchType::Prefix("a".into())));
        assert_eq!(
            (&*entry.service_accounts[0].namespace, &*entry.service_accounts[0].service_account),
            ("n", "a")
        );
        assert_eq!((entry.not_source_ips[0].length, entry.destination_ips[0].length), (8, 8));
        assert_eq!((&*entry.destination_ports, &*entry.not_destination_ports), (&[80][..], &[81][..]));
    }

    #[test]
    fn what_the_type_cannot_say_is_never_left_out() {
        let exact = || vec![Test::Exact("a".into())];
        for conditions in [
            vec![condition(Attribute::RequestPath, exact(), vec![])],
            vec![condition(Attribute::SourceTrustDomain, exact(), vec![])],
            vec![condition(Attribute::ConnectionSni, exact(), vec![])],
            vec![condition(Attribute::SourceNamespace, vec![Test::Glob("a*b".into())], vec![])],
            vec![condition(Attribute::SourceServiceAccount, vec![Test::Prefix("n/a".into())], vec![])],
            vec![
                condition(Attribute::SourcePrincipal, exact(), vec![]),
                condition(Attribute::SourcePrincipal, vec![], exact()),
            ],
        ] {
            assert_eq!(authorization(&policy(conditions), Scope::Namespace), None);
        }
        let audit = ir::AuthorizationPolicy { action: Action::Audit, ..policy(vec![]) };
        assert_eq!(authorization(&audit, Scope::Namespace), None);
    }
}
