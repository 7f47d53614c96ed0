//! Finding the route of a request.

use std::sync::Arc;

use l7::ir::{
    Backend, BackendTarget, Header, HttpMatch, HttpRoute, HttpRule, PathMatch, RequestHead, ValueMatch,
    ValueTest,
};
use l7::router::{RouteMatch, Router};
use model::NamespacedHostname;

use super::{Step, black_box};

/// The last of so many routes, over and over.
pub(super) fn last(count: usize) -> Step {
    let router = router(count);
    let asked = Asked::of(count - 1);
    Box::new(move || asked.find(&router))
}

/// Every route in turn, far apart, so that no table stays in the cache that does not fit there.
pub(super) fn scattered(count: usize) -> Step {
    let router = router(count);
    let asked: Vec<Asked> = (0..count).map(Asked::of).collect();
    let mut at = 0;
    Box::new(move || {
        at = (at + 7_919) % count;
        asked[at].find(&router);
    })
}

fn router(count: usize) -> Router {
    Router::compile((0..count).map(route)).expect("the routes are sound")
}

/// A request for one of the routes.
struct Asked {
    path: String,
    tenant: String,
}

impl Asked {
    fn of(index: usize) -> Self {
        Self { path: format!("/svc/{index}/api/users"), tenant: format!("tenant-{index}") }
    }

    fn find(&self, router: &Router) {
        let headers = [
            Header { name: "accept", value: b"*/*" },
            Header { name: "user-agent", value: b"bench" },
            Header { name: "X-Tenant", value: self.tenant.as_bytes() },
        ];
        let head = RequestHead {
            method: "GET",
            authority: "web",
            path: &self.path,
            query: None,
            headers: &headers,
            token: None,
        };
        assert!(matches!(black_box(router.route(black_box(&head))), RouteMatch::Matched(_)));
    }
}

fn route(index: usize) -> Arc<HttpRoute> {
    let service = NamespacedHostname::new("app", "web.app.svc.cluster.local");
    let header = ValueMatch {
        name: Arc::from("x-tenant"),
        value: ValueTest::Exact(Arc::from(format!("tenant-{index}"))),
    };
    Arc::new(HttpRoute {
        kind: l7::ir::RouteKind::Http,
        namespace: Arc::from("app"),
        name: Arc::from(format!("route-{index}")),
        parent: service.clone(),
        parent_port: None,
        consumer_namespace: None,
        order: l7::ir::RouteOrder::Ranked,
        created: index as u64,
        hostnames: Vec::new(),
        rules: vec![HttpRule {
            matches: vec![HttpMatch {
                path: PathMatch::Prefix(Arc::from(format!("/svc/{index}/api"))),
                headers: vec![header],
                ..HttpMatch::default()
            }],
            backends: vec![Backend {
                target: BackendTarget::Service { service, port: 80 },
                subset: None,
                weight: 1,
                filters: None,
                tls: None,
                retry_budget: None,
                session: None,
            }],
            ..HttpRule::default()
        }],
        source: None,
    })
}
