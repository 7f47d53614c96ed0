//! The upstreams of one downstream connection, between requests and among them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::upstream::{Upstream, Way, is_of};
use super::{Protocol, Reply, Wire};
use crate::access_log::record::Authority;
use crate::link::Link;
use crate::session::dial::UpstreamFacts;
use crate::session::load::LoadGuard;
use crate::session::traffic::{Cluster, Ticket};
use crate::worker::{Latch, Tick, Worker};

/// Idle upstreams kept for the next requests of one downstream connection.
const IDLE_MAX: usize = 4;
/// The same for the questions of all requests to a pod.
const IDLE_SHARED_MAX: usize = 32;

/// What makes two upstreams the same one.
type Place = (Option<SocketAddr>, Option<Authority>, Option<usize>);

fn place(facts: &UpstreamFacts) -> Place {
    let tls = facts.backend_tls.as_ref().map(|tls| Arc::as_ptr(tls).addr());
    (facts.destination.address, facts.authority.clone(), tls)
}

/// The upstreams of one downstream connection: idle ones, and links, which requests share.
#[derive(Debug, Default)]
pub(in crate::session) struct Kept {
    shelf: Rc<Shelf>,
    /// Links that are being dialled, and where to.
    dialling: RefCell<Vec<(Place, Rc<Latch>)>>,
}

/// Those that are there. Whoever bounds them may close those without a request.
#[derive(Debug)]
pub(in crate::session) struct Shelf {
    idle_max: usize,
    /// Most recently used last.
    idle: RefCell<Vec<Upstream>>,
    links: RefCell<Vec<Shared>>,
    ticks: Cell<bool>,
}

/// A link that requests share.
#[derive(Debug, Clone)]
struct Shared {
    facts: Rc<UpstreamFacts>,
    link: Rc<Link>,
    ticket: Option<Rc<Ticket>>,
}

/// A link is being dialled for as long as this is held.
#[derive(Debug)]
struct Dialling<'k> {
    kept: &'k Kept,
    latch: Rc<Latch>,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.kept.dialling.borrow_mut().retain(|(_, latch)| !Rc::ptr_eq(latch, &self.latch));
        self.latch.open();
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self::with_room(IDLE_MAX)
    }
}

impl Kept {
    /// For the requests of many downstream connections.
    pub(super) fn shared_by_many() -> Self {
        Self { shelf: Rc::new(Shelf::with_room(IDLE_SHARED_MAX)), ..Self::default() }
    }

    /// Lets go of all that are there.
    pub(super) fn clear(&self) {
        self.shelf.clear();
    }

    /// An upstream to `wanted`: one that is there, or what `dial` opens. Requests for the same link wait for one dialler. A
    /// backend that has its own TLS may choose HTTP/1.1 where HTTP/2 is wanted. `cluster` bounds connections, where the
    /// service says how.
    pub(in crate::session) async fn reach(
        &self,
        worker: &Worker,
        wanted: &UpstreamFacts,
        protocol: Protocol,
        load: Option<LoadGuard>,
        cluster: Option<&Rc<Cluster>>,
        dial: impl Future<Output = Result<(Wire, UpstreamFacts), Reply>>,
    ) -> Result<Upstream, Reply> {
        let may_choose = protocol == Protocol::Http2 && wanted.backend_tls.is_some();
        if (protocol == Protocol::Http1 || may_choose)
            && let Some(idle) = self.shelf.take_idle(wanted, cluster)
        {
            return Ok(idle);
        }
        if protocol == Protocol::Http1 {
            let ((wire, facts), ticket) = Box::pin(admitted(cluster, protocol, dial)).await?;
            return Ok(Upstream::new(wire, Some(Box::new(facts)), load).ticketed(ticket));
        }
        let place = place(wanted);
        let Some(Shared { facts, link, ticket }) = self.shared_or_dialled(&place, cluster).await else {
            let _dialling = self.begin(place);
            let ((wire, facts), ticket) = Box::pin(admitted(cluster, protocol, dial)).await?;
            if matches!(&wire, Wire::Tls(stream) if !stream.speaks_http2()) {
                return Ok(Upstream::new(wire, Some(Box::new(facts)), load).ticketed(ticket));
            }
            let upstream = Upstream::http2(worker, wire, Some(Box::new(facts)), load)?.ticketed(ticket);
            self.shelf.share(&upstream);
            return Ok(upstream);
        };
        Ok(Upstream::shared(link, facts, load, ticket))
    }

    /// Takes back an upstream that can carry another request.
    pub(in crate::session) fn put_back(&self, worker: &Worker, upstream: Upstream) {
        if let Some(ticket) = &upstream.ticket {
            ticket.rest(&self.shelf);
            if ticket.ends().is_some() && !self.shelf.ticks.replace(true) {
                let shelf: Rc<dyn Tick> = self.shelf.clone();
                worker.tick_list().add(Rc::downgrade(&shelf));
            }
        }
        self.shelf.put_back(upstream);
    }

    /// A link that takes streams; waits for one that is being dialled.
    async fn shared_or_dialled(&self, place: &Place, cluster: Option<&Rc<Cluster>>) -> Option<Shared> {
        if let Some(shared) = self.shelf.shared(place, cluster) {
            return Some(shared);
        }
        let latch =
            self.dialling.borrow().iter().find(|(to, _)| to == place).map(|(_, latch)| latch.clone())?;
        latch.wait().await;
        // Without one it failed, and each request learns for itself why.
        self.shelf.shared(place, cluster)
    }

    fn begin(&self, place: Place) -> Dialling<'_> {
        let latch = Rc::<Latch>::default();
        self.dialling.borrow_mut().push((place, latch.clone()));
        Dialling { kept: self, latch }
    }
}

/// Dials, when there may be another connection.
async fn admitted<T>(
    cluster: Option<&Rc<Cluster>>,
    protocol: Protocol,
    dial: impl Future<Output = Result<T, Reply>>,
) -> Result<(T, Option<Rc<Ticket>>), Reply> {
    let Some(cluster) = cluster else { return Ok((dial.await?, None)) };
    let (dialled, ticket) = match protocol {
        Protocol::Http1 => cluster.connect(dial).await?,
        Protocol::Http2 => cluster.connect_shared(dial).await?,
    };
    ticket.use_once();
    Ok((dialled, Some(ticket)))
}

impl Shelf {
    fn with_room(idle_max: usize) -> Self {
        Self { idle_max, idle: RefCell::default(), links: RefCell::default(), ticks: Cell::default() }
    }

    fn clear(&self) {
        self.idle.take();
        for shared in self.links.take() {
            shared.link.drain();
        }
    }

    fn put_back(&self, upstream: Upstream) {
        let ticket = upstream.ticket.as_deref();
        if let (Way::Http2(link), Some(ticket)) = (&upstream.way, ticket) {
            // Links are kept from the start.
            if ticket.is_used_up() {
                self.forget(link);
            }
        }
        let goes = ticket.is_some_and(|ticket| ticket.is_used_up() || ticket.is_wanted());
        if upstream.protocol() == Protocol::Http1 && !goes {
            let mut idle = self.idle.borrow_mut();
            if idle.len() == self.idle_max {
                idle.remove(0);
            }
            // One in nearly every case, kept by each connection that waits for its next request: no room for more.
            idle.reserve_exact(1);
            idle.push(upstream);
        }
    }

    /// An idle upstream to the same place that has not been closed meanwhile.
    fn take_idle(&self, wanted: &UpstreamFacts, cluster: Option<&Rc<Cluster>>) -> Option<Upstream> {
        let wanted = place(wanted);
        let mut idle = self.idle.borrow_mut();
        loop {
            let is_it = |it: &Upstream| it.is_of(cluster) && it.facts().is_some_and(|it| place(it) == wanted);
            let at = idle.iter().position(is_it)?;
            let upstream = idle.remove(at);
            if upstream.is_quiet() {
                if let Some(ticket) = &upstream.ticket {
                    ticket.use_once();
                }
                return Some(upstream);
            }
        }
    }

    fn shared(&self, wanted: &Place, cluster: Option<&Rc<Cluster>>) -> Option<Shared> {
        let mut links = self.links.borrow_mut();
        links.retain(|it| it.link.takes_streams());
        let found = links.iter().find(|it| {
            place(&it.facts) == *wanted
                && it.link.open_capacity() > 0
                && is_of(it.ticket.as_ref(), cluster)
                && it.ticket.as_ref().is_none_or(|ticket| !ticket.is_used_up())
        })?;
        if let Some(ticket) = &found.ticket {
            ticket.use_once();
        }
        Some(found.clone())
    }

    /// Makes a link known to the requests that follow. Beyond the bound the one that is used least goes.
    fn share(&self, upstream: &Upstream) {
        let (Way::Http2(link), Some(facts)) = (&upstream.way, &upstream.facts) else { return };
        let mut links = self.links.borrow_mut();
        if links.len() >= self.idle_max
            && let Some(at) = links.iter().position(|it| it.link.stream_count() == 0)
        {
            links.remove(at).link.drain();
        }
        links.push(Shared { facts: facts.clone(), link: link.clone(), ticket: upstream.ticket.clone() });
    }

    fn forget(&self, link: &Rc<Link>) {
        let mut links = self.links.borrow_mut();
        if let Some(at) = links.iter().position(|it| Rc::ptr_eq(&it.link, link)) {
            links.remove(at).link.drain();
        }
    }

    /// Closes one that counts for this cluster and has no request, if there is one.
    pub(in crate::session) fn give_up_one(&self, cluster: &Rc<Cluster>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let is_counted = |it: &Upstream| it.ticket.as_ref().is_some_and(|ticket| ticket.is_counted());
        let at = idle.iter().position(|it| it.is_of(Some(cluster)) && is_counted(it));
        at.map(|at| idle.remove(at)).is_some()
    }
}

impl Tick for Shelf {
    fn tick(self: Rc<Self>, now: Instant) {
        let is_over = |ticket: Option<&Rc<Ticket>>| {
            ticket.and_then(|ticket| ticket.ends()).is_some_and(|ends| ends <= now)
        };
        self.idle.borrow_mut().retain(|it| !is_over(it.ticket.as_ref()));
        self.links.borrow_mut().retain(|it| {
            let goes = is_over(it.ticket.as_ref()) && it.link.stream_count() == 0;
            if goes {
                it.link.drain();
            }
            !goes
        });
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.clear();
    }
}
