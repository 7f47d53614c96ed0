//! The JSON of `/config_dump`: workloads, services and policies in ztunnel's shape, and routes in ours.
//!
//! Values that equal their default are left out. Everything is sorted by its key, so that two dumps can be compared
//! as text.

use std::collections::BTreeMap;

use l7::ir::{Action, Attribute, Condition, HttpRoute, Test};
use l7::telemetry::Telemetry;
use model::{
    ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health, HealthPolicy, IpFamilies,
    LoadBalancing, LoadBalancingMode, NamespacedHostname, NetworkMode, RoutingScope, Service, TunnelProtocol,
    Visibility, Workload, WorkloadType,
};
use serde_json::{Map, Value, json};

use super::{Policy, PolicyScope, ServiceEntry, Snapshot, WaypointConfig};

/// `staticConfig`: what was written by hand, without the control plane.
pub fn static_config(snapshot: &Snapshot) -> Value {
    let mut state = state(snapshot);
    if let Some(fields) = state.as_object_mut() {
        fields.remove("routes");
        fields.remove("telemetry");
    }
    state
}

/// `workloads`, `services`, `policies` and `routes` of a snapshot, and `telemetry` where there is any.
pub fn state(snapshot: &Snapshot) -> Value {
    let workloads: BTreeMap<_, _> = snapshot.workloads().map(|it| (&it.uid, workload(it))).collect();
    let services: BTreeMap<_, _> = snapshot.services().map(|it| (it.key(), service(it))).collect();
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by_key(|it| (&it.policy.namespace, &it.policy.name));
    let routes: BTreeMap<_, _> =
        snapshot.routes().map(|it| (crate::decode::route_name(it), route(it))).collect();
    let mut state = json!({
        "workloads": workloads.into_values().collect::<Vec<_>>(),
        "services": services.into_values().collect::<Vec<_>>(),
        "policies": policies.into_iter().map(|it| policy(it)).collect::<Vec<_>>(),
        "routes": routes.into_values().collect::<Vec<_>>(),
    });
    if let (Some(config), Some(fields)) = (snapshot.waypoint_config(), state.as_object_mut()) {
        fields.insert("waypoint".to_owned(), waypoint(config));
    }
    let telemetry: Map<_, _> =
        snapshot.telemetry().named().into_iter().map(|(name, it)| (name, told(it))).collect();
    if let Some(fields) = state.as_object_mut().filter(|_| !telemetry.is_empty()) {
        fields.insert("telemetry".to_owned(), telemetry.into());
    }
    state
}

/// What is told of traffic, in our own words.
fn told(telemetry: &Telemetry) -> Value {
    json!({ "client": telemetry.client.rules(), "server": telemetry.server.rules() })
}

/// What a control plane that speaks Envoy's resources has told a waypoint, and what of it was not understood.
fn waypoint(config: &WaypointConfig) -> Value {
    let mut destinations: Vec<_> = config
        .served()
        .map(|(name, served)| {
            let mut policies: Vec<_> = served
                .http
                .iter()
                .flat_map(|http| http.policies.policies())
                .chain(served.tcp.iter().flat_map(|tcp| tcp.policies.policies()))
                .map(|policy| format!("{}/{}", policy.namespace, policy.name))
                .collect();
            policies.sort();
            policies.dedup();
            json!({
                "destination": name,
                "service": served.service.as_ref().map(ToString::to_string),
                "http": served.http.is_some(),
                "tcp": served.tcp.is_some(),
                "policies": policies,
            })
        })
        .collect();
    destinations.sort_by_key(|it| it["destination"].to_string());
    json!({ "destinations": destinations, "problems": config.problems() })
}

/// An object under construction, from which defaults are left out.
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn put_text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.put(name, value);
        }
    }

    fn put_some(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn put_list(&mut self, name: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.put(name, values);
        }
    }
}

pub fn workload(workload: &Workload) -> Value {
    let mut object = Object(Map::new());
    object.put("uid", &*workload.uid);
    object.put("name", &*workload.name);
    object.put("namespace", &*workload.namespace);
    object.put("trustDomain", workload.identity.trust_domain());
    object.put("serviceAccount", workload.identity.service_account());
    object.put("workloadIps", workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
    object.put_text("hostname", &workload.hostname);
    object.put_text("network", &workload.network);
    object.put(
        "protocol",
        match workload.tunnel_protocol {
            TunnelProtocol::None => "TCP",
            TunnelProtocol::Hbone => "HBONE",
        },
    );
    if workload.native_tunnel {
        object.put("nativeTunnel", true);
    }
    object.put(
        "networkMode",
        match workload.network_mode {
            NetworkMode::Standard => "Standard",
            NetworkMode::HostNetwork => "HostNetwork",
        },
    );
    object.put_some("waypoint", workload.waypoint.as_ref().map(gateway));
    object.put_some("networkGateway", workload.network_gateway.as_ref().map(gateway));
    object.put_some(
        "applicationTunnel",
        workload.application_tunnel.map(|tunnel| {
            let protocol = match tunnel.protocol {
                ApplicationTunnelProtocol::None => "NONE",
                ApplicationTunnelProtocol::Proxy => "PROXY",
            };
            json!({ "protocol": protocol, "port": (tunnel.port != 0).then_some(tunnel.port) })
        }),
    );
    object.put_list("authorizationPolicies", texts(workload.authorization_policies.iter()));
    object.put_list("services", workload.services.keys().map(|key| key.to_string().into()).collect());
    object.put("status", health(workload.health));
    object.put_text("node", &workload.node);
    object.put_text("clusterId", &workload.cluster_id);
    object.put("capacity", workload.capacity);
    object.put_some("locality", locality(workload));
    object.put_text("workloadName", &workload.workload_name);
    object.put(
        "workloadType",
        match workload.workload_type {
            WorkloadType::Deployment => "deployment",
            WorkloadType::CronJob => "cronjob",
            WorkloadType::Pod => "pod",
            WorkloadType::Job => "job",
        },
    );
    object.put_text("canonicalName", &workload.canonical_name);
    object.put_text("canonicalRevision", &workload.canonical_revision);
    Value::Object(object.0)
}

fn texts<'a>(values: impl Iterator<Item = &'a std::sync::Arc<str>>) -> Vec<Value> {
    values.map(|value| Value::from(&**value)).collect()
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn locality(workload: &Workload) -> Option<Value> {
    let locality = &workload.locality;
    let mut object = Object(Map::new());
    object.put_text("region", &locality.region);
    object.put_text("zone", &locality.zone);
    object.put_text("subzone", &locality.subzone);
    (!object.0.is_empty()).then_some(Value::Object(object.0))
}

fn gateway(gateway: &GatewayAddress) -> Value {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.hbone_mtls_port })
}

fn endpoint(workload: &Workload, target_ports: impl Iterator<Item = (u16, u16)>) -> Value {
    json!({ "workloadUid": &*workload.uid, "port": ports(target_ports), "status": health(workload.health) })
}

/// Endpoints whose service has not come: `{service: {uid: endpoint}}`.
pub fn staged_services(snapshot: &Snapshot) -> Value {
    let mut staged: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for workload in snapshot.workloads() {
        let missing = |key: &NamespacedHostname| snapshot.service(&key.namespace, &key.hostname).is_none();
        for (key, target_ports) in workload.services.into_iter().filter(|(key, _)| missing(key)) {
            let ports = target_ports.iter().map(|port| (port.service_port, port.target_port));
            let endpoints = staged.entry(key.to_string()).or_default();
            endpoints.insert(workload.uid.to_string(), endpoint(workload, ports));
        }
    }
    json!(staged)
}

pub fn service(entry: &ServiceEntry) -> Value {
    let service: &Service = &entry.service;
    let mut object = Object(Map::new());
    object.put("name", &*service.name);
    object.put("namespace", &*service.key.namespace);
    object.put("hostname", &*service.key.hostname);
    object.put("vips", service.vips.iter().map(vip).collect::<Vec<_>>());
    object.put("ports", ports(service.ports.iter().map(|port| (port.service_port, port.target_port))));
    let endpoints: Map<_, _> = entry
        .endpoints
        .iter()
        .map(|it| {
            let ports = it.ports.iter().map(|port| (port.service_port, port.target_port));
            (it.workload.uid.to_string(), endpoint(&it.workload, ports))
        })
        .collect();
    object.put("endpoints", endpoints);
    object.put(
        "subjectAltNames",
        service.subject_alt_names.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    object.put_some("waypoint", service.waypoint.as_ref().map(gateway));
    let weighted = service.weighted_waypoints.iter();
    object.put_list(
        "weightedWaypoints",
        weighted.map(|it| json!({ "destination": gateway(&it.destination), "weight": it.weight })).collect(),
    );
    object.put_some("loadBalancer", service.load_balancing.as_ref().map(load_balancer));
    let families = match service.ip_families {
        IpFamilies::Automatic => None,
        IpFamilies::Ipv4Only => Some("IPv4"),
        IpFamilies::Ipv6Only => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    };
    object.put_some("ipFamilies", families.map(Value::from));
    object.put("canonical", service.canonical);
    object.put(
        "visibility",
        match service.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    );
    Value::Object(object.0)
}

fn vip(vip: &model::ServiceVip) -> String {
    let length = if vip.is_single() { String::new() } else { format!("/{}", vip.prefix_len) };
    format!("{}/{}{length}", vip.network, vip.ip)
}

fn ports(ports: impl Iterator<Item = (u16, u16)>) -> Value {
    Value::Object(ports.map(|(service, target)| (service.to_string(), target.into())).collect())
}

fn load_balancer(balancing: &LoadBalancing) -> Value {
    let scope = |scope: &RoutingScope| match scope {
        RoutingScope::Region => "Region",
        RoutingScope::Zone => "Zone",
        RoutingScope::Subzone => "Subzone",
        RoutingScope::Node => "Node",
        RoutingScope::Cluster => "Cluster",
        RoutingScope::Network => "Network",
    };
    json!({
        "routingPreferences": balancing.routing_preference.iter().map(scope).collect::<Vec<_>>(),
        "mode": match balancing.mode {
            LoadBalancingMode::Unspecified => "Standard",
            LoadBalancingMode::Strict => "Strict",
            LoadBalancingMode::Failover => "Failover",
            LoadBalancingMode::Passthrough => "Passthrough",
        },
        "healthPolicy": match balancing.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        },
    })
}

/// `rules` holds rules, of clauses, of matches; a match maps each attribute, and its name with `not` in front, to the
/// tests on it.
pub fn policy(policy: &Policy) -> Value {
    let it = &policy.policy;
    let rules: Vec<Vec<Vec<Value>>> = it
        .rules
        .iter()
        .map(|rule| {
            let clauses = rule.clauses.iter();
            clauses.map(|it| it.matches.iter().map(|it| one_match(&it.conditions)).collect()).collect()
        })
        .collect();
    let mut object = Object(Map::new());
    object.put("name", &*it.name);
    object.put("namespace", &*it.namespace);
    object.put(
        "scope",
        match policy.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::Workload => "WorkloadSelector",
        },
    );
    object.put(
        "action",
        match it.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
            Action::Audit => "Audit",
            Action::Custom => "Custom",
        },
    );
    object.put("rules", json!(rules));
    if it.dry_run {
        object.put("dryRun", true);
    }
    Value::Object(object.0)
}

fn one_match(conditions: &[Condition]) -> Value {
    let mut object = Object(Map::new());
    for condition in conditions {
        let name = attribute(&condition.attribute);
        let test = |it| test(&condition.attribute, it);
        object.put_list(&name, condition.any_of.iter().map(test).collect());
        let mut letters = name.chars();
        let capital: String = letters.next().map(|letter| letter.to_ascii_uppercase()).into_iter().collect();
        object.put_list(
            &format!("not{capital}{}", letters.as_str()),
            condition.none_of.iter().map(test).collect(),
        );
    }
    Value::Object(object.0)
}

fn attribute(attribute: &Attribute) -> String {
    let name = match attribute {
        Attribute::SourcePrincipal => "principals",
        Attribute::SourceNamespace => "namespaces",
        Attribute::SourceServiceAccount => "serviceAccounts",
        Attribute::SourceTrustDomain => "trustDomains",
        Attribute::SourceIp => "sourceIps",
        Attribute::RemoteIp => "remoteIps",
        Attribute::DestinationIp => "destinationIps",
        Attribute::DestinationPort => "destinationPorts",
        Attribute::ConnectionSni => "snis",
        Attribute::RequestHost => "hosts",
        Attribute::RequestMethod => "methods",
        Attribute::RequestPath => "paths",
        Attribute::RequestHeader(name) => return format!("headers[{name}]"),
        Attribute::RequestPrincipal => "requestPrincipals",
        Attribute::RequestAudiences => "audiences",
        Attribute::RequestPresenter => "presenters",
        Attribute::FilterMetadata(key) => return key.to_string(),
        Attribute::RequestClaim(path) => return format!("claims[{}]", path.join("][")),
    };
    name.to_owned()
}

/// The forms are ztunnel's where it has them: `istioctl` refuses a dump with others.
fn test(attribute: &Attribute, test: &Test) -> Value {
    match test {
        Test::Exact(text) if *attribute == Attribute::SourceServiceAccount => {
            let (namespace, name) = text.split_once('/').unwrap_or_default();
            json!({ "namespace": namespace, "serviceAccount": name })
        }
        Test::Exact(text) => json!({ "Exact": &**text }),
        Test::Prefix(text) => json!({ "Prefix": &**text }),
        Test::Suffix(text) => json!({ "Suffix": &**text }),
        Test::Present => json!({ "Presence": [] }),
        Test::Glob(text) => json!({ "Glob": &**text }),
        Test::Template(text) => json!({ "Template": &**text }),
        Test::Ip(block) => json!(block.to_string()),
        Test::Port(port) => json!(port),
    }
}

/// The intermediate form as it is.
pub fn route(route: &HttpRoute) -> Value {
    serde_json::to_value(route).unwrap_or_default()
}

#[cfg(test)]
#[path = "dump_tests.rs"]
mod tests;
