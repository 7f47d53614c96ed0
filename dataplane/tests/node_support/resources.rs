//! What the control plane says of the bed's pods: messages that a test may change before it puts them in force.

use std::net::IpAddr;

use prost::Message;
use xds::proto::security::{self, Authorization, Clause, Match, Rule, StringMatch, string_match};
use xds::proto::workload::{
    Address, GatewayAddress, NamespacedHostname, NetworkAddress, Port, PortList, Service, TunnelProtocol,
    Workload, WorkloadType, address, gateway_address,
};

use super::control::Resource;
use super::{Bed, Both};

/// Kubernetes namespace of everything.
pub const NAMESPACE: &str = "app";

/// The identity of a pod, whose service account has its name.
pub fn identity(pod: &str) -> String {
    format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{pod}")
}

/// The hostname of a service.
pub fn hostname(service: &str) -> String {
    format!("{service}.{NAMESPACE}.svc.cluster.local")
}

pub fn bytes_of(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub fn ip_of(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

impl Bed {
    /// A pod's workload, as the control plane describes it.
    pub fn workload(&self, pod: &str) -> Workload {
        let pod = self.get(pod);
        let protocol = if pod.node.is_some() { TunnelProtocol::Hbone } else { TunnelProtocol::None };
        Workload {
            uid: format!("Kubernetes//Pod/{NAMESPACE}/{}", pod.name),
            name: pod.name.clone(),
            namespace: NAMESPACE.to_owned(),
            addresses: pod.ips.map(bytes_of).to_vec(),
            tunnel_protocol: protocol.into(),
            trust_domain: "cluster.local".to_owned(),
            service_account: pod.name.clone(),
            node: pod.node.clone().unwrap_or_default(),
            canonical_name: pod.name.clone(),
            canonical_revision: "v1".to_owned(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: pod.name.clone(),
            cluster_id: "Kubernetes".to_owned(),
            ..Workload::default()
        }
    }

    /// A pod's workload as it is in force, or as [`Bed::workload`] has it where it is not.
    pub fn held(&self, pod: &str) -> Workload {
        let described = self.workload(pod);
        match self.control.get(&described.uid).as_ref().map(decoded) {
            Some(address::Type::Workload(workload)) => workload,
            _ => described,
        }
    }

    /// Changes what the control plane says of a pod, and waits until every node has taken it.
    pub fn change(&self, pod: &str, change: impl FnOnce(&mut Workload)) {
        let mut workload = self.held(pod);
        change(&mut workload);
        self.apply([workload]);
    }

    /// Changes what the control plane says of a service, and waits until every node has taken it.
    pub fn change_service(&self, name: &str, change: impl FnOnce(&mut Service)) {
        let held = self.control.get(&format!("{NAMESPACE}/{}", hostname(name)));
        let Some(address::Type::Service(mut service)) = held.as_ref().map(decoded) else {
            panic!("no service {name}")
        };
        change(&mut service);
        self.apply([service]);
    }

    /// Makes pods endpoints of a service: port 80 of its addresses leads to `target_port`. Without addresses it is
    /// headless.
    pub fn service(&mut self, name: &str, pods: &[&str], target_port: u16, is_headless: bool) -> Both {
        self.services += 1;
        let number = self.services;
        let v4 = IpAddr::from([10, 96, 0, number]);
        let v6: IpAddr = format!("fd00:96::{number:x}").parse().unwrap();
        let ports = vec![Port { service_port: 80, target_port: target_port.into(), app_protocol: 0 }];
        let address = |ip| NetworkAddress { address: bytes_of(ip), ..NetworkAddress::default() };
        let addresses = if is_headless { Vec::new() } else { vec![address(v4), address(v6)] };
        let service = Service {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            hostname: hostname(name),
            addresses,
            ports: ports.clone(),
            canonical: true,
            ..Service::default()
        };
        let key = format!("{NAMESPACE}/{}", service.hostname);
        let members = pods.iter().map(|pod| {
            let mut workload = self.held(pod);
            workload.services.insert(key.clone(), PortList { ports: ports.clone() });
            workload.into()
        });
        let members: Vec<_> = members.collect();
        self.control.put(std::iter::once(service.into()).chain(members));
        self.settle();
        Both { v4: (v4, 80).into(), v6: (v6, 80).into() }
    }
}

fn decoded(resource: &Resource) -> address::Type {
    Address::decode(&*resource.body.value).unwrap().r#type.unwrap()
}

/// A waypoint or a network gateway, known by its service.
pub fn gateway_of_service(service: &str, port: u16) -> GatewayAddress {
    let key = NamespacedHostname { namespace: NAMESPACE.to_owned(), hostname: hostname(service) };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Hostname(key)),
        hbone_mtls_port: port.into(),
    }
}

/// A waypoint or a network gateway, known by an address.
pub fn gateway_at(network: &str, ip: IpAddr, port: u16) -> GatewayAddress {
    let address = NetworkAddress { network: network.to_owned(), address: bytes_of(ip), length: None };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Address(address)),
        hbone_mtls_port: port.into(),
    }
}

/// A policy of the whole namespace about callers: any of these principals (`trust-domain/ns/NS/sa/SA`).
pub fn policy(name: &str, action: security::Action, principals: &[&str]) -> Authorization {
    let exact =
        |it: &&str| StringMatch { match_type: Some(string_match::MatchType::Exact((*it).to_owned())) };
    let principals = principals.iter().map(exact).collect();
    let matches = vec![Match { principals, ..Match::default() }];
    Authorization {
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        scope: security::Scope::Namespace.into(),
        action: action.into(),
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Authorization::default()
    }
}

/// As a policy's principals name a pod.
pub fn principal(pod: &str) -> String {
    format!("cluster.local/ns/{NAMESPACE}/sa/{pod}")
}
