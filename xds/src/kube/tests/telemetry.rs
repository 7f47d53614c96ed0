//! Telemetry: how objects are read, and what of several is in force for whom.

use l7::ir::{CustomTag, LogRule, Metric, TagValue, Telemetry, TracingRule};

use super::{findings, load};
use crate::kube::convert::telemetry::{Waypoint, of_destination, of_mesh, of_namespaces, of_workload};
use crate::kube::convert::{ServiceRef, Subject};
use crate::kube::{Catalog, Labels, MeshSettings, ObjectName};

fn object(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn catalog(objects: &[(&str, &str, &str)]) -> Catalog {
    let text: String = objects.iter().map(|(namespace, name, spec)| object(namespace, name, spec)).collect();
    let loaded = load(&text);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    loaded.catalog
}

fn logged(filter: &str) -> LogRule {
    LogRule { disabled: false, filter: Some(filter.into()) }
}

const SILENT: LogRule = LogRule { disabled: true, filter: None };
const OFF: &str = "accessLogging: [{disabled: true}]";
const FAILED: &str =
    "accessLogging: [{providers: [{name: envoy}], filter: {expression: response.code >= 400}}]";

fn logs(telemetry: Option<Telemetry>) -> Option<(LogRule, LogRule)> {
    telemetry.map(|telemetry| (telemetry.client.log, telemetry.server.log))
}

fn mesh() -> MeshSettings {
    MeshSettings::default()
}

/// Of the pod `app: web` of the namespace `app`, which stands behind the Service `web`.
fn of_web(catalog: &Catalog) -> Option<(LogRule, LogRule)> {
    let labels: Labels = [("app".into(), "web".into())].into();
    let services = [ServiceRef::Service(ObjectName::new("app", "web"))];
    logs(of_workload(catalog, &mesh(), Subject { namespace: "app", labels: &labels, services: &services }))
}

#[test]
fn the_most_special_object_counts_for_each_section() {
    let selecting =
        "selector: {matchLabels: {app: web}}, accessLogging: [{match: {mode: SERVER}, disabled: true}]";
    let catalog = catalog(&[
        ("istio-system", "all", FAILED),
        ("app", "own", "accessLogging: [{filter: {expression: 'response.code >= 500'}}]"),
        ("app", "web", selecting),
        ("other", "none", "metrics: [{providers: [{name: prometheus}]}]"),
    ]);
    let failed = logged("response.code >= 400");
    assert_eq!(logs(of_mesh(&catalog, &mesh())), Some((failed.clone(), failed.clone())));
    let worse = logged("response.code >= 500");
    let namespaces = of_namespaces(&catalog, &mesh());
    let shown: Vec<_> =
        namespaces.iter().map(|(name, it)| (&**name, &it.client.log, &it.server.log)).collect();
    // What a section does not say stays as the wider object says it.
    assert_eq!(shown, [("app", &worse, &worse), ("other", &failed, &failed)]);
    assert_eq!(of_web(&catalog), Some((worse, SILENT)));
    let labels = Labels::new();
    assert_eq!(
        of_workload(&catalog, &mesh(), Subject { namespace: "app", labels: &labels, services: &[] }),
        None
    );
}

#[test]
fn of_several_entries_the_last_that_covers_a_side_counts() {
    let catalog = catalog(&[(
        "istio-system",
        "all",
        "accessLogging: [{disabled: true}, {match: {mode: CLIENT}, filter: {expression: connection.mtls}}]",
    )]);
    assert_eq!(logs(of_mesh(&catalog, &mesh())), Some((logged("connection.mtls"), SILENT)));
    // One that says nothing but that there is a log takes a wider filter back.
    let catalog = super::telemetry::catalog(&[
        ("istio-system", "all", FAILED),
        ("app", "web", "selector: {matchLabels: {app: web}}, accessLogging: [{disabled: false}]"),
    ]);
    assert_eq!(of_web(&catalog), Some((LogRule::default(), LogRule::default())));
}

#[test]
fn overrides_of_metrics_add_up_from_the_widest_to_the_most_special() {
    let wide = "metrics: [{overrides: [{tagOverrides: {source_app: {operation: REMOVE}, team: {value: \"'a'\"}}}, \
                {match: {metric: REQUEST_SIZE, mode: CLIENT}, disabled: true}]}]";
    let narrow = "selector: {matchLabels: {app: web}}, metrics: [{providers: [{name: prometheus}], overrides: [\
                  {match: {metric: REQUEST_SIZE}, disabled: false}, {match: {metric: TCP_SENT_BYTES}, disabled: true}, \
                  {match: {metric: REQUEST_COUNT}, tagOverrides: {team: {operation: UPSERT, value: \"'b'\"}}}]}]";
    let catalog = catalog(&[("istio-system", "all", wide), ("app", "web", narrow)]);
    let labels: Labels = [("app".into(), "web".into())].into();
    let subject = Subject { namespace: "app", labels: &labels, services: &[] };
    let wide = of_mesh(&catalog, &mesh()).unwrap();
    assert!(wide.client.metrics[&Metric::RequestSize].disabled);
    assert!(!wide.server.metrics[&Metric::RequestSize].disabled);
    let own = of_workload(&catalog, &mesh(), subject).unwrap();
    assert!(!own.client.metrics[&Metric::RequestSize].disabled);
    assert!(own.client.metrics[&Metric::TcpSent].disabled && own.server.metrics[&Metric::TcpSent].disabled);
    let team = |metric| own.server.metrics[&metric].tags["team"].as_deref();
    assert_eq!((team(Metric::RequestCount), team(Metric::TcpFailed)), (Some("b"), Some("a")));
    assert!(Metric::ALL.iter().all(|metric| own.client.metrics[metric].tags["source_app"].is_none()));
}

#[test]
fn what_is_said_of_spans_adds_up_field_by_field_and_tags_as_a_whole() {
    let wide = "tracing: [{randomSamplingPercentage: 0.5, customTags: {a: {literal: {value: b}}}, enableIstioTags: false}]";
    let narrow = "selector: {matchLabels: {app: web}}, tracing: [{match: {mode: SERVER}, disableSpanReporting: true, \
                  useRequestIdForTraceSampling: false}, {randomSamplingPercentage: 100, customTags: \
                  {user: {header: {name: X-User, defaultValue: nobody}}, node: {environment: {name: NODE}}}}]";
    let catalog = catalog(&[("istio-system", "all", wide), ("app", "web", narrow)]);
    let tag = |name: &str, value| CustomTag { name: name.into(), value };
    let expected = TracingRule {
        disabled: false,
        sampling: Some(5_000),
        tags: vec![tag("a", TagValue::Literal("b".into()))],
        without_istio_tags: true,
    };
    assert_eq!(of_mesh(&catalog, &mesh()).unwrap().server.tracing, expected);
    let labels: Labels = [("app".into(), "web".into())].into();
    let subject = Subject { namespace: "app", labels: &labels, services: &[] };
    let own = of_workload(&catalog, &mesh(), subject).unwrap();
    let tags = vec![
        tag("user", TagValue::Header { name: "x-user".into(), default: "nobody".into() }),
        tag("node", TagValue::Environment { name: "NODE".into(), default: "".into() }),
    ];
    let client = TracingRule { disabled: false, sampling: Some(1_000_000), tags, without_istio_tags: true };
    assert_eq!(own.client.tracing, client);
    assert_eq!(own.server.tracing, TracingRule { disabled: true, ..client });
}

#[test]
fn a_provider_of_spans_is_one_of_mesh_config() {
    let mesh_config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  \
                       mesh: |\n    extensionProviders:\n    - {name: otel, opentelemetry: {service: c, port: 4317}}\n    \
                       - {name: zipkin, zipkin: {service: z, port: 9411}}\n";
    for (provider, is_known) in [("otel", true), ("zipkin", false), ("other", false)] {
        let spec = format!("tracing: [{{providers: [{{name: {provider}}}]}}]");
        let loaded = load(&(mesh_config.to_owned() + &object("app", "t", &spec)));
        assert!(loaded.problems.iter().all(|it| !it.is_error()), "{:?}", loaded.problems);
        let found = crate::kube::check_references(&loaded.catalog, &mesh());
        let is_told = found.iter().any(|it| it.message.contains("is no provider of kind opentelemetry"));
        assert_eq!(is_told, !is_known, "{provider}: {found:?}");
    }
}

#[test]
fn a_selector_of_the_root_namespace_reaches_all_and_others_their_own() {
    let selecting = format!("selector: {{matchLabels: {{app: web}}}}, {OFF}");
    assert_eq!(of_web(&catalog(&[("istio-system", "all", &selecting)])), Some((SILENT, SILENT)));
    assert_eq!(of_web(&catalog(&[("other", "web", &selecting)])), None);
    let targeting = format!("targetRefs: [{{kind: Service, name: web}}], {OFF}");
    assert_eq!(of_web(&catalog(&[("app", "web", &targeting)])), Some((SILENT, SILENT)));
}

#[test]
fn behind_a_waypoint_its_class_the_gateway_and_the_service_count() {
    let gateway = ObjectName::new("infra", "waypoint");
    let service = ServiceRef::Service(ObjectName::new("app", "web"));
    let of = |objects: &[(&str, &str, &str)], destination: Option<&ServiceRef>| {
        let waypoint = Waypoint { gateway: &gateway, class: "istio-waypoint", destination };
        logs(of_destination(&catalog(objects), &mesh(), &waypoint)).map(|(_, server)| server)
    };
    let gateway_group = "group: gateway.networking.k8s.io";
    let of_class =
        format!("targetRefs: [{{kind: GatewayClass, {gateway_group}, name: istio-waypoint}}], {FAILED}");
    let of_gateway = format!("targetRefs: [{{kind: Gateway, {gateway_group}, name: waypoint}}], {OFF}");
    let of_service =
        "targetRefs: [{kind: Service, name: web}], accessLogging: [{filter: {expression: 'true'}}]";
    let all = [
        ("istio-system", "class", of_class.as_str()),
        ("infra", "gateway", &of_gateway),
        ("app", "service", of_service),
        // Selectors are for workloads.
        ("infra", "selecting", "selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]"),
    ];
    assert_eq!(of(&[], Some(&service)), None);
    assert_eq!(of(&all[3..], Some(&service)), None);
    assert_eq!(of(&all[..1], None), Some(logged("response.code >= 400")));
    assert_eq!(of(&all[..2], None), Some(SILENT));
    assert_eq!(of(&all, Some(&service)), Some(logged("true")));
    assert_eq!(of(&all, None), Some(SILENT));
    // The namespace is the waypoint's, not the service's.
    assert_eq!(of(&[("app", "own", OFF)], Some(&service)), None);
    assert_eq!(of(&[("infra", "own", OFF)], Some(&service)), Some(SILENT));
}

#[test]
fn of_two_for_one_namespace_the_older_counts_and_the_other_is_told_of() {
    let text = "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: a, namespace: istio-system, \
                creationTimestamp: '2026-01-02T00:00:00Z'}\nspec: {accessLogging: [{disabled: true}]}\n---\n\
                apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: b, namespace: istio-system, \
                creationTimestamp: '2026-01-01T00:00:00Z'}\nspec: {accessLogging: [{disabled: false}]}\n";
    let loaded = load(text);
    assert_eq!(logs(of_mesh(&loaded.catalog, &mesh())), Some((LogRule::default(), LogRule::default())));
    let problems = crate::kube::check_references(&loaded.catalog, &mesh());
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!((problem.object.as_str(), problem.is_error()), ("Telemetry istio-system/a", false));
    assert!(problem.message.contains("Telemetry b is for the whole namespace, too"), "{problem}");
}

#[test]
fn what_is_not_served_is_refused_where_it_stands() {
    for (spec, found) in [
        (
            "accessLogging: [{providers: [{name: otel}]}]",
            "spec.accessLogging[0].providers[0].name: the provider \"otel\" is not supported | write envoy",
        ),
        (
            "accessLogging: [{filter: {expression: 'response.kode > 1'}}]",
            "spec.accessLogging[0].filter.expression: \"response.kode > 1\" cannot be a filter: \"response.kode\" is not known here",
        ),
        ("accessLogging: [{filter: {expresion: 'true'}}]", "did you mean expression?"),
        ("accessLogging: [{match: {mode: BOTH}}]", "spec.accessLogging[0].match.mode"),
        ("accessLogging: [{disabled: 'yes'}]", "spec.accessLogging[0].disabled"),
        ("accesslogging: []", "did you mean accessLogging?"),
        ("metrics: [{reportingInterval: 5s}]", "reportingInterval is not supported yet"),
        ("metrics: [{overrides: [{match: {customMetric: x}}]}]", "customMetric is not supported yet"),
        (
            "metrics: [{overrides: [{match: {metric: REQUESTS}}]}]",
            "spec.metrics[0].overrides[0].match.metric",
        ),
        (
            "metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: b}}}]}]",
            "has no value | remove value",
        ),
        ("metrics: [{overrides: [{tagOverrides: {a: {}}}]}]", "the label has no value"),
        (
            "metrics: [{overrides: [{tagOverrides: {a: {value: request.host}}}]}]",
            "only a text is, the same for all",
        ),
        ("metrics: [{overrides: [{tagOverrides: {1a: {operation: REMOVE}}}]}]", "cannot name a label"),
        ("tracing: [{providers: [{name: a}, {name: b}]}]", "more than one provider"),
        ("tracing: [{randomSamplingPercentage: 101}]", "write a number from 0 to 100"),
        ("tracing: [{useRequestIdForTraceSampling: true}]", "write false, or remove it"),
        ("tracing: [{customTags: {a: {formatter: {value: '%X%'}}}}]", "formatter is not supported yet"),
        ("tracing: [{customTags: {a: {literal: {value: b}, header: {name: c}}}}]", "a tag has one value"),
        ("tracing: [{customTags: {a: {header: {name: 'x y'}}}}]", "names no header"),
        ("tracing: [{disableSpanReporing: true}]", "did you mean disableSpanReporting?"),
        ("metrics: [{providers: [{name: stackdriver}]}]", "the provider \"stackdriver\" is not supported"),
        ("selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: x}]", "exclude each other"),
    ] {
        let found_here = findings(&object("app", "t", spec));
        assert!(
            found_here.iter().any(|line| line.contains(found) && line.contains("error")),
            "{spec}: {found_here:?}"
        );
    }
    let version = object("app", "t", "").replace("/v1\n", "/v2\n");
    assert!(findings(&version)[0].contains("Telemetry of version v2 is not read"));
}
