//! Services and ServiceEntries as `istio.workload.Service`, and who their endpoints are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::object_problem;
use super::waypoints::Waypoints;
use super::{Context, IndexSettings, app_protocol, selects};
use crate::control::desired::{DesiredState, ip_bytes};
use crate::control::view::{ClusterView, ServiceView};
use crate::kube::cluster::{
    ContainerPort, IpFamily, Pod, Service, ServicePort, ServiceType, TargetPort, TransportProtocol,
};
use crate::kube::convert::ServiceRef;
use crate::kube::istio::{Resolution, ServiceEntry, ServiceEntryPort, WorkloadSpec};
use crate::kube::{Catalog, Labels, Meta, Problem, Severity};
use crate::proto::workload;
use crate::proto::workload::load_balancing;

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const EXPORT_TO: &str = "networking.istio.io/exportTo";
const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// The services whose endpoints are chosen by labels, by namespace; and all that are served, by key.
#[derive(Default)]
pub(super) struct ServiceTable<'a> {
    selecting: BTreeMap<&'a str, Vec<Selecting<'a>>>,
    /// Keys `NAMESPACE/HOST` of everything that is served.
    served: BTreeSet<Arc<str>>,
    /// Keys of the services that a waypoint governs.
    behind_waypoint: BTreeSet<Arc<str>>,
    /// ServiceEntry hosts that another object of the same namespace already serves.
    shadowed: BTreeSet<(&'a str, &'a str, &'a str)>,
}

/// A service with a selector.
pub(super) struct Selecting<'a> {
    pub(super) key: Arc<str>,
    /// The object as policies target it; `None` where its waypoint enforces what targets it.
    pub(super) target: Option<ServiceRef>,
    namespace: &'a str,
    selector: &'a Labels,
    ports: Ports<'a>,
}

#[derive(Clone, Copy)]
enum Ports<'a> {
    Service(&'a [ServicePort]),
    Entry(&'a [ServiceEntryPort]),
}

// === impl ServiceTable ===

impl<'a> ServiceTable<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        settings: &IndexSettings,
        waypoints: &Waypoints<'_>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut table = Self::default();
        for service in catalog.services.values() {
            if service.service_type == ServiceType::ExternalName {
                continue;
            }
            let key = service_key(settings, service);
            table.served.insert(key.clone());
            let governed = waypoints.of_service(&service.meta).is_some();
            if governed {
                table.behind_waypoint.insert(key.clone());
            }
            table.select(Selecting {
                key,
                target: (!governed).then(|| ServiceRef::Service(service.meta.object_name())),
                namespace: &service.meta.namespace,
                selector: &service.selector,
                ports: Ports::Service(&service.ports),
            });
        }
        // The oldest entry of a host wins, as where several controllers meet on one name.
        let mut entries: Vec<&Arc<ServiceEntry>> = catalog.service_entries.values().collect();
        entries.sort_by_key(|entry| (entry.meta.created, &entry.meta.namespace, &entry.meta.name));
        for entry in entries {
            for host in &entry.hosts {
                let key: Arc<str> = format!("{}/{host}", entry.meta.namespace).into();
                if !table.served.insert(key.clone()) {
                    table.shadowed.insert((&entry.meta.namespace, &entry.meta.name, host));
                    problems.push(object_problem(
                        Severity::Warning,
                        "ServiceEntry",
                        &entry.meta,
                        "spec.hosts",
                        format!(
                            "another object of this namespace already serves {host}; this one is ignored"
                        ),
                        "give the host to one object only",
                    ));
                    continue;
                }
                let target = entry_target(waypoints, entry);
                if target.is_none() {
                    table.behind_waypoint.insert(key.clone());
                }
                if let Some(selector) = &entry.workload_selector {
                    let ports = Ports::Entry(&entry.ports);
                    let namespace = &entry.meta.namespace;
                    table.select(Selecting { key, target, namespace, selector, ports });
                }
            }
        }
        table
    }

    fn select(&mut self, service: Selecting<'a>) {
        if !service.selector.is_empty() {
            self.selecting.entry(service.namespace).or_default().push(service);
        }
    }

    /// The services of a namespace that select these labels.
    pub(super) fn selecting(&self, namespace: &str, labels: &Labels) -> impl Iterator<Item = &Selecting<'a>> {
        let of_namespace = self.selecting.get(namespace).into_iter().flatten();
        of_namespace.filter(move |service| selects(service.selector, labels))
    }

    /// True for a service that a waypoint governs.
    pub(super) fn has_waypoint(&self, key: &str) -> bool {
        self.behind_waypoint.contains(key)
    }

    /// False for a ServiceEntry's host that another object serves.
    pub(super) fn serves(&self, entry: &'a ServiceEntry, host: &'a str) -> bool {
        !self.shadowed.contains(&(&*entry.meta.namespace, &*entry.meta.name, host))
    }
}

// === impl Selecting ===

impl Selecting<'_> {
    /// The ports as a pod serves them; a named target that the pod does not have is left out.
    pub(super) fn ports_of_pod(&self, pod: &Pod) -> Vec<workload::Port> {
        match self.ports {
            Ports::Service(ports) => ports
                .iter()
                .filter_map(|port| {
                    let target = match &port.target {
                        TargetPort::Number(number) => *number,
                        TargetPort::Name(name) => container_port(pod, name, port.protocol)?.port,
                    };
                    Some(endpoint_port(port.port, target))
                })
                .collect(),
            Ports::Entry(ports) => ports
                .iter()
                .map(|port| endpoint_port(port.number, port.target_port.unwrap_or(port.number)))
                .collect(),
        }
    }

    /// The ports as a WorkloadEntry serves them: its own number for a port's name wins.
    pub(super) fn ports_of_entry(&self, spec: &WorkloadSpec) -> Vec<workload::Port> {
        match self.ports {
            Ports::Service(ports) => ports
                .iter()
                .filter_map(|port| {
                    let target = match (&port.target, spec.ports.get(&port.name)) {
                        (_, Some(own)) => *own,
                        (TargetPort::Number(number), None) => *number,
                        (TargetPort::Name(name), None) => *spec.ports.get(name)?,
                    };
                    Some(endpoint_port(port.port, target))
                })
                .collect(),
            Ports::Entry(ports) => entry_ports(ports, spec),
        }
    }
}

/// The ports of a ServiceEntry as one endpoint serves them.
pub(super) fn entry_ports(ports: &[ServiceEntryPort], spec: &WorkloadSpec) -> Vec<workload::Port> {
    ports
        .iter()
        .map(|port| {
            let own = spec.ports.get(&port.name).copied();
            endpoint_port(port.number, own.or(port.target_port).unwrap_or(port.number))
        })
        .collect()
}

pub(super) fn endpoint_port(service_port: u16, target_port: u16) -> workload::Port {
    workload::Port {
        service_port: service_port.into(),
        target_port: target_port.into(),
        app_protocol: workload::AppProtocol::Unknown.into(),
    }
}

fn container_port<'p>(pod: &'p Pod, name: &str, protocol: TransportProtocol) -> Option<&'p ContainerPort> {
    let ports = pod.containers.iter().flat_map(|container| &container.ports);
    ports.into_iter().find(|port| *port.name == *name && port.protocol == protocol)
}

/// A ServiceEntry as policies target it; `None` where its waypoint enforces what targets it.
pub(super) fn entry_target(waypoints: &Waypoints<'_>, entry: &ServiceEntry) -> Option<ServiceRef> {
    let governed = waypoints.of_service(&entry.meta).is_some();
    (!governed).then(|| ServiceRef::ServiceEntry(entry.meta.object_name()))
}

pub(super) fn service_key(settings: &IndexSettings, service: &Service) -> Arc<str> {
    let namespace = &service.meta.namespace;
    format!("{namespace}/{}", settings.mesh.service_hostname(namespace, &service.meta.name)).into()
}

/// True if a ServiceEntry's host gets an address from us: it has none, resolves to endpoints, and is a plain name.
pub(super) fn is_auto_allocated(entry: &ServiceEntry, host: &str) -> bool {
    entry.addresses.is_empty()
        && entry.resolution != Resolution::None
        && !host.contains('*')
        && entry.meta.label(AUTO_ALLOCATE) != Some("false")
}

// === Publishing ===

/// Adds all Services and ServiceEntries.
pub(super) fn publish(context: &Context<'_>, desired: &mut DesiredState, view: &mut ClusterView) {
    for service in context.catalog.services.values() {
        if service.service_type == ServiceType::ExternalName {
            continue;
        }
        let converted = kube_service(context, service);
        view.services.insert(
            service.meta.object_name(),
            ServiceView {
                namespace: service.meta.namespace.clone(),
                name: service.meta.name.clone(),
                hostname: converted.hostname.as_str().into(),
                ips: context.assigned.service(service),
                ports: service.ports.iter().map(|port| port.port).collect(),
            },
        );
        if exports_to(&service.meta).is_some() {
            desired.insert_service(converted);
        }
    }
    for entry in context.catalog.service_entries.values() {
        for host in &entry.hosts {
            if context.services.serves(entry, host) && entry.export_to.iter().all(|scope| &**scope != "~") {
                desired.insert_service(entry_service(context, entry, host));
            }
        }
    }
}

fn kube_service(context: &Context<'_>, service: &Service) -> workload::Service {
    let meta = &service.meta;
    workload::Service {
        name: meta.name.to_string(),
        namespace: meta.namespace.to_string(),
        hostname: context.settings.mesh.service_hostname(&meta.namespace, &meta.name).to_string(),
        addresses: context.assigned.service(service).into_iter().map(single_address).collect(),
        ports: service
            .ports
            .iter()
            .map(|port| workload::Port {
                service_port: port.port.into(),
                target_port: match port.target {
                    TargetPort::Number(number) => number.into(),
                    // Each workload carries its own.
                    TargetPort::Name(_) => 0,
                },
                app_protocol: app_protocol::of_service_port(port).into(),
            })
            .collect(),
        waypoint: context.waypoints.of_service(meta),
        load_balancing: load_balancing(context, service),
        ip_families: ip_families(service).into(),
        canonical: true,
        visibility: exports_to(meta).unwrap_or_default().into(),
        ..Default::default()
    }
}

fn entry_service(context: &Context<'_>, entry: &ServiceEntry, host: &str) -> workload::Service {
    let meta = &entry.meta;
    let mut addresses: Vec<workload::NetworkAddress> = entry
        .addresses
        .iter()
        .map(|net| {
            let single = net.prefix_len() == net.max_prefix_len();
            let length = (!single).then(|| u32::from(net.prefix_len()));
            workload::NetworkAddress { length, ..single_address(net.addr()) }
        })
        .collect();
    addresses.extend(context.assigned.service_entry(&meta.namespace, host).map(single_address));
    let passthrough = entry.resolution == Resolution::None;
    workload::Service {
        name: meta.name.to_string(),
        namespace: meta.namespace.to_string(),
        hostname: host.to_owned(),
        addresses,
        ports: entry
            .ports
            .iter()
            .map(|port| workload::Port {
                service_port: port.number.into(),
                target_port: port.target_port.unwrap_or(port.number).into(),
                app_protocol: app_protocol::of_name(&port.protocol).into(),
            })
            .collect(),
        subject_alt_names: entry.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: context.waypoints.of_service(meta),
        load_balancing: passthrough.then(|| workload::LoadBalancing {
            routing_preference: Vec::new(),
            mode: load_balancing::Mode::Passthrough.into(),
            health_policy: load_balancing::HealthPolicy::AllowAll.into(),
        }),
        canonical: is_canonical(context, entry, host),
        visibility: if entry.export_to.iter().any(|scope| &**scope == ".") {
            workload::Visibility::Namespace.into()
        } else {
            workload::Visibility::Public.into()
        },
        ..Default::default()
    }
}

/// The oldest entry of a host, unless a Kubernetes Service has that host.
fn is_canonical(context: &Context<'_>, entry: &ServiceEntry, host: &str) -> bool {
    let age =
        |entry: &ServiceEntry| (entry.meta.created, entry.meta.namespace.clone(), entry.meta.name.clone());
    let mine = age(entry);
    let is_service_host = || {
        let suffix = format!(".svc.{}", context.settings.mesh.cluster_domain);
        let Some((name, namespace)) = host.strip_suffix(&*suffix).and_then(|short| short.split_once('.'))
        else {
            return false;
        };
        context.catalog.services.contains_key(&crate::kube::ObjectName::new(namespace, name))
    };
    let older = |other: &Arc<ServiceEntry>| {
        other.hosts.iter().any(|other_host| **other_host == *host) && age(other) < mine
    };
    !is_service_host() && !context.catalog.service_entries.values().any(older)
}

fn single_address(ip: IpAddr) -> workload::NetworkAddress {
    workload::NetworkAddress { network: String::new(), address: ip_bytes(ip), length: None }
}

/// How endpoints are chosen; `None` is random among the healthy.
fn load_balancing(context: &Context<'_>, service: &Service) -> Option<workload::LoadBalancing> {
    use load_balancing::{HealthPolicy, Mode, Scope};

    let namespace = crate::kube::ObjectName::new("", service.meta.namespace.clone());
    let namespace = context.catalog.namespaces.get(&namespace).map(|namespace| &namespace.meta);
    let written = service.traffic_distribution.as_deref();
    let annotated = || {
        let of = |meta: &Meta| meta.annotation(TRAFFIC_DISTRIBUTION).map(str::to_owned);
        of(&service.meta).or_else(|| namespace.and_then(of))
    };
    let distribution = written.map(str::to_owned).or_else(annotated).unwrap_or_default();
    let (mode, scopes): (Mode, &[Scope]) = if service.internal_traffic_local {
        (Mode::Strict, &[Scope::Node])
    } else {
        match distribution.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => {
                (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone])
            }
            "prefersamenode" => (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone, Scope::Node]),
            _ => (Mode::UnspecifiedMode, &[]),
        }
    };
    if mode == Mode::UnspecifiedMode && !service.publish_not_ready_addresses {
        return None;
    }
    let health =
        if service.publish_not_ready_addresses { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    Some(workload::LoadBalancing {
        routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}

fn ip_families(service: &Service) -> workload::IpFamilies {
    match service.ip_families.as_slice() {
        [] => workload::IpFamilies::Automatic,
        [IpFamily::Ipv4] => workload::IpFamilies::Ipv4Only,
        [IpFamily::Ipv6] => workload::IpFamilies::Ipv6Only,
        _ => workload::IpFamilies::Dual,
    }
}

/// Who may resolve a Service; `None` for nobody.
fn exports_to(meta: &Meta) -> Option<workload::Visibility> {
    match meta.annotation(EXPORT_TO) {
        Some("~") => None,
        Some(".") => Some(workload::Visibility::Namespace),
        _ => Some(workload::Visibility::Public),
    }
}
