//! Waking tasks of one worker from other tasks of the same worker.
//!
//! Nothing here crosses threads: a `Waker` of monoio may only be used on the thread that made it. Waking puts
//! the woken task at the back of the worker's queue; it never runs inside the waker's call.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// One bit with one waiting task: the cheapest way for one task to wake another.
///
/// A signal raised while nobody waits is kept for the next wait; raising it twice is raising it once.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until the signal is raised, and lowers it. Only one task may wait at a time: a second one
    /// takes the place of the first.
    pub fn wait(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|context| self.poll_wait(context))
    }

    pub fn poll_wait(&self, context: &Context<'_>) -> Poll<()> {
        if self.raised.replace(false) {
            self.waker.take();
            return Poll::Ready(());
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("raised", &self.raised.get()).finish_non_exhaustive()
    }
}

/// A gate that opens once and for ever, with any number of waiting tasks.
#[derive(Debug, Default)]
pub struct Latch {
    open: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

impl Latch {
    pub fn open(&self) {
        self.open.set(true);
        for waker in self.waiting.borrow_mut().drain() {
            waker.wake();
        }
    }

    pub fn is_open(&self) -> bool {
        self.open.get()
    }

    /// Waits until the gate is open. A dropped wait leaves nothing behind.
    pub fn wait(self: &Rc<Self>) -> LatchWait {
        LatchWait { latch: self.clone(), key: None }
    }
}

/// The future of [`Latch::wait`].
#[derive(Debug)]
pub struct LatchWait {
    latch: Rc<Latch>,
    key: Option<usize>,
}

impl Future for LatchWait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.latch.is_open() {
            self.key = None;
            return Poll::Ready(());
        }
        let latch = self.latch.clone();
        let mut waiting = latch.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => self.key = Some(waiting.insert(context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for LatchWait {
    fn drop(&mut self) {
        // An open latch has drained the slab, so the key may not be looked up in it any more.
        if let Some(key) = self.key
            && !self.latch.is_open()
        {
            self.latch.waiting.borrow_mut().try_remove(key);
        }
    }
}

/// A count of live things that something waits to see at zero.
#[derive(Debug, Default)]
pub struct Census {
    live: Cell<usize>,
    emptied: Signal,
}

impl Census {
    /// Counts one more for as long as the guard lives.
    pub fn enter(self: &Rc<Self>) -> CensusGuard {
        self.live.set(self.live.get() + 1);
        CensusGuard { census: self.clone() }
    }

    pub fn live(&self) -> usize {
        self.live.get()
    }

    /// Waits until nothing is counted.
    pub async fn wait_empty(&self) {
        while self.live.get() > 0 {
            self.emptied.wait().await;
        }
    }
}

/// One counted thing.
#[derive(Debug)]
pub struct CensusGuard {
    census: Rc<Census>,
}

impl Drop for CensusGuard {
    fn drop(&mut self) {
        let live = self.census.live.get().saturating_sub(1);
        self.census.live.set(live);
        if live == 0 {
            self.census.emptied.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_signal_raised_early_is_kept_once() {
        let signal = Signal::default();
        signal.raise();
        signal.raise();
        assert!(poll_once(std::pin::pin!(signal.wait())).is_ready());
        assert!(poll_once(std::pin::pin!(signal.wait())).is_pending());
    }

    #[test]
    fn a_latch_forgets_dropped_waits_and_stays_open() {
        let latch = Rc::new(Latch::default());
        let mut first = Box::pin(latch.wait());
        let mut second = Box::pin(latch.wait());
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(second.as_mut()).is_pending());
        drop(first);
        assert_eq!(latch.waiting.borrow().len(), 1);
        latch.open();
        assert!(poll_once(second.as_mut()).is_ready());
        assert!(poll_once(Box::pin(latch.wait()).as_mut()).is_ready());
    }

    #[test]
    fn a_census_is_empty_when_the_last_guard_goes() {
        let census = Rc::new(Census::default());
        let guard = census.enter();
        let mut wait = Box::pin(census.wait_empty());
        assert!(poll_once(wait.as_mut()).is_pending());
        drop(guard);
        assert!(poll_once(wait.as_mut()).is_ready());
        assert_eq!(census.live(), 0);
    }
}
