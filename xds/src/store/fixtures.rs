//! Workloads, services and policies for tests: plain ones, to be changed field by field.

use std::net::IpAddr;
use std::sync::Arc;

use l7::ir::{Action, AuthorizationPolicy, Rule};
use model::{
    EndpointPort, GatewayAddress, GatewayDestination, Health, Identity, IpFamilies, Locality,
    NamespacedHostname, NetworkAddress, NetworkMode, Service, ServicePort, ServiceVip, Services,
    TunnelProtocol, Visibility, Workload, WorkloadType,
};

use super::Store;
use crate::decode::Address;
use crate::snapshot::{Policy, PolicyScope, Snapshot};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `NAMESPACE/NAME` at an address, with HBONE.
pub(crate) fn workload(name: &str, address: &str) -> Workload {
    let (namespace, short) = name.split_once('/').unwrap();
    Workload {
        uid: format!("Kubernetes//Pod/{name}").into(),
        name: short.into(),
        namespace: namespace.into(),
        identity: Identity::new("cluster.local", namespace, short).unwrap(),
        addresses: if address.is_empty() { Vec::new() } else { vec![ip(address)] },
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        native_tunnel: false,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        authorization_policies: Vec::new(),
        services: Services::default(),
        health: Health::Healthy,
        locality: Locality::default(),
        node: "".into(),
        cluster_id: "Kubernetes".into(),
        capacity: 1,
        workload_name: "".into(),
        workload_type: WorkloadType::Pod,
        canonical_name: "".into(),
        canonical_revision: "".into(),
    }
}

/// The same as a member of services, each serving 80 on 8080.
pub(crate) fn serving(mut workload: Workload, services: &[&str]) -> Workload {
    let ports = || vec![EndpointPort { service_port: 80, target_port: 8080 }];
    workload.services =
        services.iter().map(|service| (NamespacedHostname::parse(service).unwrap(), ports())).collect();
    workload
}

/// `NAMESPACE/HOST` at virtual addresses (`IP` or `IP/LENGTH`), port 80.
pub(crate) fn service(key: &str, vips: &[&str]) -> Service {
    let key = NamespacedHostname::parse(key).unwrap();
    let vip = |text: &&str| match text.split_once('/') {
        Some((address, length)) => {
            ServiceVip { network: "".into(), ip: ip(address), prefix_len: length.parse().unwrap() }
        }
        None => ServiceVip::single("", ip(text)),
    };
    Service {
        name: Arc::clone(&key.hostname),
        vips: vips.iter().map(vip).collect(),
        key,
        ports: vec![ServicePort {
            service_port: 80,
            target_port: 0,
            app_protocol: model::AppProtocol::Unknown,
        }],
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: None,
        ip_families: IpFamilies::Automatic,
        canonical: false,
        visibility: Visibility::Public,
    }
}

pub(crate) fn waypoint_host(key: &str) -> GatewayAddress {
    let destination = GatewayDestination::Hostname(NamespacedHostname::parse(key).unwrap());
    GatewayAddress { destination, hbone_mtls_port: 15008 }
}

pub(crate) fn waypoint_address(address: &str) -> GatewayAddress {
    let address = NetworkAddress { network: "".into(), ip: ip(address) };
    GatewayAddress { destination: GatewayDestination::Address(address), hbone_mtls_port: 15008 }
}

/// An instance of a waypoint: serves 15008 of its service on 15008.
pub(crate) fn waypoint_instance(name: &str, address: &str, service: &str) -> Workload {
    let mut instance = workload(name, address);
    let ports = vec![EndpointPort { service_port: 15008, target_port: 15008 }];
    instance.services = [(NamespacedHostname::parse(service).unwrap(), ports)].into_iter().collect();
    instance
}

/// A policy `NAMESPACE/NAME` whose one rule always holds.
pub(crate) fn policy(name: &str, scope: PolicyScope, action: Action) -> Policy {
    let (namespace, name) = name.split_once('/').unwrap();
    let policy = AuthorizationPolicy {
        namespace: namespace.into(),
        name: name.into(),
        action,
        dry_run: false,
        rules: vec![Rule::default()],
        authorizer: None,
        source: None,
    };
    Policy { scope, policy: Arc::new(policy) }
}

pub(crate) fn store(workloads: Vec<Workload>, services: Vec<Service>) -> Store {
    let mut store = Store::new();
    for workload in workloads {
        store.upsert_address(Address::Workload(workload));
    }
    for service in services {
        store.upsert_address(Address::Service(service));
    }
    store
}

pub(crate) fn snapshot(workloads: Vec<Workload>, services: Vec<Service>) -> Arc<Snapshot> {
    store(workloads, services).snapshot().unwrap()
}
