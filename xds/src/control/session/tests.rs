use prost_types::{Struct, Value};

use super::*;
use crate::control::desired::DesiredResource;
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, l7, rpc, security, workload};

fn node(name: &str) -> Node {
    let value = Value { kind: Some(Kind::StringValue(name.to_owned())) };
    let fields = [(String::from("NODE_NAME"), value)].into();
    Node {
        id: String::from("ztunnel~10.0.0.1~p.ns~ns.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..Default::default()
    }
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { node: Some(node("node1")), type_url: type_url.to_owned(), ..Default::default() }
}

fn on_demand(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..request(ADDRESS_TYPE)
    }
}

fn workload(uid: &str, ip: [u8; 4], node: &str, policies: &[&str]) -> workload::Workload {
    workload::Workload {
        uid: uid.to_owned(),
        addresses: vec![ip.to_vec()],
        node: node.to_owned(),
        authorization_policies: policies.iter().map(ToString::to_string).collect(),
        services: [(String::from("app/svc"), workload::PortList::default())].into(),
        ..Default::default()
    }
}

fn service() -> workload::Service {
    workload::Service {
        namespace: String::from("app"),
        hostname: String::from("svc"),
        addresses: vec![workload::NetworkAddress { address: vec![10, 96, 0, 1], ..Default::default() }],
        ..Default::default()
    }
}

fn policy(name: &str) -> security::Authorization {
    security::Authorization { namespace: String::from("app"), name: name.to_owned(), ..Default::default() }
}

fn state() -> DesiredState {
    let mut state = DesiredState::default();
    state.insert_service(service());
    state.insert_workload(workload("w1", [10, 0, 0, 1], "node1", &[]));
    state.insert_workload(workload("w2", [10, 0, 0, 2], "node2", &[]));
    state
}

/// `upserts -removals` of each response.
fn summary(responses: &[DeltaDiscoveryResponse]) -> Vec<String> {
    responses
        .iter()
        .map(|response| {
            let short = response.type_url.rsplit('.').next().unwrap_or_default();
            let upserts = response.resources.iter().map(|resource| format!(" {}", resource.name));
            let removals = response.removed_resources.iter().map(|name| format!(" -{name}"));
            format!("{short}:{}", upserts.chain(removals).collect::<String>())
        })
        .collect()
}

fn connected(state: &DesiredState, types: &[&str]) -> Session {
    let mut session = Session::new(1, "node1");
    for type_url in types {
        session.on_request(request(type_url)).unwrap();
    }
    session.responses(state, 1);
    session
}

#[test]
fn wildcard_gets_everything_once_then_only_changes() {
    let mut state = state();
    let mut session = Session::new(7, "node1");
    session.on_request(request(ADDRESS_TYPE)).unwrap();
    let first = session.responses(&state, 1);
    assert_eq!(summary(&first), ["Address: app/svc w1 w2"]);
    assert_eq!((&*first[0].nonce, &*first[0].system_version_info), ("7-1", "1"));
    assert!(first[0].resources.iter().all(|resource| resource.aliases.is_empty()));
    assert!(session.responses(&state, 1).is_empty());

    state.insert_workload(workload("w2", [10, 0, 0, 3], "node2", &[]));
    assert_eq!(summary(&session.responses(&state, 2)), ["Address: w2"]);

    let mut without = DesiredState::default();
    without.insert_service(service());
    assert_eq!(summary(&session.responses(&without, 3)), ["Address: -w1 -w2"]);
}

#[test]
fn first_request_of_a_type_is_answered_even_with_nothing() {
    let mut session = Session::new(1, "node1");
    session.on_request(request(AUTHORIZATION_TYPE)).unwrap();
    session.on_request(request("type.googleapis.com/some.Other")).unwrap();
    let responses = session.responses(&DesiredState::default(), 1);
    assert_eq!(summary(&responses), ["Other:", "Authorization:"]);
    session.on_request(request("type.googleapis.com/some.Other")).unwrap();
    assert!(session.responses(&DesiredState::default(), 1).is_empty());
}

#[test]
fn policy_comes_before_the_workload_that_names_it_and_goes_after_it() {
    let mut bare = state();
    let mut session = connected(&bare, &[ADDRESS_TYPE, HTTP_ROUTE_TYPE, AUTHORIZATION_TYPE]);

    let mut guarded = state();
    guarded.insert_authorization(&policy("p"));
    guarded.insert_workload(workload("w1", [10, 0, 0, 1], "node1", &["app/p"]));
    guarded.insert_workload(workload("w3", [10, 0, 0, 3], "node1", &["app/p"]));
    guarded.insert_http_route("app/r/app/svc/0", &l7::HttpRoute::default());
    assert_eq!(
        summary(&session.responses(&guarded, 2)),
        ["Authorization: app/p", "Address: w1 w3", "HttpRoute: app/r/app/svc/0"]
    );

    bare.insert_workload(workload("w4", [10, 0, 0, 4], "node1", &[]));
    assert_eq!(
        summary(&session.responses(&bare, 3)),
        ["Address: w1 w4", "HttpRoute: -app/r/app/svc/0", "Address: -w3", "Authorization: -app/p"]
    );
}

#[test]
fn policy_reaches_fewer_only_once_those_it_still_reaches_name_it() {
    let scoped = |scope: security::Scope, names: &[&str]| {
        let mut state = state();
        state.insert_authorization(&security::Authorization { scope: scope.into(), ..policy("p") });
        state.insert_workload(workload("w1", [10, 0, 0, 1], "node1", names));
        state
    };
    let wide = scoped(security::Scope::Namespace, &[]);
    let narrow = scoped(security::Scope::WorkloadSelector, &["app/p"]);
    let mut session = connected(&wide, &[ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    assert_eq!(summary(&session.responses(&narrow, 2)), ["Address: w1", "Authorization: app/p"]);
    assert_eq!(summary(&session.responses(&wide, 3)), ["Authorization: app/p", "Address: w1"]);
}

#[test]
fn held_versions_are_skipped_and_vanished_names_removed() {
    let state = state();
    let version = |name: &str| state.resources(ResourceKind::Address)[name].version.to_string();
    let mut session = Session::new(1, "node1");
    session
        .on_request(DeltaDiscoveryRequest {
            initial_resource_versions: [
                (String::from("w1"), version("w1")),
                (String::from("w2"), String::from("stale")),
                (String::from("gone"), String::from("0123456789abcdef")),
            ]
            .into(),
            ..request(ADDRESS_TYPE)
        })
        .unwrap();
    assert_eq!(summary(&session.responses(&state, 1)), ["Address: app/svc w2 -gone"]);
}

#[test]
fn acknowledgements_are_not_answered_and_rejections_are_reported() {
    let state = state();
    let mut session = connected(&state, &[ADDRESS_TYPE]);
    let ack = DeltaDiscoveryRequest { response_nonce: String::from("1-1"), ..request(ADDRESS_TYPE) };
    assert_eq!(session.on_request(ack.clone()).unwrap(), None);
    let status = rpc::Status { message: String::from("w1: bad"), ..Default::default() };
    let nack = DeltaDiscoveryRequest { error_detail: Some(status), ..ack };
    let rejection = session.on_request(nack).unwrap().expect("a rejection");
    assert_eq!((&*rejection.nonce, &*rejection.message), ("1-1", "w1: bad"));
    assert!(session.responses(&state, 1).is_empty(), "nothing is sent again until it changes");
}

#[test]
fn on_demand_gets_its_node_first_and_then_what_it_asks_for() {
    let mut state = state();
    state.insert_workload(workload("w3", [10, 0, 0, 3], "node2", &[]));
    let mut session = Session::new(1, "node1");
    session
        .on_request(DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec![String::from("*")],
            ..on_demand(&["*"])
        })
        .unwrap();
    assert_eq!(summary(&session.responses(&state, 1)), ["Address: w1"]);

    session.on_request(on_demand(&["/10.96.0.1"])).unwrap();
    let found = session.responses(&state, 1);
    assert_eq!(summary(&found), ["Address: app/svc w1 w2 w3"]);
    assert_eq!(found[0].resources[0].aliases, ["/10.96.0.1"]);

    session.on_request(on_demand(&["/10.9.9.9", "nowhere"])).unwrap();
    assert_eq!(summary(&session.responses(&state, 1)), ["Address: -/10.9.9.9 -nowhere"]);
    assert!(session.responses(&state, 1).is_empty(), "a missing name is told once");

    state.insert_workload(workload("w4", [10, 9, 9, 9], "node2", &[]));
    assert_eq!(summary(&session.responses(&state, 2)), ["Address: w4"]);
}

#[test]
fn stream_without_node_or_of_another_node_ends() {
    let mut session = Session::new(1, "node1");
    let anonymous = DeltaDiscoveryRequest { node: None, ..request(ADDRESS_TYPE) };
    assert_eq!(session.on_request(anonymous.clone()), Err(SessionError::NodeMissing));
    let foreign = DeltaDiscoveryRequest { node: Some(node("node2")), ..anonymous.clone() };
    assert!(matches!(session.on_request(foreign), Err(SessionError::NodeMismatch { .. })));
    session.on_request(request(ADDRESS_TYPE)).unwrap();
    session.on_request(anonymous).unwrap();
}

#[test]
fn client_cannot_make_the_server_remember_without_bound() {
    let mut session = Session::new(1, "node1");
    let names: Vec<String> = (0..=SUBSCRIBED_NAMES_MAX).map(|n| n.to_string()).collect();
    let flood = DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ADDRESS_TYPE) };
    assert!(matches!(session.on_request(flood), Err(SessionError::TooManyNames(_))));
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    assert_eq!(session.on_request(on_demand(&[&long])), Err(SessionError::NameTooLong));
    let mut last = Ok(None);
    for n in 0..=UNKNOWN_TYPES_MAX {
        last = session.on_request(request(&format!("type.googleapis.com/t{n}")));
    }
    assert!(matches!(last, Err(SessionError::TooManyUnknownTypes(_))));
}

#[test]
fn large_state_is_cut_into_bounded_responses() {
    let mut state = DesiredState::default();
    let ir = vec![b'x'; RESPONSE_BYTES_MAX / 2];
    for name in ["a", "b", "c"] {
        state.insert_http_route(name, &l7::HttpRoute { ir: ir.clone().into() });
    }
    let mut session = Session::new(1, "node1");
    session.on_request(request(HTTP_ROUTE_TYPE)).unwrap();
    let responses = session.responses(&state, 1);
    assert_eq!(summary(&responses), ["HttpRoute: a", "HttpRoute: b", "HttpRoute: c"]);
    let nonces: BTreeSet<&str> = responses.iter().map(|response| &*response.nonce).collect();
    assert_eq!(nonces.len(), 3);
}

/// A client that applies what it is sent always ends with exactly the desired state, whatever the history.
#[test]
fn fuzz_client_converges_to_the_desired_state() {
    bolero::check!().with_type::<Vec<(u8, u8)>>().for_each(|steps| {
        let mut session = connected(&DesiredState::default(), &[ADDRESS_TYPE, AUTHORIZATION_TYPE]);
        let mut held: BTreeMap<(String, String), String> = BTreeMap::new();
        for (generation, (workloads, policies)) in steps.iter().enumerate() {
            let mut state = DesiredState::default();
            for bit in 0..8_u8 {
                if workloads >> bit & 1 == 1 {
                    state.insert_workload(workload(&format!("w{bit}"), [10, 0, *policies, bit], "n", &[]));
                }
                if policies >> bit & 1 == 1 {
                    state.insert_authorization(&policy(&format!("p{bit}")));
                }
            }
            for response in session.responses(&state, generation as u64) {
                for resource in response.resources {
                    held.insert((response.type_url.clone(), resource.name), resource.version);
                }
                for name in response.removed_resources {
                    assert!(held.remove(&(response.type_url.clone(), name)).is_some());
                }
            }
            let want: BTreeMap<(String, String), String> = ResourceKind::ALL
                .into_iter()
                .flat_map(|kind| {
                    let entry = move |resource: &Arc<DesiredResource>| {
                        (
                            (kind.type_url().to_owned(), resource.name.to_string()),
                            resource.version.to_string(),
                        )
                    };
                    state.resources(kind).values().map(entry).collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(held, want);
        }
    });
}
