//! Deciding about a request, and normalising its path.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use l7::authz::PolicySet;
use l7::ir::{
    Action, Attribute, AuthorizationPolicy, Clause, Condition, ConnectionAttributes, Match, RequestHead,
    Rule, Test,
};
use l7::path::{Normalization, normalize};
use model::Identity;

use super::{Step, black_box};

/// The last of so many policies, each with a path template and with a principal of its own.
pub(super) fn last(count: usize) -> Step {
    step(count, |index| format!("client-{index}"))
}

/// The same with one principal in all of them.
pub(super) fn last_of_client(count: usize) -> Step {
    step(count, |_| "client".to_owned())
}

fn step(count: usize, client: fn(usize) -> String) -> Step {
    let policies = (0..count).map(|index| allow(index, &client(index)));
    let set = PolicySet::compile(policies).expect("the policies are sound");
    let last = count - 1;
    let identity = Identity::new("cluster.local", "app", &client(last)).expect("an identity");
    let path = format!("/svc/{last}/v1/users/7");
    Box::new(move || {
        let head = RequestHead {
            method: "GET",
            authority: "web",
            path: &path,
            query: None,
            headers: &[],
            token: None,
        };
        let connection = ConnectionAttributes {
            source: Some(&identity),
            source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination_port: 8080,
            sni: None,
        };
        assert!(set.evaluate(black_box(&connection), Some(black_box(&head))).is_allowed());
    })
}

pub(super) fn path(path: &str) -> Step {
    // Owned, so that it lies as every allocation does: searches take other steps where a text is not aligned, and a constant lies
    // anywhere.
    let path = path.to_owned();
    Box::new(move || {
        assert!(black_box(normalize(black_box(&path), Normalization::Base)).is_ok());
    })
}

fn allow(index: usize, client: &str) -> Arc<AuthorizationPolicy> {
    let condition = |attribute, test| Condition { attribute, any_of: vec![test], none_of: Vec::new() };
    let clause = |condition| Clause { matches: vec![Match { conditions: vec![condition] }] };
    let principal = Test::Exact(Arc::from(format!("cluster.local/ns/app/sa/{client}")));
    let template = Test::Template(Arc::from(format!("/svc/{index}/{{*}}/users/{{**}}")));
    Arc::new(AuthorizationPolicy {
        namespace: Arc::from("app"),
        name: Arc::from(format!("allow-{index}")),
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![
                clause(condition(Attribute::SourcePrincipal, principal)),
                clause(condition(Attribute::RequestPath, template)),
            ],
        }],
        authorizer: None,
        source: None,
    })
}
