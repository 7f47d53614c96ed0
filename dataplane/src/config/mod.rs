//! What `corelane proxy` is told by its environment: the variables of ztunnel with ztunnel's defaults, and those of
//! our own, which begin with `CORELANE_`. Pure: variables and texts in, a [`Config`] or the first error out.
//!
//! A variable that is not set has its default; one with an impossible value is an error that names it.

mod control_plane;
mod environment;
mod proxy_config;
mod tracing;
mod values;
mod waypoint;
mod workers;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use model::Identity;
use tunnel::tls::CryptoPolicy;

use crate::net::Congestion;
use crate::session::{EndpointChoice, WAYPOINT_CONNECTION_WINDOW, WAYPOINT_STREAM_WINDOW};
use crate::worker::DriverChoice;

pub use control_plane::{ControlPlane, Upstream};
pub use environment::{ConfigError, Environment};
pub use proxy_config::MESH_CONFIG_FILE;
use proxy_config::ProxyConfig;
pub use tracing::Tracing;
pub use waypoint::LABELS_FILE;

const DEFAULT_CLUSTER_ID: &str = "Kubernetes";
const DEFAULT_DOMAIN: &str = "cluster.local";
const DEFAULT_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
const DEFAULT_MARK: u32 = 1337;
const DEFAULT_KEEPALIVE: Duration = Duration::from_mins(3);
const DEFAULT_KEEPALIVE_RETRIES: u32 = 9;
const DEFAULT_STREAM_WINDOW: u32 = 4 << 20;
const DEFAULT_CONNECTION_WINDOW: u32 = 16 << 20;
const DEFAULT_FRAME_SIZE: u32 = 1 << 20;
const DEFAULT_STREAMS: u32 = 100;
const DEFAULT_UNUSED_RELEASE: Duration = Duration::from_mins(5);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
const DEFAULT_CONNECTIONS_MAX: usize = 100_000;
const ADMIN_PORT: u16 = 15000;
const METRICS_PORT: u16 = 15020;
const READINESS_PORT: u16 = 15021;
const DNS_PORT: u16 = 15053;

/// The variables of our own.
const OWN_PREFIX: &str = "CORELANE_";
const OWN: [&str; 12] = [
    "CORELANE_CONGESTION",
    "CORELANE_CONNECTIONS_MAX",
    "CORELANE_DRIVER",
    "CORELANE_ENDPOINT_CHOICE",
    "CORELANE_IDLE_TIMEOUT",
    "CORELANE_LAYER_7",
    "CORELANE_LOG",
    "CORELANE_LOG_JSON",
    "CORELANE_SANDBOX",
    "CORELANE_STATE_DIR",
    "CORELANE_TEST_*",
    "CORELANE_TRACE_SAMPLING",
];

/// What is known of the machine before the configuration is read.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// CPUs that the process may use.
    pub cpus: usize,
    /// The text of [`MESH_CONFIG_FILE`], if it exists.
    pub mesh_config: Option<&'a str>,
    pub has_file: fn(&Path) -> bool,
}

/// Everything that is chosen before the proxy starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Without it the proxy answers its own pages only, and DNS.
    pub proxies: bool,
    pub mode: Mode,
    /// Network of this node; empty is the default one.
    pub network: String,
    pub node_name: String,
    pub cluster_id: String,
    /// DNS domain of the cluster's services.
    pub cluster_domain: String,
    pub control_plane: ControlPlane,
    /// Workloads, services and policies that are described here rather than by the control plane.
    pub local_state: Option<LocalState>,
    /// The node agent's socket.
    pub agent_socket: PathBuf,
    /// Listeners in pods let another proxy bind the same port.
    pub reuses_port: bool,
    pub sockets: Sockets,
    pub pool: PoolSettings,
    pub http2: Http2Settings,
    /// How long connections may go on after the end was asked for.
    pub termination_deadline: Duration,
    pub workers: usize,
    pub ipv6: bool,
    /// Certificates that are revoked, as a file of CRLs.
    pub crl_file: Option<PathBuf>,
    /// Application tunnels are dialled over loopback.
    pub localhost_app_tunnel: bool,
    /// The answer to a tunnel request describes the destination; the request's description of the source is read.
    pub response_baggage: bool,
    /// Namespace whose service is preferred where several have one hostname.
    pub preferred_service_namespace: Option<String>,
    pub ports: OwnPorts,
    pub dns: Dns,
    pub this_pod: ThisPod,
    /// Metadata told to the control plane.
    pub metadata: BTreeMap<String, String>,
    /// More of it, each value JSON.
    pub metadata_json: BTreeMap<String, serde_json::Value>,
    pub log: Log,
    pub crypto: CryptoPolicy,
    pub own: OwnSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// For the pods that the node agent names, each in its own network namespace.
    Shared,
    /// For one workload, in the namespace that the proxy runs in.
    Dedicated(WorkloadName),
    /// For what is behind the waypoint whose instance this pod is.
    Waypoint(WorkloadName),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadName {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalState {
    File(PathBuf),
    Yaml(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    pub mark: Option<u32>,
    /// Whether applications see the client's address as their peer's: `None` as far as the kernel allows it.
    pub keeps_source_address: Option<bool>,
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT` of as long as the keepalive would take to give up.
    pub user_timeout: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    pub streams_per_connection: u32,
    pub unused_release: Duration,
}

/// Bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Settings {
    pub stream_window: u32,
    pub connection_window: u32,
    pub frame_size: u32,
}

/// The pages of the proxy itself: admin on localhost, the others on all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPorts {
    pub admin: u16,
    pub metrics: u16,
    pub readiness: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dns {
    /// Whether the pods' DNS requests are answered.
    pub enabled: bool,
    pub at: DnsAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsAddress {
    /// On 127.0.0.1 and, with IPv6, on ::1.
    Localhost(u16),
    Address(SocketAddr),
}

/// The pod that the proxy itself runs in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThisPod {
    pub ip: Option<IpAddr>,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub trust_domain: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub filter: String,
    pub json: bool,
    /// Why a policy allowed or denied is logged at `info` rather than `debug`.
    pub policy_decisions: bool,
}

/// What ztunnel has no word for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSettings {
    pub driver: DriverChoice,
    /// Connections and accepted tunnels of one worker at most.
    pub connections_max: usize,
    /// A connection over which nothing went for so long is cut; `None` never.
    pub idle_timeout: Option<Duration>,
    pub congestion: Option<Congestion>,
    pub endpoint_choice: EndpointChoice,
    /// Where spans of requests go; `None` makes none.
    pub tracing: Option<Tracing>,
    /// Where the last state is kept for a start while the control plane is away; `None` keeps none.
    pub state_directory: Option<PathBuf>,
}

// === impl Config ===

impl Config {
    pub fn read(variables: &Environment, host: &Host<'_>) -> Result<Self, ConfigError> {
        Self::read_as(variables, host, mode(variables)?)
    }

    fn read_as(variables: &Environment, host: &Host<'_>, mode: Mode) -> Result<Self, ConfigError> {
        refuse_unknown(variables)?;
        refuse_unsupported(variables)?;
        let proxy_config = ProxyConfig::read(variables, host.mesh_config)?;
        let cluster_id =
            ["ISTIO_META_CLUSTER_ID", "CLUSTER_ID"].iter().find_map(|name| variables.filled(name));
        let cluster_id = cluster_id.unwrap_or(DEFAULT_CLUSTER_ID).to_owned();
        let discovery = proxy_config.discovery_address.as_deref();
        let config = Self {
            proxies: variables.flag("ENABLE_PROXY", true)?,
            network: variables.text_or("NETWORK", ""),
            node_name: variables.text_or("NODE_NAME", ""),
            cluster_domain: variables.filled("CLUSTER_DOMAIN").unwrap_or(DEFAULT_DOMAIN).to_owned(),
            control_plane: ControlPlane::read(variables, discovery, &cluster_id, host)?,
            cluster_id,
            local_state: local_state(variables)?,
            agent_socket: variables.filled("INPOD_UDS").unwrap_or(DEFAULT_SOCKET).into(),
            reuses_port: variables.flag("INPOD_PORT_REUSE", true)?,
            sockets: Sockets::read(variables, &mode)?,
            pool: PoolSettings::read(variables)?,
            http2: Http2Settings::read(variables, &mode)?,
            mode,
            termination_deadline: termination_deadline(variables)?,
            workers: workers::count(variables, proxy_config.concurrency, host.cpus)?,
            ipv6: variables.flag("IPV6_ENABLED", true)?,
            crl_file: variables.filled("CRL_PATH").map(PathBuf::from),
            localhost_app_tunnel: variables.flag("LOCALHOST_APP_TUNNEL", true)?,
            response_baggage: variables.flag("ENABLE_RESPONSE_BAGGAGE", true)?,
            preferred_service_namespace: variables.filled("PREFERED_SERVICE_NAMESPACE").map(str::to_owned),
            ports: OwnPorts {
                admin: proxy_config.proxy_admin_port.unwrap_or(ADMIN_PORT),
                metrics: proxy_config.stats_port.unwrap_or(METRICS_PORT),
                readiness: READINESS_PORT,
            },
            dns: Dns::read(&proxy_config.proxy_metadata)?,
            this_pod: ThisPod::read(variables)?,
            metadata: proxy_config.proxy_metadata,
            metadata_json: metadata_json(variables)?,
            log: Log::read(variables)?,
            crypto: crypto(variables)?,
            own: OwnSettings::read(variables)?,
        };
        config.check()?;
        Ok(config)
    }

    /// What cannot be had together.
    fn check(&self) -> Result<(), ConfigError> {
        let conflict = |text| Err(ConfigError::Conflict(text));
        if !self.proxies && !self.dns.enabled {
            return conflict(
                "ENABLE_PROXY=false and DNS_CAPTURE=false leave nothing to do; switch one of them on",
            );
        }
        if self.control_plane.on_demand && self.dns.enabled {
            return conflict(
                "XDS_ON_DEMAND=true does not hold the names that the DNS proxy answers; \
                 set ISTIO_META_DNS_CAPTURE=false as well, or leave XDS_ON_DEMAND out",
            );
        }
        if matches!(self.mode, Mode::Waypoint(_)) && !self.control_plane.layer_7 {
            if self.control_plane.on_demand {
                return conflict(
                    "XDS_ON_DEMAND=true has no effect at a waypoint of istiod, which tells it of its own services only; \
                     leave XDS_ON_DEMAND out",
                );
            }
            if self.own.state_directory.is_some() {
                return conflict(
                    "CORELANE_STATE_DIR keeps nothing of what istiod tells a waypoint; leave it out: the waypoint starts \
                     when istiod answers",
                );
            }
        }
        if self.control_plane.discovery.is_none() && self.local_state.is_none() {
            return conflict(
                "XDS_ADDRESS is empty and there is neither LOCAL_XDS_PATH nor LOCAL_XDS: nothing would describe the mesh",
            );
        }
        Ok(())
    }

    /// The identity of the proxy's own pod, where its pod is known.
    pub fn own_identity(&self) -> Option<Identity> {
        let ThisPod { name, namespace, service_account, trust_domain, .. } = &self.this_pod;
        let known = ![name, namespace, service_account].iter().any(|text| text.is_empty());
        known.then(|| Identity::new(trust_domain, namespace, service_account).ok()).flatten()
    }
}

/// A slip in a name of ours would be without effect, and nobody would know.
fn refuse_unknown(variables: &Environment) -> Result<(), ConfigError> {
    let known = |name: &str| {
        OWN.iter().any(|own| own.strip_suffix('*').map_or(*own == name, |prefix| name.starts_with(prefix)))
    };
    for (rest, _) in variables.prefixed(OWN_PREFIX) {
        let name = format!("{OWN_PREFIX}{rest}");
        if !known(&name) {
            return Err(ConfigError::Unknown { name, known: OWN[..8].join(", ") });
        }
    }
    Ok(())
}

/// What ztunnel can do, and we do not: better no start than another meaning.
fn refuse_unsupported(variables: &Environment) -> Result<(), ConfigError> {
    for (name, allowed) in [
        ("UNSTABLE_ENABLE_SOCKS5", "corelane has no SOCKS5 listener; leave it out"),
        ("FAKE_CA", "corelane makes no certificates of its own; leave it out and set CA_ADDRESS"),
    ] {
        if variables.flag(name, false)? {
            return Err(ConfigError::value(name, "true", allowed));
        }
    }
    Ok(())
}

fn mode(variables: &Environment) -> Result<Mode, ConfigError> {
    let dedicated = variables.parse("PROXY_MODE", "it must be shared or dedicated", |text| match text {
        "shared" => Some(false),
        "dedicated" => Some(true),
        _ => None,
    })?;
    let name = "PROXY_WORKLOAD_INFO";
    let allowed = "it must be NAMESPACE/NAME/SERVICEACCOUNT";
    let workload = variables.parse(name, allowed, |text| match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, name, account] if ![namespace, name, account].contains(&"") => Some(WorkloadName {
            name: name.into(),
            namespace: namespace.into(),
            service_account: account.into(),
        }),
        _ => None,
    })?;
    match (dedicated.unwrap_or(false), workload) {
        (false, _) => Ok(Mode::Shared),
        (true, Some(workload)) => Ok(Mode::Dedicated(workload)),
        (true, None) => Err(ConfigError::Missing {
            name,
            why: "PROXY_MODE=dedicated serves the one workload that it names",
        }),
    }
}

fn local_state(variables: &Environment) -> Result<Option<LocalState>, ConfigError> {
    match (variables.filled("LOCAL_XDS_PATH"), variables.filled("LOCAL_XDS")) {
        (Some(_), Some(_)) => {
            Err(ConfigError::Conflict("LOCAL_XDS_PATH and LOCAL_XDS are both set; leave one out"))
        }
        (Some(path), None) => Ok(Some(LocalState::File(path.into()))),
        (None, yaml) => Ok(yaml.map(|yaml| LocalState::Yaml(yaml.to_owned()))),
    }
}

fn termination_deadline(variables: &Environment) -> Result<Duration, ConfigError> {
    /// From this grace period on, the pod's other duties get the longer share.
    const LONG: u64 = 10;
    let grace = variables.number("TERMINATION_GRACE_PERIOD_SECONDS", 0..=u64::from(u32::MAX))?;
    let derived = grace.map(|seconds| seconds.saturating_sub(if seconds > LONG { 5 } else { 1 }));
    variables
        .duration("CONNECTION_TERMINATION_DEADLINE", derived.map_or(DEFAULT_DEADLINE, Duration::from_secs))
}

fn metadata_json(variables: &Environment) -> Result<BTreeMap<String, serde_json::Value>, ConfigError> {
    const PREFIX: &str = "ISTIO_METAJSON_";
    let each = variables.prefixed(PREFIX).map(|(key, text)| {
        let parsed = serde_json::from_str(text);
        let refused =
            |error| ConfigError::value(&format!("{PREFIX}{key}"), text, format!("it must be JSON: {error}"));
        Ok((key.to_owned(), parsed.map_err(refused)?))
    });
    each.collect()
}

fn crypto(variables: &Environment) -> Result<CryptoPolicy, ConfigError> {
    let policy =
        variables.parse("COMPLIANCE_POLICY", "it must be pqc, or be left out", |text| match text {
            "" => Some(CryptoPolicy::Standard),
            "pqc" => Some(CryptoPolicy::PostQuantum),
            _ => None,
        })?;
    let policy = policy.unwrap_or_default();
    match (policy, variables.flag("TLS12_ENABLED", false)?) {
        (CryptoPolicy::PostQuantum, true) => {
            Err(ConfigError::Conflict("COMPLIANCE_POLICY=pqc needs TLS 1.3; leave TLS12_ENABLED out"))
        }
        (_, true) => Ok(CryptoPolicy::StandardAndTls12),
        (policy, false) => Ok(policy),
    }
}

// === Groups ===

impl Keepalive {
    /// From the last byte of a peer that has vanished to the end of the connection.
    pub fn gives_up_after(self) -> Duration {
        self.time + self.interval * self.retries
    }
}

impl Sockets {
    fn read(variables: &Environment, mode: &Mode) -> Result<Self, ConfigError> {
        let default = if *mode == Mode::Shared { Some(DEFAULT_MARK) } else { None };
        let mark = variables.number("PACKET_MARK", 1..=u64::from(u32::MAX))?;
        let keepalive = Keepalive {
            time: variables.duration("KEEPALIVE_TIME", DEFAULT_KEEPALIVE)?,
            interval: variables.duration("KEEPALIVE_INTERVAL", DEFAULT_KEEPALIVE)?,
            retries: number(variables, "KEEPALIVE_RETRIES", 1..=127, DEFAULT_KEEPALIVE_RETRIES)?,
        };
        let enabled = variables.flag("KEEPALIVE_ENABLED", true)?;
        Ok(Self {
            mark: mark.and_then(|mark| u32::try_from(mark).ok()).or(default),
            keeps_source_address: variables
                .parse("ENABLE_ORIG_SRC", "it must be true or false", |text| text.parse().ok())?,
            keepalive: enabled.then_some(keepalive),
            user_timeout: variables.flag("USER_TIMEOUT_ENABLED", false)?,
        })
    }
}

impl PoolSettings {
    fn read(variables: &Environment) -> Result<Self, ConfigError> {
        const ALL: u64 = u32::MAX as u64;
        Ok(Self {
            streams_per_connection: number(
                variables,
                "POOL_MAX_STREAMS_PER_CONNECTION",
                1..=ALL,
                DEFAULT_STREAMS,
            )?,
            unused_release: variables.duration("POOL_UNUSED_RELEASE_TIMEOUT", DEFAULT_UNUSED_RELEASE)?,
        })
    }
}

impl Http2Settings {
    /// Within what RFC 9113 allows.
    fn read(variables: &Environment, mode: &Mode) -> Result<Self, ConfigError> {
        const WINDOW_MAX: u64 = (1 << 31) - 1;
        const FRAME_SIZES: std::ops::RangeInclusive<u64> = (1 << 14)..=(1 << 24) - 1;
        let windows = 65_535..=WINDOW_MAX;
        let (stream, connection) = match mode {
            Mode::Shared | Mode::Dedicated(_) => (DEFAULT_STREAM_WINDOW, DEFAULT_CONNECTION_WINDOW),
            Mode::Waypoint(_) => (WAYPOINT_STREAM_WINDOW, WAYPOINT_CONNECTION_WINDOW),
        };
        Ok(Self {
            stream_window: number(variables, "HTTP2_STREAM_WINDOW_SIZE", windows.clone(), stream)?,
            connection_window: number(variables, "HTTP2_CONNECTION_WINDOW_SIZE", windows, connection)?,
            frame_size: number(variables, "HTTP2_FRAME_SIZE", FRAME_SIZES, DEFAULT_FRAME_SIZE)?,
        })
    }
}

impl Dns {
    /// From the proxy's metadata, where the environment stands as `ISTIO_META_*`.
    fn read(metadata: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let enabled = metadata.get("DNS_CAPTURE").is_none_or(|text| text.eq_ignore_ascii_case("true"));
        let Some(text) = metadata.get("DNS_PROXY_ADDR") else {
            return Ok(Self { enabled, at: DnsAddress::Localhost(DNS_PORT) });
        };
        let local =
            text.strip_prefix("localhost:").and_then(|port| port.parse().ok().map(DnsAddress::Localhost));
        let at = local.or_else(|| text.parse().ok().map(DnsAddress::Address));
        let refused = || ConfigError::value("DNS_PROXY_ADDR", text, "it must be localhost:PORT or IP:PORT");
        Ok(Self { enabled, at: at.ok_or_else(refused)? })
    }
}

impl ThisPod {
    fn read(variables: &Environment) -> Result<Self, ConfigError> {
        let ip = variables.parse("INSTANCE_IP", "it must be an IP address", |text| {
            if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
        })?;
        let trust_domain = variables.filled("TRUST_DOMAIN").unwrap_or(DEFAULT_DOMAIN);
        if Identity::new(trust_domain, "a", "a").is_err() {
            let allowed = "it must be a trust domain such as cluster.local";
            return Err(ConfigError::value("TRUST_DOMAIN", trust_domain, allowed));
        }
        Ok(Self {
            ip: ip.flatten(),
            name: variables.text_or("POD_NAME", ""),
            namespace: variables.text_or("POD_NAMESPACE", ""),
            service_account: variables.text_or("SERVICE_ACCOUNT", ""),
            trust_domain: trust_domain.to_owned(),
        })
    }
}

impl Log {
    fn read(variables: &Environment) -> Result<Self, ConfigError> {
        let json = variables.parse("LOG_FORMAT", "it must be plain or json", |text| match text {
            "" | "plain" => Some(false),
            "json" => Some(true),
            _ => None,
        })?;
        let filter =
            ["CORELANE_LOG", "RUST_LOG"].iter().find_map(|name| variables.filled(name)).unwrap_or("info");
        Ok(Self {
            filter: filter.to_owned(),
            json: json.unwrap_or(false) || variables.flag("CORELANE_LOG_JSON", false)?,
            policy_decisions: variables.flag("AUTHZ_POLICY_INFO_LOGGING", false)?,
        })
    }
}

impl OwnSettings {
    fn read(variables: &Environment) -> Result<Self, ConfigError> {
        let driver = "it must be auto, io_uring or epoll";
        let congestion = "it must be the name of a congestion control such as cubic";
        let choice = "it must be random or least-loaded";
        let connections = variables.number("CORELANE_CONNECTIONS_MAX", 1..=u64::from(u32::MAX))?;
        Ok(Self {
            driver: variables
                .parse("CORELANE_DRIVER", driver, |text| DriverChoice::from_str(text, true).ok())?
                .unwrap_or_default(),
            connections_max: connections
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(DEFAULT_CONNECTIONS_MAX),
            idle_timeout: Some(variables.duration("CORELANE_IDLE_TIMEOUT", Duration::ZERO)?)
                .filter(|timeout| !timeout.is_zero()),
            congestion: variables.parse("CORELANE_CONGESTION", congestion, |text| text.parse().ok())?,
            state_directory: variables.filled("CORELANE_STATE_DIR").map(PathBuf::from),
            tracing: Tracing::read(variables)?,
            endpoint_choice: variables
                .parse("CORELANE_ENDPOINT_CHOICE", choice, |text| text.parse().ok())?
                .unwrap_or_default(),
        })
    }
}

fn number(
    variables: &Environment,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    default: u32,
) -> Result<u32, ConfigError> {
    Ok(variables.number(name, range)?.and_then(|number| u32::try_from(number).ok()).unwrap_or(default))
}

// === Addresses ===

impl DnsAddress {
    /// Where to listen.
    pub fn addresses(self, ipv6: bool) -> Vec<SocketAddr> {
        match self {
            Self::Localhost(port) => localhost(port, ipv6),
            Self::Address(address) => vec![address],
        }
    }
}

/// A port on the loopback addresses.
pub fn localhost(port: u16, ipv6: bool) -> Vec<SocketAddr> {
    let second = ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let all = std::iter::once(IpAddr::V4(Ipv4Addr::LOCALHOST)).chain(second);
    all.map(|ip| SocketAddr::new(ip, port)).collect()
}

#[cfg(test)]
mod tests;
