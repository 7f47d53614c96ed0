//! RequestAuthentication to the intermediate form.

use std::sync::Arc;

use l7::ir;

use super::super::catalog::{Catalog, MeshSettings, ObjectName};
use super::super::istio::{PolicyTarget, RequestAuthentication};
use super::attachment::{Scope, Subject, attaches_to_workload, scope};

/// Token rules as they are served.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshTokens {
    /// By which workloads refer to them.
    pub key: Arc<str>,
    pub scope: Scope,
    pub tokens: ir::RequestAuthentication,
}

/// The name of the resource. Workloads list it beside the names of their policies, which have one slash only.
pub fn key(name: &ObjectName) -> Arc<str> {
    Arc::from(format!("{}/request_authentication/{}", name.namespace, name.name))
}

/// Every RequestAuthentication that holds rules.
pub fn request_authentications(catalog: &Catalog, mesh: &MeshSettings) -> Vec<MeshTokens> {
    let written = catalog.request_authentications.values().filter(|it| !it.rules.is_empty());
    let served = written.map(|it| MeshTokens {
        key: key(&it.meta.object_name()),
        scope: scope(&**it, mesh),
        tokens: convert(it),
    });
    served.collect()
}

pub fn convert(written: &RequestAuthentication) -> ir::RequestAuthentication {
    ir::RequestAuthentication {
        namespace: written.meta.namespace.clone(),
        name: written.meta.name.clone(),
        rules: written.rules.clone(),
        source: Some(written.meta.source.clone()),
    }
}

/// Keys of those that select a workload.
pub(super) fn selecting<'c>(
    catalog: &'c Catalog,
    mesh: &'c MeshSettings,
    subject: Subject<'c>,
) -> impl Iterator<Item = Arc<str>> + 'c {
    let written = catalog.request_authentications.values().filter(move |it| {
        !it.rules.is_empty()
            && !matches!(it.target, PolicyTarget::Namespace)
            && attaches_to_workload(&***it, subject, catalog, mesh)
    });
    written.map(|it| key(&it.meta.object_name()))
}
