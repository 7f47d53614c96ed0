//! Matching a request allocates nothing, however many routes and policies there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A counting allocator cannot be written otherwise.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use l7::authz::{ConnectionVerdict, Denial, PolicySet, Verdict};
use l7::ir::{
    Action, Attribute, AuthorizationPolicy, Backend, BackendTarget, Clause, Condition, ConnectionAttributes,
    Header, HttpMatch, HttpRoute, HttpRule, Match, PathMatch, RequestHead, RouteOrder, Rule, Test,
    ValueMatch, ValueTest,
};
use l7::path::{Normalization, normalize};
use l7::router::{RouteMatch, Router, Taken};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system allocator, which upholds the contract; counting touches a
// constant-initialised thread local without destructor and so does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's obligations are those of the system allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, that is, from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

fn route(number: usize, path: PathMatch, headers: Vec<ValueMatch>) -> Arc<HttpRoute> {
    let matches = vec![HttpMatch { path, headers, ..HttpMatch::default() }];
    let service = model::NamespacedHostname::new("app", "echo.app.svc.cluster.local");
    let target = BackendTarget::Service { service, port: 80 };
    let backends = vec![Backend {
        target,
        subset: None,
        weight: 1,
        filters: None,
        tls: None,
        retry_budget: None,
        session: None,
    }];
    Arc::new(HttpRoute {
        kind: l7::ir::RouteKind::Http,
        namespace: "app".into(),
        name: format!("route-{number}").into(),
        parent: model::NamespacedHostname::new("app", "echo.app.svc.cluster.local"),
        parent_port: None,
        consumer_namespace: None,
        order: RouteOrder::Ranked,
        created: 0,
        hostnames: vec!["*.example".into()],
        rules: vec![HttpRule { matches, backends, ..HttpRule::default() }],
        source: None,
    })
}

fn policy(number: usize, action: Action, conditions: Vec<(Attribute, Test)>) -> Arc<AuthorizationPolicy> {
    let clause = |(attribute, test)| Clause {
        matches: vec![Match {
            conditions: vec![Condition { attribute, any_of: vec![test], none_of: vec![] }],
        }],
    };
    Arc::new(AuthorizationPolicy {
        namespace: "app".into(),
        name: format!("policy-{number}").into(),
        action,
        dry_run: false,
        rules: vec![Rule { clauses: conditions.into_iter().map(clause).collect() }],
        authorizer: None,
        source: None,
    })
}

#[test]
fn routing_allocates_nothing() {
    let header = ValueMatch { name: "x-tier".into(), value: ValueTest::Regex("gold|silver".into()) };
    let mut routes: Vec<_> = (0..10_000)
        .map(|number| route(number, PathMatch::Prefix(format!("/service-{number}/v1").into()), vec![]))
        .collect();
    routes.push(route(10_000, PathMatch::Prefix("/service-77/v1".into()), vec![header]));
    routes.push(route(10_001, PathMatch::Regex("/r[0-9]+".into()), vec![]));
    let router = Router::compile(routes).unwrap();
    let headers = [Header { name: "X-Tier", value: b"gold" }];
    let head = |path| RequestHead {
        method: "GET",
        authority: "Echo.Example:80",
        path,
        query: Some("a=b"),
        headers: &headers,
        token: None,
    };
    let name = |path| match router.route(&head(path)) {
        RouteMatch::Matched(found) => Some(found.route.name.clone()),
        RouteMatch::NotFound => None,
    };
    // Expressions make their working memory on a thread's first use of them.
    for (path, expected) in [
        ("/service-9999/v1/users", Some("route-9999")),
        ("/service-77/v1/users", Some("route-10000")),
        ("/r1", Some("route-10001")),
        ("/absent", None),
    ] {
        assert_eq!(name(path).as_deref(), expected);
        let count = allocations(|| {
            let RouteMatch::Matched(found) = router.route(&head(path)) else { return };
            let taken = found.take(7);
            assert!(matches!(&taken, Taken::Forwarded { filters, .. } if filters.path("/x") == "/x"));
        });
        assert_eq!(count, 0, "{path}");
    }
}

#[test]
fn authorization_allocates_nothing() {
    let path = |number: usize| Test::Exact(format!("/admin-{number}").into());
    let account = Test::Exact("client/curl".into());
    let mut policies: Vec<_> = (0..1000)
        .map(|number| policy(number, Action::Deny, vec![(Attribute::RequestPath, path(number))]))
        .collect();
    policies.push(policy(
        1000,
        Action::Allow,
        vec![
            (Attribute::SourceServiceAccount, account),
            (Attribute::RequestPath, Test::Template("/api/{*}/x".into())),
            (Attribute::RequestHost, Test::Exact("ECHO".into())),
            (Attribute::RemoteIp, Test::Ip("10.0.0.0/8".parse().unwrap())),
        ],
    ));
    let set = PolicySet::compile(policies).unwrap();
    let source: model::Identity = "spiffe://cluster.local/ns/client/sa/curl".parse().unwrap();
    let connection = ConnectionAttributes {
        source: Some(&source),
        source_ip: "192.0.2.1".parse().unwrap(),
        destination_ip: "10.0.0.2".parse().unwrap(),
        destination_port: 80,
        sni: None,
    };
    let headers = [Header { name: "X-Forwarded-For", value: b"192.0.2.9, 10.0.0.7" }];
    let head = |path| RequestHead {
        method: "GET",
        authority: "echo",
        path,
        query: None,
        headers: &headers,
        token: None,
    };
    let count = allocations(|| {
        assert!(matches!(set.evaluate(&connection, Some(&head("/api/v1/x"))), Verdict::Allow(Some(_))));
        let denied = set.evaluate(&connection, Some(&head("/admin-999")));
        assert!(matches!(denied, Verdict::Deny(Denial::Matched(_))));
        let denied = set.evaluate(&connection, Some(&head("/api/v1")));
        assert_eq!(denied, Verdict::Deny(Denial::NoAllowMatched));
        assert_eq!(set.evaluate_connection(&connection), ConnectionVerdict::NeedsRequest);
        assert!(set.shadow(&connection, None).is_none());
        assert!(set.audit(&connection, None).is_none());
    });
    assert_eq!(count, 0);
}

#[test]
fn a_normal_path_allocates_nothing() {
    let count = allocations(|| {
        let target = normalize("/api/v1/users/a%20b;c=d?x=%2e#f", Normalization::DecodeAndMergeSlashes);
        assert_eq!(target.unwrap().path, "/api/v1/users/a%20b;c=d");
    });
    assert_eq!(count, 0);
}
