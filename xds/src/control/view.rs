//! The cluster as those see it who run its pods: which pods exist, where, with which address, and which of them are
//! in the mesh.
//!
//! A view is immutable; every accepted change of the configuration yields a new one. It is built together with the
//! resources that node proxies receive, from the same catalog, so both always tell the same story.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::{Identity, SourceRef};

use crate::kube::cluster::{Container, TransportProtocol};
use crate::kube::{Labels, ObjectName};

/// Namespaces, pods and nodes of the configuration in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    /// Counts the accepted states, from 1.
    pub generation: u64,
    pub namespaces: BTreeMap<Arc<str>, NamespaceView>,
    pub pods: BTreeMap<ObjectName, PodView>,
    /// Names of the nodes that exist or that a pod is bound to.
    pub nodes: Vec<Arc<str>>,
    pub services: BTreeMap<ObjectName, ServiceView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceView {
    pub name: Arc<str>,
    pub labels: Labels,
    /// Label `istio.io/dataplane-mode` is `ambient`: pods without a label of their own are in the mesh.
    pub ambient: bool,
}

/// A pod that is to run. Pods that have come to their end do not appear.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// Key of its workload resource, `CLUSTER//Pod/NAMESPACE/NAME`.
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub node: Arc<str>,
    /// From its status or annotation, else assigned; empty for a pod of the host's network without status.
    pub ips: Vec<IpAddr>,
    /// The pod's traffic is captured and carried by the mesh.
    pub enrolled: bool,
    pub host_network: bool,
    pub ready: bool,
    pub service_account: Arc<str>,
    /// What its certificate says.
    pub identity: Identity,
    pub containers: Vec<Container>,
    pub labels: Labels,
    pub annotations: Labels,
    /// The waypoint Gateway whose instance it is, where that is ours to run.
    pub waypoint: Option<ObjectName>,
    pub source: SourceRef,
}

impl PodView {
    /// Numbers of the TCP ports that its containers declare, each once, in order.
    pub fn tcp_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self
            .containers
            .iter()
            .flat_map(|container| &container.ports)
            .filter(|port| port.protocol == TransportProtocol::Tcp)
            .map(|port| port.port)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// A Kubernetes Service, for name resolution and for tables that people read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Full host name.
    pub hostname: Arc<str>,
    /// Virtual addresses; empty for a headless service.
    pub ips: Vec<IpAddr>,
    pub ports: Vec<u16>,
}
