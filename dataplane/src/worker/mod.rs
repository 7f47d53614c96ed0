//! A worker: one pinned thread that owns everything it touches.
//!
//! Each worker runs a current-thread monoio runtime (io_uring with `SINGLE_ISSUER` and `DEFER_TASKRUN`, or
//! epoll). It shares nothing with other workers: its sockets, tunnels, buffers and counters are reached from its
//! own thread only, so nothing here locks. Other threads reach a worker through [`WorkerHandle`] alone.
//!
//! Rules for code that runs on a worker:
//! - Never block; the read buffer is lent ([`Worker::lend`]) for the length of one closure, never over an `.await`.
//! - Bound the work of a turn. monoio collects completions only when its queue runs empty, so a task that goes on
//!   for long calls [`Worker::yield_now`], the only yield that lets I/O of the others happen.
//! - Output of tunnels goes through [`Worker::flush_list`], long deadlines through [`Worker::tick_list`].

mod driver;
mod flush;
mod handle;
mod mailbox;
mod memory;
mod outbox;
mod signal;
mod slice;
mod spare;
mod supervisor;
mod tick;

pub use driver::{Driver, DriverChoice};
pub use flush::{Flush, FlushList};
pub use handle::{Job, PostError, WorkerHandle};
pub use memory::Memory;
pub use outbox::{Outbox, outbox};
pub use signal::{Census, CensusGuard, Latch, LatchWait, Signal};
pub use spare::SpareBuffers;
pub use supervisor::{BoxError, StartError, Supervisor, WorkerOptions};
pub use tick::{TICK, Tick, TickList};

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::net::{Descriptor, PipePool};

/// Size of the read buffer that a worker lends: the largest read of a bulk flow.
pub const READ_BUFFER_BYTES: usize = 512 * 1024;

/// Turns of the runtime after the last connection is gone: one to cancel waits, one to close what they held, one spare.
const LAST_TURNS: usize = 3;

/// The calling thread's worker. Cloning is one non-atomic reference count.
#[derive(Debug, Clone)]
pub struct Worker {
    context: Rc<Context>,
}

#[derive(Debug)]
struct Context {
    index: usize,
    driver: Driver,
    buffer: RefCell<Box<[u8]>>,
    flush: FlushList,
    ticks: TickList,
    pipes: PipePool,
    spare: SpareBuffers,
    memory: Memory,
    census: Rc<Census>,
    drain: Rc<Latch>,
    drain_deadline: Cell<Option<Instant>>,
    always_ready: Descriptor,
}

impl Worker {
    /// Makes the worker of the calling thread; must run inside its runtime.
    fn start(index: usize, driver: Driver) -> io::Result<Self> {
        let ready = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let context = Rc::new(Context {
            index,
            driver,
            buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            flush: FlushList::default(),
            ticks: TickList::default(),
            pipes: PipePool::default(),
            spare: SpareBuffers::default(),
            memory: Memory::default(),
            census: Rc::default(),
            drain: Rc::default(),
            drain_deadline: Cell::new(None),
            always_ready: Descriptor::new(ready)?,
        });
        let worker = Self { context };
        let flusher = worker.clone();
        worker.spawn(async move { flusher.context.flush.run().await });
        let ticker = worker.clone();
        worker.spawn(async move { ticker.context.ticks.run().await });
        Ok(worker)
    }

    /// Number of this worker, from 0.
    pub fn index(&self) -> usize {
        self.context.index
    }

    pub fn driver(&self) -> Driver {
        self.context.driver
    }

    /// Starts a task on this worker. It goes on until it ends by itself or the worker stops.
    #[allow(clippy::unused_self)] // a worker in hand proves that this thread has a runtime
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(monoio::spawn(task));
    }

    /// Lends the worker's read buffer for the length of `with`.
    ///
    /// # Panics
    /// If called again from inside `with`: there is one buffer, and no reader may see another's bytes.
    pub fn lend<R>(&self, with: impl FnOnce(&mut [u8]) -> R) -> R {
        with(&mut self.context.buffer.borrow_mut())
    }

    /// What is flushed at the end of the batch.
    pub fn flush_list(&self) -> &FlushList {
        &self.context.flush
    }

    /// What is asked for its deadlines every [`TICK`].
    pub fn tick_list(&self) -> &TickList {
        &self.context.ticks
    }

    /// Pipes for splice(2).
    pub fn pipes(&self) -> &PipePool {
        &self.context.pipes
    }

    /// Buffers for output, lent to a tunnel for as long as it has something to send.
    pub fn spare_buffers(&self) -> &SpareBuffers {
        &self.context.spare
    }

    /// The account of what is held for others.
    pub fn memory(&self) -> &Memory {
        &self.context.memory
    }

    /// Counts a connection as live: a draining worker waits for all of them until its deadline.
    pub fn hold(&self) -> CensusGuard {
        self.context.census.enter()
    }

    /// Live connections of this worker.
    pub fn live(&self) -> usize {
        self.context.census.live()
    }

    /// Opens when the worker must take no new work and end what it has.
    pub fn drain(&self) -> &Rc<Latch> {
        &self.context.drain
    }

    /// Runs `future` unless the worker is draining or begins to meanwhile: then it is dropped. For accept loops.
    pub async fn unless_draining<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut drain = self.context.drain.wait();
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            if Pin::new(&mut drain).poll(context).is_ready() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// When a draining worker cuts what is left; `None` while it is not draining.
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.context.drain_deadline.get()
    }

    fn begin_drain(&self, deadline: Instant) {
        let earliest = self.context.drain_deadline.get().map_or(deadline, |set| set.min(deadline));
        self.context.drain_deadline.set(Some(earliest));
        self.context.drain.open();
    }

    /// Lets every other ready task and every completed I/O have its turn.
    ///
    /// On io_uring the yield goes through the ring (a poll of a descriptor that is always ready), for monoio
    /// gathers completions only when no task is runnable: a task that merely wakes itself starves all I/O. On
    /// epoll monoio polls between rounds, and one trip through the queue is enough.
    pub async fn yield_now(&self) {
        match self.context.driver {
            // The eventfd holds 1 and nobody reads it, so the wait cannot fail or last.
            Driver::IoUring => drop(self.context.always_ready.readable().await),
            Driver::Epoll => requeue().await,
        }
    }

    /// The main task of the thread: lives until the drain is over.
    async fn run_until_drained(&self) {
        self.context.drain.wait().await;
        loop {
            self.wait_drained().await;
            // What tasks have dropped in their last turn is closed through the ring, which must still be submitted.
            for _ in 0..LAST_TURNS {
                self.yield_now().await;
            }
            // A listener that closes may have taken somebody meanwhile.
            if self.live() == 0 || self.drain_deadline().is_none_or(|deadline| deadline <= Instant::now()) {
                return;
            }
        }
    }

    async fn wait_drained(&self) {
        loop {
            let Some(deadline) = self.context.drain_deadline.get() else { return };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // Wakes now and then because the deadline may be brought forward.
            let wait = monoio::time::timeout(left.min(TICK), self.context.census.wait_empty());
            if wait.await.is_ok() {
                return;
            }
        }
    }
}

/// Lets the tasks that are ready now run first. On io_uring this alone lets no I/O happen: see [`Worker::yield_now`].
pub(crate) async fn requeue() {
    let woken = Rc::new(Signal::default());
    let waking = woken.clone();
    // Through another task, because monoio puts a task that wakes itself at the front of its queue.
    drop(monoio::spawn(async move { waking.raise() }));
    woken.wait().await;
}
