//! One flush per batch: what a batch of tasks has written is sent once, when all of them have run.
//!
//! A task that writes into a tunnel only appends to the tunnel's output and calls [`FlushList::add`]. The first
//! `add` of a batch wakes the worker's single flusher, which monoio puts at the back of the queue, behind every
//! task that was ready by then. So the frames of many streams leave in one record and one send(2): the
//! biggest single saving on small messages.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

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

    /// The flusher: runs for as long as the worker does.
    pub(super) async fn run(&self) {
        let mut batch = Vec::new();
        loop {
            self.wanted.wait().await;
            std::mem::swap(&mut batch, &mut *self.waiting.borrow_mut());
            for what in batch.drain(..) {
                what.flush();
            }
        }
    }
}

impl fmt::Debug for FlushList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushList").field("waiting", &self.waiting.borrow().len()).finish_non_exhaustive()
    }
}
