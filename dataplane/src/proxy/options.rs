//! The configuration as the node proxy takes it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use socket2::TcpKeepalive;
use tunnel::h2;
use tunnel::pool::PoolConfig;
use xds::local::LocalError;
use xds::transport::discovery::{NodeIdentity, NodeKind, StateSources};

use super::memory_limit::memory_limit;
use super::{own_pod, pages, shown};
use crate::config::{Config, Keepalive, LocalState, Mode};
use crate::control::NodeConfig;
use crate::session::{DnsOptions, NodeOptions, Role, SearchDomains, WAYPOINT_STREAMS_MAX};

/// Why the local state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalStateError {
    #[error("LOCAL_XDS_PATH: {path} cannot be read: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("LOCAL_XDS_PATH: {path}: {error}")]
    File { path: PathBuf, error: LocalError },
    #[error("LOCAL_XDS: {0}")]
    Yaml(LocalError),
}

/// Reads what was written by hand.
pub(super) fn local_state(config: &Config) -> Result<Option<Arc<xds::local::LocalState>>, LocalStateError> {
    let parsed = match &config.local_state {
        None => return Ok(None),
        Some(LocalState::Yaml(yaml)) => xds::local::LocalState::parse(yaml).map_err(LocalStateError::Yaml)?,
        Some(LocalState::File(path)) => {
            let yaml = fs::read_to_string(path)
                .map_err(|error| LocalStateError::Read { path: path.clone(), error })?;
            xds::local::LocalState::parse(&yaml)
                .map_err(|error| LocalStateError::File { path: path.clone(), error })?
        }
    };
    Ok(Some(Arc::new(parsed)))
}

/// Leaves out what this machine does not have.
pub(super) fn adapt(config: &mut Config) {
    if config.ipv6 && !pages::has_ipv6() {
        tracing::warn!("this machine has no IPv6: going on as with IPV6_ENABLED=false");
        config.ipv6 = false;
    }
}

/// What a node proxy is started with.
pub fn node_config(config: &Config) -> NodeConfig {
    let control = &config.control_plane;
    NodeConfig {
        node: Arc::from(config.node_name.as_str()),
        discovery: control.discovery.clone(),
        authority: control.authority.clone(),
        identity: node_identity(config),
        certificate_validity: control.certificate_validity,
        impersonates: config.mode == Mode::Shared,
        workers: Some(config.workers),
        driver: config.own.driver,
        options: NodeOptions { memory_max: held_max(memory_limit(), config.workers), ..node_options(config) },
        crypto: config.crypto,
        crl_file: config.crl_file.clone(),
        layer_7: control.layer_7,
        on_demand: control.on_demand,
        sources: StateSources { local: None, directory: config.own.state_directory.clone() },
        shown: shown::config(config),
    }
}

fn node_identity(config: &Config) -> NodeIdentity {
    let texts = config.metadata.iter().map(|(key, text)| (key.clone(), Value::from(text.as_str())));
    let json = config.metadata_json.iter().map(|(key, value)| (key.clone(), value.clone()));
    NodeIdentity {
        kind: match config.mode {
            Mode::Shared | Mode::Dedicated(_) => NodeKind::NodeProxy,
            Mode::Waypoint(_) => NodeKind::Waypoint,
        },
        instance_ip: config.this_pod.ip,
        pod_name: config.this_pod.name.clone(),
        pod_namespace: config.this_pod.namespace.clone(),
        node_name: config.node_name.clone(),
        metadata: texts.chain(json).collect(),
    }
}

/// What each worker may hold for others: half of what the process may have, between them. The rest is for what is not
/// counted so: the state of the mesh, sessions, and what allocators keep.
fn held_max(limit: Option<u64>, workers: usize) -> usize {
    let max = NodeOptions::default().memory_max;
    let share = |bytes: u64| usize::try_from(bytes / 2).unwrap_or(usize::MAX) / workers.max(1);
    limit.map_or(max, |bytes| max.min(share(bytes)))
}

fn node_options(config: &Config) -> NodeOptions {
    let sockets = &config.sockets;
    let http = |role: h2::Config| h2::Config {
        initial_stream_window: config.http2.stream_window,
        connection_window: config.http2.connection_window,
        max_frame_size: config.http2.frame_size,
        ..role
    };
    let role = match config.mode {
        Mode::Shared | Mode::Dedicated(_) => Role::NodeProxy,
        Mode::Waypoint(_) => Role::Waypoint,
    };
    NodeOptions {
        role,
        ipv6: config.ipv6,
        packet_mark: sockets.mark,
        keeps_source_address: sockets.keeps_source_address != Some(false),
        source_address_required: sockets.keeps_source_address == Some(true),
        localhost_application_tunnel: config.localhost_app_tunnel,
        response_baggage: config.response_baggage,
        policy_decisions_at_info: config.log.policy_decisions,
        proxies: config.proxies,
        keepalive: sockets.keepalive.map(tcp_keepalive),
        user_timeout: sockets.keepalive.filter(|_| sockets.user_timeout).map(Keepalive::gives_up_after),
        http_client: http(h2::Config::hbone_client()),
        http_server: http(accepted(role)),
        pool: PoolConfig {
            streams_per_connection_max: config.pool.streams_per_connection,
            unused_release: config.pool.unused_release,
            ..PoolConfig::DEFAULT
        },
        dns: config.dns.enabled.then(|| dns_options(config)),
        own_pod: own_pod::uid(config),
        congestion: config.own.congestion.clone(),
        traces: config.own.tracing.as_ref().map(|tracing| tracing.sampling),
        endpoint_choice: config.own.endpoint_choice,
        connections_max: config.own.connections_max,
        idle_timeout: config.own.idle_timeout,
        ..NodeOptions::default()
    }
}

/// What accepted tunnels offer. To a waypoint a client with many connections opens several tunnels, which spread over the
/// workers.
fn accepted(role: Role) -> h2::Config {
    let config = h2::Config::hbone_server();
    match role {
        Role::NodeProxy => config,
        Role::Waypoint => h2::Config { max_concurrent_streams: WAYPOINT_STREAMS_MAX, ..config },
    }
}

fn dns_options(config: &Config) -> DnsOptions {
    DnsOptions {
        addresses: config.dns.at.addresses(config.ipv6),
        cluster_domain: Arc::from(config.cluster_domain.as_str()),
        preferred_namespace: config.preferred_service_namespace.as_deref().map(Arc::from),
        search: if config.mode == Mode::Shared { SearchDomains::OfNamespace } else { SearchDomains::OfFile },
    }
}

fn tcp_keepalive(keepalive: Keepalive) -> TcpKeepalive {
    let Keepalive { time, interval, retries } = keepalive;
    TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Host};
    use std::time::Duration;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let variables: Environment =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&variables, &Host { cpus: 4, mesh_config: None, has_file: |_| false }).unwrap()
    }

    #[test]
    fn without_variables_the_options_are_the_defaults() {
        let options = node_options(&config(&[]));
        let defaults = NodeOptions { dns: Some(DnsOptions::default()), ..NodeOptions::default() };
        assert_eq!(format!("{options:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn workers_hold_half_of_what_the_process_may_have() {
        assert_eq!(held_max(Some(256 << 20), 1), 128 << 20);
        assert_eq!(held_max(Some(256 << 20), 4), 32 << 20);
        assert_eq!(held_max(Some(64 << 30), 2), 1 << 30);
        assert_eq!(held_max(None, 2), 1 << 30);
    }

    #[test]
    fn what_was_configured_reaches_the_sockets_the_tunnels_and_the_pool() {
        let config = config(&[
            ("HTTP2_STREAM_WINDOW_SIZE", "100000"),
            ("HTTP2_CONNECTION_WINDOW_SIZE", "200000"),
            ("HTTP2_FRAME_SIZE", "20000"),
            ("POOL_MAX_STREAMS_PER_CONNECTION", "3"),
            ("POOL_UNUSED_RELEASE_TIMEOUT", "9s"),
            ("KEEPALIVE_TIME", "10s"),
            ("KEEPALIVE_INTERVAL", "5s"),
            ("KEEPALIVE_RETRIES", "2"),
            ("USER_TIMEOUT_ENABLED", "true"),
            ("ENABLE_ORIG_SRC", "true"),
            ("PACKET_MARK", "9"),
            ("IPV6_ENABLED", "false"),
            ("POD_NAME", "p"),
            ("POD_NAMESPACE", "ns"),
            ("SERVICE_ACCOUNT", "sa"),
            ("INSTANCE_IP", "10.0.0.1"),
            ("CORELANE_IDLE_TIMEOUT", "90s"),
            ("ISTIO_META_A", "text"),
            ("ISTIO_METAJSON_B", "[1]"),
        ]);
        let options = node_options(&config);
        for http in [options.http_client, options.http_server] {
            assert_eq!(
                (http.initial_stream_window, http.connection_window, http.max_frame_size),
                (100_000, 200_000, 20_000)
            );
        }
        assert_eq!(options.http_server.max_concurrent_streams, 200);
        assert_eq!(options.pool.streams_per_connection_max, 3);
        assert_eq!(options.pool.unused_release, Duration::from_secs(9));
        assert_eq!(options.user_timeout, Some(Duration::from_secs(20)));
        assert_eq!(options.idle_timeout, Some(Duration::from_secs(90)));
        assert!(options.source_address_required && !options.ipv6);
        assert_eq!((options.packet_mark, options.own_pod.as_deref()), (Some(9), Some("ns/p")));
        let node = node_config(&config).identity.node();
        assert_eq!(node.id, "ztunnel~10.0.0.1~p.ns~ns.svc.cluster.local");
        let metadata = format!("{:?}", node.metadata.unwrap().fields);
        assert!(metadata.contains("text") && metadata.contains("ListValue"), "{metadata}");
    }
}
