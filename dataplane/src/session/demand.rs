//! On-demand discovery as a worker sees it: a connection to what is not held waits until the control plane has answered.
//!
//! A key is asked for once, whoever waits for it; the answer comes with a published state, so every wait is for the next
//! state. Passing through is for what the control plane has said it does not know, never for what it has not said.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use model::Workload;
use tokio::sync::mpsc;
use tunnel::hbone::Authority;
use xds::snapshot::{Client, Snapshot};

use super::lookup::Lookup;
use super::node::{Node, workload_of};
use super::state::{LocalPod, NodeState};
use crate::access_log::cause::CloseCause;
use crate::metrics::Limit;

/// How long a connection waits for the control plane's answers.
pub(super) const DEMAND_WAIT: Duration = Duration::from_secs(30);
/// Connections of one worker that may wait at a time.
pub const WAITING_MAX: usize = 4096;
/// Requests of peers, likewise; beside those, so that no peer takes the room of the node's own pods.
const PEERS_WAITING_MAX: usize = 1024;
/// Keys that all workers may ask for on behalf of peers while the process runs. What was asked for once is held or known
/// as absent for ever, and a peer may name what it likes: most of the room is for the node's own pods.
const PEERS_KEYS_MAX: usize = 16_384;
/// Keys without an answer that a worker remembers to have asked for.
const ASKED_MAX: usize = 65_536;
/// Keys that may wait for the control thread.
const QUEUE_MAX: usize = 1024;

/// On whose behalf is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A pod of the node.
    Pod,
    /// Another proxy.
    Peer,
}

/// Takes keys to ask for to the control thread; never waits.
#[derive(Debug, Clone)]
pub struct Demander {
    keys: mpsc::Sender<String>,
    /// Keys asked for on behalf of peers.
    peers_keys: Arc<AtomicUsize>,
}

impl Demander {
    /// With the end that the discovery client takes the keys from.
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (keys, queue) = mpsc::channel(QUEUE_MAX);
        (Self { keys, peers_keys: Arc::default() }, queue)
    }

    fn send(&self, key: String, asker: Asker) -> bool {
        let counted = usize::from(asker == Asker::Peer);
        // A bare count: it orders nothing.
        let before = self.peers_keys.fetch_add(counted, Ordering::Relaxed);
        let has_room = asker == Asker::Pod || before < PEERS_KEYS_MAX;
        let sent = has_room && self.keys.try_send(key).is_ok();
        if !sent {
            self.peers_keys.fetch_sub(counted, Ordering::Relaxed);
        }
        sent
    }
}

/// One worker's open questions.
#[derive(Debug, Default)]
pub(super) struct Demands {
    waiting: Cell<usize>,
    peers_waiting: Cell<usize>,
    asked: RefCell<HashSet<String>>,
}

/// One that waits; counted until it is dropped.
struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Demands {
    fn wait(&self, asker: Asker) -> Option<Waiting<'_>> {
        let (waiting, max) = match asker {
            Asker::Pod => (&self.waiting, WAITING_MAX),
            Asker::Peer => (&self.peers_waiting, PEERS_WAITING_MAX),
        };
        (waiting.get() < max).then(|| {
            waiting.set(waiting.get() + 1);
            Waiting(waiting)
        })
    }

    /// False if there is no room for the question.
    fn ask(&self, key: String, asker: Asker, demander: &Demander) -> bool {
        let mut asked = self.asked.borrow_mut();
        if asked.contains(&key) {
            return true;
        }
        let sent = asked.len() < ASKED_MAX && demander.send(key.clone(), asker);
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
        self.answered_all(pod, Asker::Pod, |state, workload| {
            state.snapshot.unanswered(Client { workload, ip: remote.ip() }, to)
        })
        .await
    }

    /// The same for a peer's request: the state from which it can be decided what `authority` means at the address
    /// `dialled` of the pod.
    pub(super) async fn answered_to_peer(
        &self,
        pod: &LocalPod,
        authority: &Authority,
        dialled: IpAddr,
    ) -> Result<(Arc<NodeState>, Arc<Workload>), CloseCause> {
        self.answered_all(pod, Asker::Peer, |state, workload| {
            Lookup { state, workload }.unanswered(authority, dialled)
        })
        .await
    }

    /// Asks for one missing key after the other, until there is none.
    async fn answered_all(
        &self,
        pod: &LocalPod,
        asker: Asker,
        missing: impl Fn(&NodeState, &Workload) -> Option<String>,
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
            let Some(key) = missing(&state, &workload) else {
                return Ok((state.clone(), workload));
            };
            waiting = waiting.or_else(|| self.demands.wait(asker));
            if waiting.is_none() || !self.demands.ask(key, asker, demander) {
                self.metrics.limit_hit(Limit::Demands);
                return Err(CloseCause::LimitReached);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let answered = monoio::time::timeout(left, superseded.wait()).await;
            answered.map_err(|_| CloseCause::UnknownDestination)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_use_up_their_own_share_and_not_the_pods() {
        let (demander, mut queue) = Demander::new();
        let demands = [Demands::default(), Demands::default()];
        for number in 0..PEERS_KEYS_MAX {
            assert!(demands[number % 2].ask(format!("app/{number}"), Asker::Peer, &demander), "{number}");
            queue.try_recv().unwrap();
        }
        assert!(!demands[0].ask("app/more".to_owned(), Asker::Peer, &demander));
        assert!(demands[1].ask("app/1".to_owned(), Asker::Peer, &demander), "asked for already");
        assert!(queue.try_recv().is_err());
        assert!(demands[0].ask("app/more".to_owned(), Asker::Pod, &demander));
        assert_eq!(queue.try_recv().as_deref(), Ok("app/more"));
        let waiting: Vec<_> = (0..PEERS_WAITING_MAX).map(|_| demands[0].wait(Asker::Peer).unwrap()).collect();
        assert!(demands[0].wait(Asker::Peer).is_none());
        assert!(demands[0].wait(Asker::Pod).is_some());
        drop(waiting);
        assert!(demands[0].wait(Asker::Peer).is_some());
    }

    #[test]
    fn a_question_that_found_the_queue_full_is_not_counted() {
        let (demander, mut queue) = Demander::new();
        let demands = Demands::default();
        for number in 0..QUEUE_MAX {
            assert!(demands.ask(number.to_string(), Asker::Peer, &demander));
        }
        assert!(!demands.ask("more".to_owned(), Asker::Peer, &demander));
        assert_eq!(demander.peers_keys.load(Ordering::Relaxed), QUEUE_MAX);
        queue.try_recv().unwrap();
        assert!(demands.ask("more".to_owned(), Asker::Peer, &demander));
    }
}
