//! The services that a host of Istio's traffic objects names.

use std::sync::Arc;

use model::NamespacedHostname;

use super::super::catalog::{Catalog, MeshSettings, ObjectName};
use super::super::cluster::TransportProtocol;
use super::super::traffic::ExportTo;

/// A service and its TCP ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostService {
    pub key: NamespacedHostname,
    pub ports: Vec<u16>,
}

/// A short name belongs to the namespace of the object that writes it; `*.suffix` and `*` name every service that fits.
/// In no particular order.
pub fn services_of_host(
    host: &str,
    namespace: &Arc<str>,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> Vec<HostService> {
    if let Some(suffix) = host.strip_prefix('*') {
        return all(catalog, mesh).filter(|service| service.key.hostname.ends_with(suffix)).collect();
    }
    let full = full_name(host, namespace, mesh);
    let named = full.strip_suffix(&*mesh.cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    let kubernetes = named.and_then(|rest| rest.split_once('.')).and_then(|(name, namespace)| {
        let name = ObjectName::new(namespace, name);
        catalog.services.contains_key(&name).then(|| kubernetes(&name, catalog, mesh)).flatten()
    });
    let entries = entries(catalog).filter(|service| *service.key.hostname == *full);
    kubernetes.into_iter().chain(entries).collect()
}

/// A name without a dot is that of a Service beside the object.
pub fn full_name(host: &str, namespace: &str, mesh: &MeshSettings) -> Arc<str> {
    if host.contains('.') { Arc::from(host) } else { mesh.service_hostname(namespace, host) }
}

fn all<'c>(catalog: &'c Catalog, mesh: &'c MeshSettings) -> impl Iterator<Item = HostService> + 'c {
    let services = catalog.services.keys().filter_map(move |name| kubernetes(name, catalog, mesh));
    services.chain(entries(catalog))
}

fn kubernetes(name: &ObjectName, catalog: &Catalog, mesh: &MeshSettings) -> Option<HostService> {
    let service = catalog.services.get(name)?;
    let ports = service.ports.iter().filter(|port| port.protocol == TransportProtocol::Tcp);
    let host = mesh.service_hostname(&name.namespace, &name.name);
    Some(HostService {
        key: NamespacedHostname::new(name.namespace.clone(), host),
        ports: ports.map(|port| port.port).collect(),
    })
}

fn entries(catalog: &Catalog) -> impl Iterator<Item = HostService> + '_ {
    catalog.service_entries.values().flat_map(|entry| {
        entry.hosts.iter().map(|host| HostService {
            key: NamespacedHostname::new(entry.meta.namespace.clone(), host.clone()),
            ports: entry.ports.iter().map(|port| port.number).collect(),
        })
    })
}

/// Whose traffic to a service an object governs: `None` stands for everybody's. An object of another namespace than the
/// service's governs only clients of its own, however far it is exported: traffic to a service is its owner's to direct.
pub fn consumers(export_to: &ExportTo, own: &Arc<str>, service: &str) -> Vec<Option<Arc<str>>> {
    match export_to {
        ExportTo::Everybody if **own == *service => vec![None],
        ExportTo::Everybody => vec![Some(own.clone())],
        ExportTo::Namespaces(names) => {
            let reached = names.iter().filter(|name| **own == *service || *name == own);
            reached.cloned().map(Some).collect()
        }
    }
}
