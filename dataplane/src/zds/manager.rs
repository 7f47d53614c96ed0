//! Carries the agent's orders out and keeps count: which pods run, which are to be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::protocol::{Order, PODS_MAX};
use crate::admin::{Pending, Readiness};
use crate::control::PodError;
use crate::metrics::ControlCounter;
use crate::net::NetworkNamespace;
use crate::session::LocalPod;

/// How long a pod that could not be taken in waits for the next attempt.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);
/// What the readiness page calls this.
const TASK: &str = "workload proxy manager";

/// A node proxy, as far as the agent's orders concern it.
pub trait Pods {
    /// Serves a pod: done when it may be redirected. A pod that was added before and failed is tried again.
    fn add(&self, pod: LocalPod) -> impl Future<Output = Result<(), PodError>>;

    /// Lets go of a pod, its connections included. One that is not there is no error.
    fn remove(&self, uid: &Arc<str>) -> impl Future<Output = Result<(), PodError>>;

    /// Counts for the metrics page.
    fn count(&self, counter: ControlCounter);
}

/// The pods by the agent's word.
pub(super) struct Manager<'a, P> {
    node: &'a P,
    running: BTreeMap<Arc<str>, LocalPod>,
    failed: BTreeMap<Arc<str>, LocalPod>,
    /// When those that failed are tried again.
    retry_at: Option<Instant>,
    /// The agent has named all pods on the present connection.
    is_complete: bool,
    readiness: Readiness,
    pending: Option<Pending>,
}

impl<'a, P: Pods> Manager<'a, P> {
    /// Not ready until the first snapshot.
    pub(super) fn new(node: &'a P, readiness: Readiness) -> Self {
        let pending = Some(readiness.pending(TASK));
        let (running, failed) = (BTreeMap::new(), BTreeMap::new());
        Self { node, running, failed, retry_at: None, is_complete: false, readiness, pending }
    }

    /// Carries out one order; the error is for the agent.
    pub(super) async fn carry_out(&mut self, order: Order<NetworkNamespace>) -> Result<(), String> {
        let done = match order {
            Order::Start { pod, network } => {
                let (uid, name) = (pod.uid, pod.name);
                let (namespace, service_account) = (pod.namespace, pod.service_account);
                self.start(LocalPod { uid, name, namespace, service_account, network }).await
            }
            Order::Keep { uid } => {
                if !self.running.contains_key(&uid) && !self.failed.contains_key(&uid) {
                    tracing::warn!(pod = %uid, "the node agent keeps a pod that is not running here");
                }
                Ok(())
            }
            Order::Stop { uid } => {
                self.release(&uid).await;
                Ok(())
            }
            Order::StopAllBut(named) => {
                self.stop_all_but(&named).await;
                self.is_complete = true;
                Ok(())
            }
        };
        self.note();
        done
    }

    /// The connection is lost: what runs stays, but whether it is all is unknown until the next snapshot.
    pub(super) fn disconnected(&mut self) {
        self.is_complete = false;
        self.note();
    }

    /// Waits until it is time to [`Manager::retry`]; for ever while nothing has failed.
    pub(super) fn retry_due(&self) -> impl Future<Output = ()> + use<P> {
        let at = self.retry_at;
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Tries again what has failed.
    pub(super) async fn retry(&mut self) {
        self.retry_at = None;
        for pod in std::mem::take(&mut self.failed).into_values() {
            // The failure is logged with the attempt.
            drop(self.attempt(pod).await);
        }
        self.note();
    }

    async fn start(&mut self, pod: LocalPod) -> Result<(), String> {
        let uid = Arc::clone(&pod.uid);
        if self.running.get(&uid).is_some_and(|running| is_same(running, &pod)) {
            return Ok(());
        }
        match self.failed.remove(&uid) {
            // Without its listeners' being closed in between, where some of them are open.
            Some(failed) if is_same(&failed, &pod) => {}
            Some(failed) => {
                self.failed.insert(Arc::clone(&uid), failed);
                self.release(&uid).await;
            }
            None => self.release(&uid).await,
        }
        if self.running.len() + self.failed.len() >= PODS_MAX {
            return Err(format!("pod {uid}: there are {PODS_MAX} pods already, the most of one node"));
        }
        self.attempt(pod).await
    }

    async fn attempt(&mut self, pod: LocalPod) -> Result<(), String> {
        let uid = Arc::clone(&pod.uid);
        match self.node.add(pod.clone()).await {
            Ok(()) => {
                tracing::info!(pod = %uid, name = %pod.name, namespace = %pod.namespace, "pod is served");
                self.running.insert(uid, pod);
                self.node.count(ControlCounter::PodStarted);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a pod cannot be served; it is tried again after {RETRY_AFTER:?}");
                self.failed.insert(uid, pod);
                self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_AFTER);
                Err(error.to_string())
            }
        }
    }

    async fn stop_all_but(&mut self, named: &BTreeSet<Arc<str>>) {
        let all = self.running.keys().chain(self.failed.keys());
        let gone: Vec<_> = all.filter(|uid| !named.contains(*uid)).cloned().collect();
        let node = self.node;
        // All at once: each is bounded work of its own, and the agent waits.
        let done = join_all(gone.iter().map(|uid| node.remove(uid))).await;
        for (uid, done) in gone.iter().zip(done) {
            self.released(uid, done);
        }
    }

    /// Lets go of the pod, if it is there.
    async fn release(&mut self, uid: &Arc<str>) {
        if self.running.contains_key(uid) || self.failed.contains_key(uid) {
            let done = self.node.remove(uid).await;
            self.released(uid, done);
        }
    }

    fn released(&mut self, uid: &Arc<str>, done: Result<(), PodError>) {
        match done {
            Ok(()) => tracing::info!(pod = %uid, "pod is let go"),
            // It has been ordered and will happen; there is no other step to take.
            Err(error) => tracing::error!(%error, "a pod has not been let go in time"),
        }
        self.failed.remove(uid);
        if self.running.remove(uid).is_some() {
            self.node.count(ControlCounter::PodStopped);
        }
    }

    /// Brings readiness and metrics up to date.
    fn note(&mut self) {
        if self.failed.is_empty() {
            self.retry_at = None;
        }
        let is_ready = self.is_complete && self.failed.is_empty();
        if is_ready {
            self.pending = None;
        } else if self.pending.is_none() {
            self.pending = Some(self.readiness.pending(TASK));
        }
        let (active, pending) = (self.running.len(), self.failed.len());
        self.node.count(ControlCounter::Pods { active, pending });
    }
}

/// Whether it is one pod in one network. The same uid with anything else is another pod that took its name.
fn is_same(this: &LocalPod, other: &LocalPod) -> bool {
    let who = |pod: &LocalPod| (pod.name.clone(), pod.namespace.clone(), pod.service_account.clone());
    who(this) == who(other) && this.network.is_same(&other.network)
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
