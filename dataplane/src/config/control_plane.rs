//! Where the control plane and its certificate authority are, and what proves us to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use xds::transport::{Credentials, Roots, Server, Token};

use super::environment::{ConfigError, Environment};
use super::{DEFAULT_CLUSTER_ID, Host};

const IN_KUBERNETES: &str = "https://istiod.istio-system.svc:15012";
const ELSEWHERE: &str = "https://localhost:15012";
const DEFAULT_ROOTS: &str = "./var/run/secrets/istio/root-cert.pem";
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const SYSTEM_ROOTS: &str = "SYSTEM";
const DEFAULT_VALIDITY: Duration = Duration::from_hours(24);
/// Shortest validity of certificates that renewal can keep up with.
const VALIDITY_MIN: Duration = Duration::from_secs(10);

/// One service of the control plane.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// As it was written.
    pub address: String,
    pub server: Server,
    pub credentials: Credentials,
}

/// The control plane.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Delta ADS; `None` where the mesh is described by a local file only.
    pub discovery: Option<Upstream>,
    pub authority: Upstream,
    /// Validity that certificates are asked for.
    pub certificate_validity: Duration,
    /// Workloads and services are asked for when a connection needs them, instead of all being held.
    pub on_demand: bool,
    /// Whether the types that only our own control plane serves are subscribed too.
    pub layer_7: bool,
}

/// The names of the variables of one service.
struct Names {
    address: &'static str,
    hostname: &'static str,
    roots: &'static str,
    headers: &'static str,
}

const DISCOVERY: Names = Names {
    address: "XDS_ADDRESS",
    hostname: "ALT_XDS_HOSTNAME",
    roots: "XDS_ROOT_CA",
    headers: "XDS_HEADER_",
};
const AUTHORITY: Names =
    Names { address: "CA_ADDRESS", hostname: "ALT_CA_HOSTNAME", roots: "CA_ROOT_CA", headers: "CA_HEADER_" };

impl ControlPlane {
    pub(super) fn read(
        variables: &Environment,
        discovery_address: Option<&str>,
        cluster_id: &str,
        host: &Host<'_>,
    ) -> Result<Self, ConfigError> {
        let default =
            if variables.text("KUBERNETES_SERVICE_HOST").is_some() { IN_KUBERNETES } else { ELSEWHERE };
        let token = token(variables, host);
        let upstream = |names, address| upstream(variables, names, address, token.clone(), cluster_id);
        let discovery = variables.text(DISCOVERY.address).or(discovery_address).unwrap_or(default);
        let authority = variables.text(AUTHORITY.address).unwrap_or(default);
        if authority.is_empty() {
            return Err(ConfigError::Missing {
                name: "CA_ADDRESS",
                why: "without certificates there is no mesh",
            });
        }
        let validity = variables.duration("SECRET_TTL", DEFAULT_VALIDITY)?;
        if validity < VALIDITY_MIN {
            let text = variables.text_or("SECRET_TTL", "");
            return Err(ConfigError::value("SECRET_TTL", &text, "it must be at least 10s"));
        }
        Ok(Self {
            discovery: if discovery.is_empty() { None } else { Some(upstream(&DISCOVERY, discovery)?) },
            authority: upstream(&AUTHORITY, authority)?,
            certificate_validity: validity,
            on_demand: variables.flag("XDS_ON_DEMAND", false)?,
            layer_7: variables.flag("CORELANE_LAYER_7", false)?,
        })
    }
}

fn upstream(
    variables: &Environment,
    names: &Names,
    address: &str,
    token: Token,
    cluster_id: &str,
) -> Result<Upstream, ConfigError> {
    let address = if address.contains("://") || address.starts_with("unix:") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let roots = match variables.filled(names.roots) {
        Some(SYSTEM_ROOTS) => Roots::System,
        Some(pem) if pem.contains("-----BEGIN") => Roots::Pem(Arc::from(pem.as_bytes())),
        path => Roots::File(PathBuf::from(path.unwrap_or(DEFAULT_ROOTS))),
    };
    let hostname = variables.filled(names.hostname);
    let server = Server::parse(&address, hostname, roots).map_err(|_| {
        let allowed =
            format!("it must be https://HOST[:PORT], or unix:PATH together with {}", names.hostname);
        ConfigError::value(names.address, &address, allowed)
    })?;
    let headers = headers(variables, names.headers)?;
    let cluster_id = if cluster_id.is_empty() { DEFAULT_CLUSTER_ID } else { cluster_id }.to_owned();
    Ok(Upstream { address, server, credentials: Credentials { token, cluster_id, headers } })
}

fn headers(variables: &Environment, prefix: &'static str) -> Result<Vec<(String, String)>, ConfigError> {
    let each = variables.prefixed(prefix).map(|(name, value)| {
        let fits = name.parse::<HeaderName>().is_ok() && HeaderValue::from_str(value).is_ok();
        let allowed = "the rest of its name must be a header's name, and its value one line of visible ASCII";
        // The value may be a secret.
        let refused = || ConfigError::value(&format!("{prefix}{name}"), "...", allowed);
        fits.then(|| (name.to_owned(), value.to_owned())).ok_or_else(refused)
    });
    each.collect()
}

/// A path where there is a file, or that looks like one; else the token itself.
fn token(variables: &Environment, host: &Host<'_>) -> Token {
    match variables.filled("AUTH_TOKEN") {
        Some(text) if text.starts_with(['/', '.']) || (host.has_file)(Path::new(text)) => {
            Token::File(text.into())
        }
        Some(text) => Token::Literal(Arc::from(text)),
        None if (host.has_file)(Path::new(DEFAULT_TOKEN)) => Token::File(DEFAULT_TOKEN.into()),
        None => Token::None,
    }
}
