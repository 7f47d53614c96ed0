//! Envoy's resources in the store: what istiod tells a waypoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost_types::Any;

use super::Store;
use crate::envoy::{Refusal, Serving};
use crate::issuer::{Keys, Wanted};
use crate::proto::{CLUSTER_TYPE, LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE};

pub(super) fn is_envoy(type_url: &str) -> bool {
    [LISTENER_TYPE, CLUSTER_TYPE, LOAD_ASSIGNMENT_TYPE].contains(&type_url)
}

impl Store {
    pub(super) fn upsert_envoy(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), Refusal> {
        let network = &self.network;
        let serving = self.envoy.get_or_insert_with(|| Box::new(Serving::new(Arc::clone(network))));
        serving.upsert(type_url, name, &body.value)
    }

    pub(super) fn remove_envoy(&mut self, type_url: &str, name: &str) {
        if let Some(serving) = &mut self.envoy {
            serving.remove(type_url, name);
        }
    }

    /// The names of the endpoints that the clusters want.
    pub(super) fn wanted_assignments(&self) -> BTreeSet<&str> {
        self.envoy.as_ref().map_or_else(BTreeSet::new, |serving| serving.wanted_assignments())
    }

    /// The keys of token issuers that have to be fetched.
    pub(crate) fn wanted_keys(&self) -> Wanted {
        self.envoy.as_ref().map_or_else(Wanted::new, |serving| serving.wanted_keys())
    }

    /// Takes what is known of those keys; the snapshot that follows has them.
    pub(crate) fn set_keys(&mut self, keys: Arc<Keys>) {
        if let Some(serving) = &mut self.envoy {
            serving.set_keys(keys);
        }
    }

    /// Takes over what filter chains say of routes and services, before those are compiled.
    pub(super) fn note_envoy(&mut self) {
        let Some(mut serving) = self.envoy.take_if(|serving| serving.has_changed()) else { return };
        self.changed = true;
        let routes = serving.routes();
        routes.gone.iter().for_each(|chain| self.remove_route(&route_name(chain)));
        routes.held.into_iter().for_each(|(chain, route)| self.upsert_route(&route_name(&chain), route));
        let services = serving.services();
        services.gone.iter().for_each(|key| self.remove_service(&key.to_string()));
        services.held.into_iter().for_each(|(_, service)| self.upsert_service(service));
        let telemetry = serving.telemetry();
        if !self.state.telemetry.has_destinations(&telemetry) {
            Arc::make_mut(&mut self.state.telemetry).set_destinations(telemetry);
        }
        self.envoy = Some(serving);
    }

    /// Puts together what the workers look up, after routes are compiled.
    pub(super) fn serve_envoy(&mut self) {
        if let Some(serving) = self.envoy.as_mut().filter(|serving| serving.has_changed()) {
            self.state.waypoint = Some(serving.serve(&self.state));
        }
    }

    pub(super) fn soil_envoy(&mut self, addresses: &[std::net::IpAddr]) {
        if let Some(serving) = &mut self.envoy {
            serving.soil_addresses(addresses);
        }
    }
}

/// The routes of a filter chain bear its name, which is the name of no other route.
fn route_name(chain: &str) -> String {
    format!("chain {chain}")
}
