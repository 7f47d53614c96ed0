//! Endpoints of services, those included whose service has not come yet.

use std::collections::HashMap;
use std::sync::Arc;

use model::NamespacedHostname;

use super::Store;
use crate::snapshot::{Endpoint, ServiceEntry};

/// Endpoints by the service that they wait for.
pub(super) type WaitingEndpoints =
    HashMap<NamespacedHostname, imbl::Vector<Endpoint>, foldhash::fast::RandomState>;

impl Store {
    /// Adds an endpoint, or replaces the one of the same workload if there is one (`replaces`).
    pub(super) fn put_endpoint(&mut self, service: &NamespacedHostname, endpoint: Endpoint, replaces: bool) {
        if let Some(entry) = self.state.services.get_mut(service) {
            let entry = Arc::make_mut(entry);
            entry.capacity_max = entry.capacity_max.max(endpoint.workload.capacity);
            put(&mut entry.endpoints, endpoint, replaces);
            return;
        }
        put(self.waiting.entry(service.clone()).or_default(), endpoint, replaces);
    }

    pub(super) fn remove_endpoint(&mut self, service: &NamespacedHostname, uid: &str) {
        if let Some(entry) = self.state.services.get_mut(service) {
            remove(&mut Arc::make_mut(entry).endpoints, uid);
            return;
        }
        if let Some(endpoints) = self.waiting.get_mut(service) {
            remove(endpoints, uid);
            if endpoints.is_empty() {
                self.waiting.remove(service);
            }
        }
    }

    /// The endpoints that a new service finds waiting.
    pub(super) fn claim_endpoints(&mut self, service: &NamespacedHostname) -> imbl::Vector<Endpoint> {
        self.waiting.remove(service).unwrap_or_default()
    }

    /// The endpoints of a service that is gone wait for its return.
    pub(super) fn leave_endpoints(&mut self, entry: &ServiceEntry) {
        if !entry.endpoints.is_empty() {
            self.waiting.insert(entry.key().clone(), entry.endpoints.clone());
        }
    }
}

fn put(endpoints: &mut imbl::Vector<Endpoint>, endpoint: Endpoint, replaces: bool) {
    let position = if replaces { position(endpoints, &endpoint.workload.uid) } else { None };
    match position {
        Some(index) => drop(endpoints.set(index, endpoint)),
        None => endpoints.push_back(endpoint),
    }
}

/// Fills the gap with the last one, so that a removal moves one endpoint and not all that follow.
fn remove(endpoints: &mut imbl::Vector<Endpoint>, uid: &str) {
    let Some(index) = position(endpoints, uid) else { return };
    if let Some(last) = endpoints.pop_back()
        && index < endpoints.len()
    {
        endpoints.set(index, last);
    }
}

fn position(endpoints: &imbl::Vector<Endpoint>, uid: &str) -> Option<usize> {
    endpoints.iter().position(|endpoint| &*endpoint.workload.uid == uid)
}
