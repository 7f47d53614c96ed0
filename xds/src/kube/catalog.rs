//! The typed objects of a configuration folder, by kind and name.
//!
//! Everything in a [`Catalog`] has passed the checks of its kind: the conversions of this module's siblings need no
//! further validation. Objects are shared and compare by value, so that two catalogs can be told apart cheaply.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use model::SourceRef;

use super::backend_policy::{BackendTlsPolicy, BackendTrafficPolicy};
use super::cluster::{EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount};
use super::gateway::{Gateway, GatewayClass, HttpRoute, ReferenceGrant};
use super::istio::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication, ServiceEntry, WorkloadEntry,
};
use super::mesh::ConfigMap;
use super::telemetry::Telemetry;
use super::traffic::{DestinationRule, VirtualService};

pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Objects of one kind. Cluster-scoped kinds have the empty namespace.
pub type Objects<T> = BTreeMap<ObjectName, Arc<T>>;

/// Namespace and name of an object; the namespace of a cluster-scoped one is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// `metadata` of an object, as far as the mesh looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub name: Arc<str>,
    /// Empty for cluster-scoped kinds, never for others.
    pub namespace: Arc<str>,
    pub labels: Labels,
    pub annotations: Labels,
    /// `creationTimestamp` in seconds since the epoch; 0 where it is not written.
    pub created: u64,
    /// Empty where it is not written.
    pub uid: Arc<str>,
    pub source: SourceRef,
}

impl Meta {
    pub fn object_name(&self) -> ObjectName {
        ObjectName { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(AsRef::as_ref)
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(AsRef::as_ref)
    }
}

/// Where within a file something stands; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceAccount,
    ServiceEntry,
    WorkloadEntry,
    Gateway,
    GatewayClass,
    HttpRoute,
    GrpcRoute,
    ReferenceGrant,
    BackendTlsPolicy,
    BackendTrafficPolicy,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    ConfigMap,
    VirtualService,
    DestinationRule,
    Telemetry,
}

impl Kind {
    pub const ALL: [Self; 22] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceAccount,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::Gateway,
        Self::GatewayClass,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::BackendTlsPolicy,
        Self::BackendTrafficPolicy,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::ConfigMap,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Telemetry,
    ];

    /// The name as it is written under `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceAccount => "ServiceAccount",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Gateway => "Gateway",
            Self::GatewayClass => "GatewayClass",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::BackendTrafficPolicy => "XBackendTrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ConfigMap => "ConfigMap",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Telemetry => "Telemetry",
        }
    }

    /// API group and the versions that are read; the group of the core kinds is empty.
    pub(super) fn api(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::ServiceAccount
            | Self::ConfigMap => ("", &["v1"]),
            Self::EndpointSlice => ("discovery.k8s.io", &["v1", "v1beta1"]),
            Self::ServiceEntry | Self::WorkloadEntry | Self::VirtualService | Self::DestinationRule => {
                ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"])
            }
            Self::Gateway | Self::GatewayClass | Self::HttpRoute | Self::ReferenceGrant => {
                ("gateway.networking.k8s.io", &["v1", "v1beta1"])
            }
            Self::GrpcRoute => ("gateway.networking.k8s.io", &["v1", "v1alpha2"]),
            Self::BackendTlsPolicy => ("gateway.networking.k8s.io", &["v1", "v1alpha3"]),
            Self::BackendTrafficPolicy => ("gateway.networking.x-k8s.io", &["v1alpha1"]),
            Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication => {
                ("security.istio.io", &["v1", "v1beta1"])
            }
            Self::Telemetry => ("telemetry.istio.io", &["v1", "v1alpha1"]),
        }
    }

    /// The spelling of `apiVersion` that we propose.
    pub(super) fn api_version(self) -> String {
        let (group, versions) = self.api();
        let version = versions.first().unwrap_or(&"v1");
        if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") }
    }

    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Every object that was read and found good.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    pub namespaces: Objects<Namespace>,
    pub nodes: Objects<Node>,
    pub pods: Objects<Pod>,
    pub services: Objects<Service>,
    pub endpoint_slices: Objects<EndpointSlice>,
    pub service_accounts: Objects<ServiceAccount>,
    pub service_entries: Objects<ServiceEntry>,
    pub workload_entries: Objects<WorkloadEntry>,
    pub gateways: Objects<Gateway>,
    pub gateway_classes: Objects<GatewayClass>,
    pub http_routes: Objects<HttpRoute>,
    pub grpc_routes: Objects<HttpRoute>,
    pub reference_grants: Objects<ReferenceGrant>,
    pub backend_tls_policies: Objects<BackendTlsPolicy>,
    pub backend_traffic_policies: Objects<BackendTrafficPolicy>,
    pub authorization_policies: Objects<AuthorizationPolicy>,
    pub peer_authentications: Objects<PeerAuthentication>,
    pub request_authentications: Objects<RequestAuthentication>,
    pub config_maps: Objects<ConfigMap>,
    pub virtual_services: Objects<VirtualService>,
    pub destination_rules: Objects<DestinationRule>,
    pub telemetries: Objects<Telemetry>,
}

/// What stays the same for every conversion: names that an installation chooses once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// Policies of this namespace without selector apply to the whole mesh.
    pub root_namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// Suffix of service host names, after `svc`.
    pub cluster_domain: Arc<str>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            root_namespace: Arc::from("istio-system"),
            trust_domain: Arc::from("cluster.local"),
            trust_domain_aliases: Vec::new(),
            cluster_domain: Arc::from("cluster.local"),
        }
    }
}

impl MeshSettings {
    /// Full host name of a Kubernetes Service.
    pub fn service_hostname(&self, namespace: &str, name: &str) -> Arc<str> {
        Arc::from(format!("{name}.{namespace}.svc.{}", self.cluster_domain))
    }
}
