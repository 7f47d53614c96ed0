//! Istio's `ProxyConfig`, as far as a node proxy reads it: from the mesh configuration's file and from PROXY_CONFIG.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::environment::{ConfigError, Environment};

/// Where the mesh configuration is mounted, below the working directory.
pub const MESH_CONFIG_FILE: &str = "./etc/istio/config/mesh";

const VARIABLE: &str = "PROXY_CONFIG";
const METADATA_PREFIX: &str = "ISTIO_META_";

/// Fields that are not named here mean nothing to a node proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) proxy_admin_port: Option<u16>,
    #[serde(alias = "statusPort")]
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<u16>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

impl ProxyConfig {
    /// The file's text and PROXY_CONFIG, of which the latter wins, and the metadata of the environment over both.
    pub(super) fn read(variables: &Environment, mesh_config: Option<&str>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(text) = mesh_config.filter(|text| !text.trim().is_empty()) {
            config.merge(yaml::<MeshConfig>(MESH_CONFIG_FILE, text)?.default_config.unwrap_or_default());
        }
        if let Some(text) = variables.filled(VARIABLE) {
            config.merge(yaml(VARIABLE, text)?);
        }
        let own = variables.prefixed(METADATA_PREFIX).map(|(key, value)| (key.to_owned(), value.to_owned()));
        config.proxy_metadata.extend(own);
        Ok(config)
    }

    fn merge(&mut self, other: Self) {
        self.discovery_address = other.discovery_address.or(self.discovery_address.take());
        self.proxy_admin_port = other.proxy_admin_port.or(self.proxy_admin_port);
        self.stats_port = other.stats_port.or(self.stats_port);
        self.concurrency = other.concurrency.or(self.concurrency);
        let unprefixed = |(key, value): (String, String)| match key.strip_prefix(METADATA_PREFIX) {
            Some(rest) => (rest.to_owned(), value),
            None => (key, value),
        };
        self.proxy_metadata.extend(other.proxy_metadata.into_iter().map(unprefixed));
    }
}

fn yaml<T: serde::de::DeserializeOwned>(from: &str, text: &str) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text)
        .map_err(|error| ConfigError::ProxyConfig { from: from.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = "trustDomain: a\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  \
        proxyAdminPort: 15099\n  proxyMetadata:\n    ISTIO_META_FOO: foo\n    KEPT: kept\n  tracing: {}\n";

    #[test]
    fn the_variable_wins_over_the_file_and_the_environment_over_both() {
        let own = r#"{"statsPort": 15888, "concurrency": 3, "proxyMetadata": {"FOO": "over", "BAR": "bar"}}"#;
        let variables = Environment::from([(VARIABLE, own), ("ISTIO_META_BAR", "env"), ("OTHER", "x")]);
        let config = ProxyConfig::read(&variables, Some(MESH)).unwrap();
        assert_eq!(config.discovery_address.as_deref(), Some("istiod.istio-system.svc:15012"));
        assert_eq!(
            (config.proxy_admin_port, config.stats_port, config.concurrency),
            (Some(15099), Some(15888), Some(3))
        );
        let metadata: Vec<_> = config.proxy_metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(metadata, [("BAR", "env"), ("FOO", "over"), ("KEPT", "kept")]);
    }

    #[test]
    fn nothing_is_the_default_and_nonsense_is_named() {
        assert_eq!(ProxyConfig::read(&Environment::default(), None).unwrap(), ProxyConfig::default());
        let empty = Environment::from([(VARIABLE, "")]);
        assert_eq!(ProxyConfig::read(&empty, Some(" \n")).unwrap(), ProxyConfig::default());
        let bad = Environment::from([(VARIABLE, "proxyAdminPort: many")]);
        let error = ProxyConfig::read(&bad, None).unwrap_err().to_string();
        assert!(error.starts_with("PROXY_CONFIG cannot be read as a ProxyConfig: "), "{error}");
        let error = ProxyConfig::read(&Environment::default(), Some("- a\n")).unwrap_err().to_string();
        assert!(error.starts_with("./etc/istio/config/mesh cannot be read"), "{error}");
    }
}
