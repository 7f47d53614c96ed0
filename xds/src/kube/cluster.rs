//! Kubernetes core objects, as far as the mesh looks at them.
//!
//! Fields that are not listed here are tolerated and ignored when reading: a Pod has hundreds of them.

use std::net::IpAddr;
use std::sync::Arc;

use super::catalog::{Labels, Meta, ObjectName};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub meta: Meta,
    /// Empty where the pod is bound to no node.
    pub node_name: Arc<str>,
    /// `default` where none is written.
    pub service_account: Arc<str>,
    pub host_network: bool,
    pub containers: Vec<Container>,
    /// Controller of the pod (kind and name), such as its ReplicaSet.
    pub owner: Option<(Arc<str>, Arc<str>)>,
    pub phase: Option<PodPhase>,
    /// `status.podIPs`, else `status.podIP`; empty where the file carries no status.
    pub ips: Vec<IpAddr>,
    pub host_ip: Option<IpAddr>,
    /// Condition `Ready`; `None` where the status holds no such condition.
    pub ready: Option<bool>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub name: Arc<str>,
    pub image: Arc<str>,
    pub command: Vec<Arc<str>>,
    pub args: Vec<Arc<str>>,
    pub ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty where the port has no name.
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: TransportProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransportProtocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub meta: Meta,
    pub service_type: ServiceType,
    /// `clusterIPs`, else `clusterIP`; empty for a headless service and where none is written.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    pub ports: Vec<ServicePort>,
    pub selector: Labels,
    /// `internalTrafficPolicy: Local`.
    pub internal_traffic_local: bool,
    pub traffic_distribution: Option<Arc<str>>,
    pub publish_not_ready_addresses: bool,
    pub ip_families: Vec<IpFamily>,
    pub ip_family_policy: Option<IpFamilyPolicy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpFamily {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpFamilyPolicy {
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the only port has no name.
    pub name: Arc<str>,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: TransportProtocol,
    pub app_protocol: Option<Arc<str>>,
}

/// `targetPort`; not written it is the service port itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// Name of a container port, which each pod may put at another number.
    Name(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub meta: Meta,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<ObjectName>,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: Arc<str>,
    /// `None` stands for every port.
    pub port: Option<u16>,
    pub protocol: TransportProtocol,
    pub app_protocol: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Empty for endpoints given by host name (`addressType: FQDN`).
    pub addresses: Vec<IpAddr>,
    /// An absent condition counts as ready.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node_name: Arc<str>,
    pub zone: Arc<str>,
    pub target_pod: Option<ObjectName>,
}
