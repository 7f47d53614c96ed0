//! One flush per batch: what a batch of tasks has written is sent once, when all of them have run.
//!
//! A task that writes into a tunnel only appends to the tunnel's output and calls [`FlushList::add`]. The first
//! `add` of a batch wakes the worker's single flusher, which monoio puts at the back of the queue, behind every
//! task that was ready by then. So the frames of many streams leave in one record and one send(2): the
//! biggest single saving on small messages.
//!
//! A task that has a packet for a plain socket waits for [`FlushList::end_of_batch`] first. Then the packets of a batch
//! leave one right behind the other, and who receives several of them is woken once and not once for each.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::signal::Signal;

/// Something with output to send.
pub trait Flush {
    /// Sends what is there; called once per batch for each [`FlushList::add`], outside every borrow.
    fn flush(self: Rc<Self>);
}

/// What has to be flushed at the end of the batch.
#[derive(Default)]
pub struct FlushList {
    waiting: RefCell<Vec<Rc<dyn Flush>>>,
    /// Tasks that want to send to sockets of their own.
    senders: RefCell<Vec<Waker>>,
    wanted: Signal,
}

impl FlushList {
    /// Puts `what` on the list. The caller sees to it that nothing is twice on the list.
    pub fn add(&self, what: Rc<dyn Flush>) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(what);
        if waiting.len() == 1 {
            self.wanted.raise();
        }
    }

    /// Resolves when all tasks that are ready now have run, or earlier if something else wakes the task: no more than
    /// packets depends on it. Dropping the future leaves a wake-up behind that finds nothing to do.
    pub fn end_of_batch(&self) -> impl Future<Output = ()> + '_ {
        let mut is_listed = false;
        poll_fn(move |context| {
            if mem::replace(&mut is_listed, true) {
                return Poll::Ready(());
            }
            let mut senders = self.senders.borrow_mut();
            senders.push(context.waker().clone());
            if senders.len() == 1 {
                self.wanted.raise();
            }
            Poll::Pending
        })
    }

    /// The flusher: runs for as long as the worker does.
    pub(super) async fn run(&self) {
        let mut batch = Vec::new();
        let mut senders = Vec::new();
        loop {
            self.wanted.wait().await;
            mem::swap(&mut batch, &mut *self.waiting.borrow_mut());
            for what in batch.drain(..) {
                what.flush();
            }
            mem::swap(&mut senders, &mut *self.senders.borrow_mut());
            for sender in senders.drain(..) {
                sender.wake();
            }
        }
    }
}

impl fmt::Debug for FlushList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushList").field("waiting", &self.waiting.borrow().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use futures::FutureExt;

    use crate::net::testing::on_each_driver;
    use crate::worker::{Flush, requeue};

    struct Tunnel(Rc<RefCell<Vec<&'static str>>>);

    impl Flush for Tunnel {
        fn flush(self: Rc<Self>) {
            self.0.borrow_mut().push("flushed");
        }
    }

    #[test]
    fn senders_go_on_when_all_that_were_ready_have_run_and_tunnels_are_flushed() {
        on_each_driver(|worker| async move {
            let seen = Rc::new(RefCell::new(Vec::new()));
            for _ in 0..2 {
                let (sender, seen) = (worker.clone(), seen.clone());
                worker.spawn(async move {
                    seen.borrow_mut().push("ready");
                    sender.flush_list().add(Rc::new(Tunnel(seen.clone())));
                    sender.flush_list().end_of_batch().await;
                    seen.borrow_mut().push("sent");
                });
            }
            // Given up: its wake-up must not keep the others.
            assert!(worker.flush_list().end_of_batch().now_or_never().is_none());
            while seen.borrow().len() < 6 {
                requeue().await;
            }
            assert_eq!(*seen.borrow(), ["ready", "ready", "flushed", "flushed", "sent", "sent"]);
        });
    }
}
