//! A generated mesh of the usual shape, as the resources of the discovery protocol.

use prost::Message;
use prost_types::Any;
use xds::proto::ADDRESS_TYPE;
use xds::proto::discovery::{DeltaDiscoveryResponse, Resource};
use xds::proto::workload as wire;

use crate::Failure;

const NAMESPACES: usize = 200;
const NODES: usize = 500;

#[derive(Debug, Clone, Copy)]
pub(super) struct Mesh {
    pub(super) workloads: usize,
    pub(super) services: usize,
}

impl Mesh {
    /// Everything, as a server sends it to a new client: one response.
    pub(super) fn whole(self) -> Result<DeltaDiscoveryResponse, Failure> {
        let mut resources = Vec::with_capacity(self.services + self.workloads);
        for index in 0..self.services {
            resources.push(service(index)?);
        }
        for index in 0..self.workloads {
            resources.push(self.workload(index, 0)?);
        }
        Ok(response(ADDRESS_TYPE, resources, "whole"))
    }

    /// One pod that changes its canonical revision.
    pub(super) fn delta(self, number: usize) -> Result<DeltaDiscoveryResponse, Failure> {
        let index = number.wrapping_mul(7919) % self.workloads;
        Ok(response(ADDRESS_TYPE, vec![self.workload(index, number)?], &format!("delta-{number}")))
    }

    fn workload(self, index: usize, revision: usize) -> Result<Resource, Failure> {
        let deployment = index % self.services;
        let namespace = format!("namespace-{}", deployment % NAMESPACES);
        let name = format!("deployment-{deployment}-7c9f8d6b5-{index:05}");
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        let service = format!("{namespace}/service-{deployment}.{namespace}.svc.cluster.local");
        let port = wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 };
        let [_, high, middle, low] = u32::try_from(index)?.to_be_bytes();
        let workload = wire::Workload {
            uid: uid.clone(),
            name,
            namespace,
            addresses: vec![vec![10, high, middle, low]],
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            service_account: format!("account-{deployment}"),
            node: format!("node-{}", index % NODES),
            canonical_name: format!("deployment-{deployment}"),
            canonical_revision: format!("v{revision}"),
            workload_name: format!("deployment-{deployment}"),
            cluster_id: "Kubernetes".into(),
            services: [(service, wire::PortList { ports: vec![port] })].into(),
            locality: Some(wire::Locality { region: "eu".into(), zone: "a".into(), subzone: String::new() }),
            ..wire::Workload::default()
        };
        Ok(resource(uid, wire::address::Type::Workload(workload), revision))
    }
}

fn service(index: usize) -> Result<Resource, Failure> {
    let namespace = format!("namespace-{}", index % NAMESPACES);
    let hostname = format!("service-{index}.{namespace}.svc.cluster.local");
    let [_, _, high, low] = u32::try_from(index)?.to_be_bytes();
    let name = format!("{namespace}/{hostname}");
    let service = wire::Service {
        name: format!("service-{index}"),
        namespace,
        hostname,
        addresses: vec![wire::NetworkAddress { address: vec![10, 96, high, low], ..Default::default() }],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..wire::Service::default()
    };
    Ok(resource(name, wire::address::Type::Service(service), 0))
}

fn resource(name: String, body: wire::address::Type, version: usize) -> Resource {
    let value = wire::Address { r#type: Some(body) }.encode_to_vec();
    Resource {
        name,
        // As istiod writes them: sixteen hexadecimal digits.
        version: format!("{:016x}", (version as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        resource: Some(Any { type_url: ADDRESS_TYPE.to_owned(), value }),
        ..Resource::default()
    }
}

pub(super) fn response(type_url: &str, resources: Vec<Resource>, nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        resources,
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}
