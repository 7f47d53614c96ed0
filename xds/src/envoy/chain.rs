//! One filter chain of the main listener: what is done with the connections to one port of a service, or to workloads.

use std::sync::Arc;

use l7::ir::{AuthorizationPolicy, HttpRoute};
use l7::path::Normalization;
use model::NamespacedHostname;

use super::names::ClusterName;
use super::refusal::{Within, read, type_of, unpack};
use super::telemetry::Told;
use super::tokens::Tokens;
use super::{Refusal, http, rbac, tcp};
use crate::proto::waypoint::{FilterChain, HttpConnectionManager, NetworkFilter, NetworkRbac, TypedStruct};
use crate::snapshot::TcpWay;

const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// Filters that tell others about the connection, and change nothing of it.
const TELEMETRY: [&str; 4] = [
    // Where the connection goes, for the listener that opens the tunnel: our tunnels are told by the endpoint.
    "envoy.extensions.filters.network.set_filter_state.v3.Config",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.network.peer_metadata.Config",
    "stats.PluginConfig",
];

/// The cluster that leads to the address that was asked for, through a tunnel.
pub(super) const ENCAP: &str = "encap";

/// A chain as it was written, in the form of the IR.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) policies: Vec<Arc<AuthorizationPolicy>>,
    pub(super) carries: Carries,
    /// What is told of its requests, or of its connections where it carries none.
    pub(super) told: Told,
}

/// Whose connections the chain serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Service(ClusterName),
    /// Addressed by their own addresses.
    Workloads,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Carries {
    Http { tokens: Option<Tokens>, route: Option<Arc<HttpRoute>>, normalization: Normalization },
    Tcp(TcpWay),
}

/// The chains of names that tell nothing of services.
pub(super) const DIRECT_HTTP: &str = "direct-http";
pub(super) const DIRECT_TCP: &str = "direct-tcp";

/// Whether the chain of a name carries HTTP, be it understood or not.
pub(super) fn is_http(name: &str) -> bool {
    name == DIRECT_HTTP || ClusterName::parse(name).is_some_and(|name| name.carries_http())
}

/// The service of a chain, be the chain understood or not.
pub(super) fn service(name: &str) -> Option<(NamespacedHostname, u16)> {
    ClusterName::parse(name).map(|name| (name.service(), name.port))
}

/// The name of a chain, whatever else there is.
pub(super) fn name_of(bytes: &[u8]) -> Result<String, Refusal> {
    let chain: FilterChain =
        prost::Message::decode(bytes).map_err(|error| Refusal::new(error.to_string()))?;
    if chain.name.is_empty() {
        return Err(Refusal::at("name", "there is none"));
    }
    Ok(chain.name)
}

/// Reads a chain.
pub(super) fn chain(bytes: &[u8], name: &str) -> Result<Chain, Refusal> {
    let wire: FilterChain = read(bytes)?;
    if !wire.transport_socket.is_empty() {
        return Err(Refusal::at("transport_socket", "is not supported here"));
    }
    let target = match ClusterName::parse(name) {
        Some(service) => Target::Service(service),
        None if [DIRECT_HTTP, DIRECT_TCP].contains(&name) => Target::Workloads,
        None => return Err(Refusal::at("name", format!("{name:?} names no service and no workloads"))),
    };
    let (last, others) = wire.filters.split_last().ok_or_else(|| Refusal::at("filters", "there are none"))?;
    let mut policies = Vec::new();
    for (index, filter) in others.iter().enumerate() {
        network_filter(filter, &mut policies).within_item("filters", index)?;
    }
    let (carries, told) = match &last.typed_config {
        Some(config) if type_of(config) == HTTP_CONNECTION_MANAGER => {
            let manager: HttpConnectionManager =
                unpack(config, HTTP_CONNECTION_MANAGER).within_item("filters", others.len())?;
            let served = http::requests(&manager, name, &target).within_item("filters", others.len())?;
            policies.extend(served.policies);
            (served.carries, served.told)
        }
        Some(config) => {
            let served = tcp::connections(config, &target).within_item("filters", others.len())?;
            (Carries::Tcp(served.way), served.told)
        }
        None => return Err(Refusal::at("filters", "the last one has no configuration")),
    };
    Ok(Chain { name: name.into(), target, policies: rbac::shared(policies), carries, told })
}

fn network_filter(filter: &NetworkFilter, policies: &mut Vec<AuthorizationPolicy>) -> Result<(), Refusal> {
    let Some(config) = &filter.typed_config else { return Err(Refusal::at("typed_config", "there is none")) };
    if is_telemetry(config, &TELEMETRY)? {
        return Ok(());
    }
    let rbac: NetworkRbac = unpack(config, RBAC)?;
    let rules = rbac::Rules::from(&rbac);
    if rules.asked()?.is_some() {
        return Err(Refusal::new("external authorization of connections is not supported"));
    }
    policies.extend(rules.policies()?);
    Ok(())
}

/// Whether a filter is one of these kinds, by its type or by the one that it wraps.
pub(super) fn is_telemetry(config: &prost_types::Any, kinds: &[&str]) -> Result<bool, Refusal> {
    let name = type_of(config);
    if !["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"].contains(&name) {
        return Ok(kinds.contains(&name));
    }
    let inner: TypedStruct = read(&config.value)?;
    let inner = inner.type_url.rsplit('/').next().unwrap_or_default();
    if kinds.contains(&inner) {
        Ok(true)
    } else {
        Err(Refusal::new(format!("{inner} is not supported here")))
    }
}
