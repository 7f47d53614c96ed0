//! The parts of a bootstrap: TLS, listeners, clusters.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Pair;
use super::http::prefix;

const TYPE: &str = "type.googleapis.com/";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TLS_IN: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const TLS_OUT: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const UNLIMITED: u32 = u32::MAX;

pub(super) fn any(kind: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("{TYPE}{kind}"));
    value
}

pub(super) fn filter(name: &str, kind: &str, value: Value) -> Value {
    json!({ "name": name, "typed_config": any(kind, value) })
}

pub(super) fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

pub(super) fn internal_address(listener: &str) -> Value {
    json!({ "envoy_internal_address": { "server_listener_name": listener } })
}

pub(super) fn tls_common(
    pair: &Pair<'_>,
    who: &str,
    peers: Value,
    protocols: &[&str],
    lowest: &str,
) -> Value {
    let file = |path: PathBuf| json!({ "filename": path.display().to_string() });
    let certificates = pair.certificates;
    let mut common = json!({
        "tls_certificates": [{
            "certificate_chain": file(certificates.certificate(who)), "private_key": file(certificates.key(who)),
        }],
        "validation_context": {
            "trusted_ca": file(certificates.root()),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": peers }],
        },
        "tls_params": { "tls_minimum_protocol_version": lowest, "tls_maximum_protocol_version": "TLSv1_3" },
    });
    if !protocols.is_empty() {
        common["alpn_protocols"] = json!(protocols);
    }
    common
}

pub(super) fn tls_in(pair: &Pair<'_>, who: &str, protocols: &[&str], lowest: &str) -> Value {
    let common = tls_common(pair, who, prefix("spiffe://cluster.local/"), protocols, lowest);
    let config = json!({ "common_tls_context": common, "require_client_certificate": true });
    filter("envoy.transport_sockets.tls", TLS_IN, config)
}

pub(super) fn tls_out(pair: &Pair<'_>, who: &str, peers: Value, protocols: &[&str], lowest: &str) -> Value {
    let mut config = json!({ "common_tls_context": tls_common(pair, who, peers, protocols, lowest) });
    if lowest == "TLSv1_2" {
        config["sni"] = json!("outbound_.80_._.app.perf.svc.cluster.local");
    }
    filter("envoy.transport_sockets.tls", TLS_OUT, config)
}

pub(super) fn listener(name: &str, at: Option<SocketAddr>, filters: Vec<Value>, tls: Option<Value>) -> Value {
    let mut chain = json!({ "filters": filters });
    let mut listener = json!({ "name": name });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    match at {
        Some(at) => listener["address"] = address(at),
        None => listener["internal_listener"] = json!({}),
    }
    listener["filter_chains"] = json!([chain]);
    listener
}

/// Istio's inbound listeners look at the first bytes.
pub(super) fn inspecting(mut listener: Value) -> Value {
    let kind = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let inspector =
        filter("envoy.filters.listener.tls_inspector", kind, json!({ "initial_read_buffer_size": 512 }));
    listener["listener_filters"] = json!([inspector]);
    listener
}

pub(super) fn tcp(cluster: &str, tunnel: Option<Value>) -> Value {
    let mut config = json!({ "stat_prefix": cluster, "cluster": cluster });
    if let Some(tunnel) = tunnel {
        config["tunneling_config"] = tunnel;
    }
    filter(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        config,
    )
}

/// What an HBONE client says in its CONNECT.
pub(super) fn tunnelling(authority: SocketAddr) -> Value {
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=perf,k8s.deployment.name=client,service.name=client,service.version=v1";
    let header = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
    json!({
        "hostname": authority.to_string(),
        "headers_to_add": [header("baggage", baggage), header("forwarded", "for=127.0.0.1")],
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Upstream {
    Http1,
    Http2,
    /// HTTP/2 that may CONNECT.
    Hbone,
}

pub(super) fn cluster(name: &str, endpoint: Value, protocol: Upstream, transport: Option<Value>) -> Value {
    let thresholds = json!({
        "max_connections": UNLIMITED, "max_pending_requests": UNLIMITED,
        "max_requests": UNLIMITED, "max_retries": UNLIMITED,
    });
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [thresholds] },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": endpoint } }] }],
        },
    });
    if protocol != Upstream::Http1 {
        let http2 = if protocol == Upstream::Hbone { json!({ "allow_connect": true }) } else { json!({}) };
        let options = json!({ "explicit_http_config": { "http2_protocol_options": http2 } });
        cluster["typed_extension_protocol_options"] = json!({ HTTP_OPTIONS: any(HTTP_OPTIONS, options) });
    }
    if let Some(transport) = transport {
        cluster["transport_socket"] = transport;
    }
    cluster
}

/// Keeps the statistics that Istio keeps.
pub(super) fn bootstrap(number: u16, listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    let text = |kind: &str, texts: &[&str]| -> Vec<Value> {
        texts.iter().map(|text| json!({ kind: text })).collect()
    };
    let mut kept =
        text("prefix", &["reporter=", "cluster_manager", "listener_manager", "server", "component", "istio"]);
    kept.extend(text(
        "suffix",
        &["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied", "downstream_cx_active"],
    ));
    kept.extend(text("contains", &["ssl.session_reused", "ssl.handshake"]));
    let internal = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    let connections =
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
    let monitor = filter(
        "envoy.resource_monitors.global_downstream_max_connections",
        connections,
        json!({ "max_active_downstream_connections": "2147483647" }),
    );
    json!({
        "node": { "id": format!("perf-{number}"), "cluster": "perf" },
        "admin": { "address": address(SocketAddr::from(([127, 0, 0, 1], 15100 + number))) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
        "layered_runtime": { "layers": [{ "name": "static", "static_layer": { "re2.max_program_size.error_level": 32768 } }] },
        "overload_manager": { "resource_monitors": [monitor] },
        "bootstrap_extensions": [filter("envoy.bootstrap.internal_listener", internal, json!({ "buffer_size_kb": 64 }))],
        "stats_config": { "use_all_default_tags": false, "stats_matcher": { "inclusion_list": { "patterns": kept } } },
    })
}
