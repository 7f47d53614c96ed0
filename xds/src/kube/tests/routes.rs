//! HTTPRoutes: reading, parents, backends, references.

use l7::ir::{BackendTarget, HttpMatch, PathMatch, SessionCarrier, ValueMatch, ValueTest};

use super::{findings, load};
use crate::kube::convert::routes;
use crate::kube::{MeshSettings, check_references};

const SERVICES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {ports: [{port: 80, name: http}, {port: 53, name: dns, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: app}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: app}
spec: {hosts: [a.example.com, b.example.com], ports: [{number: 443, name: tls, protocol: TLS}]}
---
";

fn route(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: app}}\nspec:\n{spec}\n---\n"
    )
}

fn parents(refs: &str) -> Vec<String> {
    let loaded = load(&format!("{SERVICES}{}", route(&format!("  parentRefs: {refs}"))));
    assert_eq!(loaded.problems, [], "{refs}");
    routes(&loaded.catalog, &MeshSettings::default())
        .iter()
        .map(|route| {
            let port = route.parent_port.unwrap_or(0);
            let consumer = route.consumer_namespace.as_deref().unwrap_or("-");
            format!("{} {port} {consumer}", route.parent)
        })
        .collect()
}

#[test]
fn each_parent_that_exists_gives_a_route() {
    let web = "app/web.app.svc.cluster.local";
    assert_eq!(parents("[{group: '', kind: Service, name: web}]"), [format!("{web} 0 -")]);
    assert_eq!(parents("[{group: '', kind: Service, name: web, port: 80}]"), [format!("{web} 80 -")]);
    assert_eq!(
        parents("[{group: '', kind: Service, name: web, sectionName: http}]"),
        [format!("{web} 80 -")]
    );
    assert_eq!(
        parents(
            "[{group: '', kind: Service, name: web, sectionName: http}, {group: '', kind: Service, name: web, port: 80}]"
        ),
        [format!("{web} 80 -")]
    );
    assert_eq!(
        parents(
            "[{group: '', kind: Service, name: cart, namespace: shop}, {group: '', kind: Service, name: web}]"
        ),
        ["shop/cart.shop.svc.cluster.local 0 app".to_owned(), format!("{web} 0 -")]
    );
    assert_eq!(
        parents("[{group: networking.istio.io, kind: ServiceEntry, name: ext, port: 443}]"),
        ["app/a.example.com 443 -", "app/b.example.com 443 -"]
    );
    for nowhere in [
        "name: gone, kind: Service, group: ''",
        "name: web, kind: Service, group: '', port: 81",
        "name: gateway",
    ] {
        assert_eq!(parents(&format!("[{{{nowhere}}}]")), [] as [&str; 0]);
    }
}

fn backend(reference: &str, grants: &str) -> BackendTarget {
    let spec = format!(
        "  parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{{backendRefs: [{reference}]}}]"
    );
    let loaded = load(&format!("{SERVICES}{}{grants}", route(&spec)));
    assert_eq!(loaded.problems, [], "{reference}");
    let route = routes(&loaded.catalog, &MeshSettings::default()).remove(0);
    let warnings = check_references(&loaded.catalog, &MeshSettings::default());
    let is_invalid = matches!(route.rules[0].backends[0].target, BackendTarget::Invalid(_));
    assert_eq!(warnings.len(), usize::from(is_invalid), "{warnings:?}");
    if let Some(warning) = warnings.first() {
        assert_eq!(warning.field, "spec.rules[0].backendRefs[0]");
    }
    route.rules[0].backends[0].target.clone()
}

#[test]
fn backends_are_resolved_or_say_why_not() {
    let valid = |text: &str, port| BackendTarget::Service {
        service: model::NamespacedHostname::parse(text).unwrap(),
        port,
    };
    let reason = |target: BackendTarget| match target {
        BackendTarget::Invalid(reason) => reason.to_string(),
        other @ BackendTarget::Service { .. } => panic!("{other:?}"),
    };
    assert_eq!(backend("{name: web, port: 80}", ""), valid("app/web.app.svc.cluster.local", 80));
    assert!(reason(backend("{name: gone, port: 80}", "")).contains("no Service app/gone"));
    assert!(reason(backend("{name: web, port: 81}", "")).contains("no TCP port 81"));
    assert!(reason(backend("{name: web, port: 53}", "")).contains("no TCP port 53"));
    assert!(reason(backend("{name: outside, port: 80}", "")).contains("ExternalName"));
    assert!(reason(backend("{name: web, kind: Thing, group: x.io}", "")).contains("kind Thing"));
    assert!(
        reason(backend("{name: cart, namespace: shop, port: 8080}", ""))
            .contains("no ReferenceGrant in shop")
    );
}

#[test]
fn grants_open_exactly_what_they_name() {
    let target = |namespace: &str, from: &str, to: &str| {
        let grant = format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: {namespace}}}\nspec: {{from: [{{{from}}}], to: [{{{to}}}]}}\n"
        );
        backend("{name: cart, namespace: shop, port: 8080}", &grant)
    };
    let from = "group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: app";
    let is_granted = |target: BackendTarget| matches!(target, BackendTarget::Service { .. });
    assert!(is_granted(target("shop", from, "group: '', kind: Service")));
    assert!(is_granted(target("shop", from, "group: '', kind: Service, name: cart")));
    assert!(!is_granted(target("shop", from, "group: '', kind: Service, name: other")));
    assert!(!is_granted(target("shop", from, "group: '', kind: Secret")));
    assert!(!is_granted(target("app", from, "group: '', kind: Service")));
    assert!(!is_granted(target("shop", &from.replace("app", "far"), "group: '', kind: Service")));
    assert!(!is_granted(target("shop", &from.replace("HTTPRoute", "TCPRoute"), "group: '', kind: Service")));
}

#[test]
fn defaults_are_those_of_the_schema() {
    let loaded = load(&format!(
        "{SERVICES}{}",
        route(
            "  parentRefs: [{group: '', kind: Service, name: web}]\n  rules: [{backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /x}, headers: [{name: X-A, value: b}, {name: x-a, value: c}], queryParams: [{name: Q, value: '1', type: RegularExpression}], method: GET}, {}]}]"
        )
    ));
    assert_eq!(
        loaded.problems.len(),
        1,
        "the second spelling of a header is left out: {:?}",
        loaded.problems
    );
    let converted = routes(&loaded.catalog, &MeshSettings::default()).remove(0);
    let all = HttpMatch::default();
    assert_eq!(converted.rules[0].matches, std::slice::from_ref(&all));
    assert_eq!(converted.rules[0].backends[0].weight, 1);
    assert_eq!(converted.rules[1].matches[1], all);
    assert_eq!(
        converted.rules[1].matches[0],
        HttpMatch {
            path: PathMatch::Prefix("/x".into()),
            method: Some("GET".into()),
            headers: vec![ValueMatch { name: "x-a".into(), value: ValueTest::Exact("b".into()) }],
            query: vec![ValueMatch { name: "Q".into(), value: ValueTest::Regex("1".into()) }],
            ..HttpMatch::default()
        }
    );
    let bare = load(&format!("{SERVICES}{}", route("  parentRefs: [{group: '', kind: Service, name: web}]")));
    assert_eq!(routes(&bare.catalog, &MeshSettings::default())[0].rules[0].matches, [all]);
}

#[test]
fn timeouts_of_zero_are_off() {
    let timeouts = |text: &str| {
        let spec = format!("  parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{{{text}}}]");
        let loaded = load(&format!("{SERVICES}{}", route(&spec)));
        assert_eq!(loaded.problems, [], "{text}");
        let timeouts = routes(&loaded.catalog, &MeshSettings::default())[0].rules[0].timeouts;
        (timeouts.request_ms, timeouts.backend_request_ms, timeouts.limit().map(|limit| limit.as_millis()))
    };
    let ms = std::num::NonZeroU32::new;
    assert_eq!(timeouts("timeouts: {request: 10s, backendRequest: 3s}"), (ms(10_000), ms(3000), Some(3000)));
    assert_eq!(timeouts("timeouts: {request: 500ms}"), (ms(500), None, Some(500)));
    assert_eq!(timeouts("timeouts: {request: 0s, backendRequest: 1s}"), (None, ms(1000), Some(1000)));
    assert_eq!(timeouts("timeouts: {request: 0s, backendRequest: 0s}"), (None, None, None));
    assert_eq!(timeouts("timeouts: {}"), (None, None, None));
    assert_eq!(timeouts(""), (None, None, None));
}

#[test]
fn retries_and_sessions_have_their_defaults() {
    let rule = |text: &str| {
        let spec = format!("  parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{{{text}}}]");
        let loaded = load(&format!("{SERVICES}{}", route(&spec)));
        assert_eq!(loaded.problems, [], "{text}");
        routes(&loaded.catalog, &MeshSettings::default())[0].rules[0].clone()
    };
    let ms = std::num::NonZeroU32::new;
    let retry = rule("retry: {codes: [500, 503], attempts: 3, backoff: 100ms}").retry.unwrap();
    assert_eq!(
        (retry.attempts, retry.backoff_ms, retry.on.statuses.as_slice()),
        (3, ms(100), &[500, 503][..])
    );
    assert!(retry.on.connect_failure && retry.on.timeout && retry.on.reset && !retry.on.server_error);
    assert_eq!(rule("retry: {}").retry.unwrap().attempts, 1);
    let session = |text: &str| {
        let session = rule(&format!("sessionPersistence: {text}")).session.unwrap();
        (session.name.to_string(), session.carrier, session.absolute_timeout_s, session.idle_timeout_s)
    };
    let named = |name: &str| name.to_owned();
    assert_eq!(session("{}"), (named("corelane-session"), SessionCarrier::SessionCookie, None, None));
    assert_eq!(
        session("{type: Header, sessionName: X-Sid, idleTimeout: 1500ms}"),
        (named("x-sid"), SessionCarrier::Header, None, ms(2))
    );
    assert_eq!(
        session("{sessionName: Sid, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}"),
        (named("Sid"), SessionCarrier::PermanentCookie, ms(3600), None)
    );
}

#[test]
fn what_the_schema_refuses_is_refused_where_it_stands() {
    for (spec, expected) in [
        (
            "  rules: [{matches: [{path: {value: x}}]}]",
            "5:37 error spec.rules[0].matches[0].path.value: the path \"x\" does not begin",
        ),
        ("  rules: [{matches: [{path: {value: /a//b}}]}]", "holds \"//\""),
        ("  rules: [{matches: [{path: {value: /a/../b}}]}]", "holds \"/../\""),
        ("  rules: [{matches: [{path: {value: '/a%2Fb'}}]}]", "holds \"%2F\""),
        ("  rules: [{matches: [{path: {value: /a/..}}]}]", "holds \"/..\""),
        ("  rules: [{matches: [{path: {value: '/a b'}}]}]", "no path may hold"),
        ("  rules: [{matches: [{path: {value: '/a%zz'}}]}]", "no path may hold"),
        ("  rules: [{matches: [{path: {type: Prefix, value: /a}}]}]", "did you mean PathPrefix?"),
        ("  rules: [{matches: [{method: get}]}]", "did you mean GET?"),
        (
            "  rules: [{matches: [{headers: [{name: 'a b', value: x}]}]}]",
            "headers[0].name: \"a b\" cannot be a name",
        ),
        ("  rules: [{matches: [{headers: [{name: a}]}]}]", "headers[0].value: the field value is missing"),
        (
            "  rules: [{matches: [{headers: [{name: a, value: x}, {name: a, value: y}]}]}]",
            "headers[1]: \"a\" is named twice",
        ),
        ("  rules: [{backendRefs: [{name: web}]}]", "backendRefs[0]: a Service backend needs a port"),
        ("  rules: [{backendRefs: [{name: web, port: 0}]}]", "write a number from 1 to 65535"),
        ("  rules: [{backendRefs: [{name: web, port: '80'}]}]", "write 80 without quotes"),
        ("  rules: [{backendRefs: [{name: web, port: 80, weight: -1}]}]", "from 0 to 1000000"),
        ("  rules: [{timeouts: {request: 1}}]", "rules[0].timeouts.request:"),
        ("  rules: [{timeouts: {request: 1.5s}}]", "timeouts.request: \"1.5s\" is no duration"),
        ("  rules: [{timeouts: {request: 99999h}}]", "is longer than 49 days"),
        ("  rules: [{timeouts: {backend: 1s}}]", "did you mean backendRequest?"),
        (
            "  rules: [{timeouts: {request: 1s, backendRequest: 2s}}]",
            "rules[0].timeouts: backendRequest is longer than request",
        ),
        ("  rules: [{retry: {attempts: -1}}]", "retry.attempts: -1 is out of range"),
        ("  rules: [{retry: {codes: [200]}}]", "retry.codes[0]: 200 is out of range"),
        ("  rules: [{retry: {codes: [500, 500]}}]", "retry.codes[1]: this code is named twice"),
        ("  rules: [{retry: {backoff: 1}}]", "retry.backoff:"),
        ("  rules: [{retry: {tries: 1}}]", "there is no field \"tries\" here"),
        ("  rules: [{sessionPersistence: {type: Ip}}]", "sessionPersistence.type: \"Ip\" is not known here"),
        ("  rules: [{sessionPersistence: {sessionName: 'a b'}}]", "\"a b\" cannot name a session"),
        (
            "  rules: [{sessionPersistence: {type: Header, sessionName: Host}}]",
            "\"Host\" cannot name a session",
        ),
        (
            "  rules: [{sessionPersistence: {type: Header, cookieConfig: {}}}]",
            "cookieConfig: a session of a header has no cookie",
        ),
        (
            "  rules: [{sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}}]",
            "a permanent cookie needs a time to live",
        ),
        ("  rules: [{name: a}, {name: a}]", "rules[1]: two rules bear this name"),
        (
            "  rules: [{matches: [{path: {type: RegularExpression, value: '/a('}}]}]",
            "path.value: \"/a(\" is no regular expression: unclosed group |",
        ),
        (
            "  rules: [{matches: [{headers: [{name: a, type: RegularExpression, value: '(x{100}){100}{100}'}]}]}]",
            "is no regular expression",
        ),
        ("  rules: []", "at least one rule"),
        ("  hostnames: ['10.0.0.1']", "cannot be a host name"),
        ("  hostnames: [Web.example.com]", "cannot be a host name"),
        ("  parentRefs: [{name: a}, {name: a}]", "parentRefs[1]: this parent is named twice"),
        ("  parentRefs: [{name: a, port: 70000}]", "parentRefs[0].port: 70000 is out of range"),
        ("  parentRefs: [{nam: a}]", "did you mean name?"),
        (
            "  rules: [{backendRef: [{name: web}]}]",
            "there is no field \"backendRef\" here | did you mean backendRefs?",
        ),
    ] {
        let found = findings(&route(spec)).join("\n");
        assert!(found.contains(expected), "{spec}:\n{found}\nmust hold {expected}");
        assert_eq!(load(&route(spec)).refused.len(), 1, "{spec}");
    }
}

#[test]
fn references_that_lead_nowhere_are_warned_of_with_a_mend() {
    let warnings = |text: &str| {
        let loaded = load(&format!("{SERVICES}{text}"));
        assert_eq!(loaded.problems, []);
        let warnings = check_references(&loaded.catalog, &MeshSettings::default());
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let found = warnings(&route("  parentRefs:\n  - group: ''\n    kind: Service\n    name: wep"));
    assert!(found.contains("there is no Service app/wep") && found.contains("did you mean web?"), "{found}");
    assert!(found.contains("spec.parentRefs[0]"), "{found}");
    assert!(
        warnings(&route("  parentRefs: [{name: gateway}]")).contains("write group: \"\" and kind: Service")
    );
    assert!(warnings(&route("  rules: [{}]")).contains("no parent"));
    let policy = |kind: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: app}}\nspec: {spec}\n"
        )
    };
    let found = warnings(&policy("AuthorizationPolicy", "{selector: {matchLabels: {app: x}}}"));
    assert!(found.contains("no workload has the labels app: x"), "{found}");
    let found = warnings(&policy("PeerAuthentication", "{selector: {matchLabels: {app: x}}}"));
    assert!(found.contains("no workload has the labels app: x"), "{found}");
    let found =
        warnings(&policy("AuthorizationPolicy", "{targetRefs: [{group: '', kind: Service, name: wb}]}"));
    assert!(found.contains("did you mean web?"), "{found}");
    let found = warnings(&policy(
        "AuthorizationPolicy",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: x}]}",
    ));
    assert!(found.contains("only in the root namespace"), "{found}");
    let found = warnings("apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shpo}\nspec: {}\n");
    assert!(found.contains("there is no Namespace shpo") && found.contains("did you mean shop?"), "{found}");
}
