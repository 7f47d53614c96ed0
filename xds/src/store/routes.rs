//! Routes in the store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use l7::ir::HttpRoute;
use model::NamespacedHostname;

use super::Store;
use crate::snapshot::ServiceRoutes;

#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By the name of the resource.
    parents: HashMap<Box<str>, NamespacedHostname, foldhash::fast::RandomState>,
    by_parent: HashMap<NamespacedHostname, BTreeMap<Box<str>, Arc<HttpRoute>>, foldhash::fast::RandomState>,
    /// Services to compile anew before the next snapshot.
    dirty: HashSet<NamespacedHostname, foldhash::fast::RandomState>,
}

impl Store {
    pub(super) fn upsert_route(&mut self, name: &str, route: Arc<HttpRoute>) {
        // The parent is part of the name, so an update never moves a route.
        let routes = self.routes.by_parent.entry(route.parent.clone()).or_default();
        if routes.get(name) == Some(&route) {
            return;
        }
        self.changed = true;
        self.routes.parents.insert(name.into(), route.parent.clone());
        self.routes.dirty.insert(route.parent.clone());
        routes.insert(name.into(), route);
    }

    pub(super) fn remove_route(&mut self, name: &str) {
        let Some(parent) = self.routes.parents.remove(name) else { return };
        self.changed = true;
        if let Some(routes) = self.routes.by_parent.get_mut(&parent) {
            routes.remove(name);
            if routes.is_empty() {
                self.routes.by_parent.remove(&parent);
            }
        }
        self.routes.dirty.insert(parent);
    }

    pub(super) fn compile_routes(&mut self) {
        for service in std::mem::take(&mut self.routes.dirty) {
            match self.routes.by_parent.get(&service) {
                Some(routes) => {
                    let compiled = ServiceRoutes::compile(routes.values().cloned().collect());
                    self.state.routes.insert(service, Arc::new(compiled));
                }
                None => drop(self.state.routes.remove(&service)),
            }
        }
    }
}
