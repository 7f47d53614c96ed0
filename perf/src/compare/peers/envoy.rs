//! Envoy as Istio configures it, written as its bootstrap files.
//!
//! A sidecar has what istiod gives one: the connection manager with RBAC of an AuthorizationPolicy (methods, paths, a
//! path template), the gRPC statistics, fault and CORS filters, route retries, mutual TLS, and Istio's four request
//! metrics with 25 tags each. Those come from Envoy's own `stats` access logger, which stands in for Istio's filter.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::site::Site;
use super::Rules;
use crate::certificates::{Certificates, identity};

const TYPE: &str = "type.googleapis.com/";
const ACCESS_STATS: &str = "envoy.extensions.access_loggers.stats.v3.Config";
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TLS_IN: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const TLS_OUT: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const UNLIMITED: u32 = u32::MAX;

/// Bootstraps of one arrangement, in the order of its processes.
pub(super) struct Pair<'a> {
    pub(super) site: &'a Site,
    pub(super) certificates: &'a Certificates,
}

fn any(kind: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("{TYPE}{kind}"));
    value
}

fn filter(name: &str, kind: &str, value: Value) -> Value {
    json!({ "name": name, "typed_config": any(kind, value) })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

fn internal_address(listener: &str) -> Value {
    json!({ "envoy_internal_address": { "server_listener_name": listener } })
}

// === Telemetry ===

/// Istio's standard metrics: one counter and three histograms, each with the tags of `istio_requests_total`.
fn telemetry(reporter: &str) -> Value {
    let security = if reporter == "source" { "unknown" } else { "mutual_tls" };
    let (client, server) = (identity("client"), identity("server"));
    let tags = [
        ("reporter", reporter),
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "latest"),
        ("source_workload_namespace", "perf"),
        ("source_principal", &client),
        ("source_app", "client"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "perf"),
        ("destination_principal", &server),
        ("destination_app", "server"),
        ("destination_version", "v1"),
        ("destination_service", "app.perf.svc.cluster.local"),
        ("destination_canonical_service", "server"),
        ("destination_canonical_revision", "latest"),
        ("destination_service_name", "app"),
        ("destination_service_namespace", "perf"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "http"),
        ("response_code", "%RESPONSE_CODE%"),
        ("grpc_response_status", "%GRPC_STATUS_NUMBER%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("connection_security_policy", security),
    ];
    let tags: Vec<_> =
        tags.iter().map(|(name, format)| json!({ "name": name, "value_format": format })).collect();
    let histogram = |name: &str, unit: &str, format: &str| json!({ "stat": { "name": name, "tags": tags }, "unit": unit, "value_format": format });
    let config = json!({
        "stat_prefix": "istio",
        "counters": [{ "stat": { "name": "requests_total", "tags": tags }, "value_fixed": 1 }],
        "histograms": [
            histogram("request_duration_milliseconds", "Milliseconds", "%DURATION%"),
            histogram("request_bytes", "Bytes", "%BYTES_RECEIVED%"),
            histogram("response_bytes", "Bytes", "%BYTES_SENT%"),
        ],
    });
    filter("envoy.access_loggers.stats", ACCESS_STATS, config)
}

// === HTTP ===

fn rbac_rule(paths: Vec<Value>) -> Value {
    let methods: Vec<_> = ["GET", "POST"]
        .iter()
        .map(|method| json!({ "header": { "name": ":method", "string_match": { "exact": method } } }))
        .collect();
    json!({ "and_rules": { "rules": [{ "or_rules": { "rules": methods } }, { "or_rules": { "rules": paths } }] } })
}

fn path(matcher: Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

fn template(text: &str) -> Value {
    let kind = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    json!({ "uri_template": filter("uri-template", kind, json!({ "path_template": text })) })
}

fn principal(name: &str) -> Value {
    let exact = json!({ "authenticated": { "principal_name": { "exact": identity(name) } } });
    json!({ "and_ids": { "ids": [{ "or_ids": { "ids": [exact] } }] } })
}

fn rbac(policies: Value) -> Value {
    let kind = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let rules = json!({ "action": "ALLOW", "policies": policies });
    filter(
        "envoy.filters.http.rbac",
        kind,
        json!({ "rules": rules, "shadow_rules_stat_prefix": "istio_dry_run_allow_" }),
    )
}

/// The one policy of the sidecar's server and of the waypoint.
fn policy(principals: Vec<Value>) -> Value {
    let paths = vec![
        path(json!({ "exact": "/" })),
        path(json!({ "prefix": "/api/" })),
        path(json!({ "suffix": "/healthz" })),
        template("/v1/*/users/**"),
    ];
    let policy = json!({ "permissions": [rbac_rule(paths)], "principals": principals });
    rbac(json!({ "ns[perf]-policy[allow-app]-rule[0]": policy }))
}

/// A hundred policies; what is asked for is allowed by the last one only.
fn hundred_policies() -> Value {
    let anybody = json!([{ "any": true }]);
    let mut policies = serde_json::Map::new();
    for number in 0..99 {
        let paths = vec![
            template(&format!("/team-{number}/*/users/**")),
            template(&format!("/team-{number}/**/edit")),
        ];
        let policy = json!({ "permissions": [rbac_rule(paths)], "principals": anybody });
        policies.insert(format!("ns[perf]-policy[p{number:02}]-rule[0]"), policy);
    }
    let last = vec![template("/svc/*/api/**"), path(json!({ "exact": "/" }))];
    let last = json!({ "permissions": [rbac_rule(last)], "principals": anybody });
    policies.insert("ns[perf]-policy[z]-rule[0]".to_owned(), last);
    rbac(Value::Object(policies))
}

fn route(cluster: &str, matcher: Value) -> Value {
    let previous = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    let retry = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 2,
        "retry_host_predicate": [filter("envoy.retry_host_predicates.previous_hosts", previous, json!({}))],
        "host_selection_retry_max_attempts": "5",
        "retriable_status_codes": [503],
    });
    json!({
        "match": matcher,
        "route": {
            "cluster": cluster, "timeout": "0s", "retry_policy": retry,
            "max_stream_duration": { "max_stream_duration": "0s", "grpc_timeout_header_max": "0s" },
        },
        "decorator": { "operation": "app.perf.svc.cluster.local:80/*" },
    })
}

fn prefix(text: &str) -> Value {
    json!({ "prefix": text })
}

/// A thousand routes, each with a prefix and a header; then the one for everything of version 1.
fn thousand_routes(cluster: &str) -> Vec<Value> {
    let tenant = |number: usize| {
        let header = json!({ "name": "x-tenant", "string_match": { "exact": format!("tenant-{number}") } });
        route(cluster, json!({ "path_separated_prefix": format!("/svc/{number}/api"), "headers": [header] }))
    };
    (0..1000).map(tenant).chain([route(cluster, prefix("/v1/"))]).collect()
}

/// The connection manager with its filters.
fn http(name: &str, routes: Vec<Value>, policies: Vec<Value>, logs: Vec<Value>) -> Value {
    let http = "envoy.extensions.filters.http.";
    let mut filters = policies;
    filters.push(filter(
        "envoy.filters.http.grpc_stats",
        &format!("{http}grpc_stats.v3.FilterConfig"),
        json!({ "emit_filter_state": true, "stats_for_all_methods": false }),
    ));
    filters.push(filter("envoy.filters.http.fault", &format!("{http}fault.v3.HTTPFault"), json!({})));
    filters.push(filter("envoy.filters.http.cors", &format!("{http}cors.v3.Cors"), json!({})));
    filters.push(filter(
        "envoy.filters.http.router",
        &format!("{http}router.v3.Router"),
        json!({ "start_child_span": false }),
    ));
    let host =
        json!({ "name": "app", "domains": ["*"], "routes": routes, "include_request_attempt_count": true });
    let config = json!({
        "stat_prefix": name,
        "route_config": { "name": name, "virtual_hosts": [host], "validate_clusters": false },
        "http_filters": filters,
        "access_log": logs,
        "stream_idle_timeout": "0s",
        "normalize_path": true,
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "use_remote_address": false,
    });
    filter("envoy.filters.network.http_connection_manager", HCM, config)
}

/// Ends CONNECT streams and leads their bytes to `cluster`.
fn connect_terminate(cluster: &str, principals: Vec<Value>) -> Value {
    let everything = json!({ "permissions": [{ "any": true }], "principals": principals });
    let route = json!({
        "match": { "connect_matcher": {} },
        "route": {
            "cluster": cluster, "timeout": "0s",
            "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
        },
    });
    let mut manager =
        http("connect_terminate", vec![route], vec![rbac(json!({ "l4": everything }))], Vec::new());
    let config = &mut manager["typed_config"];
    config["upgrade_configs"] = json!([{ "upgrade_type": "CONNECT" }]);
    config["normalize_path"] = json!(false);
    config["http2_protocol_options"] = json!({
        "allow_connect": true, "max_concurrent_streams": 100,
        "connection_keepalive": { "interval": "10s", "timeout": "20s" },
    });
    manager
}

// === TLS ===

fn tls_common(pair: &Pair<'_>, who: &str, peers: Value, protocols: &[&str], lowest: &str) -> Value {
    let file = |path: std::path::PathBuf| json!({ "filename": path.display().to_string() });
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

fn tls_in(pair: &Pair<'_>, who: &str, protocols: &[&str], lowest: &str) -> Value {
    let common = tls_common(pair, who, prefix("spiffe://cluster.local/"), protocols, lowest);
    let config = json!({ "common_tls_context": common, "require_client_certificate": true });
    filter("envoy.transport_sockets.tls", TLS_IN, config)
}

fn tls_out(pair: &Pair<'_>, who: &str, peers: Value, protocols: &[&str], lowest: &str) -> Value {
    let mut config = json!({ "common_tls_context": tls_common(pair, who, peers, protocols, lowest) });
    if lowest == "TLSv1_2" {
        config["sni"] = json!("outbound_.80_._.app.perf.svc.cluster.local");
    }
    filter("envoy.transport_sockets.tls", TLS_OUT, config)
}

// === Listeners, clusters, bootstrap ===

fn listener(name: &str, at: Option<SocketAddr>, filters: Vec<Value>, tls: Option<Value>) -> Value {
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
fn inspecting(mut listener: Value) -> Value {
    let kind = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let inspector =
        filter("envoy.filters.listener.tls_inspector", kind, json!({ "initial_read_buffer_size": 512 }));
    listener["listener_filters"] = json!([inspector]);
    listener
}

fn tcp(cluster: &str, tunnel: Option<Value>) -> Value {
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
fn tunnelling(authority: SocketAddr) -> Value {
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=perf,k8s.deployment.name=client,service.name=client,service.version=v1";
    let header = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
    json!({
        "hostname": authority.to_string(),
        "headers_to_add": [header("baggage", baggage), header("forwarded", "for=127.0.0.1")],
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Http1,
    Http2,
    /// HTTP/2 that may CONNECT.
    Hbone,
}

fn cluster(name: &str, endpoint: Value, protocol: Upstream, transport: Option<Value>) -> Value {
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
fn bootstrap(number: u16, listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
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

// === impl Pair ===

impl Pair<'_> {
    /// HTTP at both, mutual TLS between, HTTP/1.1 or HTTP/2.
    pub(super) fn sidecars(&self, http2: bool, with_telemetry: bool) -> Vec<Value> {
        let site = self.site;
        let logs = |reporter: &str| if with_telemetry { vec![telemetry(reporter)] } else { Vec::new() };
        let (offered, protocol) =
            if http2 { (["h2"], Upstream::Http2) } else { (["http/1.1"], Upstream::Http1) };
        let out = http("outbound", vec![route("outbound", prefix("/"))], Vec::new(), logs("source"));
        let peer = json!({ "exact": identity("server") });
        let to_peer = tls_out(self, "client", peer, &offered, "TLSv1_2");
        let client = bootstrap(
            1,
            vec![listener("outbound", Some(site.outbound().listen), vec![out], None)],
            vec![cluster("outbound", address(site.inbound().dial), protocol, Some(to_peer))],
        );
        let policies = vec![policy(vec![principal("client"), principal("waypoint")])];
        let mut inbound = http("inbound", vec![route("inbound", prefix("/"))], policies, logs("destination"));
        inbound["typed_config"]["forward_client_cert_details"] = json!("APPEND_FORWARD");
        inbound["typed_config"]["set_current_client_cert_details"] =
            json!({ "subject": true, "dns": true, "uri": true });
        let tls = tls_in(self, "server", &["h2", "http/1.1"], "TLSv1_2");
        let server = bootstrap(
            2,
            vec![inspecting(listener("inbound", Some(site.inbound().listen), vec![inbound], Some(tls)))],
            vec![cluster("inbound", address(site.backend().dial), Upstream::Http1, None)],
        );
        vec![client, server]
    }

    /// Bytes in mutual TLS, one connection for each.
    pub(super) fn l4(&self) -> Vec<Value> {
        let site = self.site;
        let peer = json!({ "exact": identity("server") });
        let to_peer = tls_out(self, "client", peer, &["istio-peer-exchange", "istio"], "TLSv1_2");
        let client = bootstrap(
            1,
            vec![listener("outbound", Some(site.outbound().listen), vec![tcp("outbound", None)], None)],
            vec![cluster("outbound", address(site.inbound().dial), Upstream::Http1, Some(to_peer))],
        );
        let everything = json!({ "permissions": [{ "any": true }], "principals": [principal("client")] });
        let rules = json!({ "action": "ALLOW", "policies": { "l4": everything } });
        let kind = "envoy.extensions.filters.network.rbac.v3.RBAC";
        let rbac =
            filter("envoy.filters.network.rbac", kind, json!({ "stat_prefix": "tcp.", "rules": rules }));
        let tls = tls_in(self, "server", &["istio-peer-exchange", "h2", "http/1.1"], "TLSv1_2");
        let filters = vec![rbac, tcp("inbound", None)];
        let server = bootstrap(
            2,
            vec![inspecting(listener("inbound", Some(site.inbound().listen), filters, Some(tls)))],
            vec![cluster("inbound", address(site.backend().dial), Upstream::Http1, None)],
        );
        vec![client, server]
    }

    /// CONNECT streams in pooled mutual TLS.
    pub(super) fn hbone(&self) -> Vec<Value> {
        vec![self.hbone_client(self.site.tunnel().dial), self.hbone_server()]
    }

    /// The same with a waypoint between, which routes and decides each request.
    pub(super) fn waypoint(&self) -> Vec<Value> {
        let site = self.site;
        let terminate = connect_terminate("main", vec![principal("client")]);
        let tls = tls_in(self, "waypoint", &["h2"], "TLSv1_3");
        let anybody = vec![json!({ "any": true })];
        let main = http(
            "main",
            vec![route("encapsulate", prefix("/"))],
            vec![policy(anybody)],
            vec![telemetry("waypoint")],
        );
        let originate = tcp("onward", Some(tunnelling(site.backend().dial)));
        let raw = json!({ "transport_socket": filter(
            "envoy.transport_sockets.raw_buffer",
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            json!({}),
        ) });
        let inside = || {
            let kind = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
            Some(filter("envoy.transport_sockets.internal_upstream", kind, raw.clone()))
        };
        let mesh = prefix("spiffe://cluster.local/");
        let onward = tls_out(self, "waypoint", mesh, &["h2"], "TLSv1_3");
        let waypoint = bootstrap(
            3,
            vec![
                listener("terminate", Some(site.waypoint().listen), vec![terminate], Some(tls)),
                listener("main", None, vec![main], None),
                listener("originate", None, vec![originate], None),
            ],
            vec![
                cluster("main", internal_address("main"), Upstream::Http1, inside()),
                cluster("encapsulate", internal_address("originate"), Upstream::Http1, inside()),
                cluster("onward", address(site.tunnel().dial), Upstream::Hbone, Some(onward)),
            ],
        );
        vec![self.hbone_client(site.waypoint().dial), waypoint, self.hbone_server()]
    }

    /// One hop without TLS.
    pub(super) fn hop(&self, rules: Rules) -> Vec<Value> {
        let (routes, policies) = match rules {
            Rules::One => (vec![route("app", prefix("/v1/"))], Vec::new()),
            Rules::Many => (thousand_routes("app"), vec![hundred_policies()]),
        };
        let filters = vec![http("hop", routes, policies, vec![telemetry("waypoint")])];
        vec![bootstrap(
            1,
            vec![listener("hop", Some(self.site.outbound().listen), filters, None)],
            vec![cluster("app", address(self.site.backend_afar()), Upstream::Http1, None)],
        )]
    }

    fn hbone_client(&self, peer: SocketAddr) -> Value {
        let mesh = prefix("spiffe://cluster.local/");
        let tls = tls_out(self, "client", mesh, &["h2"], "TLSv1_3");
        let filters = vec![tcp("hbone", Some(tunnelling(self.site.backend().dial)))];
        bootstrap(
            1,
            vec![listener("outbound", Some(self.site.outbound().listen), filters, None)],
            vec![cluster("hbone", address(peer), Upstream::Hbone, Some(tls))],
        )
    }

    fn hbone_server(&self) -> Value {
        let filters = vec![connect_terminate("app", vec![principal("client"), principal("waypoint")])];
        let tls = tls_in(self, "server", &["h2"], "TLSv1_3");
        bootstrap(
            2,
            vec![listener("terminate", Some(self.site.tunnel().listen), filters, Some(tls))],
            vec![cluster("app", address(self.site.backend().dial), Upstream::Http1, None)],
        )
    }
}
