//! From the shape of the YAML to the messages of the wire.

use std::net::IpAddr;

use ipnet::IpNet;

use super::shape;
use crate::proto::security;
use crate::proto::workload as wire;

pub(super) fn workload(it: &shape::Workload) -> Result<wire::Address, String> {
    let workload = wire::Workload {
        uid: it.uid.clone(),
        name: it.name.clone(),
        namespace: it.namespace.clone(),
        addresses: it.workload_ips.iter().copied().map(octets).collect(),
        network: it.network.clone(),
        tunnel_protocol: match it.protocol {
            shape::Protocol::Tcp => wire::TunnelProtocol::None,
            shape::Protocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: it.trust_domain.clone(),
        service_account: it.service_account.clone(),
        waypoint: it.waypoint.as_ref().map(|it| gateway("waypoint", it)).transpose()?,
        network_gateway: it.network_gateway.as_ref().map(|it| gateway("networkGateway", it)).transpose()?,
        node: it.node.clone(),
        canonical_name: it.canonical_name.clone(),
        canonical_revision: it.canonical_revision.clone(),
        workload_type: match it.workload_type {
            shape::WorkloadType::Deployment => wire::WorkloadType::Deployment,
            shape::WorkloadType::CronJob => wire::WorkloadType::Cronjob,
            shape::WorkloadType::Pod => wire::WorkloadType::Pod,
            shape::WorkloadType::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: it.workload_name.clone(),
        native_tunnel: it.native_tunnel,
        authorization_policies: it.authorization_policies.clone(),
        status: match it.status {
            shape::Health::Healthy => wire::WorkloadStatus::Healthy,
            shape::Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: it.cluster_id.clone(),
        hostname: it.hostname.clone(),
        services: it.services.iter().map(|(key, ports)| (key.clone(), port_list(ports))).collect(),
        application_tunnel: it.application_tunnel.as_ref().map(application_tunnel),
        locality: Some(wire::Locality {
            region: it.locality.region.clone(),
            zone: it.locality.zone.clone(),
            subzone: it.locality.subzone.clone(),
        }),
        network_mode: match it.network_mode {
            shape::NetworkMode::Standard => wire::NetworkMode::Standard,
            shape::NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        capacity: Some(it.capacity),
        ..wire::Workload::default()
    };
    Ok(wire::Address { r#type: Some(wire::address::Type::Workload(workload)) })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ports(ports: &std::collections::BTreeMap<u16, u16>) -> Vec<wire::Port> {
    let port = |(&service, &target): (&u16, &u16)| wire::Port {
        service_port: service.into(),
        target_port: target.into(),
        ..wire::Port::default()
    };
    ports.iter().map(port).collect()
}

fn port_list(list: &std::collections::BTreeMap<u16, u16>) -> wire::PortList {
    wire::PortList { ports: ports(list) }
}

fn application_tunnel(it: &shape::ApplicationTunnel) -> wire::ApplicationTunnel {
    use wire::application_tunnel::Protocol;
    let protocol = match it.protocol {
        shape::TunnelProtocol::None => Protocol::None,
        shape::TunnelProtocol::Proxy => Protocol::Proxy,
    };
    wire::ApplicationTunnel { protocol: protocol.into(), port: it.port.unwrap_or(0).into() }
}

fn gateway(field: &str, it: &shape::Gateway) -> Result<wire::GatewayAddress, String> {
    use wire::gateway_address::Destination;
    let fault =
        || format!("{field}.destination: {:?} is neither NETWORK/IP nor NAMESPACE/HOSTNAME", it.destination);
    let (first, second) = it.destination.split_once('/').ok_or_else(fault)?;
    let destination = match second.parse::<IpAddr>() {
        Ok(ip) => Destination::Address(wire::NetworkAddress {
            network: first.to_owned(),
            address: octets(ip),
            ..wire::NetworkAddress::default()
        }),
        Err(_) if first.is_empty() || second.is_empty() => return Err(fault()),
        Err(_) => Destination::Hostname(wire::NamespacedHostname {
            namespace: first.to_owned(),
            hostname: second.to_owned(),
        }),
    };
    Ok(wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: it.hbone_mtls_port.into() })
}

pub(super) fn service(it: &shape::Service) -> Result<wire::Address, String> {
    for name in &it.subject_alt_names {
        // The wire leaves out names that are no identities; whoever writes one by hand wants to know.
        name.parse::<model::Identity>().map_err(|error| format!("subjectAltNames: {error}"))?;
    }
    let service = wire::Service {
        name: it.name.clone(),
        namespace: it.namespace.clone(),
        hostname: it.hostname.clone(),
        addresses: it.vips.iter().map(|vip| virtual_address(vip)).collect::<Result<_, _>>()?,
        ports: ports(&it.ports),
        subject_alt_names: it.subject_alt_names.clone(),
        waypoint: it.waypoint.as_ref().map(|it| gateway("waypoint", it)).transpose()?,
        load_balancing: it.load_balancer.as_ref().map(load_balancing),
        ip_families: match it.ip_families {
            None => wire::IpFamilies::Automatic,
            Some(shape::IpFamilies::Ipv4) => wire::IpFamilies::Ipv4Only,
            Some(shape::IpFamilies::Ipv6) => wire::IpFamilies::Ipv6Only,
            Some(shape::IpFamilies::Dual) => wire::IpFamilies::Dual,
        }
        .into(),
        canonical: it.canonical,
        visibility: match it.visibility {
            shape::Visibility::Public => wire::Visibility::Public,
            shape::Visibility::Namespace => wire::Visibility::Namespace,
        }
        .into(),
        ..wire::Service::default()
    };
    Ok(wire::Address { r#type: Some(wire::address::Type::Service(service)) })
}

fn virtual_address(text: &str) -> Result<wire::NetworkAddress, String> {
    let fault = || format!("vips: {text:?} is not NETWORK/IP or NETWORK/IP/LENGTH");
    let (network, address) = text.split_once('/').ok_or_else(fault)?;
    let (ip, length) = match address.split_once('/') {
        Some((ip, length)) => (ip, Some(length.parse().map_err(|_| fault())?)),
        None => (address, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| fault())?;
    Ok(wire::NetworkAddress { network: network.to_owned(), address: octets(ip), length })
}

fn load_balancing(it: &shape::LoadBalancer) -> wire::LoadBalancing {
    use wire::load_balancing::{HealthPolicy, Mode, Scope};
    let scope = |scope: &shape::Scope| match scope {
        shape::Scope::Region => Scope::Region,
        shape::Scope::Zone => Scope::Zone,
        shape::Scope::Subzone => Scope::Subzone,
        shape::Scope::Node => Scope::Node,
        shape::Scope::Cluster => Scope::Cluster,
        shape::Scope::Network => Scope::Network,
    };
    wire::LoadBalancing {
        routing_preference: it.routing_preferences.iter().map(|it| scope(it).into()).collect(),
        mode: match it.mode {
            shape::Mode::Standard => Mode::UnspecifiedMode,
            shape::Mode::Strict => Mode::Strict,
            shape::Mode::Failover => Mode::Failover,
            shape::Mode::Passthrough => Mode::Passthrough,
        }
        .into(),
        health_policy: match it.health_policy {
            shape::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            shape::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        }
        .into(),
    }
}

pub(super) fn policy(it: &shape::Policy) -> Result<security::Authorization, String> {
    let clause = |matches: &Vec<shape::Match>| {
        let matches = matches.iter().map(one_match).collect::<Result<_, _>>()?;
        Ok::<_, String>(security::Clause { matches })
    };
    let rule = |clauses: &Vec<Vec<shape::Match>>| {
        let clauses = clauses.iter().map(clause).collect::<Result<_, _>>()?;
        Ok::<_, String>(security::Rule { clauses })
    };
    Ok(security::Authorization {
        name: it.name.clone(),
        namespace: it.namespace.clone(),
        scope: match it.scope {
            shape::PolicyScope::Global => security::Scope::Global,
            shape::PolicyScope::Namespace => security::Scope::Namespace,
            shape::PolicyScope::WorkloadSelector => security::Scope::WorkloadSelector,
        }
        .into(),
        action: match it.action {
            shape::Action::Allow => security::Action::Allow,
            shape::Action::Deny => security::Action::Deny,
        }
        .into(),
        rules: it.rules.iter().map(rule).collect::<Result<_, _>>()?,
        dry_run: it.dry_run,
        ..security::Authorization::default()
    })
}

fn one_match(it: &shape::Match) -> Result<security::Match, String> {
    let numbers = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    Ok(security::Match {
        namespaces: texts(&it.namespaces),
        not_namespaces: texts(&it.not_namespaces),
        principals: texts(&it.principals),
        not_principals: texts(&it.not_principals),
        service_accounts: accounts(&it.service_accounts),
        not_service_accounts: accounts(&it.not_service_accounts),
        source_ips: blocks("sourceIps", &it.source_ips)?,
        not_source_ips: blocks("notSourceIps", &it.not_source_ips)?,
        destination_ips: blocks("destinationIps", &it.destination_ips)?,
        not_destination_ips: blocks("notDestinationIps", &it.not_destination_ips)?,
        destination_ports: numbers(&it.destination_ports),
        not_destination_ports: numbers(&it.not_destination_ports),
        ..security::Match::default()
    })
}

fn texts(list: &[shape::Text]) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    let text = |it: &shape::Text| match it {
        shape::Text::Exact(text) => MatchType::Exact(text.clone()),
        shape::Text::Prefix(text) => MatchType::Prefix(text.clone()),
        shape::Text::Suffix(text) => MatchType::Suffix(text.clone()),
        shape::Text::Presence() => MatchType::Presence(()),
    };
    list.iter().map(|it| security::StringMatch { match_type: Some(text(it)) }).collect()
}

fn accounts(list: &[shape::ServiceAccount]) -> Vec<security::ServiceAccountMatch> {
    let account = |it: &shape::ServiceAccount| security::ServiceAccountMatch {
        namespace: it.namespace.clone(),
        service_account: it.service_account.clone(),
    };
    list.iter().map(account).collect()
}

fn blocks(field: &str, list: &[String]) -> Result<Vec<security::Address>, String> {
    let block = |text: &String| {
        let block = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let block =
            block.map_err(|_| format!("{field}: {text:?} is neither an address nor a block of them"))?;
        Ok(security::Address { address: octets(block.addr()), length: block.prefix_len().into() })
    };
    list.iter().map(block).collect()
}
