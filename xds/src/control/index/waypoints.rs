//! Which waypoint, if any, stands before a service or a workload.
//!
//! Any Gateway with an address can be one. Label `istio.io/use-waypoint` of the object wins over that of its namespace;
//! `none` opts out; a name that leads nowhere does not fall back to the namespace.
//!
//! The class of a Gateway decides whether routes reach it: those of a class that another controller serves are that
//! controller's own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::IndexSettings;
use super::selects;
use crate::control::desired::ip_bytes;
use crate::kube::gateway::{AllowedNamespaces, Gateway, GatewayAddress, GatewayAddressKind};
use crate::kube::{Catalog, Labels, Meta, ObjectName};
use crate::proto::workload;

const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
pub(super) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
pub(super) const GATEWAY_MANAGED: &str = "gateway.istio.io/managed";
/// Services that a controller made for these are waypoints or gateways themselves.
const MANAGED_EXEMPT: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];
/// Class and controller of Istio's own waypoints; neither can be configured.
const WAYPOINT_CLASS: &str = "istio-waypoint";
const WAYPOINT_CONTROLLER: &str = "istio.io/mesh-controller";
const HBONE_PORT: u16 = 15008;

/// What traffic is addressed to: a service, or a workload by its own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

/// The Gateways that can be waypoints, by name.
pub(super) struct Waypoints<'a> {
    catalog: &'a Catalog,
    by_name: BTreeMap<ObjectName, Waypoint<'a>>,
}

struct Waypoint<'a> {
    name: ObjectName,
    class: &'a str,
    address: workload::GatewayAddress,
    services: bool,
    workloads: bool,
    allowed: &'a AllowedNamespaces,
    application_tunnel: Option<workload::ApplicationTunnel>,
}

// === impl Waypoints ===

impl<'a> Waypoints<'a> {
    pub(super) fn new(catalog: &'a Catalog, settings: &IndexSettings) -> Self {
        let by_name = catalog
            .gateways
            .iter()
            .filter_map(|(name, gateway)| Some((name.clone(), waypoint(catalog, settings, gateway)?)))
            .collect();
        Self { catalog, by_name }
    }

    /// The waypoint of a Service or ServiceEntry.
    pub(super) fn of_service(&self, meta: &Meta) -> Option<workload::GatewayAddress> {
        self.before_service(meta).map(|waypoint| waypoint.address.clone())
    }

    /// The name and class of the Gateway that is the waypoint of a Service or ServiceEntry.
    pub(super) fn gateway_of_service(&self, meta: &Meta) -> Option<(&ObjectName, &'a str)> {
        self.before_service(meta).map(|waypoint| (&waypoint.name, waypoint.class))
    }

    fn before_service(&self, meta: &Meta) -> Option<&Waypoint<'a>> {
        if meta.label(GATEWAY_MANAGED).is_some_and(|managed| MANAGED_EXEMPT.contains(&managed)) {
            return None;
        }
        self.resolve(meta, Traffic::Service)
    }

    /// Names and classes of the Gateways that can be waypoints.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (&ObjectName, &'a str)> {
        self.by_name.values().map(|waypoint| (&waypoint.name, waypoint.class))
    }

    /// The Gateway whose instance a pod is.
    pub(super) fn gateway_of_pod(&self, meta: &Meta) -> Option<&ObjectName> {
        self.instance_of(meta).map(|waypoint| &waypoint.name)
    }

    /// The waypoint of a pod or WorkloadEntry. A waypoint's own pods have none: traffic would turn in circles.
    pub(super) fn of_workload(&self, meta: &Meta) -> Option<workload::GatewayAddress> {
        if self.instance_of(meta).is_some() {
            return None;
        }
        self.resolve(meta, Traffic::Workload).map(|waypoint| waypoint.address.clone())
    }

    /// How a waypoint's own pods want to receive what the tunnel carried.
    pub(super) fn application_tunnel(&self, meta: &Meta) -> Option<workload::ApplicationTunnel> {
        self.instance_of(meta)?.application_tunnel
    }

    fn instance_of(&self, meta: &Meta) -> Option<&Waypoint<'a>> {
        let gateway = meta.label(GATEWAY_NAME)?;
        self.by_name.get(&ObjectName::new(meta.namespace.clone(), gateway))
    }

    fn resolve(&self, meta: &Meta, traffic: Traffic) -> Option<&Waypoint<'a>> {
        let of_namespace = self.catalog.namespaces.get(&ObjectName::new("", meta.namespace.clone()));
        let namespace_labels = of_namespace.map(|namespace| &namespace.meta.labels);
        // Of each object the label before the annotation, which older releases of Istio have.
        let annotations = of_namespace.map(|namespace| &namespace.meta.annotations);
        let labels = [&meta.labels, &meta.annotations]
            .into_iter()
            .chain(namespace_labels)
            .chain(annotations)
            .find(|labels| labels.contains_key(USE_WAYPOINT))?;
        let name = labels.get(USE_WAYPOINT)?;
        if &**name == "none" {
            return None;
        }
        let namespace = labels.get(USE_WAYPOINT_NAMESPACE).unwrap_or(&meta.namespace);
        let waypoint = self.by_name.get(&ObjectName::new(namespace.clone(), name.clone()))?;
        let takes = match traffic {
            Traffic::Service => waypoint.services,
            Traffic::Workload => waypoint.workloads,
        };
        let same_namespace = *namespace == meta.namespace;
        let allowed = same_namespace
            || match waypoint.allowed {
                AllowedNamespaces::All => true,
                AllowedNamespaces::Selector(selector) => {
                    selects(selector, namespace_labels.unwrap_or(&Labels::new()))
                }
                AllowedNamespaces::Same | AllowedNamespaces::None => false,
            };
        (takes && allowed).then_some(waypoint)
    }
}

fn waypoint<'a>(catalog: &Catalog, settings: &IndexSettings, gateway: &'a Gateway) -> Option<Waypoint<'a>> {
    const SAME: &AllowedNamespaces = &AllowedNamespaces::Same;
    let address = address(catalog, settings, gateway)?;
    let class = catalog.gateway_classes.get(&ObjectName::new("", gateway.class.clone()));
    let class = class.map(|class| &class.meta);
    let traffic = gateway
        .meta
        .label(WAYPOINT_FOR)
        .or_else(|| class.and_then(|class| class.label(WAYPOINT_FOR)))
        .unwrap_or("service");
    let binding = gateway
        .meta
        .annotation(INBOUND_BINDING)
        .or_else(|| class.and_then(|class| class.annotation(INBOUND_BINDING)));
    let listener = gateway
        .listeners
        .iter()
        .find(|listener| listener.port == HBONE_PORT && &*listener.protocol == "HBONE");
    Some(Waypoint {
        name: gateway.meta.object_name(),
        class: &gateway.class,
        address,
        services: matches!(traffic, "service" | "all"),
        workloads: matches!(traffic, "workload" | "all"),
        allowed: listener.map_or(SAME, |listener| &listener.allowed),
        application_tunnel: binding.and_then(application_tunnel),
    })
}

/// Whether the Gateways of a class are served by us: its controller is that of the waypoints, or the configured one.
pub(super) fn is_our_class(catalog: &Catalog, settings: &IndexSettings, class: &str) -> bool {
    controller(catalog, settings, class)
        .is_some_and(|it| [WAYPOINT_CONTROLLER, &settings.gateway_class.controller].contains(&it))
}

/// Whether the Gateways of a class are waypoints by their class.
pub(super) fn is_waypoint_class(catalog: &Catalog, settings: &IndexSettings, class: &str) -> bool {
    controller(catalog, settings, class) == Some(WAYPOINT_CONTROLLER)
}

/// The controller of a class, whose object need not be there where Istio makes it.
fn controller<'a>(catalog: &'a Catalog, settings: &'a IndexSettings, class: &str) -> Option<&'a str> {
    match catalog.gateway_classes.get(&ObjectName::new("", class)) {
        Some(object) => Some(&object.controller_name),
        None if class == WAYPOINT_CLASS => Some(WAYPOINT_CONTROLLER),
        None => (*class == *settings.gateway_class.name).then_some(&*settings.gateway_class.controller),
    }
}

/// The address that a controller assigned, else the one asked for, else the Service of the Gateway's name: without
/// a controller there is nobody else to assign one.
fn address(
    catalog: &Catalog,
    settings: &IndexSettings,
    gateway: &Gateway,
) -> Option<workload::GatewayAddress> {
    use workload::gateway_address::Destination;

    let namespace = &gateway.meta.namespace;
    let hostname = |hostname: &str| {
        Destination::Hostname(workload::NamespacedHostname {
            namespace: namespace.to_string(),
            hostname: hostname.to_owned(),
        })
    };
    let from = |addresses: &[GatewayAddress]| {
        let named = addresses.iter().find(|address| address.kind == GatewayAddressKind::Hostname);
        if let Some(address) = named {
            return Some(hostname(&address.value));
        }
        let address = addresses.iter().find(|address| address.kind == GatewayAddressKind::IpAddress)?;
        let ip: IpAddr = address.value.parse().ok()?;
        let address =
            workload::NetworkAddress { network: String::new(), address: ip_bytes(ip), length: None };
        Some(Destination::Address(address))
    };
    let destination =
        from(&gateway.assigned_addresses).or_else(|| from(&gateway.requested_addresses)).or_else(|| {
            let service = catalog.services.get(&gateway.meta.object_name())?;
            Some(hostname(&settings.mesh.service_hostname(namespace, &service.meta.name)))
        })?;
    Some(workload::GatewayAddress { destination: Some(destination), hbone_mtls_port: u32::from(HBONE_PORT) })
}

/// Reads `PROXY/PORT`; anything else asks for no tunnel.
fn application_tunnel(binding: &str) -> Option<workload::ApplicationTunnel> {
    let (protocol, port) = binding.split_once('/').unwrap_or((binding, "0"));
    (protocol == "PROXY").then_some(())?;
    Some(workload::ApplicationTunnel {
        protocol: workload::application_tunnel::Protocol::Proxy.into(),
        port: u32::from(port.parse::<u16>().ok()?),
    })
}
