//! Endpoints of clusters.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{Health, Locality, TunnelProtocol};
use prost_types::Value;
use prost_types::value::Kind;

use super::Refusal;
use super::refusal::read;
use crate::proto::waypoint::address::Address;
use crate::proto::waypoint::lb_endpoint::Health as WireHealth;
use crate::proto::waypoint::{LbEndpoint, LoadAssignment, LocalityEndpoints, Metadata};

/// The listener that opens a tunnel to the endpoint's own node proxy.
const TUNNEL: &str = "connect_originate";

/// The endpoints of a cluster, by priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The most wanted first; never empty lists.
    pub(super) levels: Vec<Vec<Endpoint>>,
    /// Endpoints that are left out, each with the reason.
    pub(super) left_out: Vec<Refusal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) tunnel: TunnelProtocol,
    pub(super) health: Health,
    pub(super) weight: u32,
    pub(super) locality: Locality,
    pub(super) facts: Facts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    /// To be resolved.
    Name(Arc<str>),
}

/// What istiod tells of the workload behind an endpoint, for telemetry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) application: Arc<str>,
    pub(super) revision: Arc<str>,
    pub(super) cluster: Arc<str>,
}

/// Reads the endpoints of a cluster that lists them by name.
pub(super) fn load_assignment(name: &str, bytes: &[u8]) -> Result<Assignment, Refusal> {
    let wire: LoadAssignment = read(bytes)?;
    if wire.cluster_name != name {
        return Err(Refusal::at(
            "cluster_name",
            format!("{:?} is not the name of the resource", wire.cluster_name),
        ));
    }
    Ok(assignment(&wire))
}

/// Endpoints that are not understood are left out: there is no harm in serving by the others.
pub(super) fn assignment(wire: &LoadAssignment) -> Assignment {
    let mut by_priority: Vec<(u32, Vec<Endpoint>)> = Vec::new();
    let mut left_out = Vec::new();
    for (index, group) in wire.endpoints.iter().enumerate() {
        for (position, wire) in group.lb_endpoints.iter().enumerate() {
            let place = |refusal: Refusal| {
                refusal.within_item("lb_endpoints", position).within_item("endpoints", index)
            };
            match endpoint(wire, group) {
                Ok(endpoint) => {
                    match by_priority.iter_mut().find(|(priority, _)| *priority == group.priority) {
                        Some((_, endpoints)) => endpoints.push(endpoint),
                        None => by_priority.push((group.priority, vec![endpoint])),
                    }
                }
                Err(refusal) => left_out.push(place(refusal)),
            }
        }
    }
    by_priority.sort_by_key(|(priority, _)| *priority);
    Assignment { levels: by_priority.into_iter().map(|(_, endpoints)| endpoints).collect(), left_out }
}

fn endpoint(wire: &LbEndpoint, group: &LocalityEndpoints) -> Result<Endpoint, Refusal> {
    let Some(address) = wire.endpoint.as_ref().and_then(|it| it.address.as_ref()?.address.as_ref()) else {
        return Err(Refusal::at("endpoint.address", "there is none"));
    };
    if metadata(wire.metadata.as_ref(), "envoy.transport_socket_match", "tlsMode").is_some() {
        return Err(Refusal::at("metadata", "an endpoint behind a sidecar is not supported"));
    }
    let (host, port, tunnel) = match address {
        Address::SocketAddress(own) => {
            let port = u16::try_from(own.port_value).ok().filter(|port| *port != 0);
            let port =
                port.ok_or_else(|| Refusal::at("endpoint.address.socket_address.port_value", "is no port"))?;
            let host = match own.address.parse::<IpAddr>() {
                Ok(ip) => Host::Address(ip.to_canonical()),
                Err(_) => Host::Name(own.address.as_str().into()),
            };
            (host, port, TunnelProtocol::None)
        }
        Address::EnvoyInternalAddress(own) if own.server_listener_name == TUNNEL => {
            let target = metadata(wire.metadata.as_ref(), "envoy.filters.listener.original_dst", "local");
            let target = target.unwrap_or(&own.endpoint_id);
            let target: SocketAddr = target.parse().map_err(|_| {
                Refusal::at("metadata", format!("{target:?} is no address with a port to tunnel to"))
            })?;
            (Host::Address(target.ip().to_canonical()), target.port(), TunnelProtocol::Hbone)
        }
        Address::EnvoyInternalAddress(own) => {
            let reason = format!("listener {:?} is not supported here", own.server_listener_name);
            return Err(Refusal::at("endpoint.address.envoy_internal_address", reason));
        }
    };
    let health = match WireHealth::try_from(wire.health_status) {
        Ok(WireHealth::Unknown | WireHealth::Healthy | WireHealth::Degraded) => Health::Healthy,
        Ok(WireHealth::Unhealthy | WireHealth::Draining | WireHealth::Timeout) | Err(_) => Health::Unhealthy,
    };
    let locality = group.locality.clone().unwrap_or_default();
    let locality = Locality {
        region: locality.region.into(),
        zone: locality.zone.into(),
        subzone: locality.sub_zone.into(),
    };
    let weight = wire.load_balancing_weight.unwrap_or(1).max(1);
    Ok(Endpoint { host, port, tunnel, health, weight, locality, facts: facts(wire.metadata.as_ref()) })
}

/// A text in the metadata of a filter.
fn metadata<'a>(metadata: Option<&'a Metadata>, filter: &str, key: &str) -> Option<&'a str> {
    match metadata?.filter_metadata.get(filter)?.fields.get(key)? {
        Value { kind: Some(Kind::StringValue(text)) } => Some(text),
        _ => None,
    }
}

/// `NAME;NAMESPACE;APPLICATION;REVISION;CLUSTER`
fn facts(metadata: Option<&Metadata>) -> Facts {
    let text = self::metadata(metadata, "istio", "workload").unwrap_or_default();
    let mut parts = text.split(';').map(Arc::from);
    let mut next = || parts.next().unwrap_or_default();
    Facts { name: next(), namespace: next(), application: next(), revision: next(), cluster: next() }
}
