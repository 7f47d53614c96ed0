//! Whole resources, made from captured ones: what fails closed, what is refused, what is shared.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use l7::authz::{Denial, Verdict};
use l7::ir::{Balancing, ConnectionAttributes, HashPolicy, HashTable};
use prost::Message;
use prost_types::Any;

use crate::delta::Sink;
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::proto::waypoint::cluster::LbPolicy;
use crate::proto::waypoint::{
    AccessLog, Cluster, FilterChain, FilterStateInput, HttpConnectionManager, HttpFilter, Listener,
    LoadAssignment, Matcher, MatcherTree, OnMatch, OutlierDetection, RingHash, TypedExtension, matcher_tree,
    on_match,
};
use crate::proto::{CLUSTER_TYPE, LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE, WORKLOAD_TYPE};
use crate::snapshot::{Asked, Client, Served, Snapshot};
use crate::store::Store;

const SCENARIO: &str = "02-waypoint-httproute/envoy-waypoint";
const CHAIN: &str = "inbound-vip|80|http|echo.app.svc.cluster.local";

/// The resources of a captured response.
fn captured(file: &str) -> Vec<(String, Any)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(SCENARIO).join(file);
    let response = DeltaDiscoveryResponse::decode(&*std::fs::read(path).unwrap()).unwrap();
    response.resources.into_iter().map(|it| (it.name, it.resource.unwrap())).collect()
}

const FILES: [(&str, &str); 4] = [
    (CLUSTER_TYPE, "004-00-initial-resp-CDS.pb"),
    (LISTENER_TYPE, "007-00-initial-resp-LDS.pb"),
    (WORKLOAD_TYPE, "009-00-initial-resp-Workload.pb"),
    (LOAD_ASSIGNMENT_TYPE, "011-00-initial-resp-EDS.pb"),
];

fn store() -> Store {
    let mut store = Store::new();
    for (type_url, file) in FILES {
        for (name, body) in captured(file) {
            store.upsert(type_url, &name, &body).unwrap();
        }
    }
    store
}

fn main_listener() -> Listener {
    let (_, body) = captured(FILES[1].1).into_iter().find(|(name, _)| name == "main_internal").unwrap();
    Listener::decode(&*body.value).unwrap()
}

fn put(store: &mut Store, listener: &Listener) -> Result<(), String> {
    let body = Any { type_url: LISTENER_TYPE.to_owned(), value: listener.encode_to_vec() };
    store.upsert(LISTENER_TYPE, "main_internal", &body)
}

/// The listener with one of its chains changed.
fn with_chain(name: &str, change: impl FnOnce(&mut FilterChain)) -> Listener {
    let mut listener = main_listener();
    let bytes = listener
        .filter_chains
        .iter_mut()
        .find(|bytes| FilterChain::decode(&***bytes).unwrap().name == name)
        .unwrap();
    let mut chain = FilterChain::decode(&**bytes).unwrap();
    change(&mut chain);
    *bytes = Bytes::from(chain.encode_to_vec());
    listener
}

fn with_manager(chain: &mut FilterChain, change: impl FnOnce(&mut HttpConnectionManager)) {
    let config = chain.filters.last_mut().unwrap().typed_config.as_mut().unwrap();
    let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
    change(&mut manager);
    config.value = manager.encode_to_vec();
}

fn filter(name: &str, kind: &str) -> HttpFilter {
    let typed_config = Some(Any { type_url: format!("type.googleapis.com/{kind}"), value: Vec::new() });
    HttpFilter { name: name.into(), typed_config }
}

fn echo(snapshot: &Snapshot) -> Served {
    snapshot.served(Asked::Address("10.96.0.10:80".parse().unwrap())).unwrap()
}

fn is_closed(served: &Served) -> bool {
    let connection = ConnectionAttributes {
        source: None,
        source_ip: [10, 0, 0, 1].into(),
        destination_ip: [10, 96, 0, 10].into(),
        destination_port: 80,
        sni: None,
    };
    let http = served.http.as_ref().unwrap();
    matches!(http.policies.evaluate(&connection, None), Verdict::Deny(Denial::Closed(_)))
}

#[test]
fn a_chain_that_is_not_understood_refuses_its_requests_and_the_rest_goes_on() {
    let mut store = store();
    assert!(!is_closed(&echo(&store.snapshot().unwrap())));
    let lua = || filter("lua", "envoy.extensions.filters.http.lua.v3.Lua");
    let listener = with_chain(CHAIN, |chain| with_manager(chain, |it| it.http_filters.insert(0, lua())));
    put(&mut store, &listener).unwrap();
    let snapshot = store.snapshot().unwrap();
    let served = echo(&snapshot);
    assert!(is_closed(&served) && served.http.unwrap().router.is_none());
    let place = "filters.http_filters[0] (lua)";
    let reason = "envoy.extensions.filters.http.lua.v3.Lua is not supported here";
    let problems = snapshot.waypoint_config().unwrap().problems();
    assert_eq!(problems, [format!("filter chain {CHAIN}: {place}: {reason}")]);
    put(&mut store, &main_listener()).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert!(!is_closed(&echo(&snapshot)));
    assert!(snapshot.waypoint_config().unwrap().problems().is_empty());
}

#[test]
fn each_thing_that_would_change_a_meaning_closes_the_chain() {
    type Change = fn(&mut HttpConnectionManager);
    let changes: [(&str, Change); 6] = [
        ("use_remote_address", |it| it.use_remote_address = Some(true)),
        ("upgrade_configs.upgrade_type", |it| it.upgrade_configs[0].upgrade_type = "CONNECT".into()),
        ("path_with_escaped_slashes_action", |it| it.path_with_escaped_slashes_action = 2),
        ("http_filters[4] (envoy.filters.http.router)", |it| {
            it.http_filters.last_mut().unwrap().typed_config = None;
        }),
        ("route_config.virtual_hosts.domains", |it| {
            it.route_config.as_mut().unwrap().virtual_hosts[0].domains = vec!["a".into()];
        }),
        ("http_filters[0] (envoy.filters.http.fault)", |it| {
            // A delay for everybody, which only routes may say.
            let mut fault =
                filter("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault");
            fault.typed_config.as_mut().unwrap().value = vec![0x0a, 0];
            it.http_filters.insert(0, fault);
        }),
    ];
    for (place, change) in changes {
        let mut store = store();
        put(&mut store, &with_chain(CHAIN, |chain| with_manager(chain, change))).unwrap();
        let snapshot = store.snapshot().unwrap();
        assert!(is_closed(&echo(&snapshot)), "{place}");
        let problem = &snapshot.waypoint_config().unwrap().problems()[0];
        assert!(problem.starts_with(&format!("filter chain {CHAIN}: filters.{place}: ")), "{problem}");
    }
}

#[test]
fn an_unknown_field_deep_in_a_chain_closes_it() {
    let mut store = store();
    let listener = with_chain(CHAIN, |chain| {
        let config = chain.filters.last_mut().unwrap().typed_config.as_mut().unwrap();
        // HttpConnectionManager.xff_num_trusted_hops: 1
        config.value.extend([0x98, 0x01, 1]);
    });
    put(&mut store, &listener).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert!(is_closed(&echo(&snapshot)));
    let problem = &snapshot.waypoint_config().unwrap().problems()[0];
    assert!(problem.ends_with("filters: field 19 of HttpConnectionManager is not supported"), "{problem}");
}

#[test]
fn a_listener_that_makes_no_sense_is_refused_and_the_last_good_one_stays() {
    let mut store = store();
    let before = store.snapshot().unwrap();
    let mut listener = main_listener();
    listener.filter_chain_matcher = None;
    assert_eq!(put(&mut store, &listener).unwrap_err(), "filter_chain_matcher: there is none");
    let mut bytes = main_listener().encode_to_vec();
    // Listener.default_filter_chain: {}
    bytes.extend([0xca, 0x01, 0]);
    let body = Any { type_url: LISTENER_TYPE.to_owned(), value: bytes };
    let refusal = store.upsert(LISTENER_TYPE, "main_internal", &body).unwrap_err();
    assert_eq!(refusal, "field 25 of Listener is not supported");
    let body = Any { type_url: LISTENER_TYPE.to_owned(), value: main_listener().encode_to_vec() };
    assert!(store.upsert(LISTENER_TYPE, "other", &body).unwrap_err().starts_with("name: "));
    assert!(store.snapshot().is_none(), "nothing has changed");
    assert!(!is_closed(&echo(&before)));
}

#[test]
fn a_push_of_everything_changes_only_what_changed() {
    let mut store = store();
    let before = echo(&store.snapshot().unwrap()).http.unwrap();
    for (type_url, file) in FILES {
        for (name, body) in captured(file) {
            store.upsert(type_url, &name, &body).unwrap();
        }
    }
    assert!(store.snapshot().is_none(), "all of it is held already");
    let listener = with_chain("direct-http", |chain| {
        with_manager(chain, |manager| manager.merge_slashes = true);
    });
    put(&mut store, &listener).unwrap();
    let after = echo(&store.snapshot().unwrap()).http.unwrap();
    assert!(Arc::ptr_eq(&before.policies, &after.policies));
    assert!(Arc::ptr_eq(before.router.as_ref().unwrap(), after.router.as_ref().unwrap()));
}

/// Uids of the endpoints of the captured service.
fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let levels = snapshot.waypoint_config().unwrap().levels("echo.app.svc.cluster.local", 80, None);
    let mut uids: Vec<_> =
        levels.iter().flat_map(|level| &level.endpoints).map(|it| it.workload.uid.to_string()).collect();
    uids.sort();
    uids
}

#[test]
fn an_endpoint_is_dialled_only_if_its_workload_tells_whom_to_expect() {
    let mut store = store();
    let both = ["Kubernetes//Pod/app/echo-v1", "Kubernetes//Pod/app/echo-v2"];
    assert_eq!(endpoints(&store.snapshot().unwrap()), both);
    store.remove(WORKLOAD_TYPE, both[0]);
    assert_eq!(endpoints(&store.snapshot().unwrap()), [both[1]]);
    let (name, body) = captured(FILES[2].1).into_iter().find(|(name, _)| name == both[0]).unwrap();
    store.upsert(WORKLOAD_TYPE, &name, &body).unwrap();
    assert_eq!(endpoints(&store.snapshot().unwrap()), both);
    store.remove(LOAD_ASSIGNMENT_TYPE, CHAIN);
    assert!(endpoints(&store.snapshot().unwrap()).is_empty());
}

#[test]
fn an_endpoint_that_is_not_understood_is_left_out_and_told() {
    let mut store = store();
    let (_, body) = captured(FILES[3].1).into_iter().find(|(name, _)| name == CHAIN).unwrap();
    let mut wire = LoadAssignment::decode(&*body.value).unwrap();
    let metadata = wire.endpoints[0].lb_endpoints[0].metadata.as_mut().unwrap();
    let text =
        |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let fields = [("tlsMode".to_owned(), text("istio"))].into();
    metadata.filter_metadata.insert("envoy.transport_socket_match".into(), prost_types::Struct { fields });
    let body = Any { type_url: LOAD_ASSIGNMENT_TYPE.to_owned(), value: wire.encode_to_vec() };
    store.upsert(LOAD_ASSIGNMENT_TYPE, CHAIN, &body).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_eq!(endpoints(&snapshot).len(), 1);
    let problem = &snapshot.waypoint_config().unwrap().problems()[0];
    let place = format!("endpoints of {CHAIN}: endpoints.lb_endpoints.metadata: ");
    assert!(problem.starts_with(&place), "{problem}");
}

#[test]
fn names_are_found_where_no_address_is() {
    let action = |name: &str| {
        let value = name.to_owned().encode_to_vec();
        let config = Any { type_url: "type.googleapis.com/google.protobuf.StringValue".into(), value };
        OnMatch {
            on_match: Some(on_match::OnMatch::Action(TypedExtension {
                name: name.into(),
                typed_config: Some(config),
            })),
        }
    };
    let key = FilterStateInput { key: "io.istio.connect_authority".into() };
    let input = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput";
    let input = Any { type_url: input.into(), value: key.encode_to_vec() };
    let map = [("Echo.app.svc.cluster.local:80".to_owned(), action(CHAIN))].into();
    let tree = MatcherTree {
        input: Some(TypedExtension { name: "authority".into(), typed_config: Some(input) }),
        tree_type: Some(matcher_tree::TreeType::ExactMatchMap(matcher_tree::MatchMap { map })),
    };
    let matcher = Matcher { matcher_tree: Some(tree), on_no_match: None };
    let mut listener = main_listener();
    let otherwise = OnMatch { on_match: Some(on_match::OnMatch::Matcher(Box::new(matcher))) };
    listener.filter_chain_matcher.as_mut().unwrap().on_no_match = Some(Box::new(otherwise));
    let mut store = store();
    put(&mut store, &listener).unwrap();
    let snapshot = store.snapshot().unwrap();
    let by_name = |hostname, port| snapshot.served(Asked::Name { hostname, port });
    let found = by_name("ECHO.app.svc.cluster.local", 80).unwrap();
    assert_eq!(found.service, echo(&snapshot).service);
    assert!(by_name("echo.app.svc.cluster.local", 81).is_none() && by_name("other", 80).is_none());
}

#[test]
fn without_its_main_listener_a_waypoint_serves_nothing() {
    let mut store = store();
    assert!(store.snapshot().unwrap().services().next().is_some());
    store.remove(LISTENER_TYPE, "main_internal");
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.served(Asked::Address("10.96.0.10:80".parse().unwrap())).is_none());
    assert!(snapshot.services().next().is_none() && snapshot.routes().next().is_none());
}

/// Whatever the bytes, reading them ends, and what was refused changes nothing.
#[test]
fn no_bytes_bring_the_reader_down() {
    let seeds: Vec<(&str, String, Vec<u8>)> = FILES
        .iter()
        .filter(|(type_url, _)| *type_url != WORKLOAD_TYPE)
        .flat_map(|(type_url, file)| {
            captured(file).into_iter().map(|(name, body)| (*type_url, name, body.value))
        })
        .collect();
    bolero::check!().with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(|(seed, edits, tail)| {
        let (type_url, name, bytes) = &seeds[usize::from(*seed) % seeds.len()];
        let mut bytes = bytes.clone();
        for (at, byte) in edits.iter().take(8) {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *byte;
        }
        bytes.extend(tail);
        let mut store = Store::new();
        let body = Any { type_url: (*type_url).to_owned(), value: bytes };
        let accepted = store.upsert(type_url, name, &body).is_ok();
        assert!(accepted || store.snapshot().is_none());
        let _ = store.snapshot();
    });
}

/// What the clusters say of the traffic to a port, and to a subset of its endpoints, is in force there.
#[test]
fn clusters_say_how_traffic_is_spread_and_bounded() {
    let mut store = store();
    let (_, body) = captured(FILES[0].1).into_iter().find(|(name, _)| name == CHAIN).unwrap();
    let mut wire = Cluster::decode(&*body.value).unwrap();
    let mut put = |store: &mut Store, name: &str, change: &dyn Fn(&mut Cluster)| {
        change(&mut wire);
        wire.name = name.into();
        let body = Any { type_url: CLUSTER_TYPE.to_owned(), value: wire.encode_to_vec() };
        store.upsert(CLUSTER_TYPE, name, &body)
    };
    put(&mut store, CHAIN, &|it| it.lb_policy = LbPolicy::Maglev.into()).unwrap();
    let subset = CHAIN.replace("|http|", "|http/v2|");
    let changed = put(&mut store, &subset, &|it| {
        it.lb_policy = LbPolicy::RingHash.into();
        it.ring_hash_lb_config = Some(RingHash { minimum_ring_size: Some(16) });
        it.circuit_breakers.as_mut().unwrap().thresholds[0].max_requests = Some(7);
        it.outlier_detection = Some(OutlierDetection {
            split_external_local_origin_errors: true,
            ..OutlierDetection::default()
        });
    });
    changed.unwrap();
    let snapshot = store.snapshot().unwrap();
    let key = echo(&snapshot).service.unwrap();
    let settings = |subset| snapshot.traffic_to(&key, 80, subset, "app").unwrap().settings.clone();
    let hashed = |table| Balancing::Hash(HashPolicy { on: Vec::new(), table });
    assert_eq!(settings(None).balancing, hashed(HashTable::Maglev(65_537)));
    assert_eq!((settings(None).limits.requests, settings(None).outliers), (None, None));
    let subset = settings(Some("v2"));
    assert_eq!((subset.balancing, subset.limits.requests), (hashed(HashTable::Ring(16)), Some(7)));
    let outliers = subset.outliers.unwrap();
    assert!(outliers.split_local_origin);
    assert_eq!((outliers.consecutive_5xx, outliers.consecutive_local_origin), (5, 5));
    // Both lead to the same endpoints, which the name of the assignment says.
    assert_eq!(snapshot.members(&key, 80, Some("v2"), "app").len(), 2);
    let me = snapshot.members(&key, 80, None, "app")[0].clone();
    let client = Client { workload: &me, ip: me.addresses[0] };
    assert!(snapshot.resolve_backend(client, &key, 80, Some("v2"), 1).is_ok());
    assert!(snapshot.resolve_backend(client, &key, 80, Some("v3"), 1).is_err());
}

#[test]
fn what_is_told_of_requests_follows_the_chain_and_closes_nothing() {
    let mut store = store();
    let echo_key = echo(&store.snapshot().unwrap()).service.unwrap();
    let of = |store: &mut Store, listener: &Listener| {
        put(store, listener).unwrap();
        let snapshot = store.snapshot().unwrap();
        let side = snapshot.telemetry().of_destination(Some(&echo_key)).unwrap().server.clone();
        let direct = snapshot.telemetry().of_destination(None).unwrap().server.clone();
        assert!(!is_closed(&echo(&snapshot)));
        (side, direct, snapshot)
    };
    // Captured without logs: of those nothing is said, and one of a hundred requests is traced.
    let (side, _, before) = of(&mut store, &main_listener());
    assert!(!side.is_silent());
    assert_eq!((side.rules().tracing.disabled, side.rules().tracing.sampling), (false, Some(10_000)));
    // One chain has a log: the others have none.
    let log = AccessLog { filter: None }.encode_to_vec();
    let logged = with_chain(CHAIN, |chain| with_manager(chain, |it| it.access_log = vec![log]));
    let (side, direct, after) = of(&mut store, &logged);
    assert!(!side.is_silent() && direct.is_silent());
    assert!(!Arc::ptr_eq(before.telemetry(), after.telemetry()));
    // What is not understood of it is told, and the chain serves.
    let odd = with_chain(CHAIN, |chain| {
        with_manager(chain, |it| (it.access_log, it.tracing) = (vec![vec![0x12, 2, 0x4a, 0]], Vec::new()));
    });
    let (side, _, snapshot) = of(&mut store, &odd);
    assert!(!side.is_silent() && side.rules().tracing.disabled);
    let problems = snapshot.waypoint_config().unwrap().problems();
    let place = format!("telemetry of filter chain {CHAIN}: access_log.filter: field 9");
    assert!(problems.len() == 1 && problems[0].starts_with(&place), "{problems:?}");
}
