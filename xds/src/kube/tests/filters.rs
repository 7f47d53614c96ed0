//! Filters of HTTPRoutes: what they become, and what is refused where it stands.

use l7::ir::{
    Filters, HeaderEdits, HeaderValue, HttpRule, OriginMatch, PathRewrite, Redirect, Scheme, UrlAction,
    UrlRewrite,
};
use l7::router::Router;

use super::{findings, load};
use crate::kube::MeshSettings;
use crate::kube::convert::routes;

fn object(rule: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: app}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: app}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{{{rule}}}]\n"
    )
}

fn converted(rule: &str) -> HttpRule {
    let loaded = load(&object(rule));
    assert!(!loaded.problems.iter().any(super::super::Problem::is_error), "{rule}: {:?}", loaded.problems);
    let route = routes(&loaded.catalog, &MeshSettings::default()).remove(0);
    // Whatever the front end lets pass the engine must take.
    Router::compile([std::sync::Arc::new(route.clone())]).unwrap();
    route.rules[0].clone()
}

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: name.into(), value: value.into() }
}

#[test]
fn header_edits_stand_on_rules_and_backends() {
    let edits = "{set: [{name: X-Set, value: a b}, {name: x-set, value: late}], add: [{name: X-Add, value: '1'}], remove: [X-Gone]}";
    let expected = HeaderEdits {
        remove: vec!["X-Gone".into()],
        set: vec![value("X-Set", "a b")],
        add: vec![value("X-Add", "1")],
    };
    let filters = format!(
        "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {edits}}}, {{type: ResponseHeaderModifier, responseHeaderModifier: {edits}}}]"
    );
    let both =
        Filters { request_headers: expected.clone(), response_headers: expected, ..Filters::default() };
    let rule = converted(&filters);
    assert_eq!(rule.filters.as_deref(), Some(&both));
    let rule =
        converted(&format!("backendRefs: [{{name: web, port: 80, {filters}}}, {{name: web, port: 80}}]"));
    assert_eq!(rule.filters, None);
    assert_eq!(rule.backends[0].filters.as_deref(), Some(&both));
    assert_eq!(rule.backends[1].filters, None);
}

#[test]
fn rewrites_and_redirects_keep_what_is_unset() {
    let url = |filter: &str| {
        let rule = converted(&format!("matches: [{{path: {{value: /a}}}}], filters: [{filter}]"));
        rule.filters.unwrap().url.clone().unwrap()
    };
    assert_eq!(
        url("{type: URLRewrite, urlRewrite: {hostname: h.example}}"),
        UrlAction::Rewrite(UrlRewrite { hostname: Some("h.example".into()), path: None })
    );
    assert_eq!(
        url("{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}}"),
        UrlAction::Rewrite(UrlRewrite { hostname: None, path: Some(PathRewrite::Prefix("".into())) })
    );
    let plain = Redirect { scheme: None, hostname: None, port: None, path: None, status: 302 };
    assert_eq!(url("{type: RequestRedirect, requestRedirect: {}}"), UrlAction::Redirect(plain));
    assert_eq!(
        url(
            "{type: RequestRedirect, requestRedirect: {scheme: https, hostname: h.example, port: 8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /b}}}"
        ),
        UrlAction::Redirect(Redirect {
            scheme: Some(Scheme::Https),
            hostname: Some("h.example".into()),
            port: Some(8443),
            path: Some(PathRewrite::Full("/b".into())),
            status: 308,
        })
    );
    assert_eq!(converted("filters: []").filters, None);
}

#[test]
fn copies_go_to_every_mirror_that_is_valid() {
    let mirror = |fields: &str| format!("{{type: RequestMirror, requestMirror: {{{fields}}}}}");
    let filters = format!(
        "filters: [{}, {}, {}]",
        mirror("backendRef: {name: web, port: 80}"),
        mirror("backendRef: {name: web, port: 80}, percent: 20"),
        mirror("backendRef: {name: gone, port: 80}, fraction: {numerator: 1, denominator: 3}"),
    );
    for rule in
        [converted(&filters), converted(&format!("backendRefs: [{{name: web, port: 80, {filters}}}]"))]
    {
        let of_backend = rule.backends.first().and_then(|backend| backend.filters.clone());
        let filters = rule.filters.or(of_backend).unwrap();
        let shares: Vec<_> = filters
            .mirrors
            .iter()
            .map(|mirror| {
                let is_valid = matches!(mirror.target, l7::ir::BackendTarget::Service { .. });
                (mirror.share.numerator, mirror.share.denominator.get(), is_valid)
            })
            .collect();
        assert_eq!(shares, [(1, 1, true), (20, 100, true), (1, 3, false)]);
    }
}

#[test]
fn sharing_across_origins_is_read_whole() {
    let rule = converted(
        "filters: [{type: CORS, cors: {allowOrigins: ['https://a.example', 'http://*.b.example:8080', 'https://*'], \
         allowMethods: [GET], allowHeaders: ['*'], exposeHeaders: [X-A], allowCredentials: true, maxAge: 60}}]",
    );
    let cors = rule.filters.unwrap().cors.clone().unwrap();
    let glob = |text: &str| OriginMatch::Glob(text.into());
    let expected =
        [OriginMatch::Exact("https://a.example".into()), glob("http://*.b.example:8080"), glob("https://*")];
    assert_eq!(cors.origins, expected);
    assert_eq!((&*cors.methods[0], &*cors.headers[0], &*cors.expose_headers[0]), ("GET", "*", "X-A"));
    assert_eq!((cors.credentials, cors.max_age_s), (true, Some(60)));
    let bare = converted("filters: [{type: CORS, cors: {}}]").filters.unwrap().cors.clone().unwrap();
    assert_eq!((bare.credentials, bare.max_age_s, bare.origins.len()), (false, Some(5), 0));
}

#[test]
fn what_cannot_be_served_is_refused_where_it_stands() {
    let headers = |edits: &str| {
        format!("filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{edits}}}}}]")
    };
    let rewrite = |matches: &str, path: &str| {
        format!("matches: [{matches}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{{path}}}}}}}]")
    };
    let redirect =
        |fields: &str| format!("filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]");
    let mirror = |fields: &str| format!("filters: [{{type: RequestMirror, requestMirror: {{{fields}}}}}]");
    let cors = |fields: &str| format!("filters: [{{type: CORS, cors: {{{fields}}}}}]");
    let prefix = "type: ReplacePrefixMatch, replacePrefixMatch: /b";
    let needs_prefix = "ReplacePrefixMatch needs a rule with exactly one match, of type PathPrefix";
    for (rule, expected) in [
        (
            "filters: [{type: RequestMirror, requestMirror: {}}]".into(),
            "filters[0].requestMirror.backendRef: the field backendRef is missing",
        ),
        (
            mirror("backendRef: {name: web, port: 80}, percent: 101"),
            "requestMirror.percent: 101 is out of range",
        ),
        (
            mirror("backendRef: {name: web, port: 80}, percent: 1, fraction: {numerator: 1}"),
            "fraction: percent and fraction exclude each other",
        ),
        (
            mirror("backendRef: {name: web, port: 80}, fraction: {numerator: 3, denominator: 2}"),
            "fraction: the share is more than the whole",
        ),
        (mirror("backendRef: {name: web}"), "backendRef: a Service backend needs a port"),
        (mirror("backendRef: {name: web, port: 80, weight: 1}"), "there is no field \"weight\" here"),
        (cors("allowOrigins: [www.example.com]"), "allowOrigins[0]: \"www.example.com\" is no origin"),
        (cors("allowOrigins: ['https://a/b']"), "is no origin"),
        (cors("allowOrigins: ['https://a.*.b']"), "is no origin"),
        (cors("allowOrigins: ['*', 'https://a']"), "* allows every origin"),
        (cors("allowMethods: ['*', GET]"), "allowMethods: * stands for every name"),
        (cors("allowHeaders: ['a b']"), "allowHeaders[0]: \"a b\" cannot be a name here"),
        (cors("maxAge: 0"), "maxAge: 0 is out of range"),
        (cors("allowMethod: [GET]"), "did you mean allowMethods?"),
        ("filters: [{type: ExternalAuth}]".into(), "filter ExternalAuth is not supported yet"),
        ("filters: [{type: ExtensionRef}]".into(), "filter ExtensionRef is not supported yet"),
        ("filters: [{type: UrlRewrite}]".into(), "did you mean URLRewrite?"),
        ("filters: [{type: URLRewrite}]".into(), "filters[0].urlRewrite: the field urlRewrite is missing"),
        ("filters: [{urlRewrite: {}}]".into(), "the field type is missing"),
        (
            "filters: [{type: URLRewrite, urlRewrite: {}, requestRedirect: {}}]".into(),
            "there is no field \"requestRedirect\" here",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]".into(),
            "filters[1]: a filter of this type is written already | merge the two into one",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]"
                .into(),
            "filters: URLRewrite and RequestRedirect exclude each other",
        ),
        (
            headers("set: [{name: Host, value: a}]"),
            "requestHeaderModifier.set[0].name: header \"Host\" belongs to the connection or to the framing of messages, which no filter may change | remove it; to change the host of a request, write urlRewrite.hostname",
        ),
        (
            headers("add: [{name: content-length, value: '1'}]"),
            "remove it: the proxy writes this header itself",
        ),
        (headers("remove: [Transfer-Encoding]"), "remove[0]: header \"Transfer-Encoding\" belongs"),
        (headers("remove: ['a b']"), "\"a b\" cannot be a header name"),
        (headers("set: [{name: a, value: \"x\\r\\ny: z\"}]"), "set[0].value: the value of header \"a\""),
        (headers("set: [{name: a, value: ''}]"), "set[0].value: the value of header \"a\""),
        (headers("set: [{name: a}]"), "set[0].value: the field value is missing"),
        (headers("set: [{name: a, value: x}, {name: a, value: y}]"), "set[1]: \"a\" is named twice"),
        (rewrite("{path: {type: Exact, value: /a}}", prefix), needs_prefix),
        (rewrite("{path: {type: RegularExpression, value: /a}}", prefix), needs_prefix),
        (rewrite("{path: {value: /a}}, {path: {value: /c}}", prefix), needs_prefix),
        (
            rewrite("{}", "type: ReplaceFullPath, replaceFullPath: b"),
            "replaceFullPath: the path \"b\" cannot stand in",
        ),
        (rewrite("{}", "type: ReplaceFullPath, replaceFullPath: '/b?c'"), "cannot stand in"),
        (
            rewrite("{}", "type: ReplaceFullPath, replacePrefixMatch: /b"),
            "the field replaceFullPath is missing",
        ),
        (redirect("scheme: ftp"), "scheme: \"ftp\" is not known here"),
        (redirect("statusCode: 304"), "statusCode: 304 is not served | write 301, 302, 303, 307 or 308"),
        (redirect("port: 0"), "port: 0 is out of range"),
        (redirect("hostname: '*.example.com'"), "names no one host"),
        (redirect("hostname: 'a:80'"), "cannot be a host name"),
        (
            format!("{}, backendRefs: [{{name: web, port: 80}}]", redirect("")),
            "rules[0]: a rule with RequestRedirect cannot have backendRefs",
        ),
        (
            "backendRefs: [{name: web, port: 80, filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}]"
                .into(),
            "backendRefs[0].filters[1]: a filter of this type is written already",
        ),
    ] {
        let found = findings(&object(&rule)).join("\n");
        assert!(found.contains(expected), "{rule}:\n{found}\nmust hold {expected}");
        assert_eq!(load(&object(&rule)).refused.len(), 1, "{rule}");
    }
}

#[test]
fn a_route_may_send_what_a_service_of_others_gets_to_that_service() {
    let text = |parents: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: app}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: app}}\nspec:\n  \
             parentRefs: [{parents}]\n  rules: [{{backendRefs: [{{name: web, namespace: shop, port: 80}}]}}]\n"
        )
    };
    let is_valid = |parents: &str| {
        let loaded = load(&text(parents));
        let route = routes(&loaded.catalog, &MeshSettings::default()).remove(0);
        matches!(route.rules[0].backends[0].target, l7::ir::BackendTarget::Service { .. })
    };
    let (own, other) =
        ("{group: '', kind: Service, name: web}", "{group: '', kind: Service, name: web, namespace: shop}");
    assert!(is_valid(other));
    assert!(!is_valid(own));
    // What the route says of its own Service would otherwise reach the other without a grant.
    assert!(!is_valid(&format!("{own}, {other}")));
}
