//! The shape of the YAML: that of `/config_dump`, with the ports of a workload beside its services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Document {
    pub(super) workloads: Vec<Spanned<Workload>>,
    pub(super) services: Vec<Spanned<Service>>,
    pub(super) policies: Vec<Spanned<Policy>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // the names of the dump
pub(super) struct Workload {
    pub(super) uid: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) workload_ips: Vec<IpAddr>,
    #[serde(default)]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    #[serde(default)]
    pub(super) trust_domain: String,
    #[serde(default)]
    pub(super) service_account: String,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) workload_name: String,
    #[serde(default)]
    pub(super) workload_type: WorkloadType,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
    #[serde(default)]
    pub(super) hostname: String,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    #[serde(default)]
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    #[serde(default)]
    pub(super) status: Health,
    #[serde(default)]
    pub(super) cluster_id: String,
    #[serde(default)]
    pub(super) locality: Locality,
    /// `namespace/hostname` to service port to port of this workload.
    #[serde(default)]
    pub(super) services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(default = "one")]
    pub(super) capacity: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    /// `network/IP` or `namespace/hostname`.
    pub(super) destination: String,
    #[serde(default)]
    pub(super) hbone_mtls_port: u16,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WorkloadType {
    #[default]
    Deployment,
    CronJob,
    Pod,
    Job,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum Health {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: TunnelProtocol,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum TunnelProtocol {
    None,
    Proxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Locality {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    #[serde(default)]
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    /// `network/IP`, with `/LENGTH` for a block.
    #[serde(default)]
    pub(super) vips: Vec<String>,
    /// Service port to target port; 0 where each workload has its own.
    #[serde(default)]
    pub(super) ports: BTreeMap<u16, u16>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    #[serde(default)]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub(super) ip_families: Option<IpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
    /// A dump shows them here; they come from the workloads.
    #[serde(default, rename = "endpoints")]
    pub(super) _endpoints: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancer {
    #[serde(default)]
    pub(super) routing_preferences: Vec<Scope>,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum IpFamilies {
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
    Dual,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum Visibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: PolicyScope,
    pub(super) action: Action,
    /// Rules, of clauses, of matches.
    #[serde(default)]
    pub(super) rules: Vec<Vec<Vec<Match>>>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<Text>,
    pub(super) not_namespaces: Vec<Text>,
    pub(super) principals: Vec<Text>,
    pub(super) not_principals: Vec<Text>,
    pub(super) service_accounts: Vec<ServiceAccount>,
    pub(super) not_service_accounts: Vec<ServiceAccount>,
    pub(super) source_ips: Vec<String>,
    pub(super) not_source_ips: Vec<String>,
    pub(super) destination_ips: Vec<String>,
    pub(super) not_destination_ips: Vec<String>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Written `Presence: []`.
    Presence(),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServiceAccount {
    pub(super) namespace: String,
    pub(super) service_account: String,
}
