//! The configuration in `/config_dump`, in ztunnel's words. Secrets are left out.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tunnel::tls::CryptoPolicy;
use xds::transport::Roots;

use crate::config::{Config, Dns, DnsAddress, Mode, Upstream, WorkloadName};
use crate::net::wildcard;
use crate::session::Ports;

/// `config` of the dump.
pub(super) fn config(config: &Config) -> Value {
    let mut shown = json!({});
    for group in [general(config), control_plane(config), listeners(config), connections(config), own(config)]
    {
        if let (Some(all), Value::Object(group)) = (shown.as_object_mut(), group) {
            all.extend(group);
        }
    }
    shown
}

fn general(config: &Config) -> Value {
    let workload = |name: &WorkloadName| json!({ "name": name.name, "namespace": name.namespace, "serviceAccount": name.service_account });
    let (mode, workload) = match &config.mode {
        Mode::Shared => ("Shared", Value::Null),
        Mode::Dedicated(name) => ("Dedicated", workload(name)),
        Mode::Waypoint(name) => ("Waypoint", workload(name)),
    };
    json!({
        "proxy": config.proxies,
        "proxyArgs": "proxy",
        "proxyMode": mode,
        "proxyWorkloadInformation": workload,
        "proxyMetadata": config.metadata,
        "network": config.network,
        "localNode": config.node_name,
        "clusterId": config.cluster_id,
        "clusterDomain": config.cluster_domain,
        "numWorkerThreads": config.workers,
        "selfTerminationDeadline": duration(config.termination_deadline),
        "ipv6Enabled": config.ipv6,
        "localhostAppTunnel": config.localhost_app_tunnel,
        "enableEnhancedBaggage": config.response_baggage,
        "preferedServiceNamespace": config.preferred_service_namespace,
        "crlPath": config.crl_file,
        "ztunnelIdentity": config.own_identity().map(|identity| identity.uri().to_owned()),
    })
}

fn control_plane(config: &Config) -> Value {
    let control = &config.control_plane;
    let discovery = control.discovery.as_ref();
    json!({
        "xdsAddress": discovery.map(|it| it.address.as_str()),
        "xdsRootCert": discovery.map(roots),
        "xdsHeaders": discovery.map_or_else(Vec::new, headers),
        "altXdsHostname": discovery.and_then(alternative),
        "xdsOnDemand": control.on_demand,
        "caAddress": control.authority.address,
        "caRootCert": roots(&control.authority),
        "caHeaders": headers(&control.authority),
        "altCaHostname": alternative(&control.authority),
        "secretTtl": duration(control.certificate_validity),
        "fakeCa": false,
    })
}

fn listeners(config: &Config) -> Value {
    let Ports { outbound, inbound_plaintext, inbound_hbone } = Ports::default();
    let all = |port| wildcard(port, config.ipv6).to_string();
    let local = |port| json!({ "Localhost": [config.ipv6, port] });
    let Dns { enabled, at } = config.dns;
    let dns = match at {
        DnsAddress::Localhost(port) => local(port),
        DnsAddress::Address(address) => socket(address),
    };
    json!({
        "adminAddr": local(config.ports.admin),
        "statsAddr": socket(wildcard(config.ports.metrics, config.ipv6)),
        "readinessAddr": socket(wildcard(config.ports.readiness, config.ipv6)),
        "inboundAddr": all(inbound_hbone),
        "inboundPlaintextAddr": all(inbound_plaintext),
        "outboundAddr": all(outbound),
        "illegalPorts": [inbound_hbone, outbound, inbound_plaintext],
        "dnsProxy": enabled,
        "dnsProxyAddr": dns,
        "inpodUds": config.agent_socket,
        "inpodPortReuse": config.reuses_port,
        "packetMark": config.sockets.mark,
        "requireOriginalSource": config.sockets.keeps_source_address,
    })
}

fn connections(config: &Config) -> Value {
    let keepalive = config.sockets.keepalive;
    json!({
        "windowSize": config.http2.stream_window,
        "connectionWindowSize": config.http2.connection_window,
        "frameSize": config.http2.frame_size,
        "poolMaxStreamsPerConn": config.pool.streams_per_connection,
        "poolUnusedReleaseTimeout": duration(config.pool.unused_release),
        "socketConfig": {
            "keepaliveEnabled": keepalive.is_some(),
            "keepaliveTime": keepalive.map(|it| duration(it.time)),
            "keepaliveInterval": keepalive.map(|it| duration(it.interval)),
            "keepaliveRetries": keepalive.map(|it| it.retries),
            "userTimeoutEnabled": config.sockets.user_timeout,
        },
    })
}

/// What ztunnel has no word for.
fn own(config: &Config) -> Value {
    json!({
        "corelane": {
            "driver": config.own.driver.to_string(),
            "connectionsMaxPerWorker": config.own.connections_max,
            "idleTimeout": config.own.idle_timeout.map(duration),
            "congestion": config.own.congestion.as_ref().map(ToString::to_string),
            "layer7": config.control_plane.layer_7,
            "tls12": config.crypto == CryptoPolicy::StandardAndTls12,
        }
    })
}

fn roots(upstream: &Upstream) -> Value {
    match &upstream.server.roots {
        Roots::File(path) => json!({ "File": path }),
        Roots::Pem(_) => json!("Static"),
        Roots::System => json!("Default"),
    }
}

/// Their names: values may be secret.
fn headers(upstream: &Upstream) -> Vec<&str> {
    upstream.credentials.headers.iter().map(|(name, _)| name.as_str()).collect()
}

/// The name expected in the certificate, where it is not the address's own.
fn alternative(upstream: &Upstream) -> Option<&str> {
    let own = upstream.server.address.to_string();
    let name = upstream.server.server_name.as_str();
    let is_own = own.rsplit_once(':').is_some_and(|(host, _)| host == name);
    (!is_own).then_some(name)
}

fn socket(address: SocketAddr) -> Value {
    json!({ "SocketAddr": address.to_string() })
}

fn duration(duration: Duration) -> Value {
    json!({ "secs": duration.as_secs(), "nanos": duration.subsec_nanos() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::Host;

    /// A dump of ztunnel itself, without the settings of its resolver (`dnsResolverCfg`, `dnsResolverOpts`): ours asks
    /// the node's name servers as they are.
    const ZTUNNEL: &str = include_str!("../../../xds/testdata/ztunnel-config_dump.json");

    /// The values of a tree by the way to them; an empty group counts as a value.
    fn leaves(value: &Value, way: &str, all: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(group) if !group.is_empty() => {
                group.iter().for_each(|(key, value)| leaves(value, &format!("{way}/{key}"), all));
            }
            value => drop(all.insert(way.to_owned(), value.clone())),
        }
    }

    /// What is in `one` and not in `other`, without what Corelane has for itself.
    fn beyond(one: &Value, other: &Value) -> Vec<String> {
        let (mut ones, mut others) = (BTreeMap::new(), BTreeMap::new());
        leaves(one, "", &mut ones);
        leaves(other, "", &mut others);
        let beyond = ones.into_iter().filter(|(way, value)| others.get(way) != Some(value));
        let shown = beyond.map(|(way, value)| format!("{way} {value}"));
        shown.filter(|line| !line.starts_with("/corelane/")).collect()
    }

    #[test]
    fn the_configuration_is_shown_as_ztunnel_shows_it() {
        let theirs: Value = serde_json::from_str(ZTUNNEL).unwrap();
        let variables = [
            ("PROXY_MODE", "dedicated"),
            ("PROXY_WORKLOAD_INFO", "default/zt/zt"),
            ("NODE_NAME", "a"),
            ("XDS_ADDRESS", "https://127.0.0.1:15012"),
            ("CA_ADDRESS", "https://127.0.0.1:15012"),
            ("XDS_ROOT_CA", "./var/run/secrets/istio/root.pem"),
            ("CA_ROOT_CA", "./var/run/secrets/istio/root.pem"),
            ("ZTUNNEL_WORKER_THREADS", "2"),
            ("ENABLE_ORIG_SRC", "false"),
        ];
        let has_file: fn(&Path) -> bool = |_| true;
        let ours = Config::read(&variables.into(), &Host { cpus: 2, mesh_config: None, has_file }).unwrap();
        let ours = config(&ours);
        assert_eq!(
            beyond(&theirs["config"], &ours),
            [
                // No SOCKS port, no stand-in for tests; its own workload is looked for when it is needed.
                "/fakeSelfInbound false",
                "/illegalPorts [15008,15080,15001,15006]",
                "/socks5Addr \"127.0.0.1:15080\"",
                "/ztunnelWorkload null",
            ]
        );
        assert_eq!(beyond(&ours, &theirs["config"]), ["/illegalPorts [15008,15001,15006]"]);
        assert!(ours["corelane"].is_object());
    }
}
