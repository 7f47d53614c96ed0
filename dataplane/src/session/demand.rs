//! On-demand discovery as a worker sees it: a connection to what is not held waits until the control plane has answered.
//!
//! A key is asked for once, whoever waits for it; the answer comes with a published state, so every wait is for the next
//! state. Passing through is for what the control plane has said it does not know, never for what it has not said.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Workload;
use tokio::sync::mpsc;
use xds::snapshot::{Client, Snapshot};

use super::node::{Node, workload_of};
use super::state::{LocalPod, NodeState};
use crate::access_log::cause::CloseCause;
use crate::metrics::Limit;

/// How long a connection waits for the control plane's answers.
pub(super) const DEMAND_WAIT: Duration = Duration::from_secs(30);
/// Connections of one worker that may wait at a time.
pub const WAITING_MAX: usize = 4096;
/// Keys without an answer that a worker remembers to have asked for.
const ASKED_MAX: usize = 65_536;
/// Keys that may wait for the control thread.
const QUEUE_MAX: usize = 1024;

/// Takes keys to ask for to the control thread; never waits.
#[derive(Debug, Clone)]
pub struct Demander(mpsc::Sender<String>);

impl Demander {
    /// With the end that the discovery client takes the keys from.
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (keys, queue) = mpsc::channel(QUEUE_MAX);
        (Self(keys), queue)
    }
}

/// One worker's open questions.
#[derive(Debug, Default)]
pub(super) struct Demands {
    waiting: Cell<usize>,
    asked: RefCell<HashSet<String>>,
}

/// One that waits; counted until it is dropped.
struct Waiting<'a>(&'a Demands);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Demands {
    fn wait(&self) -> Option<Waiting<'_>> {
        let waiting = self.waiting.get();
        (waiting < WAITING_MAX).then(|| {
            self.waiting.set(waiting + 1);
            Waiting(self)
        })
    }

    /// False if there is no room for the question.
    fn ask(&self, key: String, demander: &Demander) -> bool {
        let mut asked = self.asked.borrow_mut();
        if asked.contains(&key) {
            return true;
        }
        let sent = asked.len() < ASKED_MAX && demander.0.try_send(key.clone()).is_ok();
        if sent {
            asked.insert(key);
        }
        sent
    }

    /// Forgets the questions that a state answers.
    pub(super) fn settle(&self, snapshot: &Snapshot) {
        self.asked.borrow_mut().retain(|key| !snapshot.is_answered(key));
    }
}

impl Node {
    /// The state from which the way of a connection can be decided, and the pod's own workload in it. Where the state
    /// is held on demand, this waits for the answers that are missing.
    pub(super) async fn answered(
        &self,
        pod: &LocalPod,
        remote: SocketAddr,
        to: SocketAddr,
    ) -> Result<(Arc<NodeState>, Arc<Workload>), CloseCause> {
        let known = self.workload(pod).await.ok_or(CloseCause::UnknownWorkload)?;
        let Some(demander) = &self.options.demander else { return Ok(known) };
        let deadline = Instant::now() + self.options.demand_wait;
        let mut waiting = None;
        loop {
            // Before the state, so that no later one is missed.
            let superseded = self.superseded();
            let state = self.state();
            let workload = workload_of(&state, pod).ok_or(CloseCause::UnknownWorkload)?;
            let client = Client { workload: &workload, ip: remote.ip() };
            let Some(key) = state.snapshot.unanswered(client, to) else {
                return Ok((state.clone(), workload));
            };
            waiting = waiting.or_else(|| self.demands.wait());
            if waiting.is_none() || !self.demands.ask(key, demander) {
                self.metrics.limit_hit(Limit::Demands);
                return Err(CloseCause::LimitReached);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let answered = monoio::time::timeout(left, superseded.wait()).await;
            answered.map_err(|_| CloseCause::UnknownDestination)?;
        }
    }
}
