//! `istio.workload.Service`.

use model::{
    AppProtocol, HealthPolicy, Identity, IpFamilies, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    ServicePort, ServiceVip, Visibility, WeightedWaypoint,
};

use super::{DecodeError, Interner, gateway, ip, known, namespaced_hostname, optional_gateway, port, text};
use crate::proto::workload as wire;

pub(super) fn service(message: &wire::Service, interner: &mut Interner) -> Result<Service, DecodeError> {
    Ok(Service {
        name: text(&message.name),
        key: namespaced_hostname("namespace and hostname", &message.namespace, &message.hostname, interner)?,
        vips: indexed(&message.addresses, |index, it| vip(index, it, interner))?,
        ports: indexed(&message.ports, service_port)?,
        // Names that are no SPIFFE identities can match no peer, so leaving them out accepts nobody more.
        subject_alt_names: message
            .subject_alt_names
            .iter()
            .filter_map(|name| name.parse::<Identity>().ok())
            .map(|identity| interner.identity(identity))
            .collect(),
        waypoint: optional_gateway("waypoint", message.waypoint.as_ref(), interner)?,
        weighted_waypoints: indexed(&message.weighted_waypoints, |index, it| {
            weighted_waypoint(index, it, interner)
        })?,
        load_balancing: message.load_balancing.as_ref().map(load_balancing).transpose()?,
        ip_families: match known("ip_families", message.ip_families)? {
            wire::IpFamilies::Automatic => IpFamilies::Automatic,
            wire::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
            wire::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
            wire::IpFamilies::Dual => IpFamilies::Dual,
        },
        canonical: message.canonical,
        // An unknown visibility is public by definition of the field.
        visibility: match wire::Visibility::try_from(message.visibility) {
            Ok(wire::Visibility::Namespace) => Visibility::Namespace,
            Ok(wire::Visibility::Public) | Err(_) => Visibility::Public,
        },
    })
}

fn indexed<M, T>(
    messages: &[M],
    mut decode: impl FnMut(usize, &M) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    messages.iter().enumerate().map(|(index, message)| decode(index, message)).collect()
}

fn vip(
    index: usize,
    message: &wire::NetworkAddress,
    interner: &mut Interner,
) -> Result<ServiceVip, DecodeError> {
    let ip = ip(format_args!("addresses[{index}].address"), &message.address)?;
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let prefix_len = message.length.unwrap_or(full);
    let prefix_len = u8::try_from(prefix_len).ok().filter(|it| u32::from(*it) <= full).ok_or_else(|| {
        DecodeError::new(
            format!("addresses[{index}].length"),
            format!("a prefix of {prefix_len} bits in an address of {full}"),
            format!("send 0 to {full}, or nothing for a single address"),
        )
    })?;
    Ok(ServiceVip { network: interner.text(&message.network), ip, prefix_len })
}

fn service_port(index: usize, message: &wire::Port) -> Result<ServicePort, DecodeError> {
    let path = |field| format!("ports[{index}].{field}");
    Ok(ServicePort {
        service_port: port(path("service_port"), message.service_port)?,
        target_port: port(path("target_port"), message.target_port)?,
        app_protocol: match known(path("app_protocol"), message.app_protocol)? {
            wire::AppProtocol::Unknown => AppProtocol::Unknown,
            wire::AppProtocol::Http11 => AppProtocol::Http11,
            wire::AppProtocol::Http2 => AppProtocol::Http2,
            wire::AppProtocol::Grpc => AppProtocol::Grpc,
            wire::AppProtocol::Tcp => AppProtocol::Tcp,
            wire::AppProtocol::Tls => AppProtocol::Tls,
        },
    })
}

fn weighted_waypoint(
    index: usize,
    message: &wire::WeightedWaypoint,
    interner: &mut Interner,
) -> Result<WeightedWaypoint, DecodeError> {
    let path = format!("weighted_waypoints[{index}].destination");
    let destination = message
        .destination
        .as_ref()
        .ok_or_else(|| DecodeError::new(&path, "missing", "name the waypoint by host name or address"))?;
    Ok(WeightedWaypoint { destination: gateway(&path, destination, interner)?, weight: message.weight })
}

fn load_balancing(message: &wire::LoadBalancing) -> Result<LoadBalancing, DecodeError> {
    use wire::load_balancing::{HealthPolicy as WireHealth, Mode};
    Ok(LoadBalancing {
        routing_preference: indexed(&message.routing_preference, |index, value| scope(index, *value))?,
        mode: match known("load_balancing.mode", message.mode)? {
            Mode::UnspecifiedMode => LoadBalancingMode::Unspecified,
            Mode::Strict => LoadBalancingMode::Strict,
            Mode::Failover => LoadBalancingMode::Failover,
            Mode::Passthrough => LoadBalancingMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", message.health_policy)? {
            WireHealth::OnlyHealthy => HealthPolicy::OnlyHealthy,
            WireHealth::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn scope(index: usize, value: i32) -> Result<RoutingScope, DecodeError> {
    use wire::load_balancing::Scope;
    let path = format!("load_balancing.routing_preference[{index}]");
    match known(&path, value)? {
        Scope::UnspecifiedScope => Err(DecodeError::new(
            path,
            "UNSPECIFIED_SCOPE ranks nothing",
            "name a scope, or leave the entry out",
        )),
        Scope::Region => Ok(RoutingScope::Region),
        Scope::Zone => Ok(RoutingScope::Zone),
        Scope::Subzone => Ok(RoutingScope::Subzone),
        Scope::Node => Ok(RoutingScope::Node),
        Scope::Cluster => Ok(RoutingScope::Cluster),
        Scope::Network => Ok(RoutingScope::Network),
    }
}
