//! What the waypoint that the store belongs to enforces for each destination.

use std::sync::Arc;

use model::NamespacedHostname;

use super::Store;
use crate::decode;
use crate::snapshot::PolicySetKey;

impl Store {
    pub(super) fn upsert_fronted(&mut self, destination: Option<NamespacedHostname>, names: Vec<Arc<str>>) {
        let key = set_key(names);
        if self.state.fronted.get(&destination) == Some(&key) {
            return;
        }
        self.changed = true;
        self.use_policy_set(key.clone());
        if let Some(old) = self.state.fronted.insert(destination, key) {
            self.release_policy_set(&old);
        }
    }

    pub(super) fn remove_fronted(&mut self, name: &str) {
        // What could not be read was never taken in.
        let Ok(destination) = decode::waypoint_destination(name) else { return };
        let Some(old) = self.state.fronted.remove(&destination) else { return };
        self.changed = true;
        self.release_policy_set(&old);
    }
}

/// No namespace has an empty name: only what is named is in the set, and what is for the whole mesh.
fn set_key(names: Vec<Arc<str>>) -> PolicySetKey {
    PolicySetKey { namespace: Arc::from(""), names: names.into() }
}
