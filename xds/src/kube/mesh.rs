//! What is configured for the mesh as a whole: MeshConfig, which lies in a ConfigMap.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{CheckBody, CheckProtocol};
use l7::path::Normalization;

use super::catalog::{Catalog, MeshSettings, Meta, ObjectName, Position};

/// The ConfigMap that holds MeshConfig, in the root namespace.
pub const MESH_CONFIG_MAP: &str = "istio";

/// Of ConfigMaps only what others refer to is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigMap {
    pub meta: Meta,
    /// What stands under `data.mesh` of the one that is named so.
    pub mesh: Option<MeshConfig>,
    /// `data.ca.crt`: certificates in PEM, to which a BackendTLSPolicy may refer.
    pub authorities: Option<Arc<str>>,
}

/// `istio.mesh.v1alpha1.MeshConfig`, as far as it is honoured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MeshConfig {
    pub providers: Vec<ExtensionProvider>,
    /// `pathNormalization.normalization`; `None` where it is not written.
    pub normalization: Option<Normalization>,
    pub trust_domain: Option<Arc<str>>,
    pub trust_domain_aliases: Vec<Arc<str>>,
    pub root_namespace: Option<Arc<str>>,
}

/// `extensionProviders[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtensionProvider {
    pub name: Arc<str>,
    pub kind: ProviderKind,
    pub at: Position,
    /// Path within MeshConfig.
    pub field: Arc<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderKind {
    Authorizer(AuthorizerProvider),
    /// One that is not an authorizer, by the name of its field.
    Other(Arc<str>),
}

/// `envoyExtAuthzHttp` and `envoyExtAuthzGrpc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizerProvider {
    /// `[NAMESPACE/]HOSTNAME`, as written.
    pub service: Arc<str>,
    pub port: u16,
    pub timeout_ms: NonZeroU32,
    pub fail_open: bool,
    pub status_on_error: u16,
    pub body: Option<CheckBody>,
    pub protocol: CheckProtocol,
}

impl Catalog {
    /// MeshConfig of the mesh, with the object that holds it.
    pub fn mesh_config(&self, settings: &MeshSettings) -> Option<(&Meta, &MeshConfig)> {
        let name = ObjectName::new(settings.root_namespace.clone(), MESH_CONFIG_MAP);
        let config_map = self.config_maps.get(&name)?;
        Some((&config_map.meta, config_map.mesh.as_ref()?))
    }
}

impl MeshSettings {
    /// The settings with what MeshConfig adds to them. The trust domain and the root namespace are the installation's
    /// own: certificates are issued in the one, and the other says where MeshConfig lies.
    #[must_use]
    pub fn with(&self, catalog: &Catalog) -> Self {
        let mut merged = self.clone();
        let Some((_, mesh)) = catalog.mesh_config(self) else { return merged };
        for alias in &mesh.trust_domain_aliases {
            if !merged.trust_domain_aliases.contains(alias) && *alias != merged.trust_domain {
                merged.trust_domain_aliases.push(alias.clone());
            }
        }
        merged
    }
}
