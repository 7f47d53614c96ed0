//! GRPCRoutes: what they amount to, and what is refused where it stands.

use std::sync::Arc;

use l7::ir::{BackendTarget, HttpMatch, HttpRoute, PathMatch, RouteKind, ValueTest};
use l7::router::Router;

use super::{findings, load};
use crate::decode::route_name;
use crate::kube::convert::routes;
use crate::kube::{MeshSettings, check_references};

fn object(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: app}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: app}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: {name}, namespace: app}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web}}]\n  {spec}\n"
    )
}

fn converted(text: &str) -> Vec<HttpRoute> {
    let loaded = load(text);
    assert_eq!(loaded.problems, [], "{text}");
    let converted = routes(&loaded.catalog, &MeshSettings::default());
    Router::compile(converted.iter().cloned().map(Arc::new)).unwrap();
    converted
}

fn matched(entry: &str) -> HttpMatch {
    let route = converted(&object("r", &format!("rules: [{{matches: [{{{entry}}}]}}]"))).remove(0);
    route.rules[0].matches[0].clone()
}

#[test]
fn a_method_is_a_path() {
    let path = |method: &str| matched(&format!("method: {{{method}}}")).path;
    assert_eq!(path("service: a.b.C, method: Get"), PathMatch::Exact("/a.b.C/Get".into()));
    assert_eq!(path("service: a.b.C, type: Exact"), PathMatch::Prefix("/a.b.C".into()));
    assert_eq!(path("method: Get"), PathMatch::GrpcMethod("Get".into()));
    let regex = |text: &str| PathMatch::Regex(text.into());
    let typed = "type: RegularExpression";
    assert_eq!(path(&format!("{typed}, service: 'a|b', method: 'G.*'")), regex("/(?:a|b)/(?:G.*)"));
    assert_eq!(path(&format!("{typed}, method: G.*")), regex("/(?:[^/]+)/(?:G.*)"));
    assert_eq!(path(&format!("{typed}, service: 'a[.]b'")), regex("/(?:a[.]b)/(?:[^/]+)"));
    assert_eq!(matched("").path, PathMatch::Prefix("/".into()));
    let with_header = matched("headers: [{name: X-A, value: b}]");
    assert_eq!(with_header.headers[0].value, ValueTest::Exact("b".into()));
    assert_eq!((with_header.method, &*with_header.headers[0].name), (None, "x-a"));
}

#[test]
fn routes_of_one_name_and_of_two_kinds_are_two_routes() {
    let text = object("r", "rules: [{}]");
    let other = text.split_once("---\n").unwrap().1.split_once("---\n").unwrap().1;
    let both = converted(&format!("{text}---\n{}", other.replace("GRPCRoute", "HTTPRoute")));
    let names: Vec<_> = both.iter().map(route_name).collect();
    let host = "app/web.app.svc.cluster.local";
    assert_eq!(names, [format!("app/r/{host}/0"), format!("app/grpc_route/r/{host}/0")]);
    assert_eq!(both[1].kind, RouteKind::Grpc);
}

#[test]
fn a_grant_names_the_kind_of_route() {
    let target = |kind: &str| {
        let grant = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: app}}], to: [{{group: '', kind: Service}}]}}\n"
        );
        let backends = "rules: [{backendRefs: [{name: far, namespace: shop, port: 80}], \
                        filters: [{type: RequestMirror, requestMirror: {backendRef: {name: far, namespace: shop, port: 80}}}]}]";
        let rule = converted(&(object("r", backends) + &grant)).remove(0).rules.remove(0);
        let is_valid = |target: &BackendTarget| matches!(target, BackendTarget::Service { .. });
        let of_mirror = is_valid(&rule.filters.unwrap().mirrors[0].target);
        assert_eq!(is_valid(&rule.backends[0].target), of_mirror);
        of_mirror
    };
    assert!(target("GRPCRoute"));
    assert!(!target("HTTPRoute"));
}

#[test]
fn what_the_schema_refuses_is_refused_where_it_stands() {
    for (spec, expected) in [
        (
            "rules: [{matches: [{method: {}}]}]",
            "matches[0].method: a method match needs a service or a method",
        ),
        ("rules: [{matches: [{method: {service: ''}}]}]", "method.service: this must not be empty"),
        ("rules: [{matches: [{method: {service: a/b}}]}]", "\"a/b\" names no service"),
        ("rules: [{matches: [{method: {method: a.b}}]}]", "\"a.b\" names no method"),
        ("rules: [{matches: [{method: {method: 1a}}]}]", "names no method"),
        (
            "rules: [{matches: [{method: {type: RegularExpression, method: '('}}]}]",
            "method.method: \"(\" is no regular expression",
        ),
        ("rules: [{matches: [{method: {type: Prefix, method: a}}]}]", "\"Prefix\" is not known here"),
        ("rules: [{matches: [{path: {value: /a}}]}]", "there is no field \"path\" here"),
        ("rules: [{matches: [{queryParams: []}]}]", "there is no field \"queryParams\" here"),
        ("rules: [{timeouts: {request: 1s}}]", "there is no field \"timeouts\" here"),
        ("rules: [{retry: {}}]", "there is no field \"retry\" here"),
        ("rules: [{filters: [{type: CORS, cors: {}}]}]", "filters[0].type: \"CORS\" is not known here"),
        ("rules: [{filters: [{type: URLRewrite, urlRewrite: {}}]}]", "\"URLRewrite\" is not known here"),
    ] {
        let found = findings(&object("r", spec)).join("\n");
        assert!(found.contains(expected), "{spec}:\n{found}\nmust hold {expected}");
        assert_eq!(load(&object("r", spec)).refused.len(), 1, "{spec}");
    }
    let text = object("r", "rules: [{backendRefs: [{name: wep, port: 80}]}]");
    let warnings = check_references(&load(&text).catalog, &MeshSettings::default());
    assert!(warnings[0].to_string().contains("GRPCRoute app/r"), "{warnings:?}");
}
