//! From a record of the access log to a span of OTLP.
//!
//! Names and attributes are those that Envoy gives its spans, and those that Istio adds:
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/observability/tracing>,
//! <https://istio.io/latest/docs/tasks/observability/distributed-tracing/overview/>.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use l7::ir::TagValue;
use model::Workload;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use crate::access_log::{Direction, HttpFacts, Party, Record};
use crate::metrics::RequestProtocol;

/// What Istio's proxies say of what they do not know.
const UNKNOWN: &str = "unknown";
/// From here on a status makes a span a failed one.
const SERVER_ERROR: u16 = 500;

/// Whose spans they are: the pod on whose behalf the proxy acts. Spans of one are sent together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    namespace: String,
    service: String,
    pod: String,
    node: String,
}

/// The span of a request, if it has one.
pub fn span(record: &Record) -> Option<(Origin, Span)> {
    let http = record.http.as_deref()?;
    let facts = http.span?;
    let own = match record.direction {
        Direction::Inbound => &record.destination,
        Direction::Outbound => &record.source,
    };
    let span = Span {
        trace_id: facts.trace.bytes().to_vec(),
        span_id: facts.span.bytes().to_vec(),
        parent_span_id: facts.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        name: name(record, http),
        kind: match record.direction {
            Direction::Inbound => SpanKind::Server,
            Direction::Outbound => SpanKind::Client,
        }
        .into(),
        start_time_unix_nano: nanoseconds(facts.began),
        end_time_unix_nano: nanoseconds(facts.began + record.duration),
        attributes: told(record, http, attributes(record, http, own)),
        status: Some(status(http)),
        ..Span::default()
    };
    Some((Origin::of(own), span))
}

impl Origin {
    fn of(party: &Party) -> Self {
        let text = |pick: fn(&Workload) -> &str| party.workload.as_deref().map_or("", pick).to_owned();
        Self {
            namespace: text(|it| &it.namespace),
            service: text(|it| &it.canonical_name),
            pod: text(|it| &it.name),
            node: text(|it| &it.node),
        }
    }

    /// By OpenTelemetry's names of resources.
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let service = match (&*self.service, &*self.namespace) {
            ("", _) => UNKNOWN.to_owned(),
            (service, namespace) => format!("{service}.{namespace}"),
        };
        let named = [
            ("k8s.namespace.name", &self.namespace),
            ("k8s.pod.name", &self.pod),
            ("k8s.node.name", &self.node),
        ];
        let rest = named.into_iter().filter(|(_, value)| !value.is_empty());
        let rest = rest.map(|(key, value)| text(key, value.clone()));
        std::iter::once(text("service.name", service)).chain(rest).collect()
    }
}

/// As Istio names the operation of a route: the service and its port.
fn name(record: &Record, http: &HttpFacts) -> String {
    let port = http.authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match &record.service {
        Some(service) => format!("{}:{}/*", service.key.hostname, port.unwrap_or(80)),
        None => format!("{}/*", &*http.authority),
    }
}

fn attributes(record: &Record, http: &HttpFacts, own: &Party) -> Vec<KeyValue> {
    let mut all = vec![
        text("component", "proxy"),
        text("http.method", &*http.method),
        text("http.url", format!("http://{}{}", &*http.authority, http.path.as_str())),
        text("http.status_code", http.status.to_string()),
        text("response_flags", record.flags()),
        text("user_agent", filled(&http.user_agent).unwrap_or("-")),
        text("guid:x-request-id", &*http.request_id),
        text("request_size", record.request_bytes().to_string()),
        text("response_size", record.response_bytes().to_string()),
        text("upstream_cluster", cluster(record)),
    ];
    let address = |key, party: &Party| party.address.map(|address| text(key, address.to_string()));
    all.extend(address("peer.address", &record.source));
    all.extend(address("upstream_address", &record.destination));
    all.extend(http.route.as_ref().map(|(route, rule)| text("route_name", format!("{route}/{rule}"))));
    if http.protocol == RequestProtocol::Grpc {
        all.push(text("grpc.path", http.path.as_str()));
        all.push(text("grpc.authority", &*http.authority));
        all.extend(http.grpc_status.map(|status| text("grpc.status_code", status.code().to_string())));
    }
    if let Some(workload) = &own.workload {
        all.push(text("node_id", format!("{}.{}", workload.name, workload.namespace)));
        all.push(text("istio.namespace", &*workload.namespace));
        all.push(text("istio.canonical_service", &*workload.canonical_name));
        all.push(text("istio.canonical_revision", &*workload.canonical_revision));
        all.push(text("istio.cluster_id", &*workload.cluster_id));
    }
    party(&mut all, "source", &record.source);
    party(&mut all, "destination", &record.destination);
    if http.status == 0 || http.status >= SERVER_ERROR {
        all.push(text("error", "true"));
    }
    all
}

/// With the tags that telemetry asks for, which go before ours, and without those that it does not want.
fn told(record: &Record, http: &HttpFacts, mut attributes: Vec<KeyValue>) -> Vec<KeyValue> {
    let Some(telemetry) = &record.telemetry else { return attributes };
    let rule = &telemetry.rules().tracing;
    if rule.without_istio_tags {
        attributes.retain(|it| !it.key.starts_with("istio."));
    }
    for tag in &rule.tags {
        let value = match &tag.value {
            TagValue::Literal(value) => value.to_string(),
            TagValue::Environment { name, default } => {
                std::env::var(&**name).unwrap_or_else(|_| default.to_string())
            }
            TagValue::Header { name, default } => {
                let sent = http.headers.iter().find(|(header, _)| header == name).map(|(_, value)| &**value);
                sent.unwrap_or(default).to_owned()
            }
        };
        // As Envoy: what has no value is no tag.
        if !value.is_empty() {
            attributes.retain(|it| it.key != *tag.name);
            attributes.push(text(&tag.name, value));
        }
    }
    attributes
}

fn party(all: &mut Vec<KeyValue>, side: &str, party: &Party) {
    let mut add = |what: &str, value: &str| {
        if !value.is_empty() {
            all.push(text(&format!("istio.{side}_{what}"), value));
        }
    };
    if let Some(identity) = &party.identity {
        add("principal", identity.uri());
    }
    let Some(workload) = &party.workload else { return };
    add("workload", &workload.workload_name);
    add("namespace", &workload.namespace);
    add("instance_name", &workload.name);
    add("canonical_service", &workload.canonical_name);
    add("canonical_revision", &workload.canonical_revision);
    add("cluster_id", &workload.cluster_id);
}

/// As Istio names its clusters.
pub(crate) fn cluster(record: &Record) -> String {
    let port = record.destination.address.map_or(0, |address| address.port());
    match (record.direction, &record.service) {
        (Direction::Inbound, _) => format!("inbound|{port}||"),
        (Direction::Outbound, Some(service)) => format!("outbound|{port}||{}", service.key.hostname),
        (Direction::Outbound, None) => "PassthroughCluster".to_owned(),
    }
}

fn status(http: &HttpFacts) -> Status {
    let failed = http.status == 0 || http.status >= SERVER_ERROR;
    let code = if failed { StatusCode::Error } else { StatusCode::Unset };
    Status { code: code.into(), message: String::new() }
}

fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use l7::ir::{CustomTag, TelemetrySide, TracingRule};

    use super::*;
    use crate::access_log::CloseCause;
    use crate::access_log::format::tests::tunnel_record;
    use crate::access_log::record::{Path, method};
    use crate::trace::{SpanFacts, SpanId, TraceId};

    fn sampled(direction: Direction, cause: CloseCause, status: u16) -> Record {
        let facts = SpanFacts {
            trace: TraceId::of(1, 2),
            span: SpanId::of(3),
            parent: Some(SpanId::of(4)),
            began: UNIX_EPOCH + Duration::from_secs(10),
        };
        let mut http = HttpFacts { status, span: Some(facts), ..HttpFacts::default() };
        http.method = method("GET");
        http.path = Path::new("/v1/a");
        http.authority.push_str("web.app:8080");
        http.request_id.push_str("an-id");
        Record { direction, cause, http: Some(Box::new(http)), ..tunnel_record() }
    }

    fn attributes(span: &Span) -> BTreeMap<&str, &str> {
        let pairs =
            span.attributes.iter().map(|it| match it.value.as_ref().unwrap().value.as_ref().unwrap() {
                Value::StringValue(value) => (it.key.as_str(), value.as_str()),
                other => panic!("{other:?}"),
            });
        pairs.collect()
    }

    #[test]
    fn a_request_is_a_span_of_the_pod_whose_proxy_saw_it() {
        let (origin, span) = span(&sampled(Direction::Outbound, CloseCause::Finished, 200)).unwrap();
        assert_eq!((origin.service.as_str(), origin.namespace.as_str()), ("client", "app"));
        assert_eq!(span.name, "web.app.svc.cluster.local:8080/*");
        assert_eq!(span.kind(), SpanKind::Client);
        assert_eq!((span.span_id.last(), span.parent_span_id.last()), (Some(&3), Some(&4)));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 3_000_000);
        assert_eq!(span.start_time_unix_nano, 10_000_000_000);
        let attributes = attributes(&span);
        for (key, value) in [
            ("http.url", "http://web.app:8080/v1/a"),
            ("http.method", "GET"),
            ("http.status_code", "200"),
            ("response_flags", "-"),
            ("guid:x-request-id", "an-id"),
            ("user_agent", "-"),
            ("upstream_cluster", "outbound|15008||web.app.svc.cluster.local"),
            ("upstream_address", "10.0.0.2:15008"),
            ("istio.source_workload", "client"),
            ("istio.destination_canonical_service", "web"),
            ("istio.destination_principal", "spiffe://cluster.local/ns/app/sa/web"),
            ("istio.namespace", "app"),
        ] {
            assert_eq!(attributes.get(key), Some(&value), "{key} in {attributes:?}");
        }
        assert!(!attributes.contains_key("error") && !attributes.contains_key("grpc.path"));
    }

    #[test]
    fn telemetry_adds_tags_and_takes_those_of_istio_away() {
        let tag = |name: &str, value| CustomTag { name: name.into(), value };
        let header =
            |name: &str, default: &str| TagValue::Header { name: name.into(), default: default.into() };
        let environment = |default: &str| TagValue::Environment {
            name: "CORELANE_NO_SUCH".into(),
            default: default.into(),
        };
        let tracing = TracingRule {
            without_istio_tags: true,
            tags: vec![
                tag("team", TagValue::Literal("blue".into())),
                tag("component", TagValue::Literal("web".into())),
                tag("user", header("x-user", "nobody")),
                tag("tenant", header("x-tenant", "nobody")),
                tag("node", environment("n1")),
                tag("zone", environment("")),
            ],
            ..TracingRule::default()
        };
        let side = l7::telemetry::Side::compile(TelemetrySide { tracing, ..TelemetrySide::default() });
        let mut record = sampled(Direction::Outbound, CloseCause::Finished, 200);
        record.telemetry = Some(std::sync::Arc::new(side.unwrap()));
        record.http.as_mut().unwrap().headers.push(("x-user".into(), "u1".into()));
        let (_, span) = span(&record).unwrap();
        let attributes = attributes(&span);
        for (key, value) in
            [("team", "blue"), ("component", "web"), ("user", "u1"), ("tenant", "nobody"), ("node", "n1")]
        {
            assert_eq!(attributes.get(key), Some(&value), "{key} in {attributes:?}");
        }
        assert!(!attributes.contains_key("zone") && attributes.contains_key("http.url"));
        assert!(attributes.keys().all(|key| !key.starts_with("istio.")), "{attributes:?}");
    }

    #[test]
    fn what_fails_is_marked_and_what_is_not_sampled_is_no_span() {
        let failed = sampled(Direction::Inbound, CloseCause::ServerReset, 503);
        let (origin, failed) = span(&failed).unwrap();
        assert_eq!((origin.service.as_str(), failed.kind()), ("web", SpanKind::Server));
        assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
        let attributes = attributes(&failed);
        assert_eq!((attributes["error"], attributes["response_flags"]), ("true", "UC"));
        let mut record = sampled(Direction::Inbound, CloseCause::Finished, 200);
        record.http.as_mut().unwrap().span = None;
        assert_eq!(span(&record), None);
        assert_eq!(span(&tunnel_record()), None);
    }
}
