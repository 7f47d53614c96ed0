//! The HTTP side: connection manager, routes, RBAC, Istio's metrics.

use serde_json::{Value, json};

use super::parts::filter;
use crate::certificates::identity;

const ACCESS_STATS: &str = "envoy.extensions.access_loggers.stats.v3.Config";
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Istio's standard metrics: one counter and three histograms, each with the tags of `istio_requests_total`.
pub(super) fn telemetry(reporter: &str) -> Value {
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

pub(super) fn rbac_rule(paths: Vec<Value>) -> Value {
    let methods: Vec<_> = ["GET", "POST"]
        .iter()
        .map(|method| json!({ "header": { "name": ":method", "string_match": { "exact": method } } }))
        .collect();
    json!({ "and_rules": { "rules": [{ "or_rules": { "rules": methods } }, { "or_rules": { "rules": paths } }] } })
}

pub(super) fn path(matcher: Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

pub(super) fn template(text: &str) -> Value {
    let kind = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    json!({ "uri_template": filter("uri-template", kind, json!({ "path_template": text })) })
}

pub(super) fn principal(name: &str) -> Value {
    let exact = json!({ "authenticated": { "principal_name": { "exact": identity(name) } } });
    json!({ "and_ids": { "ids": [{ "or_ids": { "ids": [exact] } }] } })
}

pub(super) fn rbac(policies: Value) -> Value {
    let kind = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let rules = json!({ "action": "ALLOW", "policies": policies });
    filter(
        "envoy.filters.http.rbac",
        kind,
        json!({ "rules": rules, "shadow_rules_stat_prefix": "istio_dry_run_allow_" }),
    )
}

/// The one policy of the sidecar's server and of the waypoint.
pub(super) fn policy(principals: Vec<Value>) -> Value {
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
pub(super) fn hundred_policies(who: &Value) -> Value {
    let who = json!([who]);
    let mut policies = serde_json::Map::new();
    for number in 0..99 {
        let paths = vec![
            template(&format!("/team-{number}/*/users/**")),
            template(&format!("/team-{number}/**/edit")),
        ];
        let policy = json!({ "permissions": [rbac_rule(paths)], "principals": who });
        policies.insert(format!("ns[perf]-policy[p{number:02}]-rule[0]"), policy);
    }
    let last = vec![template("/svc/*/api/**"), path(json!({ "exact": "/" }))];
    let last = json!({ "permissions": [rbac_rule(last)], "principals": who });
    policies.insert("ns[perf]-policy[z]-rule[0]".to_owned(), last);
    rbac(Value::Object(policies))
}

pub(super) fn route(cluster: &str, matcher: Value) -> Value {
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

pub(super) fn prefix(text: &str) -> Value {
    json!({ "prefix": text })
}

/// A thousand routes, each with a prefix and a header; then the one for everything of version 1.
pub(super) fn thousand_routes(cluster: &str) -> Vec<Value> {
    let tenant = |number: usize| {
        let header = json!({ "name": "x-tenant", "string_match": { "exact": format!("tenant-{number}") } });
        route(cluster, json!({ "path_separated_prefix": format!("/svc/{number}/api"), "headers": [header] }))
    };
    (0..1000).map(tenant).chain([route(cluster, prefix("/v1/"))]).collect()
}

pub(super) fn virtual_hosts(routes: &[Value]) -> Value {
    json!([{ "name": "app", "domains": ["*"], "routes": routes, "include_request_attempt_count": true }])
}

/// The connection manager with its filters.
pub(super) fn http(name: &str, routes: Vec<Value>, policies: Vec<Value>, logs: Vec<Value>) -> Value {
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
    let config = json!({
        "stat_prefix": name,
        "route_config": { "name": name, "virtual_hosts": virtual_hosts(&routes), "validate_clusters": false },
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
pub(super) fn connect_terminate(cluster: &str, principals: Vec<Value>) -> Value {
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
