//! How many connections this worker has to each endpoint, for a choice by load.
//!
//! What is counted ends with its connections: an endpoint without any has no entry, so there are never more entries than
//! connections, and nothing is left of a workload that is gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use model::Workload;
use xds::snapshot::{Chooser, Load};

/// How one of several endpoints of the same rank is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointChoice {
    /// At random, weighted by capacity.
    #[default]
    Random,
    /// The less loaded of two drawn so, by the connections of this worker.
    LeastLoaded,
}

impl FromStr for EndpointChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "random" => Ok(Self::Random),
            "least-loaded" => Ok(Self::LeastLoaded),
            _ => Err(()),
        }
    }
}

/// The live connections of one worker, by the uid of the workload that they go to.
#[derive(Debug, Default)]
pub(super) struct EndpointLoads {
    live: RefCell<HashMap<Arc<str>, u32, foldhash::fast::RandomState>>,
}

impl EndpointLoads {
    pub(super) fn chooser(&self, seed: u64) -> Chooser<'_> {
        Chooser::least_loaded(seed, self)
    }

    /// Counts one connection to the workload for as long as the guard lives.
    pub(super) fn enter(self: &Rc<Self>, workload: &Workload) -> LoadGuard {
        let uid = Arc::clone(&workload.uid);
        *self.live.borrow_mut().entry(Arc::clone(&uid)).or_default() += 1;
        LoadGuard { loads: Rc::clone(self), uid }
    }
}

impl Load for EndpointLoads {
    fn connections(&self, workload: &Workload) -> u32 {
        self.live.borrow().get(&workload.uid).copied().unwrap_or(0)
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct LoadGuard {
    loads: Rc<EndpointLoads>,
    uid: Arc<str>,
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        let mut live = self.loads.live.borrow_mut();
        let Some(count) = live.get_mut(&self.uid) else { return };
        *count -= 1;
        if *count == 0 {
            live.remove(&self.uid);
            // A burst leaves no table of its size behind.
            if live.capacity() > 4 * live.len() + 64 {
                live.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Identity;
    use tunnel::hbone::Baggage;

    fn workload(uid: &str) -> Workload {
        let identity = Identity::new("cluster.local", "app", "a").unwrap();
        Workload { uid: uid.into(), ..Baggage::default().to_workload(&identity) }
    }

    #[test]
    fn an_endpoint_is_forgotten_with_its_last_connection() {
        let loads = Rc::new(EndpointLoads::default());
        let (a, b) = (workload("a"), workload("b"));
        let guards = [loads.enter(&a), loads.enter(&a), loads.enter(&b)];
        assert_eq!((loads.connections(&a), loads.connections(&b)), (2, 1));
        let [first, second, third] = guards;
        drop((first, third));
        assert_eq!((loads.connections(&a), loads.connections(&b)), (1, 0));
        assert_eq!(loads.live.borrow().len(), 1);
        drop(second);
        assert!(loads.live.borrow().is_empty());
    }

    #[test]
    fn a_burst_of_endpoints_leaves_no_memory_behind() {
        let loads = Rc::new(EndpointLoads::default());
        let guards: Vec<_> = (0..10_000).map(|n| loads.enter(&workload(&n.to_string()))).collect();
        assert!(loads.live.borrow().capacity() >= 10_000);
        drop(guards);
        assert!(loads.live.borrow().capacity() < 128);
    }

    #[test]
    fn the_names_of_the_choices_are_read() {
        assert_eq!("random".parse(), Ok(EndpointChoice::Random));
        assert_eq!("least-loaded".parse(), Ok(EndpointChoice::LeastLoaded));
        assert_eq!("Random".parse::<EndpointChoice>(), Err(()));
    }
}
