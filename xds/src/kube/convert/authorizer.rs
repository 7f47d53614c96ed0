//! Providers of CUSTOM policies, with their services looked up.

use std::sync::Arc;

use l7::ir::Authorizer;
use model::NamespacedHostname;

use super::super::catalog::{Catalog, MeshSettings, ObjectName};
use super::super::mesh::{AuthorizerProvider, ProviderKind};

/// Why a policy's provider cannot be asked, so that the requests that the policy takes are denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    #[error("MeshConfig has no provider {0:?}")]
    Unknown(Arc<str>),
    #[error("provider {name:?} is of kind {kind}, which decides about no request")]
    OtherKind { name: Arc<str>, kind: Arc<str> },
    #[error("the service {service:?} of provider {name:?} is not known, or has no port {port}")]
    NoService { name: Arc<str>, service: Arc<str>, port: u16 },
}

/// The authorizer that a policy names.
pub fn authorizer(
    name: &Arc<str>,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> Result<Arc<Authorizer>, ProviderError> {
    let unknown = || ProviderError::Unknown(name.clone());
    let (_, config) = catalog.mesh_config(mesh).ok_or_else(unknown)?;
    let provider = config.providers.iter().find(|provider| provider.name == *name).ok_or_else(unknown)?;
    match &provider.kind {
        ProviderKind::Other(kind) => Err(ProviderError::OtherKind { name: name.clone(), kind: kind.clone() }),
        ProviderKind::Authorizer(written) => resolve(name, written, catalog, mesh).map(Arc::new),
    }
}

fn resolve(
    name: &Arc<str>,
    written: &AuthorizerProvider,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> Result<Authorizer, ProviderError> {
    let service = service(&written.service, written.port, catalog, mesh).ok_or_else(|| {
        let (name, service, port) = (name.clone(), written.service.clone(), written.port);
        ProviderError::NoService { name, service, port }
    })?;
    Ok(Authorizer {
        name: name.clone(),
        service,
        port: written.port,
        timeout_ms: written.timeout_ms,
        fail_open: written.fail_open,
        status_on_error: written.status_on_error,
        body: written.body,
        protocol: written.protocol.clone(),
    })
}

/// The service that `[NAMESPACE/]HOSTNAME` names. Of ServiceEntries with one host the first by name, if no namespace is
/// said.
fn service(written: &str, port: u16, catalog: &Catalog, mesh: &MeshSettings) -> Option<NamespacedHostname> {
    let (namespace, hostname) = match written.split_once('/') {
        Some((namespace, hostname)) => (Some(namespace), hostname),
        None => (None, written),
    };
    let is_near = |own: &str| namespace.is_none_or(|namespace| namespace == own);
    let named = hostname.strip_suffix(&*mesh.cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    if let Some((name, own)) = named.and_then(|rest| rest.split_once('.')).filter(|(_, own)| is_near(own)) {
        let service = catalog.services.get(&ObjectName::new(own, name));
        if let Some(service) = service.filter(|it| it.ports.iter().any(|it| it.port == port)) {
            let namespace = service.meta.namespace.clone();
            return Some(NamespacedHostname::new(namespace, hostname));
        }
    }
    let entry = catalog.service_entries.values().find(|entry| {
        is_near(&entry.meta.namespace)
            && entry.hosts.iter().any(|host| **host == *hostname)
            && entry.ports.iter().any(|it| it.number == port)
    })?;
    Some(NamespacedHostname::new(entry.meta.namespace.clone(), hostname))
}
