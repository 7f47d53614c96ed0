//! Traffic policies at work: how one worker spreads and bounds what goes to each governed port of a service.
//!
//! - [`cluster`]: the choice among endpoints, and which of them are left out.
//! - [`limits`]: what is under way, and who has to wait.
//! - [`tables`]: where hashes lead.
//!
//! A worker knows its own traffic only. Limits are therefore shared out evenly among the workers, and each finds out for
//! itself which endpoints fail. Ports that nothing is said of have nothing here.

mod cluster;
mod limits;
mod tables;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use model::NamespacedHostname;

use super::state::NodeState;
pub(super) use cluster::Cluster;
pub(super) use limits::{Again, Flight, Hold, Overflow, Ticket};

/// Clusters that a worker keeps; beyond it those without traffic are forgotten.
const CLUSTERS_MAX: usize = 4096;

/// A port of a service, or of one of its subsets, as clients of one kind see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClusterName {
    service: NamespacedHostname,
    port: u16,
    subset: Option<Arc<str>>,
    /// The policy is for clients of this namespace only.
    consumer: Option<Arc<str>>,
}

/// What is known of all of them.
#[derive(Debug)]
pub(super) struct Clusters {
    kept: RefCell<HashMap<NamespacedHostname, Vec<Rc<Cluster>>, RandomState>>,
    workers: NonZeroU32,
}

impl Clusters {
    pub(super) fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        Self { kept: RefCell::default(), workers }
    }

    /// What governs the traffic of a namespace's clients to a port; `None` where nothing is said. Begun anew where the
    /// settings have changed.
    pub(super) fn of(
        &self,
        state: &NodeState,
        service: &NamespacedHostname,
        port: u16,
        subset: Option<&Arc<str>>,
        client_namespace: &str,
    ) -> Option<Rc<Cluster>> {
        let governed = state.snapshot.traffic_to(service, port, subset.map(|it| &**it), client_namespace)?;
        let mut kept = self.kept.borrow_mut();
        let is_it = |cluster: &&mut Rc<Cluster>| {
            let name = cluster.name();
            name.port == port && name.subset.as_ref() == subset && name.consumer.as_ref() == governed.consumer
        };
        let fresh = || {
            let (service, subset, consumer) = (service.clone(), subset.cloned(), governed.consumer.cloned());
            let name = ClusterName { service, port, subset, consumer };
            Rc::new(Cluster::new(name, governed.settings.clone(), self.workers))
        };
        if let Some(known) = kept.get_mut(service).and_then(|list| list.iter_mut().find(is_it)) {
            if known.settings() != governed.settings {
                *known = fresh();
            }
            return Some(Rc::clone(known));
        }
        if kept.len() >= CLUSTERS_MAX {
            kept.retain(|_, list| {
                list.retain(|cluster| Rc::strong_count(cluster) > 1);
                !list.is_empty()
            });
        }
        let cluster = fresh();
        kept.entry(service.clone()).or_default().push(Rc::clone(&cluster));
        Some(cluster)
    }
}
