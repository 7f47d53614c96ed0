//! The pods of a node and how far the workers are with each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::session::{LocalPod, PodEvent};

/// How long the workers may take to open or close a pod's listeners.
pub(super) const WORKERS_PATIENCE: Duration = Duration::from_secs(10);

/// Why a pod was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    #[error("pod {uid}: the listeners cannot be opened on worker {worker}: {reason}")]
    Listeners { uid: Arc<str>, worker: usize, reason: String },
    #[error("pod {uid}: the workers did not follow within {WORKERS_PATIENCE:?}")]
    TimedOut { uid: Arc<str> },
    #[error("pod {uid} was taken out again")]
    Gone { uid: Arc<str> },
}

/// What the workers have told of one pod.
#[derive(Debug, Default)]
struct Progress {
    listening: BTreeSet<usize>,
    failed: BTreeMap<usize, String>,
}

/// The pods in force, and the workers' progress with them and with those that have left.
#[derive(Debug, Default)]
pub(super) struct PodBook {
    pods: Arc<HashMap<Arc<str>, Arc<LocalPod>>>,
    progress: BTreeMap<Arc<str>, Progress>,
    /// Pods that have left, with the workers that still serve them.
    leaving: BTreeMap<Arc<str>, BTreeSet<usize>>,
    workers: usize,
}

impl PodBook {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, ..Self::default() }
    }

    /// As the workers take it.
    pub(super) fn pods(&self) -> Arc<HashMap<Arc<str>, Arc<LocalPod>>> {
        Arc::clone(&self.pods)
    }

    /// Takes a pod in, or tries again with one that has failed.
    pub(super) fn insert(&mut self, pod: LocalPod) {
        self.leaving.remove(&pod.uid);
        let stays = self.pods.get(&pod.uid).is_some_and(|held| held.network.is_same(&pod.network));
        let progress = self.progress.entry(Arc::clone(&pod.uid)).or_default();
        progress.failed.clear();
        // Workers that listen in this namespace go on and do not tell it again.
        if !stays {
            progress.listening.clear();
        }
        Arc::make_mut(&mut self.pods).insert(Arc::clone(&pod.uid), Arc::new(pod));
    }

    /// Whether the pod was there.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        let Some(pod) = Arc::make_mut(&mut self.pods).remove(uid) else { return false };
        if let Some(progress) = self.progress.remove(uid) {
            self.leaving.insert(Arc::clone(&pod.uid), progress.listening);
        }
        true
    }

    pub(super) fn note(&mut self, event: PodEvent) {
        match event {
            PodEvent::Listening { uid, worker } => {
                if let Some(progress) = self.progress.get_mut(&uid) {
                    progress.listening.insert(worker);
                    progress.failed.remove(&worker);
                }
            }
            PodEvent::Failed { uid, worker, reason } => {
                if let Some(progress) = self.progress.get_mut(&uid) {
                    progress.failed.insert(worker, reason);
                }
            }
            // The certificates' own business.
            PodEvent::CertificateNeeded { .. } => {}
            PodEvent::Stopped { uid, worker } => {
                if let Some(serving) = self.leaving.get_mut(&uid) {
                    serving.remove(&worker);
                    if serving.is_empty() {
                        self.leaving.remove(&uid);
                    }
                }
                // It may have come back meanwhile with another namespace: then that one's listeners follow.
            }
        }
    }

    /// `Some(Ok)` once every worker listens.
    pub(super) fn is_listening(&self, uid: &Arc<str>) -> Option<Result<(), PodError>> {
        let Some(progress) = self.progress.get(uid) else {
            return Some(Err(PodError::Gone { uid: Arc::clone(uid) }));
        };
        if let Some((&worker, reason)) = progress.failed.iter().next() {
            let (uid, reason) = (Arc::clone(uid), reason.clone());
            return Some(Err(PodError::Listeners { uid, worker, reason }));
        }
        (progress.listening.len() >= self.workers).then_some(Ok(()))
    }

    /// Whether no worker serves the pod any more.
    pub(super) fn has_left(&self, uid: &str) -> bool {
        !self.leaving.contains_key(uid)
    }

    /// Each pod with how many workers listen for it.
    pub(super) fn listening(&self) -> impl Iterator<Item = (&Arc<LocalPod>, usize)> {
        self.pods.values().map(|pod| (pod, self.progress.get(&pod.uid).map_or(0, |p| p.listening.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::NetworkNamespace;

    fn pod(uid: &str) -> LocalPod {
        LocalPod {
            uid: uid.into(),
            name: uid.into(),
            namespace: "app".into(),
            service_account: "default".into(),
            network: NetworkNamespace::current().unwrap(),
        }
    }

    fn uid() -> Arc<str> {
        "a".into()
    }

    #[test]
    fn a_pod_is_in_when_every_worker_listens_and_out_when_none_does() {
        let mut book = PodBook::new(2);
        book.insert(pod("a"));
        assert_eq!(book.is_listening(&uid()), None);
        book.note(PodEvent::Listening { uid: uid(), worker: 1 });
        book.note(PodEvent::Listening { uid: uid(), worker: 1 });
        assert_eq!(book.is_listening(&uid()), None);
        book.note(PodEvent::Listening { uid: uid(), worker: 0 });
        assert_eq!(book.is_listening(&uid()), Some(Ok(())));
        assert!(book.remove("a"));
        assert!(!book.remove("a"));
        assert!(!book.has_left("a"));
        book.note(PodEvent::Stopped { uid: uid(), worker: 0 });
        book.note(PodEvent::Stopped { uid: uid(), worker: 1 });
        assert!(book.has_left("a"));
        assert!(book.pods().is_empty());
    }

    #[test]
    fn a_failure_is_told_until_a_later_attempt_succeeds() {
        let mut book = PodBook::new(1);
        book.insert(pod("a"));
        book.note(PodEvent::Failed { uid: uid(), worker: 0, reason: "in use".into() });
        let error = book.is_listening(&uid()).unwrap().unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        book.note(PodEvent::Listening { uid: uid(), worker: 0 });
        assert_eq!(book.is_listening(&uid()), Some(Ok(())));
    }

    #[test]
    fn a_pod_that_is_tried_again_needs_only_the_workers_that_failed() {
        let mut book = PodBook::new(2);
        let (first, other) = (pod("a"), pod("a"));
        book.insert(first.clone());
        book.note(PodEvent::Listening { uid: uid(), worker: 0 });
        book.note(PodEvent::Failed { uid: uid(), worker: 1, reason: "in use".into() });
        book.insert(first);
        assert_eq!(book.is_listening(&uid()), None);
        book.note(PodEvent::Listening { uid: uid(), worker: 1 });
        assert_eq!(book.is_listening(&uid()), Some(Ok(())));
        let elsewhere = NetworkNamespace::from_descriptor(tempfile::tempfile().unwrap().into());
        book.insert(LocalPod { network: elsewhere, ..other });
        assert_eq!(book.is_listening(&uid()), None);
    }

    #[test]
    fn what_is_told_of_unknown_pods_is_ignored() {
        let mut book = PodBook::new(1);
        book.note(PodEvent::Listening { uid: uid(), worker: 0 });
        book.note(PodEvent::Stopped { uid: uid(), worker: 0 });
        assert_eq!(book.is_listening(&uid()), Some(Err(PodError::Gone { uid: uid() })));
        assert!(book.has_left("a"));
    }
}
