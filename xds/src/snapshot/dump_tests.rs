//! The dump against that of a ztunnel with the same workloads and services.

use std::sync::Arc;

use l7::ir::{Action, Attribute, AuthorizationPolicy, Clause, Condition, Match, Rule, Test};
use model::{Health, ServicePort, WorkloadType};
use serde_json::{Value, json};

use super::super::{Policy, PolicyScope};
use super::*;
use crate::store::fixtures::{ip, service, serving, snapshot, waypoint_address, waypoint_host, workload};

/// What a ztunnel shows, here without its certificates' text and its resolver's options.
const ZTUNNEL: &str = include_str!("../../testdata/ztunnel-config_dump.json");

fn pod(name: &str, address: &str, node: &str) -> Workload {
    Workload {
        uid: format!("c1//v1/Pod/default/{name}").into(),
        node: node.into(),
        workload_type: WorkloadType::Deployment,
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        ..serving(
            workload(&format!("default/{name}"), address),
            &[&format!("default/{name}.default.svc.cluster.local")],
        )
    }
}

fn service_of(name: &str, vip: &str) -> Service {
    let key = format!("default/{name}.default.svc.cluster.local");
    let port = ServicePort { service_port: 80, target_port: 8080, app_protocol: model::AppProtocol::Unknown };
    Service { name: name.into(), ports: vec![port], ..service(&key, &[vip]) }
}

#[test]
fn workloads_and_services_are_shown_as_a_ztunnel_shows_them() {
    let extra = Workload {
        uid: "c1//v1/Pod/default/extra".into(),
        identity: model::Identity::new("cluster.local", "default", "x").unwrap(),
        node: "b".into(),
        workload_type: WorkloadType::Deployment,
        ..workload("default/extra", "10.78.0.77")
    };
    let workloads = vec![pod("zt", "10.78.0.1", "a"), pod("peer", "10.78.0.2", "b"), extra];
    let services = vec![service_of("zt", "10.78.100.1"), service_of("peer", "10.78.100.2")];
    let ours = state(&snapshot(workloads, services));
    let theirs: Value = serde_json::from_str(ZTUNNEL).unwrap();
    for list in ["workloads", "services", "policies"] {
        assert_eq!(ours[list], theirs[list], "{list}");
    }
}

#[test]
fn what_is_not_the_default_is_shown_in_the_forms_that_istioctl_reads() {
    let mut rich = pod("rich", "10.78.0.3", "a");
    rich.health = Health::Unhealthy;
    rich.network = "n2".into();
    rich.waypoint = Some(waypoint_host("default/waypoint.default.svc.cluster.local"));
    rich.network_gateway = Some(waypoint_address("10.9.9.9"));
    rich.application_tunnel =
        Some(model::ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port: 15088 });
    rich.locality.region = "r1".into();
    rich.authorization_policies = vec!["default/deny".into()];
    rich.addresses.push(ip("fd00::3"));
    let shown = super::workload(&rich);
    for (key, value) in [
        ("status", json!("Unhealthy")),
        ("network", json!("n2")),
        (
            "waypoint",
            json!({ "destination": "default/waypoint.default.svc.cluster.local", "hboneMtlsPort": 15008 }),
        ),
        ("networkGateway", json!({ "destination": "/10.9.9.9", "hboneMtlsPort": 15008 })),
        ("applicationTunnel", json!({ "protocol": "PROXY", "port": 15088 })),
        ("locality", json!({ "region": "r1" })),
        ("authorizationPolicies", json!(["default/deny"])),
        ("workloadIps", json!(["10.78.0.3", "fd00::3"])),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
}

#[test]
fn policies_are_shown_as_rules_of_clauses_of_matches() {
    let is = |attribute, any_of, none_of| Condition { attribute, any_of, none_of };
    let conditions = vec![
        is(Attribute::SourcePrincipal, vec![Test::Suffix("/sa/a".into())], vec![Test::Present]),
        is(Attribute::SourceServiceAccount, vec![Test::Exact("app/client".into())], vec![]),
        is(Attribute::SourceIp, vec![Test::Ip("10.0.0.0/8".parse().unwrap())], vec![]),
        is(Attribute::DestinationPort, vec![Test::Port(80)], vec![Test::Port(81)]),
    ];
    let clause = Clause { matches: vec![Match { conditions }] };
    let policy = Policy {
        scope: PolicyScope::Workload,
        policy: Arc::new(AuthorizationPolicy {
            namespace: "app".into(),
            name: "only".into(),
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule { clauses: vec![clause] }],
            authorizer: None,
            source: None,
        }),
    };
    let expected = json!({
        "name": "only", "namespace": "app", "scope": "WorkloadSelector", "action": "Deny",
        "rules": [[[{
            "principals": [{ "Suffix": "/sa/a" }],
            "notPrincipals": [{ "Presence": [] }],
            "serviceAccounts": [{ "namespace": "app", "serviceAccount": "client" }],
            "sourceIps": ["10.0.0.0/8"],
            "destinationPorts": [80],
            "notDestinationPorts": [81],
        }]]],
    });
    assert_eq!(super::policy(&policy), expected);
}
