//! TLS that a backend expects of its clients.

use std::sync::Arc;

/// How a connection to a backend is secured, and whom it must prove to be (`BackendTLSPolicy`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendTls {
    /// Sent as server name (SNI); without `names` the certificate must bear it.
    pub hostname: Arc<str>,
    /// The certificate must bear one of these; `hostname` is then not looked for in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<CertificateName>,
    pub trust: Trust,
}

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum CertificateName {
    /// May begin with `*.`, which stands for one label.
    Dns(Arc<str>),
    Uri(Arc<str>),
}

/// Who may have issued the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Trust {
    /// The authorities that the proxy's system trusts.
    System,
    /// Certificates in PEM.
    Bundle(Arc<str>),
}
