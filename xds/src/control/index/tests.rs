//! What the captures of istiod do not show: enrolment by labels, assigned addresses, resources of our own types.

use prost::Message;

use super::*;
use crate::control::desired::{ResourceKind, View};
use crate::kube::load_documents;
use crate::proto::workload::{Address, Workload, address};
use crate::proto::{l7, security};

const NAMESPACES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: in, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: out}}
---
";

fn indexer() -> Indexer {
    Indexer::new(&ControlConfig::new("unused", "unused", "node1"))
}

fn catalog(yaml: &str) -> Catalog {
    let loaded = load_documents(vec![("a.yaml", yaml)]);
    assert!(loaded.problems.iter().all(|problem| !problem.is_error()), "{:?}", loaded.problems);
    loaded.catalog
}

fn build(yaml: &str) -> Indexed {
    indexer().build(&catalog(yaml), 1)
}

fn pod(namespace: &str, name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, {metadata}}}, \
         spec: {{containers: [{{name: c, image: x}}], {spec}}}}}\n---\n"
    )
}

fn workload(indexed: &Indexed, name: &str) -> Workload {
    let resource = &indexed.desired.resources(ResourceKind::Address)[name];
    match Address::decode(&*resource.body).unwrap().r#type.unwrap() {
        address::Type::Workload(workload) => workload,
        address::Type::Service(_) => panic!("{name} is a service"),
    }
}

fn names(indexed: &Indexed, kind: ResourceKind) -> Vec<String> {
    indexed.desired.resources(kind).keys().map(ToString::to_string).collect()
}

#[test]
fn enrolment_is_decided_by_the_pod_then_by_its_namespace() {
    let cases = [
        ("in", "", "", true),
        ("out", "", "", false),
        ("in", "labels: {istio.io/dataplane-mode: none}", "", false),
        ("out", "labels: {istio.io/dataplane-mode: ambient}", "", true),
        ("out", "annotations: {ambient.istio.io/redirection: enabled}", "", true),
        (
            "out",
            "labels: {istio.io/dataplane-mode: none}, annotations: {ambient.istio.io/redirection: enabled}",
            "",
            false,
        ),
        ("in", "", "hostNetwork: true", false),
        ("out", "labels: {istio.io/dataplane-mode: ambient}", "hostNetwork: true", false),
        ("in", "annotations: {sidecar.istio.io/status: '{}'}", "", false),
    ];
    for (namespace, metadata, spec, enrolled) in cases {
        let indexed = build(&(NAMESPACES.to_owned() + &pod(namespace, "p", metadata, spec)));
        let view = indexed.view.pods.values().next().unwrap();
        assert_eq!(view.enrolled, enrolled, "{namespace} {metadata} {spec}");
        if !view.ips.is_empty() {
            let hbone = workload(&indexed, &view.uid).tunnel_protocol();
            assert_eq!(hbone == crate::proto::workload::TunnelProtocol::Hbone, enrolled);
        }
    }
}

#[test]
fn pods_get_an_address_and_a_node_and_keep_them() {
    let mut indexer = indexer();
    let first = pod("in", "a", "", "");
    let written = pod("in", "b", "annotations: {corelane.io/ip: 10.244.7.7}", "nodeName: other");
    let before = indexer.build(&catalog(&(NAMESPACES.to_owned() + &first + &written)), 1);
    let ip = |indexed: &Indexed, name: &str| {
        indexed.view.pods[&crate::kube::ObjectName::new("in", name)].ips.clone()
    };
    assert_eq!(ip(&before, "a").len(), 1);
    assert_eq!(ip(&before, "b"), ["10.244.7.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(before.view.nodes.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["node1", "other"]);
    let more: String = (0..50).map(|n| pod("in", &format!("z{n}"), "", "")).collect();
    let after = indexer.build(&catalog(&(NAMESPACES.to_owned() + &more + &first)), 2);
    assert_eq!(ip(&before, "a"), ip(&after, "a"));
}

const GUARDED: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: in, labels: {LABELS}},
 spec: {selector: {app: web}, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: waypoint, namespace: in}, spec: {ports: [{port: 15008}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: in}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: in}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: in}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  rules: [{to: [{operation: {paths: [/a]}}]}]
---
";

#[test]
fn node_governs_a_service_unless_a_waypoint_does() {
    for (labels, at_node) in [("", true), ("istio.io/use-waypoint: waypoint", false)] {
        let yaml = NAMESPACES.to_owned()
            + &pod("in", "web", "labels: {app: web}", "")
            + &GUARDED.replace("LABELS", labels);
        let indexed = build(&yaml);
        let web = workload(&indexed, "Kubernetes//Pod/in/web");
        let named: &[&str] = if at_node { &["in/web"] } else { &[] };
        assert_eq!(web.authorization_policies, named);
        let route = "in/web/in/web.in.svc.cluster.local/80";
        let routes: &[&str] = if at_node { &[route] } else { &[] };
        assert_eq!(names(&indexed, ResourceKind::HttpRoute), routes);
        assert_eq!(names(&indexed, ResourceKind::AuthorizationPolicy), ["in/web"]);
        assert!(names(&indexed, ResourceKind::Authorization).is_empty());
    }
}

#[test]
fn strictness_is_a_policy_that_workloads_name() {
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: in}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ports, namespace: in}
spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {9000: {mode: PERMISSIVE}}}
---
";
    let yaml = NAMESPACES.to_owned()
        + strict
        + &pod("in", "plain", "", "")
        + &pod("in", "web", "labels: {app: web}", "")
        + &pod("out", "far", "", "");
    let indexed = build(&yaml);
    let named = |name: &str| workload(&indexed, name).authorization_policies;
    let static_strict = "istio-system/istio_converted_static_strict";
    let converted = "in/converted_peer_authentication_ports";
    assert_eq!(named("Kubernetes//Pod/in/plain"), [static_strict]);
    assert_eq!(named("Kubernetes//Pod/in/web"), [converted]);
    assert!(named("Kubernetes//Pod/out/far").is_empty());
    assert_eq!(names(&indexed, ResourceKind::Authorization), [converted, static_strict]);
    let body = &indexed.desired.resources(ResourceKind::Authorization)[static_strict].body;
    let policy = security::Authorization::decode(&**body).unwrap();
    assert_eq!(policy.action(), security::Action::Deny);
    assert_eq!(policy.rules[0].clauses[0].matches[0].not_principals.len(), 1);
}

#[test]
fn second_object_of_a_host_is_ignored_and_reported() {
    let entry = |name: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, \
             metadata: {{name: {name}, namespace: out}}, \
             spec: {{hosts: [a.example.com], ports: [{{number: 80, name: http, protocol: HTTP}}], \
             resolution: STATIC, endpoints: [{{address: 172.16.0.{}}}]}}}}\n---\n",
            name.len()
        )
    };
    let indexed = build(&(NAMESPACES.to_owned() + &entry("a") + &entry("bb")));
    assert_eq!(indexed.problems.len(), 1);
    assert!(indexed.problems[0].object.ends_with("out/bb"), "{:?}", indexed.problems);
    let ignored = workload(&indexed, "Kubernetes/networking.istio.io/ServiceEntry/out/bb/172.16.0.2");
    assert!(ignored.services.is_empty());
}

/// `ns` uses its waypoint for services and, by the label of the Gateway, for workloads.
const BEHIND: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: ns, labels: {istio.io/use-waypoint: waypoint}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: ns, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: CLASS, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: ns},
 spec: {selector: {app: web}, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: ns, labels: {istio.io/use-waypoint: none}},
 spec: {selector: {app: web}, ports: [{name: http, port: 80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: ns}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-service, namespace: ns}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  rules: [{to: [{operation: {paths: ['/v1/{*}/items']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-gateway, namespace: ns}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{from: [{source: {namespaces: [evil]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-class, namespace: istio-system}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]
  rules: [{from: [{source: {namespaces: [worse]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-others, namespace: ns}
spec:
  targetRefs: [{group: '', kind: Service, name: bare}]
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: ns}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  jwtRules: [{issuer: me, jwks: '{\"keys\":[]}'}]
---
";

fn behind(class: &str, more: &str) -> Indexed {
    let config = ControlConfig {
        waypoints: WaypointPods::Made,
        gateway_class: GatewayClassNames { name: "foo".into(), controller: "example.com/ctl".into() },
        ..ControlConfig::new("unused", "unused", "node1")
    };
    let yaml = BEHIND.replace("CLASS", class) + &pod("ns", "web", "labels: {app: web}", "") + more;
    Indexer::new(&config).build(&catalog(&yaml), 1)
}

/// What the waypoint's pod holds of a type.
fn held(indexed: &Indexed, node: &str, kind: ResourceKind) -> Vec<String> {
    let view = View::of_waypoint(&indexed.desired, node, "ns/waypoint");
    view.resources(kind).keys().map(ToString::to_string).collect()
}

fn enforced(indexed: &Indexed, destination: &str) -> Vec<String> {
    let view = View::of_waypoint(&indexed.desired, "node1", "ns/waypoint");
    let body = &view.resources(ResourceKind::WaypointPolicies)[destination].body;
    l7::WaypointPolicies::decode(&**body).unwrap().names
}

#[test]
fn a_waypoint_holds_what_it_stands_before_and_what_targets_that() {
    let indexed = behind("istio-waypoint", "");
    let [web, bare] = ["web", "bare"].map(|name| format!("ns/{name}.ns.svc.cluster.local"));
    assert_eq!(held(&indexed, "node1", ResourceKind::WaypointPolicies), ["/", &*web]);
    let of_all = ["istio-system/of-class", "ns/of-gateway", "ns/request_authentication/tokens"];
    assert_eq!(enforced(&indexed, "/"), of_all);
    let of_web =
        ["istio-system/of-class", "ns/of-gateway", "ns/of-service", "ns/request_authentication/tokens"];
    assert_eq!(enforced(&indexed, &web), of_web);
    assert_eq!(
        held(&indexed, "node1", ResourceKind::AuthorizationPolicy),
        ["istio-system/of-class", "ns/of-gateway", "ns/of-service"]
    );
    assert_eq!(
        held(&indexed, "node1", ResourceKind::RequestAuthentication),
        ["ns/request_authentication/tokens"]
    );
    assert_eq!(held(&indexed, "node1", ResourceKind::HttpRoute), ["ns/web/ns/web.ns.svc.cluster.local/0"]);
    assert!(held(&indexed, "node1", ResourceKind::Authorization).is_empty());
    // Another node's proxy may not claim it, and addresses are everybody's.
    assert!(held(&indexed, "node2", ResourceKind::WaypointPolicies).is_empty());
    assert!(held(&indexed, "node2", ResourceKind::Address).contains(&bare));
    assert!(names(&indexed, ResourceKind::HttpRoute).is_empty(), "no route for node proxies");
    // What is behind it enforces none of that itself, but what targets the service that opted out.
    let web = workload(&indexed, "Kubernetes//Pod/ns/web");
    assert_eq!(web.authorization_policies, ["ns/of-others"]);
    assert!(web.waypoint.is_some());
}

#[test]
fn a_gateway_without_pods_gets_one_that_is_no_destination_of_its_own() {
    let indexed = behind("istio-waypoint", "");
    let name = crate::kube::ObjectName::new("ns", "waypoint");
    let view = &indexed.view.pods[&name];
    assert_eq!((view.waypoint.as_ref(), view.enrolled), (Some(&name), false));
    assert_eq!(view.identity.uri(), "spiffe://cluster.local/ns/ns/sa/waypoint");
    let made = workload(&indexed, "Kubernetes//Pod/ns/waypoint");
    assert_eq!(made.waypoint, None);
    assert!(made.services.contains_key("ns/waypoint.ns.svc.cluster.local"));
    // One that is written stays as it is.
    let written = pod("ns", "own", "labels: {gateway.networking.k8s.io/gateway-name: waypoint}", "");
    let indexed = behind("istio-waypoint", &written);
    assert!(!indexed.view.pods.contains_key(&name));
}

#[test]
fn routes_reach_waypoints_of_a_controller_of_ours_only() {
    let class = |controller: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: c}}, \
             spec: {{controllerName: {controller}}}}}\n---\n"
        )
    };
    let service = "{apiVersion: v1, kind: Service, metadata: {name: waypoint, namespace: ns}, \
                   spec: {ports: [{port: 15008}]}}\n---\n";
    let own = pod("ns", "waypoint", "labels: {gateway.networking.k8s.io/gateway-name: waypoint}", "");
    for (controller, routes) in
        [("istio.io/mesh-controller", 1), ("example.com/ctl", 1), ("istio.io/gateway-controller", 0)]
    {
        let indexed = behind("c", &(class(controller) + service + &own));
        assert_eq!(held(&indexed, "node1", ResourceKind::HttpRoute).len(), routes, "{controller}");
        // Policies do not depend on it.
        assert!(enforced(&indexed, "ns/web.ns.svc.cluster.local").contains(&"ns/of-service".to_owned()));
    }
    // The configured class is there without its object, in the place of Istio's; it makes no waypoint by itself.
    let made = |class: &str| behind(class, "").view.pods.len();
    assert_eq!([made("istio-waypoint"), made("foo"), made("istio")], [2, 1, 1]);
    for (class, routes) in [("foo", 1), ("istio", 0)] {
        let indexed = behind(class, &(service.to_owned() + &own));
        assert_eq!(held(&indexed, "node1", ResourceKind::HttpRoute).len(), routes, "{class}");
    }
}
