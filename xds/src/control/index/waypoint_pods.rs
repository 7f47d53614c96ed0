//! The Service and the pod of a waypoint Gateway that has none, as Istio's controller makes them.

use std::borrow::Cow;
use std::sync::Arc;

use super::waypoints::{GATEWAY_MANAGED, GATEWAY_NAME, is_our_class, is_waypoint_class};
use super::{DATAPLANE_MODE, IndexSettings};
use crate::control::config::WaypointPods;
use crate::kube::cluster::{
    Container, ContainerPort, Pod, Service, ServicePort, ServiceType, TargetPort, TransportProtocol,
};
use crate::kube::gateway::Gateway;
use crate::kube::{Catalog, Labels, Meta, ObjectName};

/// Label of what Istio's controller of waypoints has made.
const MANAGED: &str = "istio.io-mesh-controller";
/// Ports of a waypoint: readiness, and HBONE.
const PORTS: [(&str, u16, Option<&str>); 2] = [("status-port", 15021, None), ("mesh", 15008, Some("hbone"))];

/// The catalog with what its Gateways lack, if that is to be made.
pub(super) fn complete<'a>(catalog: &'a Catalog, settings: &IndexSettings) -> Cow<'a, Catalog> {
    if settings.waypoint_pods == WaypointPods::Written {
        return Cow::Borrowed(catalog);
    }
    let lacking: Vec<_> = catalog.gateways.values().filter(|it| lacks_pods(catalog, settings, it)).collect();
    if lacking.is_empty() {
        return Cow::Borrowed(catalog);
    }
    let mut completed = catalog.clone();
    for gateway in lacking {
        let name = gateway.meta.object_name();
        completed.services.entry(name.clone()).or_insert_with(|| Arc::new(service(gateway)));
        completed.pods.insert(name, Arc::new(pod(gateway)));
    }
    Cow::Owned(completed)
}

/// A waypoint by its class whose address nobody else has been asked for, without an instance.
fn lacks_pods(catalog: &Catalog, settings: &IndexSettings, gateway: &Gateway) -> bool {
    let takes_hbone = gateway.listeners.iter().any(|listener| &*listener.protocol == "HBONE");
    let is_made_elsewhere = !gateway.requested_addresses.is_empty() || !gateway.assigned_addresses.is_empty();
    let name = gateway.meta.object_name();
    let is_instance = |pod: &Arc<Pod>| {
        pod.meta.namespace == name.namespace && pod.meta.label(GATEWAY_NAME) == Some(&*name.name)
    };
    takes_hbone
        && !is_made_elsewhere
        && is_waypoint_class(catalog, settings, &gateway.class)
        && !catalog.pods.contains_key(&name)
        && !catalog.pods.values().any(is_instance)
}

fn service(gateway: &Gateway) -> Service {
    let ports = PORTS.map(|(name, port, app_protocol)| ServicePort {
        name: name.into(),
        port,
        target: TargetPort::Number(port),
        protocol: TransportProtocol::Tcp,
        app_protocol: app_protocol.map(Arc::from),
    });
    Service {
        meta: meta(gateway),
        service_type: ServiceType::ClusterIp,
        cluster_ips: Vec::new(),
        headless: false,
        ports: ports.to_vec(),
        selector: [(Arc::from(GATEWAY_NAME), Arc::clone(&gateway.meta.name))].into(),
        internal_traffic_local: false,
        traffic_distribution: None,
        publish_not_ready_addresses: false,
        ip_families: Vec::new(),
        ip_family_policy: None,
    }
}

/// Of the Gateway's name and account, and not captured: it speaks HBONE itself.
fn pod(gateway: &Gateway) -> Pod {
    let mut meta = meta(gateway);
    meta.labels.insert(Arc::from(DATAPLANE_MODE), Arc::from("none"));
    let port = |(name, port, _): (&str, u16, _)| ContainerPort {
        name: name.into(),
        port,
        protocol: TransportProtocol::Tcp,
    };
    Pod {
        meta,
        node_name: Arc::from(""),
        service_account: Arc::clone(&gateway.meta.name),
        host_network: false,
        containers: vec![Container {
            name: Arc::from("waypoint"),
            image: Arc::from("corelane"),
            command: Vec::new(),
            args: vec![Arc::from("waypoint")],
            ports: PORTS.map(port).to_vec(),
        }],
        owner: None,
        phase: None,
        ips: Vec::new(),
        host_ip: None,
        ready: None,
        deleting: false,
    }
}

fn meta(gateway: &Gateway) -> Meta {
    let labels: Labels = [
        (Arc::from(GATEWAY_NAME), Arc::clone(&gateway.meta.name)),
        (Arc::from("gateway.networking.k8s.io/gateway-class-name"), Arc::clone(&gateway.class)),
        (Arc::from(GATEWAY_MANAGED), Arc::from(MANAGED)),
    ]
    .into();
    Meta { labels, annotations: Labels::new(), uid: Arc::from(""), ..gateway.meta.clone() }
}

/// The Gateway whose instance a pod is, if it is of a class of ours.
pub(super) fn gateway_of(catalog: &Catalog, settings: &IndexSettings, meta: &Meta) -> Option<ObjectName> {
    let name = ObjectName::new(meta.namespace.clone(), meta.label(GATEWAY_NAME)?);
    let gateway = catalog.gateways.get(&name)?;
    is_our_class(catalog, settings, &gateway.class).then_some(name)
}
