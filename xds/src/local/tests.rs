use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::*;
use crate::snapshot::{Client, RouteKind, Transport, dump};

const YAML: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1"]
  protocol: HBONE
  node: local
  network: ""
  services:
    "default/example.com":
      80: 8080
- uid: cluster1//v1/Pod/default/guarded
  name: guarded
  namespace: default
  workloadIps: [10.0.0.2, "fd00::2"]
  authorizationPolicies: [default/selected]
  waypoint: { destination: default/waypoint.default, hboneMtlsPort: 15009 }
  networkGateway: { destination: far/192.0.2.1 }
  locality: { region: eu }
  capacity: 3
services:
- name: local
  namespace: default
  hostname: example.com
  vips: [/127.10.0.1, far/10.9.0.0/16]
  ports:
    80: 8080
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/local]
  loadBalancer: { routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll }
policies:
- name: deny-9999
  namespace: default
  scope: Namespace
  action: Deny
  rules:
  - - - notDestinationPorts: [9999]
        principals: [{ Presence: [] }, { Prefix: cluster.local/ns/default/ }]
        sourceIps: [10.0.0.0/8, 192.0.2.7]
"#;

fn snapshot(yaml: &str) -> Arc<Snapshot> {
    let mut store = Store::new();
    LocalState::parse(yaml).unwrap().apply(&mut store);
    store.snapshot().unwrap()
}

#[test]
fn what_is_written_by_hand_routes_and_is_guarded() {
    let snapshot = snapshot(YAML);
    let local = snapshot.workload_by_uid("cluster1//v1/Pod/default/local").unwrap();
    let client = Client { workload: local, ip: IpAddr::from([127, 0, 0, 1]) };
    let to: SocketAddr = "127.10.0.1:80".parse().unwrap();
    let route = snapshot.resolve(client, to, 1).unwrap();
    assert_eq!(route.kind, RouteKind::Direct);
    let Transport::Hbone { authority, .. } = route.transport else { panic!("{:?}", route.transport) };
    assert_eq!(authority, "127.0.0.1:8080".parse().unwrap());
    let guarded = snapshot.workload_by_uid("cluster1//v1/Pod/default/guarded").unwrap();
    assert_eq!((guarded.capacity, guarded.addresses.len()), (3, 2));
    assert_eq!(guarded.waypoint.as_ref().unwrap().hbone_mtls_port, 15009);
    // It names a policy that is not there.
    let nobody = l7::ir::ConnectionAttributes {
        source: None,
        source_ip: client.ip,
        destination_ip: client.ip,
        destination_port: 9999,
        sni: None,
    };
    assert!(!snapshot.policies_for(guarded).evaluate(&nobody, None).is_allowed());
    assert!(snapshot.policies_for(local).evaluate(&nobody, None).is_allowed());
}

#[test]
fn a_dump_is_local_state_but_for_the_ports_of_workloads() {
    let dumped = dump::state(&snapshot(YAML));
    let mut again = dumped.clone();
    again.as_object_mut().unwrap().remove("routes");
    for workload in again["workloads"].as_array_mut().unwrap() {
        if let Some(services) = workload.get("services").and_then(Value::as_array).cloned() {
            let ports = services.iter().map(|key| (key.as_str().unwrap().to_owned(), json!({ "80": 8080 })));
            workload["services"] = Value::Object(ports.collect());
        }
    }
    // JSON is YAML.
    assert_eq!(dump::state(&snapshot(&again.to_string())), dumped);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_its_field() {
    let refused = |yaml: &str| LocalState::parse(yaml).unwrap_err().to_string();
    let error = refused("workloads:\n- uid: a\n  namespace: n\n  workloadIp: 10.0.0.1\n");
    assert!(error.contains("workloadIp") && error.contains("line 4"), "{error}");
    let error = refused("services:\n- hostname: h\n");
    assert!(error.contains("namespace"), "{error}");
    let error = refused("services:\n\n- namespace: n\n  hostname: h\n  vips: [10.0.0.1]\n");
    assert!(error.contains("line 3") && error.contains("service \"n/h\": vips: \"10.0.0.1\""), "{error}");
    let error = refused("workloads:\n- uid: a\n  namespace: n\n- uid: a\n  namespace: m\n");
    assert!(error.contains("line 4") && error.contains("twice"), "{error}");
    let error = refused("workloads:\n- uid: a\n  namespace: n\n  services: { nonsense: {80: 80} }\n");
    assert!(error.contains("line 2") && error.contains("services[\"nonsense\"]"), "{error}");
    let error = refused("policies:\n- {name: p, namespace: n, scope: Global, action: Audit}\n");
    assert!(error.contains("Audit"), "{error}");
}

#[test]
fn nothing_is_a_state_too() {
    assert!(LocalState::parse("{}").unwrap().is_empty());
    assert!(LocalState::parse("workloads: []\nservices: []\n").unwrap().is_empty());
}

#[test]
fn fuzz_no_text_makes_the_reader_panic() {
    bolero::check!().with_type::<String>().for_each(|text| {
        // What it makes of the text does not matter here.
        drop(LocalState::parse(text));
        drop(LocalState::parse(&format!("workloads: [{text}]")));
        drop(LocalState::parse(&format!("policies: [{{name: p, namespace: n, {text}}}]")));
    });
}
