//! One copy of each text that many resources share: namespaces, nodes, networks, localities, identities, port lists.

use std::collections::HashSet;
use std::sync::Arc;

use model::{EndpointPort, Identity, Services};

/// Entries before the first sweep.
const SWEEP_FIRST: usize = 1024;

/// Hands out shared copies; forgets what nobody else holds any more.
///
/// Bounded by what is in use: at each doubling it sweeps, so it never holds more than twice the live entries of the
/// last sweep, plus [`SWEEP_FIRST`].
#[derive(Debug)]
pub struct Interner {
    texts: Pool<Arc<str>>,
    ports: Pool<Arc<[EndpointPort]>>,
    services: Pool<Services>,
    identities: Pool<Identity>,
}

#[derive(Debug)]
struct Pool<T> {
    entries: HashSet<T, foldhash::fast::RandomState>,
    sweep_at: usize,
}

impl Interner {
    pub fn new() -> Self {
        Self { texts: Pool::new(), ports: Pool::new(), services: Pool::new(), identities: Pool::new() }
    }

    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.entries.get(text) {
            return Arc::clone(known);
        }
        let fresh: Arc<str> = Arc::from(text);
        self.texts.add(Arc::clone(&fresh), |it| Arc::strong_count(it) > 1);
        fresh
    }

    pub(crate) fn ports(&mut self, ports: &[EndpointPort]) -> Arc<[EndpointPort]> {
        if let Some(known) = self.ports.entries.get(ports) {
            return Arc::clone(known);
        }
        let fresh: Arc<[EndpointPort]> = Arc::from(ports);
        self.ports.add(Arc::clone(&fresh), |it| Arc::strong_count(it) > 1);
        fresh
    }

    /// The memberships of a workload: one list for all pods of a deployment.
    pub(crate) fn services(&mut self, services: Services) -> Services {
        if let Some(known) = self.services.entries.get(&services) {
            return known.clone();
        }
        self.services.add(services.clone(), Services::is_shared);
        services
    }

    pub(crate) fn identity(&mut self, identity: Identity) -> Identity {
        if let Some(known) = self.identities.entries.get(&identity) {
            return known.clone();
        }
        self.identities.add(identity.clone(), Identity::is_shared);
        identity
    }
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Eq + std::hash::Hash> Pool<T> {
    fn new() -> Self {
        Self { entries: HashSet::default(), sweep_at: SWEEP_FIRST }
    }

    fn add(&mut self, entry: T, in_use: impl Fn(&T) -> bool) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(in_use);
            self.sweep_at = (self.entries.len() * 2).max(SWEEP_FIRST);
        }
        self.entries.insert(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_copy() {
        let mut interner = Interner::new();
        let (one, two) = (interner.text("a"), interner.text("a"));
        assert!(Arc::ptr_eq(&one, &two));
    }

    #[test]
    fn what_nobody_holds_is_forgotten_and_what_somebody_holds_is_kept() {
        let mut interner = Interner::new();
        let held: Vec<_> = (0..10).map(|number| interner.text(&format!("held-{number}"))).collect();
        for number in 0..100_000 {
            interner.text(&format!("passing-{number}"));
            interner.identity(Identity::new("td", "ns", &format!("sa-{number}")).unwrap());
        }
        assert!(interner.texts.entries.len() <= 2 * SWEEP_FIRST);
        assert!(interner.identities.entries.len() <= 2 * SWEEP_FIRST);
        assert!(Arc::ptr_eq(&held[3], &interner.text("held-3")));
    }
}
