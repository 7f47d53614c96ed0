//! Starting and ending the workers of a process.
//!
//! Policy on a worker's death: a panic on a worker's thread ends the whole process (release builds abort by
//! profile, other builds by the guard here). A worker owns connections of many identities; after a broken
//! invariant it must not go on, and its neighbours must not serve a node whose share of connections is gone.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use core_affinity::CoreId;
use crossbeam_channel::{Sender, bounded};

use super::driver::WorkerRuntime;
use super::handle::JobQueue;
use super::slice;
use super::{Driver, DriverChoice, PostError, Worker, WorkerHandle};
use crate::preflight::IoUringUnavailable;

/// Most workers that a process starts.
const WORKERS_MAX: usize = 1024;

/// An error of any kind that may cross threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many workers, on what, and where.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// Number of workers; `None` is one for each CPU of the process's set.
    pub workers: Option<usize>,
    pub driver: DriverChoice,
}

/// Why the workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    IoUring(#[from] IoUringUnavailable),
    #[error("{0} workers are not between 1 and {WORKERS_MAX}; leave the number out for one per CPU")]
    Count(usize),
    #[error("worker {0} cannot be started: {1}")]
    Thread(usize, #[source] io::Error),
    #[error("worker {0}: {1}")]
    Setup(usize, #[source] BoxError),
}

/// The running workers.
#[derive(Debug)]
pub struct Supervisor {
    driver: Driver,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the workers and runs `setup` on each, inside its runtime: there it binds its listeners and spawns its
    /// tasks. Returns when every `setup` has succeeded; the first failure drains the others and is returned.
    pub fn start<S>(options: &WorkerOptions, setup: S) -> Result<Self, StartError>
    where
        S: Fn(&Worker) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let (driver, fallback) = options.driver.resolve()?;
        if let Some(reason) = fallback {
            tracing::warn!("falling back to epoll. {reason}");
        }
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let count = options.workers.unwrap_or_else(|| cores.len().max(1));
        if count == 0 || count > WORKERS_MAX {
            return Err(StartError::Count(count));
        }
        let setup: Arc<Setup> = Arc::new(setup);
        let (report, reports) = bounded(count);
        let mut started = Self { driver, handles: Vec::new(), threads: Vec::new() };
        let mut failure = None;
        for index in 0..count {
            let core = (!cores.is_empty()).then(|| cores.get(index % cores.len()).copied()).flatten();
            if let Err(error) = started.spawn(index, core, setup.clone(), report.clone()) {
                failure = Some(StartError::Thread(index, error));
                break;
            }
        }
        drop(report);
        for (index, result) in reports {
            failure = failure.or(result.err().map(|error| StartError::Setup(index, error)));
        }
        match failure {
            None => Ok(started),
            Some(error) => {
                started.drain(Instant::now());
                started.join();
                Err(error)
            }
        }
    }

    fn spawn(
        &mut self,
        index: usize,
        core: Option<CoreId>,
        setup: Arc<Setup>,
        report: Sender<Report>,
    ) -> io::Result<()> {
        let (handle, jobs) = WorkerHandle::new(index)?;
        let driver = self.driver;
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || Thread { index, driver, core, jobs, report }.run(&*setup))?;
        self.handles.push(handle);
        self.threads.push(thread);
        Ok(())
    }

    /// The driver that all workers run on.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    pub fn handles(&self) -> &[WorkerHandle] {
        &self.handles
    }

    /// Has every worker take no new work, end its tunnels politely and cut what is left at `deadline`.
    pub fn drain(&self, deadline: Instant) {
        for handle in &self.handles {
            match handle.drain(deadline) {
                // A worker that has ended has nothing to drain.
                Ok(()) | Err(PostError::Ended) => {}
                Err(error @ PostError::Full) => {
                    tracing::error!(worker = handle.index(), %error, "not drained");
                }
            }
        }
    }

    /// Waits until every worker has ended, which a drain brings about.
    pub fn join(self) {
        for thread in self.threads {
            // A panic has already ended the process.
            drop(thread.join());
        }
    }
}

type Setup = dyn Fn(&Worker) -> Result<(), BoxError> + Send + Sync;
type Report = (usize, Result<(), BoxError>);

/// What a worker's thread starts from.
struct Thread {
    index: usize,
    driver: Driver,
    core: Option<CoreId>,
    jobs: JobQueue,
    report: Sender<Report>,
}

impl Thread {
    fn run(self, setup: &Setup) {
        let _guard = AbortOnPanic(self.index);
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!(worker = self.index, core = core.id, "the worker runs unpinned");
        }
        if let Err(error) = slice::shorten() {
            tracing::debug!(worker = self.index, %error, "the worker keeps the scheduler's usual time slice");
        }
        let mut runtime = match WorkerRuntime::build(self.driver) {
            Ok(runtime) => runtime,
            Err(error) => return self.report(Err(error.into())),
        };
        runtime.block_on(async move {
            let worker = match Worker::start(self.index, self.driver) {
                Ok(worker) => worker,
                Err(error) => return self.report(Err(error.into())),
            };
            if let Err(error) = setup(&worker) {
                return self.report(Err(error));
            }
            // The supervisor reads one report per worker and keeps the channel until then.
            drop(self.report.send((self.index, Ok(()))));
            drop(self.report);
            worker.spawn(self.jobs.run(worker.clone()));
            worker.run_until_drained().await;
        });
    }

    fn report(self, result: Result<(), BoxError>) {
        drop(self.report.send((self.index, result)));
    }
}

/// Ends the process when its thread panics, in builds that unwind.
struct AbortOnPanic(usize);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(worker = self.0, "a worker panicked: the process ends");
            std::process::abort();
        }
    }
}

impl fmt::Debug for AbortOnPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AbortOnPanic({})", self.0)
    }
}
