//! Routes that no capture shows.

use l7::ir::{BackendTarget, HashOn, HttpMatch, PathRewrite, RequestHead, UrlAction, ValueTest};
use l7::router::RouteMatch as Routed;
use prost::{Message, Name};
use prost_types::{Any, Duration};

use super::*;
use crate::envoy::names::ClusterName;
use crate::proto::waypoint::hash_policy::Specifier as HashedBy;
use crate::proto::waypoint::header_matcher::Specifier;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::weighted_clusters::ClusterWeight;
use crate::proto::waypoint::{
    CorsPolicy, HashPolicy, HeaderMatcher, HeaderValue, HeaderValueOption, HttpFault, RedirectAction,
    RegexMatcher, RegexSubstitution, RetryPolicy, RouteAction, RouteMatch, StringMatcher, WeightedClusters,
    hash_policy, redirect_action,
};

const CHAIN: &str = "inbound-vip|80|http|echo.app.svc.cluster.local";
const OTHER: &str = "outbound|8080|v2|other.app.svc.cluster.local";

fn target() -> Target {
    Target::Service(ClusterName::parse(CHAIN).unwrap())
}

fn at(specifier: PathSpecifier) -> RouteMatch {
    RouteMatch { path_specifier: Some(specifier), ..RouteMatch::default() }
}

fn to(cluster: &str) -> RouteAction {
    RouteAction { cluster: cluster.into(), timeout: Some(Duration::default()), ..RouteAction::default() }
}

fn wire(matcher: RouteMatch, action: RouteAction) -> Route {
    Route { r#match: Some(matcher), action: Some(Action::Route(action)), ..Route::default() }
}

fn config(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration { virtual_hosts: vec![VirtualHost { domains: vec!["*".into()], routes }] }
}

fn read(routes: Vec<Route>) -> Result<HttpRoute, String> {
    let read = route(&config(routes), CHAIN, &target());
    read.map(Option::unwrap).map_err(|refusal| refusal.to_string())
}

fn rule_of(route: Route) -> HttpRule {
    read(vec![route]).unwrap().rules.remove(0)
}

fn taken_by(routes: Vec<Route>, path: &str) -> Option<usize> {
    let router = Router::compile([Arc::new(read(routes).unwrap())]).unwrap();
    let head = RequestHead { method: "GET", authority: "h", path, query: None, headers: &[], token: None };
    match router.route(&head) {
        Routed::Matched(found) => Some(found.rule_index),
        Routed::NotFound => None,
    }
}

#[test]
fn the_first_route_that_matches_takes_a_request() {
    let routes = || {
        vec![
            wire(at(PathSpecifier::Prefix("/v".into())), to(OTHER)),
            wire(at(PathSpecifier::Path("/v1".into())), to(OTHER)),
            wire(at(PathSpecifier::PathSeparatedPrefix("/w".into())), to(OTHER)),
            wire(at(PathSpecifier::SafeRegex(RegexMatcher { regex: "/[xw].".into() })), to(OTHER)),
        ]
    };
    for (path, expected) in [
        ("/v1", Some(0)),
        ("/vx/y", Some(0)),
        ("/w", Some(2)),
        ("/w/x", Some(2)),
        ("/wx", Some(3)),
        ("/x/", Some(3)),
        ("/x/y", None),
        ("/V1", None),
    ] {
        assert_eq!(taken_by(routes(), path), expected, "{path}");
    }
}

#[test]
fn letters_may_be_compared_without_case() {
    let any_case = |specifier| RouteMatch { case_sensitive: Some(false), ..at(specifier) };
    for (specifier, taken, left) in [
        (PathSpecifier::Prefix("/v.1".into()), "/V.1x", "/vx1"),
        (PathSpecifier::Path("/v1".into()), "/V1", "/V1/"),
        (PathSpecifier::PathSeparatedPrefix("/v1".into()), "/V1/x", "/V1x"),
    ] {
        let routes = || vec![wire(any_case(specifier.clone()), to(OTHER))];
        assert_eq!((taken_by(routes(), taken), taken_by(routes(), left)), (Some(0), None), "{specifier:?}");
    }
}

fn header(
    name: &str,
    specifier: Specifier,
    invert_match: bool,
    treat_missing_header_as_empty: bool,
) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        specifier: Some(specifier),
        invert_match,
        treat_missing_header_as_empty,
    }
}

fn exact(text: &str) -> Specifier {
    let pattern = Some(Pattern::Exact(text.into()));
    Specifier::StringMatch(StringMatcher { pattern, ignore_case: false })
}

fn with_headers(headers: Vec<HeaderMatcher>) -> Result<HttpMatch, String> {
    let matcher = RouteMatch { headers, ..at(PathSpecifier::Prefix("/".into())) };
    matches::http_match(&matcher).map_err(|refusal| refusal.to_string())
}

#[test]
fn conditions_on_headers_keep_their_sense() {
    let names = |conditions: &[l7::ir::ValueMatch]| -> Vec<(String, ValueTest)> {
        conditions.iter().map(|it| (it.name.to_string(), it.value.clone())).collect()
    };
    let x = |test| vec![("x".to_owned(), test)];
    let none = Vec::new();
    for (matcher, wanted, unwanted) in [
        (header("X", exact("a"), false, false), x(ValueTest::Exact("a".into())), none.clone()),
        (header("x", Specifier::PresentMatch(true), false, false), x(ValueTest::Present), none.clone()),
        (header("x", Specifier::PresentMatch(true), true, false), none.clone(), x(ValueTest::Present)),
        (header("x", Specifier::PresentMatch(false), false, false), none.clone(), x(ValueTest::Present)),
        (header("x", exact("a"), true, true), none, x(ValueTest::Exact("a".into()))),
        // Not there is not a match, unless it is said to be as good as empty.
        (header("x", exact("a"), true, false), x(ValueTest::Present), x(ValueTest::Exact("a".into()))),
    ] {
        let entry = with_headers(vec![matcher.clone()]).unwrap();
        assert_eq!((names(&entry.headers), names(&entry.without_headers)), (wanted, unwanted), "{matcher:?}");
    }
    let method = with_headers(vec![header(":method", exact("GET"), false, false)]).unwrap();
    assert_eq!((method.method.as_deref(), method.headers.len()), (Some("GET"), 0));
    let twice = vec![header("x", exact("a"), false, false), header("X", exact("b"), false, false)];
    assert!(with_headers(twice).unwrap_err().starts_with("headers[1].name: "));
    assert!(with_headers(vec![header("x", exact(""), true, true)]).is_err());
    assert!(with_headers(vec![header("x", exact("a"), false, true)]).is_err());
    assert!(with_headers(vec![header(":path", exact("/"), false, false)]).is_err());
}

#[test]
fn backends_keep_weights_subsets_and_those_that_do_not_exist() {
    let weighted = |name: &str, weight| ClusterWeight {
        name: name.into(),
        weight: Some(weight),
        ..ClusterWeight::default()
    };
    let clusters = vec![weighted(OTHER, 3), weighted("UnknownService", 1)];
    let action = RouteAction { weighted_clusters: Some(WeightedClusters { clusters }), ..to("") };
    let rule = rule_of(wire(at(PathSpecifier::Prefix("/".into())), action));
    let [other, unknown] = &rule.backends[..] else { panic!("{rule:?}") };
    let BackendTarget::Service { service, port } = &other.target else { panic!("{other:?}") };
    assert_eq!((service.to_string().as_str(), *port), ("app/other.app.svc.cluster.local", 8080));
    assert_eq!((other.subset.as_deref(), other.weight), (Some("v2"), 3));
    assert!(matches!(unknown.target, BackendTarget::Invalid(_)));
    let nowhere = vec![wire(at(PathSpecifier::Prefix("/".into())), to("encap"))];
    let refusal = read(nowhere).unwrap_err();
    assert_eq!(refusal, "virtual_hosts.routes[0] ().route.cluster: \"encap\" names no port of a service");
}

#[test]
fn paths_are_rewritten_as_istiod_means_it() {
    let prefix = || at(PathSpecifier::PathSeparatedPrefix("/a.b".into()));
    let regex = |pattern: &str, substitution: &str| RouteAction {
        regex_rewrite: Some(RegexSubstitution {
            pattern: Some(RegexMatcher { regex: pattern.into() }),
            substitution: substitution.into(),
        }),
        ..to(OTHER)
    };
    let literal = |text: &str| RouteAction { prefix_rewrite: text.into(), ..to(OTHER) };
    for (matcher, action, expected) in [
        (prefix(), literal("/c"), PathRewrite::Prefix("/c".into())),
        (at(PathSpecifier::Path("/a".into())), literal("/c"), PathRewrite::Full("/c".into())),
        (at(PathSpecifier::Prefix("/a".into())), literal("/c"), PathRewrite::TextPrefix("/c".into())),
        (prefix(), regex(r"^/a\.b(/?)(.*)", r"/\2"), PathRewrite::Prefix("/".into())),
        (prefix(), regex("/.*", "/whole"), PathRewrite::Full("/whole".into())),
    ] {
        let rule = rule_of(wire(matcher, action));
        let Some(UrlAction::Rewrite(rewrite)) = &rule.filters.as_ref().unwrap().url else {
            panic!("{rule:?}")
        };
        assert_eq!(rewrite.path, Some(expected));
    }
    for action in [regex("/x(.*)", r"\1"), regex(r"^/other(/?)(.*)", r"/\2")] {
        assert!(read(vec![wire(prefix(), action)]).unwrap_err().contains("regex_rewrite.pattern: "));
    }
}

#[test]
fn headers_that_are_set_take_away_what_was_added_before() {
    let option = |key: &str, value: &str, append_action| HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into() }),
        append_action,
        ..HeaderValueOption::default()
    };
    let with = |options| Route {
        request_headers_to_add: options,
        ..wire(at(PathSpecifier::Prefix("/".into())), to(OTHER))
    };
    let rule = rule_of(with(vec![option("X-A", "1", 0), option("x-a", "100%%", 2), option("x-a", "3", 0)]));
    let edits = &rule.filters.as_ref().unwrap().request_headers;
    let texts = |values: &[l7::ir::HeaderValue]| -> Vec<String> {
        values.iter().map(|it| format!("{}={}", it.name, it.value)).collect()
    };
    assert_eq!(
        (texts(&edits.set), texts(&edits.add)),
        (vec!["x-a=100%".to_owned()], vec!["x-a=3".to_owned()])
    );
    for options in [vec![option("x", "%REQ(y)%", 0)], vec![option("x", "1", 1)], vec![option("x", "1", 9)]] {
        assert!(read(vec![with(options)]).unwrap_err().contains("request_headers_to_add"));
    }
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let redirect = |action: RedirectAction| {
        let matcher = Some(at(PathSpecifier::PathSeparatedPrefix("/a".into())));
        let route = Route { r#match: matcher, action: Some(Action::Redirect(action)), ..Route::default() };
        let rule = rule_of(route);
        let Some(UrlAction::Redirect(redirect)) = &rule.filters.as_ref().unwrap().url else {
            panic!("{rule:?}")
        };
        redirect.clone()
    };
    let plain =
        redirect(RedirectAction { port_redirect: 8443, response_code: 3, ..RedirectAction::default() });
    assert_eq!(
        (plain.status, plain.port, plain.scheme, plain.hostname, plain.path),
        (307, Some(8443), None, None, None)
    );
    let path = redirect_action::PathSpecifier::PrefixRewrite("/b".into());
    let scheme = redirect_action::SchemeSpecifier::HttpsRedirect(true);
    let found = redirect(RedirectAction {
        path_specifier: Some(path),
        scheme_specifier: Some(scheme),
        response_code: 1,
        ..RedirectAction::default()
    });
    assert_eq!((found.status, found.scheme), (302, Some(l7::ir::Scheme::Https)));
    assert_eq!(found.path, Some(PathRewrite::Prefix("/b".into())));
}

#[test]
fn limits_and_tries_are_read() {
    let policy = RetryPolicy {
        retry_on: "connect-failure,5xx,unavailable, retriable-status-codes".into(),
        num_retries: Some(3),
        per_try_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        retriable_status_codes: vec![409],
        ..RetryPolicy::default()
    };
    let action = RouteAction { timeout: None, retry_policy: Some(policy), ..to(OTHER) };
    let rule = rule_of(wire(at(PathSpecifier::Prefix("/".into())), action));
    let milliseconds = |limit: Option<std::num::NonZeroU32>| limit.map(std::num::NonZeroU32::get);
    assert_eq!(milliseconds(rule.timeouts.request_ms), Some(15_000));
    assert_eq!(milliseconds(rule.timeouts.backend_request_ms), Some(1000));
    let retry = rule.retry.unwrap();
    assert_eq!((retry.attempts, &*retry.on.statuses, &*retry.on.grpc_codes), (3, &[409][..], &[14][..]));
    assert!(retry.on.connect_failure && retry.on.server_error && retry.on.timeout && !retry.on.reset);
    let policy = RetryPolicy { retry_on: "sometimes".into(), ..RetryPolicy::default() };
    let action = RouteAction { retry_policy: Some(policy), ..to(OTHER) };
    let refusal = read(vec![wire(at(PathSpecifier::Prefix("/".into())), action)]).unwrap_err();
    assert!(refusal.ends_with("route.retry_policy.retry_on: \"sometimes\" is not supported"), "{refusal}");
}

fn told(name: &str, kind: &str, message: &impl Message) -> Route {
    let config = Any { type_url: format!("type.googleapis.com/{kind}"), value: message.encode_to_vec() };
    let typed_per_filter_config = [(name.to_owned(), config)].into();
    Route { typed_per_filter_config, ..wire(at(PathSpecifier::Prefix("/".into())), to(OTHER)) }
}

#[test]
fn only_known_filters_may_be_told_something() {
    let cors = CorsPolicy { allow_methods: "GET, PUT".into(), max_age: "60".into(), ..CorsPolicy::default() };
    let route = told("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.CorsPolicy", &cors);
    let filters = rule_of(route).filters.unwrap();
    let cors = filters.cors.as_ref().unwrap();
    assert_eq!((cors.methods.len(), cors.max_age_s, cors.forward_unmatched_preflights), (2, Some(60), true));
    let kind = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    let refusal = read(vec![told("istio.authorization.deny", kind, &HttpFault::default())]).unwrap_err();
    assert!(refusal.contains("typed_per_filter_config[\"istio.authorization.deny\"]: "), "{refusal}");
    assert_eq!(HttpFault::full_name(), "corelane.envoy.v1.HttpFault");
}

/// Whatever a route, a backend or a host tells a filter beside faults and CORS might make it stricter, so none is passed over.
#[test]
fn what_routes_tell_other_filters_is_refused_with_its_place() {
    for (name, kind) in [
        ("envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"),
        ("envoy.filters.http.ext_authz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"),
        ("envoy.filters.http.jwt_authn", "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"),
        ("envoy.filters.http.ext_proc", "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"),
        ("envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.LuaPerRoute"),
        (
            "envoy.filters.http.stateful_session",
            "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute",
        ),
        (
            "envoy.filters.http.local_ratelimit",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        ),
        // A filter that is known is told something of another kind, such as that it is switched off.
        ("envoy.filters.http.fault", "envoy.config.route.v3.FilterConfig"),
        ("envoy.filters.http.cors", "envoy.config.route.v3.FilterConfig"),
        ("envoy.filters.http.fault", "envoy.extensions.filters.http.cors.v3.CorsPolicy"),
    ] {
        let refusal = read(vec![told(name, kind, &())]).unwrap_err();
        let place = format!("virtual_hosts.routes[0] ().typed_per_filter_config[{name:?}]: ");
        assert!(refusal.starts_with(&place), "{kind}: {refusal}");
    }
    // A map with one entry: key "a".
    let entry = [3, 0x0a, 1, b'a'];
    let wrapped = |tag: &[u8], inner: &[u8]| [tag, &[u8::try_from(inner.len()).unwrap()], inner].concat();
    let of_map = |tag: &[u8]| [tag, &entry].concat();
    let cluster = wrapped(&[0x0a], &of_map(&[0x52]));
    let action = wrapped(&[0x12], &wrapped(&[0x1a], &cluster));
    for (bytes, place) in [
        (of_map(&[0x82, 0x01]), "field 16 of RouteConfiguration"),
        (wrapped(&[0x12], &of_map(&[0x7a])), "virtual_hosts: field 15 of VirtualHost"),
        (
            wrapped(&[0x12], &wrapped(&[0x1a], &action)),
            "virtual_hosts.routes.route.weighted_clusters.clusters: field 10 of ClusterWeight",
        ),
    ] {
        let refusal = crate::envoy::shape::check::<RouteConfiguration>(&bytes).unwrap_err().to_string();
        assert_eq!(refusal, format!("{place} is not supported"));
    }
}

#[test]
fn workloads_have_no_routes() {
    let plain = || wire(at(PathSpecifier::Prefix("/".into())), to(ENCAP));
    assert_eq!(route(&config(vec![plain()]), "direct-http", &Target::Workloads).unwrap(), None);
    let elsewhere = wire(at(PathSpecifier::Prefix("/".into())), to(OTHER));
    let changed =
        wire(at(PathSpecifier::Prefix("/".into())), RouteAction { prefix_rewrite: "/x".into(), ..to(ENCAP) });
    for routes in [vec![elsewhere], vec![changed], vec![plain(), plain()], Vec::new()] {
        assert!(route(&config(routes), "direct-http", &Target::Workloads).is_err());
    }
}

#[test]
fn what_requests_are_hashed_by_is_read() {
    let by = |specifiers: Vec<HashedBy>| {
        let hash_policy = specifiers.into_iter().map(|it| HashPolicy { specifier: Some(it) }).collect();
        let action = RouteAction { hash_policy, ..to(OTHER) };
        read(vec![wire(at(PathSpecifier::Prefix("/".into())), action)]).map(|mut it| it.rules.remove(0).hash)
    };
    let cookie = |ttl: Option<Duration>| {
        let (name, path) = ("u".into(), "/p".into());
        HashedBy::Cookie(hash_policy::Cookie { name, path, ttl })
    };
    let made = |lifetime_s| HashOn::Cookie { name: "u".into(), path: "/p".into(), lifetime_s };
    let source = |source_ip| HashedBy::ConnectionProperties(hash_policy::ConnectionProperties { source_ip });
    let header = |name: &str| HashedBy::Header(hash_policy::Header { header_name: name.into() });
    let read = by(vec![
        header("X-User"),
        cookie(None),
        cookie(Some(Duration::default())),
        cookie(Some(Duration { seconds: 60, nanos: 0 })),
        source(true),
        HashedBy::QueryParameter(hash_policy::QueryParameter { name: "q".into() }),
    ]);
    let on = [
        HashOn::Header("x-user".into()),
        made(None),
        made(Some(0)),
        made(Some(60)),
        HashOn::SourceIp,
        HashOn::QueryParameter("q".into()),
    ];
    assert_eq!(read.unwrap(), on);
    for (wrong, complaint) in [(source(false), "nothing to be hashed by"), (header(""), "there is none")] {
        let refusal = by(vec![wrong]).unwrap_err();
        assert!(refusal.contains("route.hash_policy") && refusal.contains(complaint), "{refusal}");
    }
}
