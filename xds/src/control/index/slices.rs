//! EndpointSlices of Services without selector: endpoints that someone else keeps.
//!
//! Slices of a Service with a selector carry nothing new and are not read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::services::{ServiceTable, endpoint_port, service_key};
use super::{Context, IndexSettings, wire_trust_domain};
use crate::control::desired::{DesiredState, ip_bytes};
use crate::kube::cluster::{Endpoint, EndpointSlice, Service, ServiceType};
use crate::kube::convert::ServiceRef;
use crate::kube::{Catalog, ObjectName};
use crate::proto::workload;

/// Adds a workload for each address that belongs to no pod we know.
pub(super) fn publish(context: &Context<'_>, desired: &mut DesiredState) {
    for (slice, service) in slices(context.catalog) {
        let ports = ports(slice, service);
        let key = service_key(context.settings, service);
        for endpoint in &slice.endpoints {
            if pod_of(context.catalog, endpoint).is_some() {
                continue;
            }
            for ip in &endpoint.addresses {
                desired.insert_workload(workload(context, slice, endpoint, *ip, &key, ports.clone()));
            }
        }
    }
}

/// The services that name a pod as endpoint in a slice, by pod.
pub(super) struct Memberships<'a> {
    by_pod: BTreeMap<&'a ObjectName, Vec<Membership>>,
}

#[derive(Clone)]
pub(super) struct Membership {
    pub(super) key: Arc<str>,
    /// The Service as policies target it; `None` where its waypoint enforces what targets it.
    pub(super) target: Option<ServiceRef>,
    pub(super) ports: Vec<workload::Port>,
}

impl<'a> Memberships<'a> {
    pub(super) fn new(catalog: &'a Catalog, settings: &IndexSettings, services: &ServiceTable<'_>) -> Self {
        let mut by_pod: BTreeMap<&ObjectName, Vec<Membership>> = BTreeMap::new();
        for (slice, service) in slices(catalog) {
            let key = service_key(settings, service);
            let governed = services.has_waypoint(&key);
            let membership = Membership {
                target: (!governed).then(|| ServiceRef::Service(service.meta.object_name())),
                ports: ports(slice, service),
                key,
            };
            for pod in slice.endpoints.iter().filter_map(|endpoint| pod_of(catalog, endpoint)) {
                by_pod.entry(pod).or_default().push(membership.clone());
            }
        }
        Self { by_pod }
    }

    pub(super) fn of_pod(&self, pod: &ObjectName) -> &[Membership] {
        self.by_pod.get(pod).map_or(&[], Vec::as_slice)
    }
}

/// The slices that count, each with its Service.
fn slices(catalog: &Catalog) -> impl Iterator<Item = (&EndpointSlice, &Service)> {
    catalog.endpoint_slices.values().filter_map(|slice| {
        let service = catalog.services.get(slice.service.as_ref()?)?;
        let counts = service.selector.is_empty() && service.service_type != ServiceType::ExternalName;
        counts.then_some((&**slice, &**service))
    })
}

fn pod_of<'a>(catalog: &Catalog, endpoint: &'a Endpoint) -> Option<&'a ObjectName> {
    endpoint.target_pod.as_ref().filter(|pod| catalog.pods.contains_key(*pod))
}

/// Service port to the slice's number for the port of the same name.
fn ports(slice: &EndpointSlice, service: &Service) -> Vec<workload::Port> {
    let target = |name: &Arc<str>| slice.ports.iter().find(|port| port.name == *name)?.port;
    service.ports.iter().filter_map(|port| Some(endpoint_port(port.port, target(&port.name)?))).collect()
}

fn workload(
    context: &Context<'_>,
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    ip: IpAddr,
    service: &str,
    ports: Vec<workload::Port>,
) -> workload::Workload {
    let meta = &slice.meta;
    workload::Workload {
        uid: format!(
            "{}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}",
            context.settings.cluster_id, meta.namespace, meta.name
        ),
        name: meta.name.to_string(),
        namespace: meta.namespace.to_string(),
        addresses: vec![ip_bytes(ip)],
        trust_domain: wire_trust_domain(context.settings),
        services: [(service.to_owned(), workload::PortList { ports })].into(),
        status: if endpoint.ready {
            workload::WorkloadStatus::Healthy.into()
        } else {
            workload::WorkloadStatus::Unhealthy.into()
        },
        cluster_id: context.settings.cluster_id.to_string(),
        // The address may be anything's, also one of ours: it must never be found by IP.
        network_mode: workload::NetworkMode::HostNetwork.into(),
        ..Default::default()
    }
}
