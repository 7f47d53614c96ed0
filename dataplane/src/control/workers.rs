//! Starting the workers of a node proxy.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use xds::publish::Publisher;

use super::node::NodeError;
use crate::access_log::Recorder;
use crate::metrics::WorkerMetrics;
use crate::session::{Node, NodeOptions, NodeParts, NodeState, PodEvent};
use crate::worker::{DriverChoice, Outbox, StartError, Supervisor, WorkerOptions};

thread_local! {
    /// The node proxy's part of the calling worker, for jobs that the control thread posts.
    static NODE: RefCell<Option<Rc<Node>>> = const { RefCell::new(None) };
}

/// How many workers `options` means.
pub(super) fn count(workers: Option<usize>) -> usize {
    workers.unwrap_or_else(|| core_affinity::get_core_ids().map_or(1, |cores| cores.len().max(1)))
}

/// Everything a worker's part is made of, before it is split up between the workers.
pub(super) struct Parts<'a> {
    pub(super) driver: DriverChoice,
    pub(super) options: NodeOptions,
    pub(super) metrics: Vec<WorkerMetrics>,
    pub(super) recorder: Recorder,
    pub(super) events: Outbox<PodEvent>,
    pub(super) publisher: &'a mut Publisher<NodeState>,
}

/// Starts one worker for each of the metrics.
pub(super) fn start(parts: Parts<'_>) -> Result<Supervisor, NodeError> {
    let Parts { driver, options, metrics, recorder, events, publisher } = parts;
    // Workers read no files.
    crate::session::load_system_authorities();
    let count = metrics.len();
    let options = NodeOptions { workers: count, ..options };
    let mut shares = Vec::with_capacity(count);
    for metrics in metrics {
        let mailbox = publisher.subscribe().map_err(NodeError::Mailbox)?;
        let (recorder, events) = (recorder.clone(), events.clone());
        shares.push(Some(NodeParts { mailbox, metrics, recorder, events }));
    }
    // The lock is taken once by each worker, before it serves.
    let shares = Mutex::new(shares);
    let setup = move |worker: &crate::worker::Worker| {
        let mut shares = shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.get_mut(worker.index()).and_then(Option::take);
        let share = share.ok_or("a worker was started that nobody asked for")?;
        let node = Node::start(worker, share, options.clone())?;
        NODE.with(|place| place.replace(Some(node)));
        Ok(())
    };
    let workers = WorkerOptions { workers: Some(count), driver };
    Supervisor::start(&workers, setup).map_err(|error: StartError| NodeError::Workers(error))
}

/// Runs `with` on the node proxy's part of the calling worker, if it has one.
pub(super) fn on_this_worker<R>(with: impl FnOnce(&Node) -> R) -> Option<R> {
    NODE.with(|place| place.borrow().as_deref().map(with))
}
