use std::collections::BTreeMap;

use l7::ir::{Action, ConnectionAttributes};
use model::{NetworkMode, TunnelProtocol, Visibility, Workload};

use super::fixtures::*;
use super::policies::PolicyKind;
use super::*;
use crate::snapshot::{PolicyScope, TokenRules};

fn endpoints(snapshot: &Snapshot, namespace: &str, host: &str) -> Vec<String> {
    let entry = snapshot.service(namespace, host).unwrap();
    let mut names: Vec<_> = entry.endpoints.iter().map(|it| it.workload.name.to_string()).collect();
    names.sort();
    names
}

fn allowed(snapshot: &Snapshot, workload: &Workload) -> bool {
    let connection = ConnectionAttributes {
        source: None,
        source_ip: ip("10.0.0.9"),
        destination_ip: ip("10.0.0.1"),
        destination_port: 80,
        sni: None,
    };
    snapshot.policies_for(workload).evaluate(&connection, None).is_allowed()
}

#[test]
fn a_snapshot_comes_only_after_a_change_and_older_ones_stay_as_they_were() {
    let mut store = store(vec![workload("app/a", "10.0.0.1")], vec![]);
    let first = store.snapshot().unwrap();
    assert!(store.snapshot().is_none());
    store.upsert_address(Address::Workload(workload("app/a", "10.0.0.1")));
    assert!(store.snapshot().is_none(), "the same again is no change");
    store.upsert_address(Address::Workload(workload("app/a", "10.0.0.2")));
    let second = store.snapshot().unwrap();
    assert_eq!((first.generation(), second.generation()), (1, 2));
    assert!(first.workload_by_address("", ip("10.0.0.1")).is_some());
    assert!(second.workload_by_address("", ip("10.0.0.1")).is_none());
    assert!(second.workload_by_address("", ip("10.0.0.2")).is_some());
}

#[test]
fn endpoints_that_come_before_their_service_are_attached_when_it_comes() {
    let mut store = store(vec![serving(workload("app/a", "10.0.0.1"), &["app/web"])], vec![]);
    store.upsert_address(Address::Service(service("app/web", &["10.1.0.1"])));
    assert_eq!(endpoints(&store.snapshot().unwrap(), "app", "web"), ["a"]);
    // An update of the service keeps them, its return finds them again.
    store.upsert_address(Address::Service(service("app/web", &["10.1.0.2"])));
    let snapshot = store.snapshot().unwrap();
    assert_eq!(endpoints(&snapshot, "app", "web"), ["a"]);
    assert!(snapshot.service_by_vip("", ip("10.1.0.1"), "app").is_none());
    store.remove(ADDRESS_TYPE, "app/web");
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.service("app", "web").is_none());
    assert!(snapshot.service_by_vip("", ip("10.1.0.2"), "app").is_none());
    assert!(snapshot.service_by_host("web", "app").is_none());
    store.upsert_address(Address::Service(service("app/web", &["10.1.0.3"])));
    assert_eq!(endpoints(&store.snapshot().unwrap(), "app", "web"), ["a"]);
}

#[test]
fn an_endpoint_leaves_with_its_membership_or_its_workload() {
    let pods =
        ["a", "b", "c"].map(|name| serving(workload(&format!("app/{name}"), ""), &["app/web", "app/api"]));
    let mut store = store(pods.to_vec(), vec![service("app/web", &[]), service("app/api", &[])]);
    store.upsert_address(Address::Workload(serving(workload("app/a", ""), &["app/api"])));
    let snapshot = store.snapshot().unwrap();
    assert_eq!(endpoints(&snapshot, "app", "web"), ["b", "c"]);
    assert_eq!(endpoints(&snapshot, "app", "api"), ["a", "b", "c"]);
    store.remove(ADDRESS_TYPE, "Kubernetes//Pod/app/b");
    let snapshot = store.snapshot().unwrap();
    assert_eq!(endpoints(&snapshot, "app", "web"), ["c"]);
    assert_eq!(endpoints(&snapshot, "app", "api"), ["a", "c"]);
    assert!(snapshot.workload_by_uid("Kubernetes//Pod/app/b").is_none());
    assert!(snapshot.workload_by_name("app", "b", None).is_none());
}

#[test]
fn of_several_workloads_at_one_address_the_pod_then_hbone_is_found_and_never_the_host_network() {
    let at = |uid: &str, tunnel_protocol| Workload {
        uid: uid.into(),
        tunnel_protocol,
        ..workload("app/x", "10.0.0.1")
    };
    let entry = "Kubernetes/networking.istio.io/WorkloadEntry/app/x";
    let host =
        Workload { network_mode: NetworkMode::HostNetwork, ..at("a//Pod/host", TunnelProtocol::Hbone) };
    let all = [
        host,
        at("a//Pod/hbone", TunnelProtocol::Hbone),
        at("z//Pod/plain", TunnelProtocol::None),
        at(entry, TunnelProtocol::Hbone),
        at("z/plain", TunnelProtocol::None),
    ];
    // Whatever the order of arrival.
    for rotation in 0..all.len() {
        let mut workloads = all.to_vec();
        workloads.rotate_left(rotation);
        let mut store = store(workloads, vec![]);
        for want in ["a//Pod/hbone", "z//Pod/plain", entry, "z/plain"] {
            let snapshot = store.snapshot().unwrap();
            let found = snapshot.workload_by_address("", ip("10.0.0.1")).unwrap();
            assert_eq!(&*found.uid, want);
            store.remove(ADDRESS_TYPE, want);
        }
        assert!(store.snapshot().unwrap().workload_by_address("", ip("10.0.0.1")).is_none());
    }
}

#[test]
fn networks_keep_equal_addresses_apart() {
    let there = Workload { network: "there".into(), ..workload("app/there", "10.0.0.1") };
    let snapshot = snapshot(vec![workload("app/here", "10.0.0.1"), there], vec![]);
    assert_eq!(&*snapshot.workload_by_address("", ip("10.0.0.1")).unwrap().name, "here");
    assert_eq!(&*snapshot.workload_by_address("there", ip("10.0.0.1")).unwrap().name, "there");
    assert!(snapshot.workload_by_address("else", ip("10.0.0.1")).is_none());
}

#[test]
fn a_name_with_an_account_is_found_only_with_that_account() {
    let snapshot = snapshot(vec![workload("app/web", "10.0.0.1")], vec![]);
    assert!(snapshot.workload_by_name("app", "web", None).is_some());
    assert!(snapshot.workload_by_name("app", "web", Some("web")).is_some());
    assert!(snapshot.workload_by_name("app", "web", Some("other")).is_none());
    assert!(snapshot.workload_by_name("other", "web", None).is_none());
}

#[test]
fn a_shared_address_or_host_goes_to_the_own_namespace_then_the_canonical_then_the_first() {
    let shared = |namespace: &str| service(&format!("{namespace}/shared.example"), &["10.1.0.1"]);
    let canonical = model::Service { canonical: true, ..shared("canonical") };
    let private = model::Service { visibility: Visibility::Namespace, ..shared("private") };
    let mut store = store(vec![], vec![private, shared("first"), shared("second"), canonical]);
    let snapshot = store.snapshot().unwrap();
    let both = |snapshot: &Snapshot, client: &str| {
        let by_vip = snapshot.service_by_vip("", ip("10.1.0.1"), client).unwrap();
        let by_host = snapshot.service_by_host("shared.example", client).unwrap();
        assert!(Arc::ptr_eq(by_vip, by_host));
        by_vip.key().namespace.to_string()
    };
    assert_eq!(both(&snapshot, "second"), "second");
    assert_eq!(both(&snapshot, "elsewhere"), "canonical");
    assert_eq!(both(&snapshot, "private"), "private");
    store.remove(ADDRESS_TYPE, "canonical/shared.example");
    let snapshot = store.snapshot().unwrap();
    assert_eq!(both(&snapshot, "elsewhere"), "first");
}

#[test]
fn blocks_yield_to_single_addresses_and_to_longer_ones_but_the_own_namespace_wins() {
    let snapshot = snapshot(
        vec![],
        vec![
            service("wide/w", &["10.0.0.0/8"]),
            service("narrow/n", &["10.1.0.0/16"]),
            service("single/s", &["10.1.0.1"]),
        ],
    );
    let find = |address: &str, client: &str| {
        snapshot.service_by_vip("", ip(address), client).map(|it| it.key().namespace.to_string())
    };
    assert_eq!(find("10.1.0.1", "x").as_deref(), Some("single"));
    assert_eq!(find("10.1.0.2", "x").as_deref(), Some("narrow"));
    assert_eq!(find("10.2.0.2", "x").as_deref(), Some("wide"));
    assert_eq!(find("10.1.0.2", "wide").as_deref(), Some("wide"));
    assert_eq!(find("11.1.0.2", "x"), None);
}

#[test]
fn a_workload_that_names_an_absent_policy_is_denied_until_it_comes() {
    let mut named = workload("app/a", "10.0.0.1");
    named.authorization_policies = vec!["app/p".into()];
    let other = workload("app/b", "10.0.0.2");
    let mut store = store(vec![named.clone(), other.clone()], vec![]);
    let snapshot = store.snapshot().unwrap();
    assert!(!allowed(&snapshot, &named));
    assert!(allowed(&snapshot, &other));
    store.upsert_policy(
        PolicyKind::Connection,
        "app/p",
        policy("app/p", PolicyScope::Workload, Action::Allow),
    );
    assert!(allowed(&store.snapshot().unwrap(), &named));
    store.remove(AUTHORIZATION_TYPE, "app/p");
    assert!(!allowed(&store.snapshot().unwrap(), &named));
    let stranger = Workload { namespace: "nowhere".into(), ..workload("app/c", "") };
    assert!(!allowed(&store.snapshot().unwrap_or(snapshot), &stranger));
}

#[test]
fn a_policy_reaches_those_in_its_scope_and_no_others() {
    let workloads = ["app/a", "app/b", "other/c"].map(|name| workload(name, ""));
    let mut named = workloads.to_vec();
    named[0].authorization_policies = vec!["app/p".into()];
    let reach = |scope: PolicyScope| {
        let mut store = store(named.clone(), vec![]);
        store.upsert_policy(PolicyKind::Connection, "app/p", policy("app/p", scope, Action::Deny));
        let snapshot = store.snapshot().unwrap();
        named.iter().map(|it| !allowed(&snapshot, it)).collect::<Vec<_>>()
    };
    assert_eq!(reach(PolicyScope::Workload), [true, false, false]);
    assert_eq!(reach(PolicyScope::Namespace), [true, true, false]);
    assert_eq!(reach(PolicyScope::Global), [true, true, true]);
}

#[test]
fn workloads_of_the_same_policies_share_one_set_that_changes_only_with_them() {
    let (one, two, far) = (workload("app/a", ""), workload("app/b", ""), workload("far/c", ""));
    let mut store = store(vec![one.clone(), two.clone(), far.clone()], vec![]);
    store.upsert_policy(
        PolicyKind::Connection,
        "app/p",
        policy("app/p", PolicyScope::Namespace, Action::Allow),
    );
    let before = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(&before.policies_for(&one), &before.policies_for(&two)));
    assert!(!Arc::ptr_eq(&before.policies_for(&one), &before.policies_for(&far)));
    store.upsert_policy(
        PolicyKind::Connection,
        "far/p",
        policy("far/p", PolicyScope::Namespace, Action::Deny),
    );
    let after = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(&before.policies_for(&one), &after.policies_for(&one)));
    assert!(!Arc::ptr_eq(&before.policies_for(&far), &after.policies_for(&far)));
    assert!(!allowed(&after, &far));
}

#[test]
fn a_policy_that_changes_its_type_is_in_force_all_the_while() {
    let pod = workload("app/a", "");
    let mut store = store(vec![pod.clone()], vec![]);
    let deny = || policy("app/p", PolicyScope::Namespace, Action::Deny);
    store.upsert_policy(PolicyKind::Connection, "app/p", deny());
    store.upsert_policy(PolicyKind::Request, "app/p", deny());
    assert!(!allowed(&store.snapshot().unwrap(), &pod));
    store.remove(AUTHORIZATION_TYPE, "app/p");
    assert!(!allowed(&store.snapshot().unwrap(), &pod));
    store.remove(AUTHORIZATION_POLICY_TYPE, "app/p");
    assert!(allowed(&store.snapshot().unwrap(), &pod));
}

#[test]
fn a_policy_that_changes_its_scope_lets_go_of_those_it_reached() {
    let (app, far) = (workload("app/a", ""), workload("far/b", ""));
    let mut store = store(vec![app.clone(), far.clone()], vec![]);
    let deny = |scope| policy("app/p", scope, Action::Deny);
    store.upsert_policy(PolicyKind::Connection, "app/p", deny(PolicyScope::Global));
    assert!(!allowed(&store.snapshot().unwrap(), &far));
    store.upsert_policy(PolicyKind::Connection, "app/p", deny(PolicyScope::Namespace));
    let snapshot = store.snapshot().unwrap();
    assert!(allowed(&snapshot, &far) && !allowed(&snapshot, &app));
}

#[test]
fn policy_sets_go_with_their_last_workload() {
    let mut store = store(vec![workload("app/a", "")], vec![]);
    assert_eq!(store.snapshot().unwrap().policy_sets.len(), 1);
    store.remove(ADDRESS_TYPE, "Kubernetes//Pod/app/a");
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.policy_sets.is_empty());
    assert!(snapshot.workloads.is_empty());
}

#[derive(Debug, Clone, Copy, bolero::generator::TypeGenerator)]
enum Step {
    Workload { name: u8, address: u8, services: u8, capacity: u8 },
    RemoveWorkload { name: u8 },
    Service { name: u8, vip: u8 },
    RemoveService { name: u8 },
    Snapshot,
}

/// A naive twin: two maps, searched from end to end.
#[derive(Default)]
struct Naive {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, model::Service>,
}

#[test]
fn fuzz_the_tables_agree_with_a_search_of_everything() {
    bolero::check!().with_type::<Vec<Step>>().for_each(|steps| {
        let mut store = Store::new();
        let mut naive = Naive::default();
        for step in steps {
            apply(*step, &mut store, &mut naive);
        }
        store.changed = true;
        agree(&store.snapshot().unwrap(), &naive);
    });
}

fn apply(step: Step, store: &mut Store, naive: &mut Naive) {
    match step {
        Step::Workload { name, address, services, capacity } => {
            let names: Vec<_> =
                (0..4).filter(|bit| services & (1 << bit) != 0).map(|bit| format!("n/s{bit}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let plain = workload(&format!("n/w{}", name % 8), &format!("10.0.0.{}", address % 4));
            let workload = serving(Workload { capacity: u32::from(capacity), ..plain }, &names);
            naive.workloads.insert(workload.uid.to_string(), workload.clone());
            store.upsert_address(Address::Workload(workload));
        }
        Step::RemoveWorkload { name } => {
            let uid = format!("Kubernetes//Pod/n/w{}", name % 8);
            naive.workloads.remove(&uid);
            store.remove(ADDRESS_TYPE, &uid);
        }
        Step::Service { name, vip } => {
            let service = service(&format!("n/s{}", name % 4), &[&format!("10.1.0.{}", vip % 4)]);
            naive.services.insert(service.key.to_string(), service.clone());
            store.upsert_address(Address::Service(service));
        }
        Step::RemoveService { name } => {
            let key = format!("n/s{}", name % 4);
            naive.services.remove(&key);
            store.remove(ADDRESS_TYPE, &key);
        }
        Step::Snapshot => drop(store.snapshot()),
    }
}

fn agree(snapshot: &Snapshot, naive: &Naive) {
    assert_eq!(snapshot.workloads().count(), naive.workloads.len());
    assert_eq!(snapshot.services().count(), naive.services.len());
    for last in 0..4 {
        let address = ip(&format!("10.0.0.{last}"));
        let found = snapshot.workload_by_address("", address).map(|it| it.uid.to_string());
        let want = naive.workloads.values().find(|it| it.addresses.contains(&address));
        assert_eq!(found, want.map(|it| it.uid.to_string()));
        let vip = ip(&format!("10.1.0.{last}"));
        let owners = naive.services.values().filter(|it| it.vips.iter().any(|it| it.ip == vip));
        assert_eq!(snapshot.service_by_vip("", vip, "n").is_some(), owners.count() > 0);
    }
    for (name, service) in &naive.services {
        let entry = snapshot.service("n", &service.key.hostname).unwrap();
        assert_eq!(*entry.service, *service);
        let mut got: Vec<_> = entry.endpoints.iter().map(|it| (*it.workload).clone()).collect();
        got.sort_by(|one, other| one.uid.cmp(&other.uid));
        let want: Vec<_> =
            naive.workloads.values().filter(|it| it.services.contains_key(&service.key)).cloned().collect();
        assert_eq!(got, want, "endpoints of {name}");
        assert!(want.iter().all(|it| it.capacity <= entry.capacity_max));
    }
}

/// A route `NAMESPACE/NAME` of service `app/web`.
fn route(name: &str, port: Option<u16>, consumer: Option<&str>) -> Arc<l7::ir::HttpRoute> {
    let (namespace, name) = name.split_once('/').unwrap();
    let everything = l7::ir::HttpMatch::default();
    Arc::new(l7::ir::HttpRoute {
        kind: l7::ir::RouteKind::Http,
        namespace: namespace.into(),
        name: name.into(),
        parent: model::NamespacedHostname::new("app", "web"),
        parent_port: port,
        consumer_namespace: consumer.map(Into::into),
        order: l7::ir::RouteOrder::Ranked,
        created: 0,
        hostnames: vec![],
        rules: vec![l7::ir::HttpRule { matches: vec![everything], ..Default::default() }],
        source: None,
    })
}

fn routes_for(snapshot: &Snapshot, port: u16, client: &str) -> Vec<String> {
    let service = model::NamespacedHostname::new("app", "web");
    let router = snapshot.routes_for(&service, port, client);
    let mut names: Vec<_> = router.iter().flat_map(|it| it.routes()).map(|it| it.name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn routes_govern_the_ports_and_the_clients_that_they_name() {
    let mut store = Store::new();
    let routes = [
        route("app/all", None, None),
        route("app/p80", Some(80), None),
        route("far/consumer", None, Some("far")),
        route("far/both", Some(81), Some("far")),
    ];
    for route in &routes {
        store.upsert_route(&decode::route_name(route), Arc::clone(route));
    }
    let snapshot = store.snapshot().unwrap();
    assert_eq!(routes_for(&snapshot, 80, "app"), ["all", "p80"]);
    assert_eq!(routes_for(&snapshot, 80, "far"), ["all", "consumer", "p80"]);
    assert_eq!(routes_for(&snapshot, 81, "far"), ["all", "both", "consumer"]);
    assert_eq!(routes_for(&snapshot, 99, "else"), ["all"]);
    store.remove(HTTP_ROUTE_TYPE, "app/all/app/web/0");
    store.remove(HTTP_ROUTE_TYPE, "far/consumer/app/web/0");
    let later = store.snapshot().unwrap();
    assert_eq!(routes_for(&later, 99, "else"), [""; 0]);
    assert_eq!(routes_for(&later, 81, "far"), ["both"]);
    assert_eq!(routes_for(&snapshot, 99, "else"), ["all"], "the older snapshot is as it was");
    store.remove(HTTP_ROUTE_TYPE, "app/p80/app/web/80");
    store.remove(HTTP_ROUTE_TYPE, "far/both/app/web/81");
    assert!(store.snapshot().unwrap().routes.is_empty());
}

#[test]
fn the_workloads_of_the_own_node_are_told_apart() {
    let mut store = Store::of_node("here".into());
    let on = |name: &str, node: &str| {
        let mut workload = workload(name, "");
        workload.node = node.into();
        Address::Workload(workload)
    };
    let local = |store: &mut Store| {
        let snapshot = store.snapshot().unwrap();
        let mut names: Vec<_> = snapshot.local_workloads().map(|it| it.name.to_string()).collect();
        names.sort();
        names
    };
    store.upsert_address(on("app/a", "here"));
    store.upsert_address(on("app/b", "there"));
    store.upsert_address(on("app/c", ""));
    assert_eq!(local(&mut store), ["a"]);
    store.upsert_address(on("app/b", "here"));
    store.upsert_address(on("app/a", "there"));
    assert_eq!(local(&mut store), ["b"]);
    store.remove(ADDRESS_TYPE, "Kubernetes//Pod/app/b");
    assert_eq!(local(&mut store), [""; 0]);
    let mut nobodys = Store::new();
    nobodys.upsert_address(on("app/c", ""));
    assert_eq!(local(&mut nobodys), [""; 0]);
}

#[test]
fn token_rules_that_are_named_and_not_held_deny_and_those_that_are_held_are_in_the_set() {
    let mut named = workload("app/a", "10.0.0.1");
    named.authorization_policies = vec!["app/request_authentication/ra".into()];
    let mut store = store(vec![named], vec![]);
    let of = |snapshot: &Snapshot| {
        let workload = snapshot.workload_by_address("", ip("10.0.0.1")).unwrap();
        (allowed(snapshot, workload), snapshot.policies_for(workload))
    };
    let (is_allowed, set) = of(&store.snapshot().unwrap());
    assert!(!is_allowed && set.tokens().is_empty());
    let rules = l7::ir::RequestAuthentication {
        namespace: "app".into(),
        name: "ra".into(),
        rules: vec![l7::ir::TokenRule { issuer: "i".into(), ..Default::default() }],
        source: None,
    };
    let rules = TokenRules { scope: PolicyScope::Workload, rules: rules.into() };
    store.upsert_token_rules("app/request_authentication/ra", rules.clone());
    let (is_allowed, set) = of(&store.snapshot().unwrap());
    assert!(is_allowed && !set.tokens().is_empty() && set.needs_request());
    store.upsert_token_rules("app/request_authentication/ra", rules);
    assert!(store.snapshot().is_none(), "the same again is no change");
    store.remove(REQUEST_AUTHENTICATION_TYPE, "app/request_authentication/ra");
    assert!(!of(&store.snapshot().unwrap()).0);
}
