use prost::Message;

use super::*;
use crate::proto::{l7 as l7_wire, security};
use crate::snapshot::PolicyScope;

fn workload_message() -> wire::Workload {
    wire::Workload {
        uid: "Kubernetes//Pod/app/web".into(),
        name: "web".into(),
        namespace: "app".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..wire::Workload::default()
    }
}

fn service_message() -> wire::Service {
    wire::Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: "web.app.svc.cluster.local".into(),
        ..wire::Service::default()
    }
}

fn wrapped(kind: wire::address::Type) -> Vec<u8> {
    wire::Address { r#type: Some(kind) }.encode_to_vec()
}

fn decode_workload(message: wire::Workload) -> Result<Workload, String> {
    let name = message.uid.clone();
    let bytes = wrapped(wire::address::Type::Workload(message));
    match address(&name, &bytes, &mut Interner::new()) {
        Ok(Address::Workload(workload)) => Ok(workload),
        Ok(Address::Service(_)) => panic!("sent a workload"),
        Err(error) => Err(error.to_string()),
    }
}

fn decode_service(message: wire::Service) -> Result<Service, String> {
    let name = format!("{}/{}", message.namespace, message.hostname);
    let bytes = wrapped(wire::address::Type::Service(message));
    match address(&name, &bytes, &mut Interner::new()) {
        Ok(Address::Service(service)) => Ok(service),
        Ok(Address::Workload(_)) => panic!("sent a service"),
        Err(error) => Err(error.to_string()),
    }
}

fn decode_policy(message: security::Authorization) -> Result<crate::snapshot::Policy, String> {
    let name = format!("{}/{}", message.namespace, message.name);
    authorization(&name, &message.encode_to_vec()).map_err(|error| error.to_string())
}

#[test]
fn what_a_workload_leaves_out_has_its_default() {
    let workload = decode_workload(workload_message()).unwrap();
    assert_eq!(workload.identity.uri(), "spiffe://cluster.local/ns/app/sa/default");
    assert_eq!(workload.capacity, 1);
    assert_eq!(&*workload.cluster_id, "Kubernetes");
    assert_eq!(&*workload.network, "");
    assert_eq!(workload.tunnel_protocol, model::TunnelProtocol::None);
}

#[test]
fn a_gateway_without_port_listens_on_the_usual_one() {
    let name = wire::NamespacedHostname { namespace: "app".into(), hostname: "waypoint".into() };
    let gateway = wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(name)),
        hbone_mtls_port: 0,
    };
    let workload = decode_workload(wire::Workload { waypoint: Some(gateway), ..workload_message() }).unwrap();
    assert_eq!(workload.waypoint.unwrap().hbone_mtls_port, 15008);
}

#[test]
fn a_bad_workload_is_refused_with_the_field_and_the_mend() {
    let port = |service_port| wire::Port { service_port, ..wire::Port::default() };
    let cases = [
        (
            wire::Workload { addresses: vec![vec![1, 2, 3, 4], vec![1, 2, 3]], ..workload_message() },
            "workload.addresses[1]: an address of 3 bytes; send 4 bytes for IPv4, 16 for IPv6",
        ),
        (
            wire::Workload { tunnel_protocol: 2, ..workload_message() },
            "workload.tunnel_protocol: LEGACY_ISTIO_MTLS is not supported; ",
        ),
        (
            wire::Workload { tunnel_protocol: 9, ..workload_message() },
            "workload.tunnel_protocol: enum value 9 is not known; ",
        ),
        (wire::Workload { status: 5, ..workload_message() }, "workload.status: enum value 5 is not known; "),
        (wire::Workload { network_mode: 5, ..workload_message() }, "workload.network_mode: enum value 5 "),
        (wire::Workload { uid: String::new(), ..workload_message() }, "workload.uid: empty; "),
        (
            wire::Workload { service_account: "a/b".into(), ..workload_message() },
            "workload.trust_domain, namespace and service_account: ",
        ),
        (
            wire::Workload { waypoint: Some(wire::GatewayAddress::default()), ..workload_message() },
            "workload.waypoint.destination: neither host name nor address; ",
        ),
        (
            wire::Workload {
                services: [("no-slash".to_owned(), wire::PortList::default())].into(),
                ..workload_message()
            },
            "workload.services[\"no-slash\"]: \"\"/\"\" lacks a part; ",
        ),
        (
            wire::Workload {
                services: [("a/b".to_owned(), wire::PortList { ports: vec![port(65_536)] })].into(),
                ..workload_message()
            },
            "workload.services[\"a/b\"].ports[0].service_port: 65536 is not a port; ",
        ),
    ];
    for (message, want) in cases {
        let got = decode_workload(message).unwrap_err();
        assert!(got.starts_with(want), "{got:?} must start with {want:?}");
    }
}

#[test]
fn a_bad_service_is_refused_with_the_field_and_the_mend() {
    let vip = |length| wire::NetworkAddress { address: vec![10, 0, 0, 1], length, ..Default::default() };
    let balancing =
        |scope, mode| wire::LoadBalancing { routing_preference: vec![scope], mode, health_policy: 0 };
    let cases = [
        (
            wire::Service { addresses: vec![vip(Some(33))], ..service_message() },
            "service.addresses[0].length: a prefix of 33 bits in an address of 32; ",
        ),
        (
            wire::Service { load_balancing: Some(balancing(0, 1)), ..service_message() },
            "service.load_balancing.routing_preference[0]: UNSPECIFIED_SCOPE ranks nothing; ",
        ),
        (
            wire::Service { load_balancing: Some(balancing(1, 7)), ..service_message() },
            "service.load_balancing.mode: enum value 7 is not known; ",
        ),
        (
            wire::Service {
                ports: vec![wire::Port { app_protocol: 77, ..wire::Port::default() }],
                ..service_message()
            },
            "service.ports[0].app_protocol: enum value 77 is not known; ",
        ),
        (
            wire::Service { hostname: String::new(), ..service_message() },
            "service.namespace and hostname: \"app\"/\"\" lacks a part; ",
        ),
    ];
    for (message, want) in cases {
        let got = decode_service(message).unwrap_err();
        assert!(got.starts_with(want), "{got:?} must start with {want:?}");
    }
}

#[test]
fn an_unknown_visibility_is_public_and_an_unreadable_alternative_name_is_left_out() {
    let service = decode_service(wire::Service {
        visibility: 9,
        subject_alt_names: vec!["not spiffe".into(), "spiffe://td/ns/a/sa/b".into()],
        ..service_message()
    })
    .unwrap();
    assert_eq!(service.visibility, model::Visibility::Public);
    assert_eq!(service.subject_alt_names.len(), 1);
}

#[test]
fn a_resource_under_another_name_than_its_key_is_refused() {
    let bytes = wrapped(wire::address::Type::Workload(workload_message()));
    let error = address("other", &bytes, &mut Interner::new()).unwrap_err().to_string();
    assert!(error.starts_with("workload.uid: \"Kubernetes//Pod/app/web\" is not the name"), "{error}");
    let error = address("x", &[], &mut Interner::new()).unwrap_err().to_string();
    assert!(error.starts_with("type: neither a workload nor a service; "), "{error}");
    let error = address("x", &[0xff, 0xff], &mut Interner::new()).unwrap_err().to_string();
    assert!(error.starts_with("message: "), "{error}");
}

fn match_of(change: impl FnOnce(&mut security::Match)) -> security::Authorization {
    let mut one = security::Match::default();
    change(&mut one);
    security::Authorization {
        name: "p".into(),
        namespace: "app".into(),
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![one] }] }],
        ..security::Authorization::default()
    }
}

#[test]
fn every_field_of_a_match_becomes_its_condition() {
    use l7::ir::{Attribute, Test};
    use security::string_match::MatchType;
    let string = |kind| security::StringMatch { match_type: Some(kind) };
    let account =
        |name: &str| security::ServiceAccountMatch { namespace: "n".into(), service_account: name.into() };
    let block = |length| security::Address { address: vec![10, 1, 2, 3], length };
    let policy = decode_policy(match_of(|it| {
        it.namespaces = vec![string(MatchType::Exact("a".into()))];
        it.not_namespaces = vec![string(MatchType::Prefix("b".into()))];
        it.principals = vec![string(MatchType::Suffix("c".into()))];
        it.not_principals = vec![string(MatchType::Presence(()))];
        it.source_ips = vec![block(16)];
        it.not_source_ips = vec![block(32)];
        it.destination_ips = vec![block(8)];
        it.not_destination_ips = vec![block(0)];
        it.destination_ports = vec![80];
        it.not_destination_ports = vec![443];
        it.service_accounts = vec![account("yes")];
        it.not_service_accounts = vec![account("no")];
    }))
    .unwrap();
    assert_eq!(policy.scope, PolicyScope::Global);
    let ip = |block: &str| vec![Test::Ip(block.parse().unwrap())];
    let want = [
        (Attribute::SourceNamespace, vec![Test::Exact("a".into())], vec![Test::Prefix("b".into())]),
        (Attribute::SourcePrincipal, vec![Test::Suffix("c".into())], vec![Test::Present]),
        (
            Attribute::SourceServiceAccount,
            vec![Test::Exact("n/yes".into())],
            vec![Test::Exact("n/no".into())],
        ),
        (Attribute::SourceIp, ip("10.1.0.0/16"), ip("10.1.2.3/32")),
        (Attribute::DestinationIp, ip("10.0.0.0/8"), ip("0.0.0.0/0")),
        (Attribute::DestinationPort, vec![Test::Port(80)], vec![Test::Port(443)]),
    ];
    let conditions = &policy.policy.rules[0].clauses[0].matches[0].conditions;
    let got: Vec<_> =
        conditions.iter().map(|it| (it.attribute.clone(), it.any_of.clone(), it.none_of.clone())).collect();
    assert_eq!(got, want);
}

#[test]
fn a_bad_policy_is_refused_with_the_field_and_the_mend() {
    let block = |bytes: &[u8], length| security::Address { address: bytes.to_vec(), length };
    let cases = [
        (
            match_of(|it| it.principals = vec![security::StringMatch { match_type: None }]),
            "rules[0].clauses[0].matches[0].principals[0].match_type: unset, or of a kind that is not known; ",
        ),
        (
            match_of(|it| it.source_ips = vec![block(&[1, 2], 8)]),
            "rules[0].clauses[0].matches[0].source_ips[0].address: an address of 2 bytes; ",
        ),
        (
            match_of(|it| it.source_ips = vec![block(&[1, 2, 3, 4], 33)]),
            "rules[0].clauses[0].matches[0].source_ips[0].length: a prefix of 33 bits for 1.2.3.4; ",
        ),
        (
            match_of(|it| it.not_destination_ports = vec![1, 70_000]),
            "rules[0].clauses[0].matches[0].not_destination_ports[1]: 70000 is not a port; ",
        ),
        (
            match_of(|it| it.extensions = vec![wire::Extension::default()]),
            "rules[0].clauses[0].matches[0].extensions: 1 extensions, of which none is known; ",
        ),
        (security::Authorization { action: 2, ..match_of(|_| ()) }, "action: enum value 2 is not known; "),
        (security::Authorization { scope: 3, ..match_of(|_| ()) }, "scope: enum value 3 is not known; "),
    ];
    for (message, want) in cases {
        let got = decode_policy(message).unwrap_err();
        assert!(got.starts_with(want), "{got:?} must start with {want:?}");
    }
}

fn l7_policy(scope: i32, ir: &str) -> Result<crate::snapshot::Policy, String> {
    let message = l7_wire::AuthorizationPolicy { scope, ir: ir.to_owned().into() };
    authorization_policy("app/p", &message.encode_to_vec()).map_err(|error| error.to_string())
}

const L7_POLICY: &str = r#"{"namespace":"app","name":"p","action":"Allow","dry_run":false,"rules":[{"clauses":[
    {"matches":[{"conditions":[{"attribute":"RequestPath","any_of":[TEST],"none_of":[]}]}]}]}],"source":null}"#;

#[test]
fn a_policy_of_ours_is_compiled_for_trial() {
    let good = L7_POLICY.replace("TEST", r#"{"Template":"/{**}/users"}"#);
    assert_eq!(l7_policy(2, &good).unwrap().scope, PolicyScope::Workload);
    let bad = l7_policy(2, &L7_POLICY.replace("TEST", r#"{"Template":"/{x}/users"}"#)).unwrap_err();
    assert!(bad.starts_with("rules: ") && bad.contains("{x}"), "{bad}");
    let bad = l7_policy(2, &L7_POLICY.replace("TEST", r#"{"Colour":"red"}"#)).unwrap_err();
    assert!(bad.starts_with("ir: unknown variant `Colour`"), "{bad}");
    let bad = l7_policy(9, &good).unwrap_err();
    assert!(bad.starts_with("scope: enum value 9 is not known"), "{bad}");
}

#[test]
fn fuzz_no_bytes_make_decoding_panic() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let mut interner = Interner::new();
        let _ = address("x", bytes, &mut interner);
        let _ = bare_workload("x", bytes, &mut interner);
        let _ = authorization("x", bytes);
        let _ = authorization_policy("x", bytes);
        let _ = http_route("x", bytes);
    });
}

#[test]
fn a_route_of_ours_is_compiled_for_trial_and_named_by_its_parent() {
    let json = |path: &str| {
        format!(
            r#"{{"namespace":"app","name":"r","parent":{{"namespace":"app","hostname":"web"}},"parent_port":80,
            "consumer_namespace":null,"created":0,"hostnames":[],"source":null,"rules":[{{"name":null,
            "matches":[{{"path":{{"Regex":"{path}"}},"method":null,"headers":[],"query":[]}}],"backends":[]}}]}}"#
        )
    };
    let decode = |name: &str, path: &str| {
        let bytes = l7_wire::HttpRoute { ir: json(path).into() }.encode_to_vec();
        http_route(name, &bytes).map_err(|error| error.to_string())
    };
    assert!(decode("app/r/app/web/80", "/a.*").is_ok());
    let error = decode("app/r/app/web/80", "/a(").unwrap_err();
    assert!(error.starts_with("ir.rules: "), "{error}");
    let error = decode("app/r/app/web/0", "/a").unwrap_err();
    assert!(error.starts_with("ir: \"app/r/app/web/80\" is not the name"), "{error}");
}

#[test]
fn a_route_whose_filters_cannot_be_executed_is_refused() {
    let decode = |rule_field: &str| {
        let ir = format!(
            r#"{{"namespace":"app","name":"r","parent":{{"namespace":"app","hostname":"web"}},"parent_port":80,
            "consumer_namespace":null,"created":0,"hostnames":[],"source":null,
            "rules":[{{"name":null,"matches":[],"backends":[],{rule_field}}}]}}"#
        );
        let bytes = l7_wire::HttpRoute { ir: ir.into() }.encode_to_vec();
        http_route("app/r/app/web/80", &bytes).map(drop).map_err(|error| error.to_string())
    };
    let set = |name: &str, value: &str| {
        let edits = format!(r#"{{"remove":[],"set":[{{"name":"{name}","value":"{value}"}}],"add":[]}}"#);
        decode(&format!(r#""filters":{{"request_headers":{edits}}}"#))
    };
    assert_eq!(set("x-a", "1"), Ok(()));
    let error = set("x-a", r"1\r\nhost: b").unwrap_err();
    assert!(error.starts_with("ir.rules: route app/r, rule 0: the value of header \"x-a\""), "{error}");
    let error = set("Content-Length", "1").unwrap_err();
    assert!(error.starts_with("ir.rules: ") && error.contains("Content-Length"), "{error}");
    // What another version may know and this one does not must not be left out.
    for unknown in [r#""filters":{"mirror":{}}"#, r#""retries":{}"#, r#""timeouts":{"idle_ms":1}"#] {
        let error = decode(unknown).unwrap_err();
        assert!(error.starts_with("ir: unknown field"), "{error}");
    }
}
