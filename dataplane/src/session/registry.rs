//! All live connections of a node on one worker: cut when their pod leaves or policy no longer allows them.
//!
//! Invariant: after each state, every authorized connection of a pod has been asked for on the grounds that this state
//! gives, or on the very same ones before. So a state costs a few look-ups for each pod, and a question for each
//! connection of those pods alone whose workload, policies or services it changes.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use l7::ir::ConnectionAttributes;
use slab::Slab;

use super::admission::{Admission, Grounds, judge};
use super::connection::{Authorized, Shared};
use super::http::is_still_allowed;
use super::node::{Node, workload_of};
use super::state::{LocalPod, NodeState};
use super::waypoint;
use crate::access_log::cause::CloseCause;
use crate::metrics::{Limit, WorkerMetrics};
use crate::worker::{TICK, Tick, Worker};

/// How often the byte counters of long-lived connections reach the metrics.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);

/// The live connections, by pod.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pods: RefCell<HashMap<PodKey, Connections>>,
    len: Cell<usize>,
    asked_again: Cell<u64>,
}

/// The address of the pod's description, which its connections share and keep.
type PodKey = *const LocalPod;

/// Those of one pod; never empty.
#[derive(Debug)]
struct Connections {
    pod: Arc<LocalPod>,
    live: Slab<Rc<Shared>>,
    standing: Standing,
}

/// What the admissions of a pod's connections rest on.
#[derive(Debug)]
enum Standing {
    /// There are none.
    None,
    /// Policy was asked for each of them on these grounds.
    On(Grounds),
    /// Not all of them on the same: the next state asks for all.
    Mixed,
    /// Each on grounds of its own: every state asks for all.
    Each,
}

impl Registry {
    pub(super) fn add(&self, connection: Rc<Shared>) -> usize {
        let mut pods = self.pods.borrow_mut();
        let pod = &connection.pod;
        let of_pod = pods.entry(Arc::as_ptr(pod)).or_insert_with(|| Connections {
            pod: pod.clone(),
            live: Slab::new(),
            standing: Standing::None,
        });
        self.len.set(self.len.get() + 1);
        of_pod.live.insert(connection)
    }

    pub(super) fn remove(&self, pod: &Arc<LocalPod>, key: usize) {
        let mut pods = self.pods.borrow_mut();
        let Some(of_pod) = pods.get_mut(&Arc::as_ptr(pod)) else { return };
        if of_pod.live.try_remove(key).is_some() {
            self.len.set(self.len.get().saturating_sub(1));
        }
        if of_pod.live.is_empty() {
            pods.remove(&Arc::as_ptr(pod));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.get()
    }

    /// Shows each live connection.
    pub(super) fn for_each(&self, mut show: impl FnMut(&Shared)) {
        for of_pod in self.pods.borrow().values() {
            of_pod.live.iter().for_each(|(_, connection)| show(connection));
        }
    }

    /// Cuts what belongs to a pod that leaves.
    pub(super) fn cut_pod(&self, uid: &str) {
        for of_pod in self.pods.borrow().values().filter(|it| &*it.pod.uid == uid) {
            for (_, connection) in &of_pod.live {
                connection.cut(CloseCause::Drained);
            }
        }
    }

    /// Cuts everything: the time of a drain is up.
    pub(super) fn cut_all(&self) {
        self.for_each(|connection| {
            connection.cut(CloseCause::Drained);
        });
    }

    /// Notes that a connection was admitted by `state`, and whether that is the one in force.
    pub(super) fn note_admission(&self, pod: &Arc<LocalPod>, state: &NodeState, in_force: bool) {
        let mut pods = self.pods.borrow_mut();
        let Some(of_pod) = pods.get_mut(&Arc::as_ptr(pod)) else { return };
        if !in_force {
            of_pod.standing = Standing::Mixed;
        } else if matches!(of_pod.standing, Standing::None) {
            of_pod.standing = Grounds::of(state, pod).map_or(Standing::Mixed, Standing::On);
        }
    }

    /// Notes that a connection was admitted on grounds that no other need have.
    pub(super) fn note_own_grounds(&self, pod: &Arc<LocalPod>) {
        if let Some(of_pod) = self.pods.borrow_mut().get_mut(&Arc::as_ptr(pod)) {
            of_pod.standing = Standing::Each;
        }
    }

    /// Asks the question of every authorized connection again, if its pod's grounds are not what they were, and cuts
    /// those whose answer is no.
    pub(super) fn enforce(&self, state: &NodeState) {
        for of_pod in self.pods.borrow_mut().values_mut() {
            let grounds = Grounds::of(state, &of_pod.pod);
            let unchanged = match (&of_pod.standing, &grounds) {
                (Standing::None, _) => true,
                (Standing::On(before), Some(now)) => before.is_same(now),
                (Standing::On(_) | Standing::Mixed | Standing::Each, _) => false,
            };
            if !unchanged {
                let asked = of_pod.live.iter().filter(|(_, connection)| enforce(state, connection)).count();
                self.asked_again.set(self.asked_again.get() + asked as u64);
                if !matches!(of_pod.standing, Standing::Each) {
                    of_pod.standing = grounds.map_or(Standing::Mixed, Standing::On);
                }
            }
        }
    }

    /// How many connections have been asked for again so far.
    pub(super) fn asked_again(&self) -> u64 {
        self.asked_again.get()
    }

    /// Cuts connections over which nothing has gone for `timeout`. The counters are looked at once a second, so it may
    /// take a second longer.
    fn cut_idle(&self, timeout: Duration, now: Instant, metrics: &WorkerMetrics) {
        self.for_each(|connection| {
            if connection.is_idle(timeout, now) && connection.cut(CloseCause::IdleTimeout) {
                metrics.limit_hit(Limit::IdleTime);
            }
        });
    }

    fn account(&self) {
        self.for_each(Shared::account);
    }
}

/// Keeps the metrics of long-lived connections up to date for as long as it is held: to the end of a drain.
#[derive(Debug)]
pub(super) struct Books {
    node: Weak<Node>,
    accounted: Cell<Instant>,
    ticked: Cell<Instant>,
}

impl Books {
    pub(super) fn keep(worker: &Worker, node: Weak<Node>) -> Rc<Self> {
        let now = Instant::now();
        let books = Rc::new(Self { node, accounted: Cell::new(now), ticked: Cell::new(now) });
        let ticking: Weak<Self> = Rc::downgrade(&books);
        worker.tick_list().add(ticking);
        books
    }
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

/// Whether the connection had to be asked for.
fn enforce(state: &NodeState, connection: &Shared) -> bool {
    let authorized = connection.authorized.borrow();
    let Some(authorized) = authorized.as_ref() else { return false };
    if !is_allowed(state, connection, authorized) {
        connection.cut(CloseCause::PolicyChanged);
    }
    true
}

/// Whether the connection may go on; requests that may not are ended here.
fn is_allowed(state: &NodeState, connection: &Shared, authorized: &Authorized) -> bool {
    // A workload that is unknown now has no policies that could be trusted to be none.
    let Some(workload) = workload_of(state, &connection.pod) else { return false };
    if let Some(front) = &authorized.front {
        return waypoint::is_still_allowed(state, &workload, connection, authorized, front);
    }
    let policies = state.snapshot.policies_for(&workload);
    let attributes = authorized.attributes();
    match judge(&state.snapshot, &workload, &policies, &attributes) {
        Some(Admission::Admitted) => true,
        None => false,
        // A connection whose bytes are not read can no longer be judged.
        Some(Admission::ByRequest) if !authorized.reads_requests => false,
        Some(Admission::ByRequest) => {
            connection.cut_requests(CloseCause::PolicyChanged, |request| {
                is_still_allowed(&policies, &attributes, request)
            });
            true
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
