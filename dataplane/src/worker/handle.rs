//! Reaching a worker from another thread: a bounded queue of jobs and an eventfd that wakes it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::Worker;
use crate::net::Descriptor;

/// Jobs that may wait for a worker; the control thread posts a handful a second.
const JOBS_WAITING_MAX: usize = 256;

/// What another thread has a worker do: runs on the worker's thread and must not block.
pub type Job = Box<dyn FnOnce(&Worker) + Send>;

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    #[error("the worker has {JOBS_WAITING_MAX} jobs waiting")]
    Full,
    #[error("the worker has ended")]
    Ended,
}

/// A worker as seen from other threads.
#[derive(Clone)]
pub struct WorkerHandle {
    index: usize,
    jobs: Sender<Job>,
    wake: Arc<OwnedFd>,
}

impl WorkerHandle {
    pub(super) fn new(index: usize) -> std::io::Result<(Self, JobQueue)> {
        let (jobs, queue) = bounded(JOBS_WAITING_MAX);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let theirs = wake.try_clone()?;
        Ok((Self { index, jobs, wake: Arc::new(wake) }, JobQueue { queue, wake: theirs }))
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Has the worker run `job` soon. Jobs of one thread keep their order.
    pub fn post(&self, job: impl FnOnce(&Worker) + Send + 'static) -> Result<(), PostError> {
        self.jobs.try_send(Box::new(job)).map_err(|refused| match refused {
            TrySendError::Full(_) => PostError::Full,
            TrySendError::Disconnected(_) => PostError::Ended,
        })?;
        // A full counter (2^64 - 2 unread wake-ups) is the only failure, and it wakes as well.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    /// Takes no new work, ends tunnels politely and cuts what is left at `deadline`.
    pub fn drain(&self, deadline: Instant) -> Result<(), PostError> {
        self.post(move |worker| worker.begin_drain(deadline))
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("index", &self.index).finish_non_exhaustive()
    }
}

/// The worker's end.
pub(super) struct JobQueue {
    queue: Receiver<Job>,
    wake: OwnedFd,
}

impl JobQueue {
    /// Runs jobs for as long as the worker does.
    pub(super) async fn run(self, worker: Worker) {
        let wake = match Descriptor::new(self.wake) {
            Ok(wake) => wake,
            Err(error) => {
                tracing::error!(worker = worker.index(), %error, "the worker cannot take jobs");
                return;
            }
        };
        loop {
            if let Err(error) = wake.readable().await {
                tracing::error!(worker = worker.index(), %error, "the worker takes no more jobs");
                return;
            }
            let mut counter = [0; 8];
            // Reading resets the counter; a spurious wake-up finds it empty.
            let _ = rustix::io::read(&wake, &mut counter);
            while let Ok(job) = self.queue.try_recv() {
                job(&worker);
            }
        }
    }
}
