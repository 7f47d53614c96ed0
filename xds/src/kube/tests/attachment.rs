//! Whom policies concern.

use serde_json::{Value, json};

use super::cases::{case_file, load_object};
use super::load;
use crate::kube::convert::attachment::{
    Waypoint, attaches_by_selector, attaches_to_waypoint, services_of_pod, waypoint_of,
};
use crate::kube::convert::{self, Carrier, Scope, ServiceRef, Subject, workload_policies};
use crate::kube::{Catalog, Labels, MeshSettings, Meta, ObjectName};

fn labels(object: &Value) -> Labels {
    let pairs = object.as_object().unwrap().iter();
    pairs.map(|(key, value)| (key.as_str().into(), value.as_str().unwrap().into())).collect()
}

#[test]
fn every_attachment_case_holds() {
    let file = case_file("attachment.yaml");
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let mut object = case["policy"].clone();
        object["apiVersion"] = json!("security.istio.io/v1");
        object["kind"] = json!("AuthorizationPolicy");
        let loaded = load_object(&object);
        let proxy = &case["proxy"];
        let text = |key: &str| proxy[key].as_str().unwrap_or_default();
        let mesh = MeshSettings { root_namespace: text("root_namespace").into(), ..MeshSettings::default() };
        let applies = match loaded.catalog.authorization_policies.values().next() {
            None => {
                assert_eq!(id, "attach/gw-cross-ref", "{:?}", loaded.problems);
                false
            }
            Some(policy) if text("kind") == "waypoint" => {
                let (namespace, name) = case["destination"].as_str().unwrap().split_once('/').unwrap();
                let name = ObjectName::new(namespace, name);
                let destination = if id == "attach/se" {
                    ServiceRef::ServiceEntry(name)
                } else {
                    ServiceRef::Service(name)
                };
                let gateway = ObjectName::new(text("namespace"), text("gateway"));
                let waypoint =
                    Waypoint { gateway: &gateway, class: text("gateway_class"), destination: &destination };
                attaches_to_waypoint(&**policy, &waypoint, &mesh)
            }
            Some(policy) => {
                let workload = &proxy["workload"];
                attaches_by_selector(
                    &**policy,
                    workload["namespace"].as_str().unwrap(),
                    &labels(&workload["labels"]),
                    &mesh,
                )
            }
        };
        assert_eq!(applies, case["expect"]["applies"].as_bool().unwrap(), "{id}");
    }
    assert!(cases.len() > 15);
}

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: app, labels: {app: web}}
spec: {}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct, namespace: app, labels: {istio.io/use-waypoint: none}}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: direct-1, namespace: app, labels: {kubernetes.io/service-name: direct}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: entry, namespace: app}
spec: {hosts: [e.example.com], workloadSelector: {labels: {app: web}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

fn catalog(more: &str) -> Catalog {
    let loaded = load(&format!("{MESH}---\n{more}"));
    assert_eq!(loaded.problems, [], "{more}");
    loaded.catalog
}

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn keys(catalog: &Catalog) -> Vec<String> {
    let pod = &catalog.pods[&ObjectName::new("app", "web")];
    let services = services_of_pod(catalog, pod);
    let subject = Subject { namespace: "app", labels: &pod.meta.labels, services: &services };
    workload_policies(catalog, &MeshSettings::default(), subject).iter().map(ToString::to_string).collect()
}

#[test]
fn a_pod_stands_behind_all_that_select_or_name_it() {
    let catalog = catalog("");
    let pod = &catalog.pods[&ObjectName::new("app", "web")];
    let name = |name: &str| ObjectName::new("app", name);
    assert_eq!(
        services_of_pod(&catalog, pod),
        [
            ServiceRef::Service(name("direct")),
            ServiceRef::Service(name("web")),
            ServiceRef::ServiceEntry(name("entry"))
        ]
    );
}

#[test]
fn a_waypoint_is_asked_for_by_the_object_then_by_its_namespace() {
    let catalog = catalog("");
    let pod = &catalog.pods[&ObjectName::new("app", "web")].meta;
    let said = |labels: Value, annotations: Value| {
        let (labels, annotations) = (self::labels(&labels), self::labels(&annotations));
        waypoint_of(&catalog, &Meta { labels, annotations, ..pod.clone() })
    };
    let of = |labels: Value| said(labels, json!({}));
    assert_eq!(of(json!({})), Some(ObjectName::new("app", "wp")));
    assert_eq!(of(json!({"istio.io/use-waypoint": "none"})), None);
    assert_eq!(
        of(json!({"istio.io/use-waypoint": "x", "istio.io/use-waypoint-namespace": "y"})),
        Some(ObjectName::new("y", "x"))
    );
    let (none, other) = (json!({"istio.io/use-waypoint": "none"}), json!({"istio.io/use-waypoint": "x"}));
    assert_eq!(said(json!({}), none.clone()), None);
    assert_eq!(said(other, none), Some(ObjectName::new("app", "x")));
}

#[test]
fn workloads_name_the_policies_that_select_them() {
    let reference = |group: &str, kind: &str, name: &str| {
        format!("{{targetRefs: [{{group: '{group}', kind: {kind}, name: {name}}}]}}")
    };
    let gateways = "gateway.networking.k8s.io";
    let text = [
        policy("a-selector", "app", "{selector: {matchLabels: {app: web}}}"),
        policy("b-other", "app", "{selector: {matchLabels: {app: other}}}"),
        policy("c-namespace", "app", "{}"),
        policy("d-empty", "app", "{selector: {}}"),
        policy("e-service", "app", &reference("", "Service", "direct")),
        policy("f-entry", "app", &reference("networking.istio.io", "ServiceEntry", "entry")),
        policy("g-gateway", "app", &reference(gateways, "Gateway", "wp")),
        policy("h-gateway", "app", &reference(gateways, "Gateway", "wp2")),
        policy("i-class", "istio-system", &reference(gateways, "GatewayClass", "istio-waypoint")),
        policy("j-class", "app", &reference(gateways, "GatewayClass", "istio-waypoint")),
        policy("k-root", "istio-system", "{selector: {matchLabels: {app: web}}}"),
        policy("l-far", "far", "{selector: {matchLabels: {app: web}}}"),
        policy("m-root", "istio-system", "{}"),
    ]
    .concat();
    let catalog = catalog(&text);
    assert_eq!(
        keys(&catalog),
        [
            "app/a-selector",
            "app/e-service",
            "app/f-entry",
            "app/g-gateway",
            "istio-system/i-class",
            "istio-system/k-root"
        ]
    );
    let (policies, _) = convert::policies(&catalog, &MeshSettings::default());
    let scope = |key: &str| policies.iter().find(|policy| *policy.key == *key).map(|policy| policy.scope);
    assert_eq!(scope("app/a-selector"), Some(Scope::WorkloadSelector));
    assert_eq!(scope("app/c-namespace"), Some(Scope::Namespace));
    assert_eq!(scope("app/d-empty"), Some(Scope::Namespace), "an empty selector selects the namespace");
    assert_eq!(scope("istio-system/m-root"), Some(Scope::Global));
}

fn peer(name: &str, namespace: &str, created: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}\nspec: {spec}\n---\n"
    )
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";
const WEB: &str = "selector: {matchLabels: {app: web}}";
const STATIC: &str = "istio-system/istio_converted_static_strict";
const OWN: &str = "app/converted_peer_authentication_w";

#[test]
fn the_nearest_peer_authentication_counts() {
    let mesh = |mode: &str| peer("m", "istio-system", OLD, &format!("{{mtls: {{mode: {mode}}}}}"));
    let namespace = |mode: &str| peer("n", "app", OLD, &format!("{{mtls: {{mode: {mode}}}}}"));
    let workload = |spec: &str| peer("w", "app", OLD, &format!("{{{WEB}, {spec}}}"));
    let strict = [STATIC].as_slice();
    let own = [OWN].as_slice();
    let none = [].as_slice();
    for (text, expected) in [
        (mesh("STRICT"), strict),
        (mesh("PERMISSIVE"), none),
        (mesh("STRICT") + &namespace("DISABLE"), none),
        (mesh("STRICT") + &namespace("UNSET"), strict),
        (namespace("STRICT"), strict),
        (namespace("STRICT") + &workload("mtls: {mode: PERMISSIVE}"), none),
        (namespace("STRICT") + &workload("mtls: {}"), strict),
        (namespace("PERMISSIVE") + &workload("mtls: {mode: STRICT}"), strict),
        (workload("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: STRICT}}"), strict),
        (workload("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}"), own),
        (workload("portLevelMtls: {8080: {mode: STRICT}}"), own),
        (workload("portLevelMtls: {8080: {mode: PERMISSIVE}}"), none),
        (mesh("STRICT") + &workload("portLevelMtls: {8080: {mode: PERMISSIVE}}"), own),
        (workload("portLevelMtls: {8080: {mode: UNSET}}, mtls: {mode: STRICT}"), strict),
        (peer("far", "far", OLD, "{mtls: {mode: STRICT}}"), none),
        (peer("w", "istio-system", OLD, &format!("{{{WEB}, mtls: {{mode: STRICT}}}}")), none),
        (
            peer("b", "app", OLD, "{mtls: {mode: STRICT}}")
                + &peer("a", "app", NEW, "{mtls: {mode: DISABLE}}"),
            strict,
        ),
        (
            peer("b", "app", OLD, "{mtls: {mode: STRICT}}")
                + &peer("a", "app", OLD, "{mtls: {mode: DISABLE}}"),
            none,
        ),
    ] {
        assert_eq!(keys(&catalog(&text)), expected, "{text}");
    }
}

#[test]
fn ports_that_differ_make_a_policy_of_their_own() {
    let convert = |spec: &str| {
        let catalog = catalog(&peer("w", "app", OLD, &format!("{{{WEB}, {spec}}}")));
        let (policies, _) = convert::policies(&catalog, &MeshSettings::default());
        policies
    };
    let policies =
        convert("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}, 9090: {mode: STRICT}}");
    let keys: Vec<&str> = policies.iter().map(|policy| policy.key.as_ref()).collect();
    assert_eq!(keys, [OWN, STATIC], "the static policy is at hand wherever anything is strict");
    for policy in &policies {
        assert_eq!((policy.scope, policy.carrier), (Scope::WorkloadSelector, Carrier::Connection));
        assert_eq!(convert::authorization::carrier(&policy.policy), Carrier::Connection);
    }
    let conditions = &policies[0].policy.rules[0].clauses[0].matches[0].conditions;
    assert_eq!(conditions[0].none_of, [l7::ir::Test::Present], "a peer without identity");
    assert_eq!(conditions[1].none_of, [l7::ir::Test::Port(8080)], "at any port but this");
    let policies = convert("portLevelMtls: {8080: {mode: STRICT}, 9090: {mode: STRICT}, 80: {}}");
    let conditions = &policies[0].policy.rules[0].clauses[0].matches[0].conditions;
    assert_eq!(conditions[1].any_of, [l7::ir::Test::Port(8080), l7::ir::Test::Port(9090)]);
}
