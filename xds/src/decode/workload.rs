//! `istio.workload.Workload`.

use model::{
    ApplicationTunnel, ApplicationTunnelProtocol, EndpointPort, Health, Identity, Locality, NetworkMode,
    Services, TunnelProtocol, Workload, WorkloadType,
};

use super::{DecodeError, Interner, ip, known, optional_gateway, port, text};
use crate::proto::workload as wire;

const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";
const CLUSTER: &str = "Kubernetes";

pub(super) fn workload(message: &wire::Workload, interner: &mut Interner) -> Result<Workload, DecodeError> {
    if message.uid.is_empty() {
        return Err(DecodeError::new("uid", "empty", "give every workload a unique uid"));
    }
    let locality = message.locality.clone().unwrap_or_default();
    Ok(Workload {
        uid: text(&message.uid),
        name: text(&message.name),
        namespace: interner.text(&message.namespace),
        identity: identity(message, interner)?,
        addresses: message
            .addresses
            .iter()
            .enumerate()
            .map(|(index, bytes)| ip(format_args!("addresses[{index}]"), bytes))
            .collect::<Result<_, _>>()?,
        hostname: interner.text(&message.hostname),
        network: interner.text(&message.network),
        tunnel_protocol: tunnel_protocol(message.tunnel_protocol)?,
        native_tunnel: message.native_tunnel,
        network_mode: match known("network_mode", message.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        waypoint: optional_gateway("waypoint", message.waypoint.as_ref(), interner)?,
        network_gateway: optional_gateway("network_gateway", message.network_gateway.as_ref(), interner)?,
        application_tunnel: message.application_tunnel.map(application_tunnel).transpose()?,
        authorization_policies: message
            .authorization_policies
            .iter()
            .map(|name| interner.text(name))
            .collect(),
        services: services(message, interner)?,
        health: match known("status", message.status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        locality: Locality {
            region: interner.text(&locality.region),
            zone: interner.text(&locality.zone),
            subzone: interner.text(&locality.subzone),
        },
        node: interner.text(&message.node),
        cluster_id: interner.text(or(&message.cluster_id, CLUSTER)),
        capacity: message.capacity.unwrap_or(1),
        workload_name: interner.text(&message.workload_name),
        workload_type: match known("workload_type", message.workload_type)? {
            wire::WorkloadType::Deployment => WorkloadType::Deployment,
            wire::WorkloadType::Cronjob => WorkloadType::CronJob,
            wire::WorkloadType::Pod => WorkloadType::Pod,
            wire::WorkloadType::Job => WorkloadType::Job,
        },
        canonical_name: interner.text(&message.canonical_name),
        canonical_revision: interner.text(&message.canonical_revision),
    })
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

fn identity(message: &wire::Workload, interner: &mut Interner) -> Result<Identity, DecodeError> {
    let trust_domain = or(&message.trust_domain, TRUST_DOMAIN);
    let service_account = or(&message.service_account, SERVICE_ACCOUNT);
    let identity = Identity::new(trust_domain, &message.namespace, service_account).map_err(|error| {
        let path = "trust_domain, namespace and service_account";
        DecodeError::new(path, error.to_string(), "send names that make a SPIFFE identity")
    })?;
    Ok(interner.identity(identity))
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, DecodeError> {
    match known("tunnel_protocol", value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(DecodeError::new(
            "tunnel_protocol",
            "LEGACY_ISTIO_MTLS is not supported",
            "give the workload a node proxy (HBONE), or take it out of the mesh (NONE)",
        )),
    }
}

fn application_tunnel(message: wire::ApplicationTunnel) -> Result<ApplicationTunnel, DecodeError> {
    use wire::application_tunnel::Protocol;
    let protocol = match known("application_tunnel.protocol", message.protocol)? {
        Protocol::None => ApplicationTunnelProtocol::None,
        Protocol::Proxy => ApplicationTunnelProtocol::Proxy,
    };
    Ok(ApplicationTunnel { protocol, port: port("application_tunnel.port", message.port)? })
}

fn services(message: &wire::Workload, interner: &mut Interner) -> Result<Services, DecodeError> {
    let mut services = Vec::with_capacity(message.services.len());
    for (key, list) in &message.services {
        let (namespace, hostname) = key.split_once('/').unwrap_or_default();
        let path = format!("services[{key:?}]");
        let name = super::namespaced_hostname(&path, namespace, hostname, interner)?;
        let ports = list
            .ports
            .iter()
            .enumerate()
            .map(|(index, it)| {
                let path = |field| format!("{path}.ports[{index}].{field}");
                Ok(EndpointPort {
                    service_port: port(path("service_port"), it.service_port)?,
                    target_port: port(path("target_port"), it.target_port)?,
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        services.push((name, interner.ports(&ports)));
    }
    Ok(interner.services(services.into_iter().collect()))
}
