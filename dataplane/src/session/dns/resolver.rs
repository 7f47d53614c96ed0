//! Addresses of workloads that the control plane knows by host name only.
//!
//! One query at a time for a name and family on a worker; who asks meanwhile waits for its answer. The query runs by
//! itself: an asker that goes away takes nothing from the others. Names are resolved from the proxy's own network, for
//! what was found is shared by all pods.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::rr::Name;

use super::cache::{Addresses, Cache, Found, Key};
use super::message::{Family, address_query};
use super::upstream::{Upstream, UpstreamError};
use crate::session::node::Node;
use crate::worker::Latch;

/// Names that one worker asks for at a time.
const FLIGHTS_MAX: usize = 1_024;

/// Why a host name gives no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::session) enum ResolveError {
    #[error("{0:?} is no host name")]
    Name(Arc<str>),
    #[error("{0} has no address")]
    NoAddress(Arc<str>),
    #[error("{hostname} is not resolved: {source}")]
    Upstream { hostname: Arc<str>, source: UpstreamError },
    #[error("{FLIGHTS_MAX} names are being resolved already")]
    Busy,
}

/// What one worker knows of host names.
#[derive(Debug, Default)]
pub(in crate::session) struct Resolver {
    cache: RefCell<Cache>,
    flights: RefCell<HashMap<Key, Rc<Flight>>>,
}

/// A query that is under way.
#[derive(Debug, Default)]
struct Flight {
    landed: Rc<Latch>,
    outcome: OnceCell<Result<Addresses, UpstreamError>>,
}

impl Node {
    /// An address of the host, a random one of the family that `like` has; of the other family if there is none.
    pub(in crate::session) async fn address_of(
        self: &Rc<Self>,
        hostname: &Arc<str>,
        like: IpAddr,
    ) -> Result<IpAddr, ResolveError> {
        let own = Family::of(like.to_canonical());
        for family in [own, own.other()] {
            let addresses = self.addresses_of((Arc::clone(hostname), family)).await?;
            let chosen = self.random() % (addresses.len().max(1) as u64);
            if let Some(address) = usize::try_from(chosen).ok().and_then(|index| addresses.get(index)) {
                return Ok(*address);
            }
        }
        Err(ResolveError::NoAddress(Arc::clone(hostname)))
    }

    async fn addresses_of(self: &Rc<Self>, key: Key) -> Result<Addresses, ResolveError> {
        let resolver = &self.resolver;
        if let Some(kept) = resolver.cache.borrow().get(&key, Instant::now()) {
            return Ok(kept);
        }
        let under_way = resolver.flights.borrow().get(&key).cloned();
        let flight = match under_way {
            Some(flight) => flight,
            None => self.take_off(key.clone())?,
        };
        flight.landed.wait().await;
        let failed = |source| ResolveError::Upstream { hostname: Arc::clone(&key.0), source };
        match flight.outcome.get() {
            Some(outcome) => outcome.clone().map_err(failed),
            // The outcome is set before the latch opens.
            None => Err(failed(UpstreamError::Unanswered("the query was given up".to_owned()))),
        }
    }

    fn take_off(self: &Rc<Self>, key: Key) -> Result<Rc<Flight>, ResolveError> {
        let no_name = |_| ResolveError::Name(Arc::clone(&key.0));
        let mut name = Name::from_ascii(&*key.0).map_err(no_name)?;
        name.set_fqdn(true);
        let flight = Rc::<Flight>::default();
        {
            let mut flights = self.resolver.flights.borrow_mut();
            if flights.len() >= FLIGHTS_MAX {
                return Err(ResolveError::Busy);
            }
            flights.insert(key.clone(), Rc::clone(&flight));
        }
        let (node, flying) = (Rc::clone(self), Rc::clone(&flight));
        self.worker.spawn(async move {
            let outcome = node.query(&name, key.1).await;
            if let Ok(found) = &outcome {
                node.resolver.cache.borrow_mut().put(key.clone(), found, Instant::now());
            }
            node.resolver.flights.borrow_mut().remove(&key);
            // Set once: this task alone does it.
            let _ = flying.outcome.set(outcome.map(|found| found.addresses));
            flying.landed.open();
        });
        Ok(flight)
    }

    async fn query(&self, name: &Name, family: Family) -> Result<Found, UpstreamError> {
        let state = self.state();
        let upstream = Upstream {
            worker: &self.worker,
            conf: &state.resolv_conf,
            mark: self.options.packet_mark,
            namespace: None,
            random: self.random(),
        };
        let answer = upstream.ask(&address_query(name.clone(), family, 0)).await?;
        Found::read(&answer, name, family)
            .ok_or_else(|| UpstreamError::Unanswered("the answer cannot be read".to_owned()))
    }
}
