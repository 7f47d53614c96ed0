//! Istio objects: ServiceEntry, WorkloadEntry, AuthorizationPolicy, PeerAuthentication, RequestAuthentication.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::catalog::{Labels, Meta, Position};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    pub meta: Meta,
    pub hosts: Vec<Arc<str>>,
    /// A single address has the full prefix length.
    pub addresses: Vec<IpNet>,
    pub ports: Vec<ServiceEntryPort>,
    pub resolution: Resolution,
    pub location: Location,
    pub endpoints: Vec<WorkloadSpec>,
    pub workload_selector: Option<Labels>,
    pub subject_alt_names: Vec<Arc<str>>,
    pub export_to: Vec<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntryPort {
    pub number: u16,
    pub name: Arc<str>,
    /// Upper case, as Istio writes it: `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `TCP`, `TLS`.
    pub protocol: Arc<str>,
    /// The port number itself where none is written.
    pub target_port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    pub meta: Meta,
    pub spec: WorkloadSpec,
}

/// A WorkloadEntry's spec, also used for the endpoints of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadSpec {
    pub address: WorkloadAddress,
    /// Port name to number.
    pub ports: BTreeMap<Arc<str>, u16>,
    pub labels: Labels,
    pub network: Arc<str>,
    /// `region/zone/subzone`.
    pub locality: Arc<str>,
    /// 0 where none is written.
    pub weight: u32,
    /// Empty where none is written.
    pub service_account: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadAddress {
    Ip(IpAddr),
    Hostname(Arc<str>),
    /// Path of a Unix socket: never in the mesh.
    Unix(Arc<str>),
    /// A WorkloadEntry that names only its network.
    Absent,
}

/// Whom a policy concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyTarget {
    /// Neither selector nor targetRefs: its namespace, or the mesh if that is the root namespace.
    Namespace,
    /// `selector.matchLabels`, never empty.
    Selector(Labels),
    /// ORed, never empty.
    References(Vec<TargetRef>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRef {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    /// As written; `None` means the policy's own namespace.
    pub namespace: Option<Arc<str>>,
    pub at: Position,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub meta: Meta,
    pub target: PolicyTarget,
    pub action: PolicyAction,
    /// Whom a CUSTOM policy asks.
    pub provider: Option<Arc<str>>,
    /// Annotation `istio.io/dry-run`.
    pub dry_run: bool,
    pub rules: Vec<PolicyRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PolicyAction {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyRule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<When>,
}

/// The values of one field and of its negated twin; at least one list is non-empty where a field counts as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    pub any_of: Vec<Arc<str>>,
    pub none_of: Vec<Arc<str>>,
}

impl Values {
    pub fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    pub principals: Values,
    pub request_principals: Values,
    pub namespaces: Values,
    pub service_accounts: Values,
    pub trust_domains: Values,
    pub ip_blocks: Values,
    pub remote_ip_blocks: Values,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    pub hosts: Values,
    pub ports: Values,
    pub methods: Values,
    pub paths: Values,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    pub key: Arc<str>,
    pub values: Values,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    pub meta: Meta,
    pub target: PolicyTarget,
    pub rules: Vec<l7::ir::TokenRule>,
    /// Where the keys of each rule come from; as many as there are rules.
    pub sources: Vec<KeySource>,
}

/// Where the keys of a token rule come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// They stand in the rule, or nowhere.
    Written,
    /// `jwksUri`
    Address(Arc<str>),
    /// The issuer, whose name is its address, says where.
    Issuer(Arc<str>),
}

impl KeySource {
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Written)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written => f.write_str("the rule itself"),
            Self::Address(address) => f.write_str(address),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// What is attached to workloads by namespace, selector or reference.
pub trait Attached {
    fn meta(&self) -> &Meta;
    fn target(&self) -> &PolicyTarget;
}

impl Attached for AuthorizationPolicy {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn target(&self) -> &PolicyTarget {
        &self.target
    }
}

impl Attached for RequestAuthentication {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn target(&self) -> &PolicyTarget {
        &self.target
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub meta: Meta,
    /// `selector.matchLabels`; `None` where it is absent or empty.
    pub selector: Option<Labels>,
    pub mode: MtlsMode,
    pub ports: BTreeMap<u16, MtlsMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MtlsMode {
    /// Inherited: workload from namespace from mesh, and PERMISSIVE in the end.
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}
