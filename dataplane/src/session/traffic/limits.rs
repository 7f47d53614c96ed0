//! What of one cluster is under way on this worker, and its bounds (Envoy's circuit breakers).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use l7::ir::ConnectionLimits;
use l7::outlier::Answer;
use model::Workload;

use super::Cluster;
use crate::access_log::cause::CloseCause;
use crate::session::http::Shelf;
use crate::session::load::LoadGuard;
use crate::session::state::NodeState;
use crate::worker::Latch;

/// A bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) struct Overflow;

/// A count with a bound.
#[derive(Debug, Default)]
struct Bounded {
    now: Cell<u32>,
    most: Option<u32>,
}

impl Bounded {
    /// `workers` share the bound evenly. None of them is left with nothing, so what is less than their number is more
    /// than it says.
    fn shared(most: Option<u32>, workers: NonZeroU32) -> Self {
        Self { now: Cell::new(0), most: most.map(|most| most.div_ceil(workers.get())) }
    }

    fn is_full(&self) -> bool {
        self.most.is_some_and(|most| self.now.get() >= most)
    }

    fn enter(&self) -> Result<(), Overflow> {
        if self.is_full() {
            return Err(Overflow);
        }
        self.now.set(self.now.get() + 1);
        Ok(())
    }

    fn leave(&self) {
        self.now.set(self.now.get() - 1);
    }
}

#[derive(Debug)]
pub(super) struct Limits {
    connections: Bounded,
    /// Requests that wait for a connection, or for one to be made.
    pending: Bounded,
    requests: Bounded,
    retries: Bounded,
    requests_per_connection: Option<NonZeroU32>,
    idle_timeout: Option<Duration>,
    /// Who waits for a connection, in the order of their coming.
    waiting: RefCell<VecDeque<Rc<Latch>>>,
    /// Where connections without a request are kept.
    shelves: RefCell<Vec<Weak<Shelf>>>,
}

impl Limits {
    pub(super) fn new(limits: &ConnectionLimits, workers: NonZeroU32) -> Self {
        let shared = |most| Bounded::shared(most, workers);
        Self {
            connections: shared(limits.connections),
            pending: shared(limits.pending_requests),
            requests: shared(limits.requests),
            retries: shared(limits.retries),
            requests_per_connection: limits.requests_per_connection,
            idle_timeout: limits.idle_timeout_ms.map(|it| Duration::from_millis(it.get().into())),
            waiting: RefCell::default(),
            shelves: RefCell::default(),
        }
    }

    fn serve_next(&self) {
        if let Some(latch) = self.waiting.borrow_mut().pop_front() {
            latch.open();
        }
    }
}

// === Requests ===

/// A request, or a connection without requests, that is under way to an endpoint.
#[derive(Debug)]
pub(in crate::session) struct Flight {
    cluster: Rc<Cluster>,
    _load: Option<LoadGuard>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cluster.limits.requests.leave();
    }
}

/// Another try that is under way.
#[derive(Debug)]
pub(in crate::session) struct Again(Rc<Cluster>);

impl Drop for Again {
    fn drop(&mut self) {
        self.0.limits.retries.leave();
    }
}

impl Cluster {
    /// A request goes to this endpoint.
    pub(in crate::session) fn begin(
        self: &Rc<Self>,
        workload: Option<&Workload>,
    ) -> Result<Flight, Overflow> {
        self.limits.requests.enter()?;
        Ok(Flight { cluster: Rc::clone(self), _load: self.load(workload) })
    }

    /// A request is tried once more.
    pub(in crate::session) fn try_again(self: &Rc<Self>) -> Result<Again, Overflow> {
        self.limits.retries.enter()?;
        Ok(Again(Rc::clone(self)))
    }

    fn load(&self, workload: Option<&Workload>) -> Option<LoadGuard> {
        Some(self.loads.enter(workload.filter(|_| self.counts_load())?))
    }
}

// === Connections ===

/// A connection to an endpoint, for as long as it is open.
#[derive(Debug)]
pub(in crate::session) struct Ticket {
    cluster: Rc<Cluster>,
    /// It is one of a bounded number.
    is_counted: bool,
    requests: Cell<u32>,
    used: Cell<Instant>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let limits = &self.cluster.limits;
        if self.is_counted {
            limits.connections.leave();
            limits.serve_next();
        }
    }
}

impl Ticket {
    pub(in crate::session) fn cluster(&self) -> &Rc<Cluster> {
        &self.cluster
    }

    pub(in crate::session) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Counts a request.
    pub(in crate::session) fn use_once(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// Whether it has carried as many requests as it may.
    pub(in crate::session) fn is_used_up(&self) -> bool {
        let most = self.cluster.limits.requests_per_connection;
        most.is_some_and(|most| self.requests.get() >= most.get())
    }

    /// Whether others want it: then it is not kept while it has no request.
    pub(in crate::session) fn is_wanted(&self) -> bool {
        !self.cluster.limits.waiting.borrow().is_empty()
    }

    /// It is kept without a request from now on.
    pub(in crate::session) fn rest(&self, on: &Rc<Shelf>) {
        let limits = &self.cluster.limits;
        if limits.idle_timeout.is_some() {
            self.used.set(Instant::now());
        }
        if limits.connections.most.is_some() {
            let mut shelves = limits.shelves.borrow_mut();
            if shelves.len() == shelves.capacity() {
                shelves.retain(|shelf| shelf.strong_count() > 0);
            }
            if !shelves.iter().any(|shelf| shelf.as_ptr() == Rc::as_ptr(on)) {
                shelves.push(Rc::downgrade(on));
            }
        }
    }

    /// When it will have been without a request for too long.
    pub(in crate::session) fn ends(&self) -> Option<Instant> {
        Some(self.used.get() + self.cluster.limits.idle_timeout?)
    }
}

/// A request that has no connection yet.
struct Pending<'c>(&'c Limits);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.leave();
    }
}

/// Stands in the queue for a connection. One that leaves when it was its turn has the next one served.
struct Waiting<'c> {
    limits: &'c Limits,
    latch: Rc<Latch>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.latch.is_open() {
            if !self.limits.connections.is_full() {
                self.limits.serve_next();
            }
        } else {
            self.limits.waiting.borrow_mut().retain(|latch| !Rc::ptr_eq(latch, &self.latch));
        }
    }
}

impl Cluster {
    /// Opens a connection for a request with `dial`, when there may be one; the request waits so long, if there is room to
    /// wait.
    pub(in crate::session) async fn connect<T, E: From<Overflow>>(
        self: &Rc<Self>,
        dial: impl Future<Output = Result<T, E>>,
    ) -> Result<(T, Rc<Ticket>), E> {
        self.limits.pending.enter()?;
        let _pending = Pending(&self.limits);
        let is_first = self.limits.waiting.borrow().is_empty();
        let at_once = is_first.then(|| self.ticket().or_else(|_| self.take_over()).ok()).flatten();
        let ticket = match at_once {
            Some(ticket) => ticket,
            None => self.wait_for_ticket().await,
        };
        Ok((dial.await?, ticket))
    }

    /// The same for one that many requests share: such connections are not bounded, for each client has its own and would
    /// wait for ever for one that others use.
    pub(in crate::session) async fn connect_shared<T, E: From<Overflow>>(
        self: &Rc<Self>,
        dial: impl Future<Output = Result<T, E>>,
    ) -> Result<(T, Rc<Ticket>), E> {
        self.limits.pending.enter()?;
        let _pending = Pending(&self.limits);
        Ok((dial.await?, self.new_ticket(false)))
    }

    async fn wait_for_ticket(self: &Rc<Self>) -> Rc<Ticket> {
        loop {
            let waiting = Waiting { limits: &self.limits, latch: Rc::default() };
            self.limits.waiting.borrow_mut().push_back(Rc::clone(&waiting.latch));
            waiting.latch.wait().await;
            if let Ok(ticket) = self.ticket() {
                return ticket;
            }
        }
    }

    /// Has a connection without a request closed, and takes its place.
    fn take_over(self: &Rc<Self>) -> Result<Rc<Ticket>, Overflow> {
        let shelves: Vec<_> = self.limits.shelves.borrow().iter().filter_map(Weak::upgrade).collect();
        if shelves.iter().any(|shelf| shelf.give_up_one(self)) { self.ticket() } else { Err(Overflow) }
    }

    /// A connection that is made now or not at all.
    fn ticket(self: &Rc<Self>) -> Result<Rc<Ticket>, Overflow> {
        self.limits.connections.enter()?;
        Ok(self.new_ticket(true))
    }

    fn new_ticket(self: &Rc<Self>, is_counted: bool) -> Rc<Ticket> {
        let (cluster, used) = (Rc::clone(self), Cell::new(Instant::now()));
        Rc::new(Ticket { cluster, is_counted, requests: Cell::new(0), used })
    }

    /// Opens a connection that carries no requests, with `dial`.
    pub(in crate::session) async fn open<T>(
        self: &Rc<Self>,
        state: &NodeState,
        workload: Option<&Arc<Workload>>,
        dial: Pin<&mut impl Future<Output = Result<T, CloseCause>>>,
    ) -> Result<(T, Hold), CloseCause> {
        let ticket = self.ticket().map_err(|Overflow| CloseCause::UpstreamOverflow)?;
        let hold = Hold { _ticket: Some(ticket), _load: self.load(workload.map(|it| &**it)) };
        let dialled = match self.connect_timeout() {
            Some(limit) => {
                monoio::time::timeout(limit, dial).await.unwrap_or(Err(CloseCause::ConnectTimedOut))
            }
            None => dial.await,
        };
        let answer = match &dialled {
            Ok(_) => Some(Answer::Connected),
            Err(CloseCause::ConnectTimedOut) => Some(Answer::TimedOut),
            Err(CloseCause::ConnectFailed | CloseCause::TunnelFailed | CloseCause::TunnelRefused) => {
                Some(Answer::Unconnected)
            }
            Err(_) => None,
        };
        if let (Some(answer), Some(workload)) = (answer, workload) {
            self.note(state, workload, answer);
        }
        Ok((dialled?, hold))
    }
}

/// What a connection that carries no requests counts for.
#[derive(Debug)]
pub(in crate::session) struct Hold {
    _ticket: Option<Rc<Ticket>>,
    _load: Option<LoadGuard>,
}

impl Hold {
    /// Of an endpoint whose service has no policy.
    pub(in crate::session) fn load(load: LoadGuard) -> Self {
        Self { _ticket: None, _load: Some(load) }
    }
}
