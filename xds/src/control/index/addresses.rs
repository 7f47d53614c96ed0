//! Which objects need an address from us, and which addresses the configuration already uses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::POD_ADDRESS;
use super::services::is_auto_allocated;
use crate::control::config::ControlConfig;
use crate::control::ipam::{AddressBlock, BlockExhausted};
use crate::kube::cluster::{Pod, Service, ServiceType};
use crate::kube::{Catalog, Meta, ObjectName, Problem, Severity};

/// The blocks we assign from, with their holders.
#[derive(Debug)]
pub(super) struct Addresses {
    pods: AddressBlock,
    services: AddressBlock,
    service_entries: AddressBlock,
}

/// Addresses of one build, by the object's `NAMESPACE/NAME` (for a ServiceEntry `NAMESPACE/HOST`).
#[derive(Debug, Default)]
pub(super) struct Assigned {
    pods: BTreeMap<Arc<str>, IpAddr>,
    services: BTreeMap<Arc<str>, IpAddr>,
    service_entries: BTreeMap<Arc<str>, IpAddr>,
}

// === impl Assigned ===

impl Assigned {
    /// The pod's own addresses, else the one given by its annotation or by us.
    pub(super) fn pod(&self, pod: &Pod) -> Vec<IpAddr> {
        match written_pod_address(pod) {
            written if !written.is_empty() => written,
            _ => self.pods.get(&*key(&pod.meta)).copied().into_iter().collect(),
        }
    }

    pub(super) fn service(&self, service: &Service) -> Vec<IpAddr> {
        if service.cluster_ips.is_empty() {
            self.services.get(&*key(&service.meta)).copied().into_iter().collect()
        } else {
            service.cluster_ips.clone()
        }
    }

    pub(super) fn service_entry(&self, namespace: &str, host: &str) -> Option<IpAddr> {
        self.service_entries.get(&*format!("{namespace}/{host}")).copied()
    }
}

// === impl Addresses ===

impl Addresses {
    pub(super) fn new(config: &ControlConfig) -> Self {
        Self {
            pods: AddressBlock::new(config.pod_network),
            services: AddressBlock::new(config.service_network),
            service_entries: AddressBlock::new(config.service_entry_network),
        }
    }

    pub(super) fn assign(&mut self, catalog: &Catalog, problems: &mut Vec<Problem>) -> Assigned {
        let taken = written_addresses(catalog);
        let pods: BTreeMap<Arc<str>, &Meta> = catalog
            .pods
            .values()
            .filter(|pod| !pod.host_network && written_pod_address(pod).is_empty())
            .map(|pod| (key(&pod.meta), &pod.meta))
            .collect();
        let services: BTreeMap<Arc<str>, &Meta> = catalog
            .services
            .values()
            .filter(|service| {
                service.cluster_ips.is_empty()
                    && !service.headless
                    && service.service_type != ServiceType::ExternalName
            })
            .map(|service| (key(&service.meta), &service.meta))
            .collect();
        let entries: BTreeMap<Arc<str>, &Meta> = catalog
            .service_entries
            .values()
            .flat_map(|entry| entry.hosts.iter().map(move |host| (entry, host)))
            .filter(|(entry, host)| is_auto_allocated(entry, host))
            .map(|(entry, host)| (Arc::from(format!("{}/{host}", entry.meta.namespace)), &entry.meta))
            .collect();
        let mut from = |block: &mut AddressBlock, owners: BTreeMap<Arc<str>, &Meta>, kind: &str| {
            let names: BTreeSet<Arc<str>> = owners.keys().cloned().collect();
            let (assigned, exhausted) = block.assign(&names, &taken);
            for error in exhausted {
                if let Some(meta) = owners.get(error.owner()) {
                    problems.push(exhausted_problem(kind, meta, &error));
                }
            }
            assigned
        };
        Assigned {
            pods: from(&mut self.pods, pods, "Pod"),
            services: from(&mut self.services, services, "Service"),
            service_entries: from(&mut self.service_entries, entries, "ServiceEntry"),
        }
    }
}

fn key(meta: &Meta) -> Arc<str> {
    Arc::from(meta.object_name().to_string())
}

fn written_pod_address(pod: &Pod) -> Vec<IpAddr> {
    if !pod.ips.is_empty() {
        return pod.ips.clone();
    }
    let annotated = pod.meta.annotation(POD_ADDRESS).and_then(|text| text.parse().ok());
    if annotated.is_none() && pod.host_network {
        return pod.host_ip.into_iter().collect();
    }
    annotated.into_iter().collect()
}

/// All addresses that the configuration writes down anywhere.
fn written_addresses(catalog: &Catalog) -> BTreeSet<IpAddr> {
    let pods = catalog.pods.values().flat_map(|pod| written_pod_address(pod));
    let services = catalog.services.values().flat_map(|service| service.cluster_ips.iter().copied());
    let entries =
        catalog.service_entries.values().flat_map(|entry| entry.addresses.iter().map(ipnet::IpNet::addr));
    let endpoints = catalog
        .endpoint_slices
        .values()
        .flat_map(|slice| slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()));
    pods.chain(services).chain(entries).chain(endpoints).collect()
}

fn exhausted_problem(kind: &str, meta: &Meta, error: &BlockExhausted) -> Problem {
    object_problem(Severity::Error, kind, meta, "", error.to_string(), "")
}

/// A finding about a whole object.
pub(super) fn object_problem(
    severity: Severity,
    kind: &str,
    meta: &Meta,
    field: &str,
    message: String,
    fix: &str,
) -> Problem {
    let name: ObjectName = meta.object_name();
    Problem {
        file: meta.source.file.clone(),
        line: meta.source.line,
        column: 1,
        object: format!("{kind} {name}"),
        field: field.to_owned(),
        message,
        fix: fix.to_owned(),
        severity,
    }
}
