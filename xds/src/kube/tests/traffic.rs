//! VirtualServices and DestinationRules: what they become, and what is refused by name.

use std::sync::Arc;

use l7::ir::{
    AbortWith, Balancing, HashOn, HashTable, Header, HttpRoute, PathRewrite, RequestHead, UrlAction,
};
use l7::router::{MatchedRoute, RouteMatch, Router, Sender};

use super::{findings, load};
use crate::kube::convert::traffic::{label_keys, told_labels};
use crate::kube::convert::{routes, traffic_policies};
use crate::kube::{Labels, MeshSettings};

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: app}
spec: {ports: [{port: 8080}]}
---
";

fn object(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: {namespace}}}\n\
         spec:\n  {}\n---\n",
        spec.trim().replace('\n', "\n  ")
    )
}

fn virtual_routes(namespace: &str, spec: &str) -> Vec<HttpRoute> {
    let loaded = load(&(SERVICES.to_owned() + &object("VirtualService", namespace, spec)));
    assert_eq!(loaded.problems, []);
    routes(&loaded.catalog, &MeshSettings::default())
}

fn router(routes: &[HttpRoute], port: u16) -> Router {
    let governing = routes.iter().filter(|route| route.parent_port == Some(port));
    Router::compile(governing.cloned().map(Arc::new)).unwrap()
}

fn head<'a>(path: &'a str, headers: &'a [Header<'a>]) -> RequestHead<'a> {
    RequestHead { method: "GET", authority: "web", path, query: Some("q=1"), headers, token: None }
}

fn matched<'a>(router: &'a Router, head: &RequestHead<'_>, sender: Sender<'_>) -> Option<MatchedRoute<'a>> {
    match router.route_from(head, sender) {
        RouteMatch::Matched(matched) => Some(matched),
        RouteMatch::NotFound => None,
    }
}

#[test]
fn the_first_route_that_holds_counts_and_every_kind_of_match_is_honoured() {
    let routes = virtual_routes(
        "app",
        "
hosts: [web]
http:
- {name: prefix, match: [{uri: {prefix: /v1}, port: 80}], route: [{destination: {host: v1}}]}
- {name: exact, match: [{uri: {exact: /v1/x}}], route: [{destination: {host: v1}}]}
- {name: source, match: [{sourceLabels: {app: a}, sourceNamespace: app}], route: [{destination: {host: v1}}]}
- {name: header, match: [{headers: {x-a: {prefix: b}}, withoutHeaders: {x-n: {}}}], route: [{destination: {host: v1}}]}
- {name: pseudo, match: [{method: {exact: GET}, authority: {prefix: we}, scheme: {exact: http}, queryParams: {q: {regex: '[12]'}}, uri: {prefix: /P}, ignoreUriCase: true}], route: [{destination: {host: v1}}]}
- {name: gateway, match: [{gateways: [ingress]}], route: [{destination: {host: v1}}]}
- {name: rest, match: [{uri: {prefix: /rest}}], route: [{destination: {host: v1}}]}",
    );
    assert_eq!(routes.len(), 2, "one for each port");
    let (web, admin) = (router(&routes, 80), router(&routes, 81));
    let anybody = Sender::default();
    let name = |router: &Router, head: &RequestHead<'_>, sender: Sender<'_>| {
        matched(router, head, sender).and_then(|it| it.rule.name.as_ref().map(ToString::to_string))
    };
    let named = |text: &str| Some(text.to_owned());
    assert_eq!(name(&web, &head("/v1/x", &[]), anybody), named("prefix"), "the first, not the longest");
    assert_eq!(name(&web, &head("/v10", &[]), anybody), named("prefix"), "letters, not elements");
    assert_eq!(name(&admin, &head("/v1/x", &[]), anybody), named("exact"), "the port is another");
    let labels: Labels = [("app".into(), "a".into())].into();
    let known = Sender { namespace: "app", labels: Some(&labels) };
    assert_eq!(name(&web, &head("/z", &[]), known), named("source"));
    assert_eq!(name(&web, &head("/z", &[]), Sender { namespace: "far", ..known }), None);
    assert_eq!(name(&web, &head("/z", &[]), Sender { labels: None, ..known }), None);
    let with = [Header { name: "X-A", value: b"bc" }];
    assert_eq!(name(&web, &head("/z", &with), anybody), named("header"));
    let without = [with[0], Header { name: "x-n", value: b"" }];
    assert_eq!(name(&web, &head("/z", &without), anybody), None);
    assert_eq!(name(&web, &head("/pseudo", &[]), anybody), named("pseudo"));
    assert_eq!(name(&web, &head("/rest/x", &[]), anybody), named("rest"));
}

#[test]
fn what_is_done_to_requests_finds_its_place() {
    let routes = virtual_routes(
        "app",
        "
hosts: [web.app.svc.cluster.local]
http:
- match: [{uri: {prefix: /a}}, {uri: {exact: /b}}]
  rewrite: {uri: /c, authority: other.example}
  headers: {request: {set: {x-a: '1'}, remove: [x-b]}, response: {add: {x-c: '2'}}}
  route:
  - {destination: {host: v1, subset: s, port: {number: 8080}}, weight: 90, headers: {request: {add: {x-d: '3'}}}}
  - {destination: {host: nowhere}, weight: 10}
  timeout: 1.5s
  retries: {attempts: 3, perTryTimeout: 500ms, retryOn: 'gateway-error,409,unavailable'}
  fault: {delay: {fixedDelay: 2s, percentage: {value: 0.5}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
  mirror: {host: v1}
  mirrorPercentage: {value: 10}
  corsPolicy: {allowOrigins: [{exact: https://a}], allowMethods: [GET], maxAge: 24h, allowCredentials: true}
- match: [{uri: {prefix: /old}}]
  redirect: {uri: /new, authority: new.example, redirectCode: 308}
- directResponse: {status: 418, body: {string: teapot}}",
    );
    let web = router(&routes, 80);
    let by_prefix = matched(&web, &head("/a/x", &[]), Sender::default()).unwrap().rule;
    let filters = by_prefix.filters.as_deref().unwrap();
    let Some(UrlAction::Rewrite(rewrite)) = &filters.url else { panic!() };
    assert_eq!(rewrite.path, Some(PathRewrite::TextPrefix("/c".into())));
    assert_eq!(rewrite.hostname.as_deref(), Some("other.example"));
    let by_exact = matched(&web, &head("/b", &[]), Sender::default()).unwrap().rule;
    let Some(UrlAction::Rewrite(rewrite)) = &by_exact.filters.as_deref().unwrap().url else { panic!() };
    assert_eq!(rewrite.path, Some(PathRewrite::Full("/c".into())));
    assert_eq!((filters.request_headers.set.len(), filters.response_headers.add.len()), (1, 1));
    let [first, second] = &by_prefix.backends[..] else { panic!() };
    assert_eq!((first.weight, first.subset.as_deref()), (90, Some("s")));
    assert!(matches!(&second.target, l7::ir::BackendTarget::Invalid(reason) if reason.contains("nowhere")));
    assert_eq!(by_prefix.timeouts.request_ms.unwrap().get(), 1500);
    assert_eq!(by_prefix.timeouts.backend_request_ms.unwrap().get(), 500);
    let retry = by_prefix.retry.as_deref().unwrap();
    assert_eq!((retry.attempts, &*retry.on.statuses, &*retry.on.grpc_codes), (3, &[409][..], &[14][..]));
    let fault = by_prefix.fault.as_deref().unwrap();
    let delay = fault.delay.unwrap();
    assert_eq!((delay.delay_ms.get(), delay.share.numerator), (2000, 5000));
    assert_eq!(fault.abort.unwrap().with, AbortWith::Grpc(14));
    assert_eq!(filters.mirrors[0].share.numerator, 100_000);
    let cors = filters.cors.as_deref().unwrap();
    assert_eq!(
        (cors.max_age_s, cors.credentials, cors.forward_unmatched_preflights),
        (Some(86_400), true, true)
    );
    let redirected = matched(&web, &head("/old/x", &[]), Sender::default()).unwrap().rule;
    assert!(redirected.retry.is_none() && redirected.backends.is_empty());
    let direct = matched(&web, &head("/else", &[]), Sender::default()).unwrap().rule;
    assert_eq!(direct.direct.as_deref().unwrap().status, 418);
}

#[test]
fn an_object_of_another_namespace_governs_its_own_clients_only() {
    let spec = "hosts: [web.app.svc.cluster.local]\nhttp: [{directResponse: {status: 200}}]";
    let consumers = |namespace: &str, more: &str| -> Vec<Option<String>> {
        let routes = virtual_routes(namespace, &format!("{spec}\n{more}"));
        let own = routes.iter().filter(|route| route.parent_port == Some(80));
        own.map(|route| route.consumer_namespace.as_ref().map(ToString::to_string)).collect()
    };
    assert_eq!(consumers("app", ""), [None]);
    assert_eq!(consumers("far", ""), [Some("far".into())]);
    assert_eq!(consumers("app", "exportTo: ['.', far]"), [Some("app".into()), Some("far".into())]);
    assert!(consumers("far", "exportTo: [app]").is_empty());
    assert_eq!(
        virtual_routes("app", &spec.replace("web.app.svc.cluster.local", "'*.app.svc.cluster.local'")).len(),
        3
    );
}

#[test]
fn parts_that_are_not_honoured_are_refused_by_name() {
    let spec = |route: &str| format!("hosts: [web]\nhttp: [{{{route}}}]");
    for (spec, complaint) in [
        ("hosts: [web]\ntcp: [{route: [{destination: {host: v1}}]}]".to_owned(), "tcp is not supported"),
        (spec("delegate: {name: a}"), "delegate is not supported"),
        (spec("route: [{destination: {host: v1}}], directResponse: {status: 200}"), "exactly one of"),
        (spec("match: [{uri: {prefix: v1}}], route: [{destination: {host: v1}}]"), "begins with a slash"),
        (
            spec("match: [{uri: {regex: '(a{100}){100}{100}'}}], route: [{destination: {host: v1}}]"),
            "is no regular expression",
        ),
        (spec("match: [{header: {}}], route: [{destination: {host: v1}}]"), "did you mean headers?"),
        (spec("route: [{destination: {host: v1}}], retries: {retryOn: sometimes}"), "retryOn"),
        (
            spec("route: [{destination: {host: v1}}], rewrite: {uriRegexRewrite: {}}"),
            "uriRegexRewrite is not supported",
        ),
        (
            spec("route: [{destination: {host: v1}}], headers: {request: {set: {x: '%START_TIME%'}}}"),
            "commands are not supported",
        ),
        (
            spec(
                "route: [{destination: {host: v1}}], fault: {abort: {percentage: {value: 101}, httpStatus: 500}}",
            ),
            "no share of requests",
        ),
    ] {
        let told = findings(&object("VirtualService", "app", &spec)).join("\n");
        assert!(told.contains("error") && told.contains(complaint), "{complaint}: {told}");
    }
    for (policy, complaint) in [
        ("tls: {mode: SIMPLE}", "only ISTIO_MUTUAL is supported"),
        ("loadBalancer: {localityLbSetting: {enabled: true}}", "localityLbSetting is not supported"),
        ("loadBalancer: {consistentHash: {}}", "this is over 0"),
        ("loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}", "no prime number"),
        ("loadBalancer: {simple: ROUND_ROBBIN}", "did you mean ROUND_ROBIN?"),
        ("connectionPool: {http: {useClientProtocol: true}}", "useClientProtocol is not supported"),
        ("outlierDetection: {consecutive5xxErrors: x}", "this must be a number"),
    ] {
        let spec = format!("host: web\ntrafficPolicy: {{{policy}}}");
        let told = findings(&object("DestinationRule", "app", &spec)).join("\n");
        assert!(told.contains("error") && told.contains(complaint), "{complaint}: {told}");
    }
}

#[test]
fn settings_of_ports_and_subsets_are_merged_as_istio_does() {
    let spec = "
host: web
trafficPolicy:
  loadBalancer: {simple: ROUND_ROBIN}
  connectionPool: {tcp: {maxConnections: 5}}
  portLevelSettings:
  - {port: {number: 81}, outlierDetection: {consecutive5xxErrors: 3}}
subsets:
- {name: s, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: X-U, maglev: {}}}}}
- {name: t, labels: {version: v2}}";
    let loaded = load(&(SERVICES.to_owned() + &object("DestinationRule", "app", spec)));
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let policies = traffic_policies(&loaded.catalog, &MeshSettings::default());
    let [policy] = &policies[..] else { panic!("{policies:?}") };
    let plain = policy.settings(None, 80);
    assert_eq!((&plain.balancing, plain.limits.connections), (&Balancing::RoundRobin, Some(5)));
    let port = policy.settings(None, 81);
    assert_eq!((&port.balancing, port.limits.connections), (&Balancing::Unset, None), "nothing is inherited");
    assert_eq!(port.outliers.unwrap().consecutive_5xx, 3);
    let subset = policy.settings(Some("s"), 80);
    let Balancing::Hash(hash) = &subset.balancing else { panic!() };
    assert_eq!((&hash.on, hash.table), (&vec![HashOn::Header("x-u".into())], HashTable::Maglev(65_537)));
    assert_eq!(subset.limits.connections, Some(5), "the other parts are inherited");
    assert_eq!(policy.settings(Some("t"), 80), plain);
    let keys = label_keys(&loaded.catalog);
    let labels: Labels = [("version".into(), "v1".into()), ("app".into(), "web".into())].into();
    assert_eq!(told_labels(&labels, &keys), [("version".into(), "v1".into())].into());
}

#[test]
fn the_rule_nearest_to_the_service_and_to_its_host_counts() {
    let rule = |name: &str, namespace: &str, host: &str| {
        object("DestinationRule", namespace, &format!("host: '{host}'"))
            .replace("name: x", &format!("name: {name}"))
    };
    let text = SERVICES.to_owned()
        + &rule("wide", "app", "*.app.svc.cluster.local")
        + &rule("near", "app", "web")
        + &rule("root", "istio-system", "*")
        + &rule("far", "far", "web.app.svc.cluster.local");
    let policies = traffic_policies(&load(&text).catalog, &MeshSettings::default());
    let shown: Vec<(String, String, Option<String>)> = policies
        .iter()
        .map(|it| {
            (
                it.service.hostname.to_string(),
                it.name.to_string(),
                it.consumer_namespace.as_ref().map(ToString::to_string),
            )
        })
        .collect();
    let host = |name: &str| format!("{name}.app.svc.cluster.local");
    assert_eq!(
        shown,
        [
            (host("v1"), "wide".into(), None),
            (host("web"), "far".into(), Some("far".into())),
            (host("web"), "near".into(), None),
        ]
    );
}
