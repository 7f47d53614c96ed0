//! Clusters: a port of a service, or of a subset of it, and how its traffic is spread.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{Balancing, ConnectionLimits, HashPolicy, HashTable, OutlierDetection, TrafficSettings};
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};

use super::Refusal;
use super::endpoints::{Assignment, assignment};
use super::names::ClusterName;
use super::refusal::{Within, read, type_of, unpack};
use super::text;
use crate::proto::waypoint::cluster::{LbPolicy, Type};
use crate::proto::waypoint::{
    Cluster, HttpProtocolOptions, InternalUpstreamTransport, OutlierDetection as WireOutliers,
    TransportSocket,
};

const INTERNAL_UPSTREAM: &str =
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Places of a ring, and of a Maglev table, where none are given (`RingHashLbConfig`, `MaglevLbConfig`).
const RING: u32 = 1024;
const MAGLEV: u32 = 65_537;

/// Clusters that lead from one listener to the next within Envoy.
const TUNNELS: [&str; 5] =
    ["main_internal", "encap", "connect_originate", "inner_connect_originate", "outer_connect_originate"];
/// How a cluster tells endpoints apart that take HBONE, those behind a sidecar, and those in the clear. Of those behind a
/// sidecar the endpoint itself says so, and is left out.
const SOCKET_MATCHES: [&str; 3] = ["hbone", "tlsMode-istio", "tlsMode-disabled"];

#[derive(Debug, Clone, PartialEq)]
pub(super) enum ReadCluster {
    Service(Box<ServiceCluster>),
    /// One that serves a tunnel of Envoy's.
    Tunnel,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServiceCluster {
    pub(super) name: ClusterName,
    /// Short name and namespace, as istiod knows them.
    pub(super) service: Option<(Arc<str>, Arc<str>)>,
    pub(super) endpoints: Endpoints,
    pub(super) settings: Arc<TrafficSettings>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Endpoints {
    /// The name of the resource that lists them.
    Discovered(Box<str>),
    Listed(Arc<Assignment>),
}

pub(super) fn cluster(name: &str, bytes: &[u8]) -> Result<ReadCluster, Refusal> {
    let wire: Cluster = read(bytes)?;
    if wire.name != name {
        return Err(Refusal::at("name", format!("{:?} is not the name of the resource", wire.name)));
    }
    if TUNNELS.contains(&name) {
        return Ok(ReadCluster::Tunnel);
    }
    let parsed = ClusterName::parse(name)
        .ok_or_else(|| Refusal::at("name", format!("{name:?} names no port of a service")))?;
    transport(&wire)?;
    let endpoints = match Type::try_from(wire.r#type) {
        Ok(Type::Eds) => {
            let own = wire.eds_cluster_config.as_ref().map(|config| config.service_name.as_str());
            Endpoints::Discovered(own.filter(|own| !own.is_empty()).unwrap_or(name).into())
        }
        Ok(Type::Static | Type::StrictDns | Type::LogicalDns) => {
            let listed = wire.load_assignment.clone().unwrap_or_default();
            Endpoints::Listed(Arc::new(assignment(&listed)))
        }
        Ok(Type::OriginalDst) => {
            return Err(Refusal::at("type", "a service without endpoints of its own is not supported"));
        }
        Err(_) => return Err(Refusal::at("type", format!("{} is not supported", wire.r#type))),
    };
    let service = wire.metadata.as_ref().and_then(|it| it.filter_metadata.get("istio")).and_then(service);
    let settings = Arc::new(settings(&wire)?);
    Ok(ReadCluster::Service(Box::new(ServiceCluster { name: parsed, service, endpoints, settings })))
}

/// Endpoints are dialled in the clear or through a tunnel; nothing may be laid over that.
fn transport(wire: &Cluster) -> Result<(), Refusal> {
    if let Some(socket) = &wire.transport_socket {
        plain(socket).within("transport_socket")?;
    }
    for (index, entry) in wire.transport_socket_matches.iter().enumerate() {
        let place = |refusal: Refusal| refusal.within_item("transport_socket_matches", index);
        if !SOCKET_MATCHES.contains(&&*entry.name) {
            return Err(place(Refusal::at("name", format!("{:?} is not supported", entry.name))));
        }
        if let Some(socket) = &entry.transport_socket
            && entry.name != "tlsMode-istio"
        {
            plain(socket).map_err(|refusal| place(refusal.within("transport_socket")))?;
        }
    }
    Ok(())
}

fn plain(socket: &TransportSocket) -> Result<(), Refusal> {
    let Some(config) = &socket.typed_config else { return Err(Refusal::at("typed_config", "there is none")) };
    match type_of(config) {
        RAW_BUFFER => Ok(()),
        INTERNAL_UPSTREAM => {
            let tunnel: InternalUpstreamTransport =
                unpack(config, INTERNAL_UPSTREAM).within("typed_config")?;
            let Some(socket) = &tunnel.transport_socket else { return Ok(()) };
            let kind = socket.typed_config.as_ref().map_or("", type_of);
            if kind == RAW_BUFFER {
                return Ok(());
            }
            Err(Refusal::at("typed_config.transport_socket", format!("{kind} is not supported here")))
        }
        other => Err(Refusal::at("typed_config", format!("{other} is not supported here"))),
    }
}

/// `services: [{name, namespace, host}]`
fn service(metadata: &Struct) -> Option<(Arc<str>, Arc<str>)> {
    let Some(Kind::ListValue(list)) = metadata.fields.get("services").and_then(|it| it.kind.as_ref()) else {
        return None;
    };
    let Some(Kind::StructValue(first)) = list.values.first().and_then(|it| it.kind.as_ref()) else {
        return None;
    };
    let text = |name: &str| match first.fields.get(name) {
        Some(Value { kind: Some(Kind::StringValue(text)) }) => Some(Arc::from(text.as_str())),
        _ => None,
    };
    Some((text("name")?, text("namespace")?))
}

// === Traffic settings ===

fn settings(wire: &Cluster) -> Result<TrafficSettings, Refusal> {
    let balancing = match LbPolicy::try_from(wire.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Balancing::RoundRobin,
        Ok(LbPolicy::LeastRequest) => Balancing::LeastRequest,
        Ok(LbPolicy::Random) => Balancing::Random,
        Ok(LbPolicy::ClusterProvided) => Balancing::Passthrough,
        Ok(LbPolicy::RingHash) => {
            let least = wire.ring_hash_lb_config.as_ref().and_then(|ring| ring.minimum_ring_size);
            by_hash(HashTable::Ring, least, RING)
        }
        Ok(LbPolicy::Maglev) => {
            by_hash(HashTable::Maglev, wire.maglev_lb_config.as_ref().and_then(|it| it.table_size), MAGLEV)
        }
        Err(_) => {
            return Err(Refusal::at("lb_policy", format!("{} is not supported", wire.lb_policy)));
        }
    };
    let mut limits = limits(wire).within("circuit_breakers")?;
    limits.connect_timeout_ms =
        wire.connect_timeout.as_ref().map_or(Ok(None), text::milliseconds).within("connect_timeout")?;
    for (name, config) in &wire.typed_extension_protocol_options {
        http_options(config, &mut limits)
            .map_err(|refusal| refusal.within(&format!("typed_extension_protocol_options[{name:?}]")))?;
    }
    let panic = wire.common_lb_config.as_ref().and_then(|it| it.healthy_panic_threshold.as_ref());
    // A share in per cent; what Envoy sends is between 0 and 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let health_percent_min = panic.map_or(0, |percent| percent.value.clamp(0.0, 100.0) as u32);
    let outliers = wire.outlier_detection.as_ref();
    let outliers = outliers.map(|it| self::outliers(it, health_percent_min)).transpose();
    Ok(TrafficSettings { balancing, outliers: outliers.within("outlier_detection")?, limits })
}

/// By what is hashed the routes say.
fn by_hash(table: fn(u32) -> HashTable, size: Option<u64>, usual: u32) -> Balancing {
    let size = size.map_or(usual, |size| u32::try_from(size).unwrap_or(u32::MAX));
    Balancing::Hash(HashPolicy { on: Vec::new(), table: table(size) })
}

fn limits(wire: &Cluster) -> Result<ConnectionLimits, Refusal> {
    let Some(breakers) = &wire.circuit_breakers else { return Ok(ConnectionLimits::default()) };
    let [thresholds] = &breakers.thresholds[..] else {
        return Err(Refusal::at("thresholds", format!("{} are not supported", breakers.thresholds.len())));
    };
    let limit = |value: Option<u32>| value.filter(|value| *value != u32::MAX);
    Ok(ConnectionLimits {
        connections: limit(thresholds.max_connections),
        pending_requests: limit(thresholds.max_pending_requests),
        requests: limit(thresholds.max_requests),
        retries: limit(thresholds.max_retries),
        ..ConnectionLimits::default()
    })
}

fn http_options(config: &Any, limits: &mut ConnectionLimits) -> Result<(), Refusal> {
    let options: HttpProtocolOptions = unpack(config, HTTP_OPTIONS)?;
    if let Some(common) = &options.common_http_protocol_options {
        limits.requests_per_connection = common.max_requests_per_connection.and_then(NonZeroU32::new);
        limits.idle_timeout_ms = common.idle_timeout.as_ref().map_or(Ok(None), text::milliseconds)?;
    }
    Ok(())
}

/// Defaults are Envoy's (`cluster.v3.OutlierDetection`).
fn outliers(wire: &WireOutliers, health_percent_min: u32) -> Result<OutlierDetection, Refusal> {
    const INTERVAL_MS: NonZeroU32 = NonZeroU32::new(10_000).unwrap();
    const EJECTION_MS: NonZeroU32 = NonZeroU32::new(30_000).unwrap();
    let counted = |count: Option<u32>, enforced: u32| if enforced == 0 { 0 } else { count.unwrap_or(5) };
    let interval = wire.interval.as_ref().map_or(Ok(None), text::milliseconds).within("interval")?;
    let ejection = wire.base_ejection_time.as_ref().map_or(Ok(None), text::milliseconds);
    Ok(OutlierDetection {
        consecutive_5xx: counted(wire.consecutive_5xx, wire.enforcing_consecutive_5xx.unwrap_or(100)),
        consecutive_gateway_errors: counted(
            wire.consecutive_gateway_failure,
            wire.enforcing_consecutive_gateway_failure.unwrap_or(0),
        ),
        split_local_origin: wire.split_external_local_origin_errors,
        consecutive_local_origin: counted(
            wire.consecutive_local_origin_failure,
            wire.enforcing_consecutive_local_origin_failure.unwrap_or(100),
        ),
        interval_ms: interval.unwrap_or(INTERVAL_MS),
        base_ejection_ms: ejection.within("base_ejection_time")?.unwrap_or(EJECTION_MS),
        ejection_percent_max: wire.max_ejection_percent.unwrap_or(10),
        health_percent_min,
    })
}
