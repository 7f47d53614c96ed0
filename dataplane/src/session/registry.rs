//! All live connections of a node on one worker: cut when their pod leaves or policy no longer allows them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use l7::ir::ConnectionAttributes;
use slab::Slab;

use super::admission::{Admission, judge};
use super::connection::{Authorized, Shared};
use super::http::is_still_allowed;
use super::node::{Node, workload_of};
use super::state::NodeState;
use crate::access_log::cause::CloseCause;
use crate::metrics::{Limit, WorkerMetrics};
use crate::worker::{TICK, Tick};

/// How often the byte counters of long-lived connections reach the metrics.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Registry {
    live: RefCell<Slab<Rc<Shared>>>,
}

impl Registry {
    pub(super) fn add(&self, connection: Rc<Shared>) -> usize {
        self.live.borrow_mut().insert(connection)
    }

    pub(super) fn remove(&self, key: usize) {
        self.live.borrow_mut().try_remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Shows each live connection.
    pub(super) fn for_each(&self, mut show: impl FnMut(&Shared)) {
        for (_, connection) in self.live.borrow().iter() {
            show(connection);
        }
    }

    /// Cuts what belongs to a pod that leaves.
    pub(super) fn cut_pod(&self, uid: &str) {
        for (_, connection) in self.live.borrow().iter().filter(|(_, it)| &*it.pod.uid == uid) {
            connection.cut(CloseCause::Drained);
        }
    }

    /// Cuts everything: the time of a drain is up.
    pub(super) fn cut_all(&self) {
        self.for_each(|connection| {
            connection.cut(CloseCause::Drained);
        });
    }

    /// Asks every authorized connection's question again and cuts those whose answer is no.
    pub(super) fn enforce(&self, state: &NodeState) {
        for (_, connection) in self.live.borrow().iter() {
            let authorized = connection.authorized.borrow();
            let Some(authorized) = authorized.as_ref() else { continue };
            if !is_allowed(state, connection, authorized) {
                connection.cut(CloseCause::PolicyChanged);
            }
        }
    }

    /// Keeps the metrics of long-lived connections up to date.
    pub(super) fn keep_books(node: &Rc<Node>) {
        let now = Instant::now();
        let books =
            Rc::new(Books { node: Rc::downgrade(node), accounted: Cell::new(now), ticked: Cell::new(now) });
        let ticking: Weak<Books> = Rc::downgrade(&books);
        node.worker.tick_list().add(ticking);
        // The books live as long as the worker: the drain latch opens once, at its end.
        let worker = node.worker.clone();
        node.worker.spawn(async move {
            worker.drain().wait().await;
            drop(books);
        });
    }

    /// Cuts connections over which nothing has gone for `timeout`. The counters are looked at once a second, so it may
    /// take a second longer.
    fn cut_idle(&self, timeout: Duration, now: Instant, metrics: &WorkerMetrics) {
        for (_, connection) in self.live.borrow().iter().filter(|(_, it)| it.is_idle(timeout, now)) {
            if connection.cut(CloseCause::IdleTimeout) {
                metrics.limit_hit(Limit::IdleTime);
            }
        }
    }

    fn account(&self) {
        for (_, connection) in self.live.borrow().iter() {
            connection.account();
        }
    }
}

struct Books {
    node: Weak<Node>,
    accounted: Cell<Instant>,
    ticked: Cell<Instant>,
}

impl Tick for Books {
    fn tick(self: Rc<Self>, now: Instant) {
        let Some(node) = self.node.upgrade() else { return };
        let since = now.saturating_duration_since(self.ticked.replace(now));
        node.note_health(now, since.saturating_sub(TICK));
        if now.saturating_duration_since(self.accounted.get()) >= ACCOUNT_EVERY {
            self.accounted.set(now);
            node.registry.account();
            if let Some(timeout) = node.options.idle_timeout {
                node.registry.cut_idle(timeout, now, &node.metrics);
            }
        }
    }
}

fn is_allowed(state: &NodeState, connection: &Shared, authorized: &Authorized) -> bool {
    // A workload that is unknown now has no policies that could be trusted to be none.
    let Some(workload) = workload_of(state, &connection.pod) else { return false };
    let policies = state.snapshot.policies_for(&workload);
    let attributes = authorized.attributes();
    match judge(state, &workload, &policies, &attributes) {
        Some(Admission::Admitted) => true,
        None => false,
        // A connection whose bytes are not read can no longer be judged.
        Some(Admission::ByRequest) if !authorized.reads_requests => false,
        Some(Admission::ByRequest) => {
            authorized.request.as_ref().is_none_or(|head| is_still_allowed(&policies, &attributes, head))
        }
    }
}

impl Authorized {
    pub(super) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: None,
        }
    }
}
