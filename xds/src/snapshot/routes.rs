//! The routes of one service, compiled for each kind of client and port that they tell apart.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use l7::ir::HttpRoute;
use l7::router::{Router, governs};

/// Invariant: there is a table for every pair of a port and a client namespace that some route names, each `None`
/// standing for all those that no route names.
pub(crate) struct ServiceRoutes {
    /// By name of their resource.
    routes: Vec<Arc<HttpRoute>>,
    /// Named by some route, in order.
    ports: Vec<u16>,
    /// Named by some consumer route, in order.
    namespaces: Vec<Arc<str>>,
    /// Rows of `ports` and one more for all others, columns of `namespaces` and one more. `None`: no route governs.
    routers: Vec<Option<Arc<Router>>>,
}

impl ServiceRoutes {
    pub(crate) fn compile(routes: Vec<Arc<HttpRoute>>) -> Self {
        let ports: BTreeSet<_> = routes.iter().filter_map(|route| route.parent_port).collect();
        let namespaces: BTreeSet<_> =
            routes.iter().filter_map(|route| route.consumer_namespace.clone()).collect();
        let mut routers = Vec::with_capacity((ports.len() + 1) * (namespaces.len() + 1));
        for port in ports.iter().copied().map(Some).chain([None]) {
            for namespace in namespaces.iter().map(|it| Some(&**it)).chain([None]) {
                routers.push(router(&routes, port, namespace));
            }
        }
        let (ports, namespaces) = (ports.into_iter().collect(), namespaces.into_iter().collect());
        Self { routes, ports, namespaces, routers }
    }

    pub(crate) fn routes(&self) -> &[Arc<HttpRoute>] {
        &self.routes
    }

    pub(super) fn router(&self, port: u16, client_namespace: &str) -> Option<&Arc<Router>> {
        let row = self.ports.binary_search(&port).unwrap_or(self.ports.len());
        let column = self.namespaces.binary_search_by(|it| (**it).cmp(client_namespace));
        let column = column.unwrap_or(self.namespaces.len());
        self.routers.get(row * (self.namespaces.len() + 1) + column)?.as_ref()
    }
}

fn router(routes: &[Arc<HttpRoute>], port: Option<u16>, namespace: Option<&str>) -> Option<Arc<Router>> {
    // No route names port 0 or the empty namespace, so they stand for all that are not named.
    let (port, namespace) = (port.unwrap_or(0), namespace.unwrap_or(""));
    let governing = routes.iter().filter(|route| governs(route, port, namespace));
    // Each route was compiled for trial when it was decoded; one that fails now is one that no longer is itself.
    let router = Router::compile(governing.cloned()).ok()?;
    (!router.is_empty()).then(|| Arc::new(router))
}

impl fmt::Debug for ServiceRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceRoutes").field("routes", &self.routes.len()).finish_non_exhaustive()
    }
}
