//! Hands immutable values from the control thread to the workers: a slot and a bell for each worker.
//!
//! Invariants:
//! - A worker never waits and never locks: [`Mailbox::take`] is one atomic exchange.
//! - Only the newest value counts. A value that no worker took before the next one came is superseded.
//! - The bell is rung after the value is in its slot, and silenced before the slot is emptied; so whoever finds
//!   the bell silent and the slot empty has the newest value, or will hear the bell again.
//! - Values die on the control thread: the publisher keeps a reference to every value that may still be held
//!   elsewhere and lets go of it in [`Publisher::reclaim`], when its own is the last one.
//!
//! The protocol of slot and bell is model-checked with loom among the ordinary tests (`cargo test -p xds publish`): the
//! atomic pointer and the bell are parameters, so no special build is needed. `LOOM_LOG=1` shows a failing schedule.

mod bell;
mod slot;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use bell::{Bell, EventBell};
pub use slot::Exchange;
use slot::Slot;

/// The control side: publishes to every mailbox made by [`Publisher::subscribe`].
pub struct Publisher<T, B: Bell = EventBell> {
    post_boxes: Vec<Arc<PostBox<T, B>>>,
    /// Every published value that was still held elsewhere when last looked at, the newest included.
    retained: Vec<Arc<T>>,
    newest: Option<Arc<T>>,
}

/// A worker's side: tells that there is something new, and gives it.
pub struct Mailbox<T, B: Bell = EventBell> {
    post_box: Arc<PostBox<T, B>>,
}

struct PostBox<T, B: Bell> {
    slot: Slot<T, B::Pointer<T>>,
    bell: B,
}

// === impl Publisher ===

impl<T> Publisher<T> {
    pub fn new() -> Self {
        Self::with_bells()
    }

    /// Makes a mailbox for one worker. It holds at once what was published last.
    pub fn subscribe(&mut self) -> io::Result<Mailbox<T>> {
        Ok(self.subscribe_with(EventBell::new()?))
    }
}

impl<T> Default for Publisher<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, B: Bell> Publisher<T, B> {
    fn with_bells() -> Self {
        Self { post_boxes: Vec::new(), retained: Vec::new(), newest: None }
    }

    fn subscribe_with(&mut self, bell: B) -> Mailbox<T, B> {
        let post_box = Arc::new(PostBox { slot: Slot::empty(), bell });
        if let Some(newest) = &self.newest {
            drop(post_box.slot.put(Arc::clone(newest)));
            post_box.bell.ring();
        }
        self.post_boxes.push(Arc::clone(&post_box));
        Mailbox { post_box }
    }

    /// Puts the value into every mailbox and rings every bell; forgets the mailboxes that are gone.
    pub fn publish(&mut self, value: Arc<T>) {
        self.post_boxes.retain(|post_box| Arc::strong_count(post_box) > 1);
        for post_box in &self.post_boxes {
            // Superseded without having been seen: this thread drops it, as it must.
            drop(post_box.slot.put(Arc::clone(&value)));
            post_box.bell.ring();
        }
        self.retained.extend(self.newest.replace(value));
        self.reclaim();
    }

    /// Drops what no worker holds any more; returns how many older values are still held.
    ///
    /// Called by [`Publisher::publish`]; call it now and then besides, so that an old value does not stay for
    /// as long as nothing new comes.
    pub fn reclaim(&mut self) -> usize {
        // Our reference is the only way to the value once its count is one, so it cannot rise again.
        self.retained.retain(|value| Arc::strong_count(value) > 1);
        self.retained.len()
    }

    /// What was published last.
    pub fn newest(&self) -> Option<&Arc<T>> {
        self.newest.as_ref()
    }
}

impl<T, B: Bell> fmt::Debug for Publisher<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("mailboxes", &self.post_boxes.len())
            .field("retained", &self.retained.len())
            .finish_non_exhaustive()
    }
}

// === impl Mailbox ===

impl<T, B: Bell> Mailbox<T, B> {
    /// The newest value, if there is one that was not taken yet.
    pub fn take(&self) -> Option<Arc<T>> {
        self.post_box.bell.silence();
        self.post_box.slot.take()
    }
}

impl<T> AsFd for Mailbox<T> {
    /// Readable while something untaken may be there. Only [`Mailbox::take`] may read from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.post_box.bell.as_fd()
    }
}

impl<T, B: Bell> fmt::Debug for Mailbox<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable<T>(mailbox: &Mailbox<T>) -> bool {
        let mut fds = [PollFd::new(mailbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn only_the_newest_value_is_taken_and_only_once() {
        let mut publisher = Publisher::new();
        let mailbox = publisher.subscribe().unwrap();
        assert!(!readable(&mailbox));
        assert!(mailbox.take().is_none());
        publisher.publish(Arc::new(1));
        publisher.publish(Arc::new(2));
        assert!(readable(&mailbox));
        assert_eq!(mailbox.take().as_deref(), Some(&2));
        assert!(!readable(&mailbox));
        assert!(mailbox.take().is_none());
    }

    #[test]
    fn a_late_subscriber_gets_the_newest_value() {
        let mut publisher = Publisher::new();
        publisher.publish(Arc::new("a"));
        let mailbox = publisher.subscribe().unwrap();
        assert!(readable(&mailbox));
        assert_eq!(mailbox.take().as_deref(), Some(&"a"));
    }

    #[test]
    fn a_value_outlives_its_successor_until_the_worker_lets_go_and_dies_at_the_publisher() {
        let mut publisher = Publisher::new();
        let mailbox = publisher.subscribe().unwrap();
        let first = Arc::new(1);
        let watch = Arc::downgrade(&first);
        publisher.publish(first);
        let held = mailbox.take().unwrap();
        publisher.publish(Arc::new(2));
        assert_eq!(publisher.reclaim(), 1);
        drop(held);
        assert!(watch.upgrade().is_some(), "the worker's reference must not have been the last");
        assert_eq!(publisher.reclaim(), 0);
        assert!(watch.upgrade().is_none());
    }

    #[test]
    fn superseded_values_do_not_pile_up_behind_a_worker_that_never_looks() {
        let mut publisher = Publisher::new();
        let _mailbox = publisher.subscribe().unwrap();
        for value in 0..1000 {
            publisher.publish(Arc::new(value));
            assert_eq!(publisher.reclaim(), 0);
        }
    }

    #[test]
    fn a_mailbox_that_is_gone_frees_what_it_held() {
        let mut publisher = Publisher::new();
        let mailbox = publisher.subscribe().unwrap();
        let value = Arc::new(());
        let watch = Arc::downgrade(&value);
        publisher.publish(value);
        drop(mailbox);
        publisher.publish(Arc::new(()));
        assert!(watch.upgrade().is_none());
        assert!(publisher.post_boxes.is_empty());
    }

    #[test]
    fn workers_on_other_threads_end_with_the_last_value() {
        let mut publisher = Publisher::new();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let mailbox = publisher.subscribe().unwrap();
                std::thread::spawn(move || {
                    let mut last = 0;
                    while last < 1000 {
                        poll(&mut [PollFd::new(&mailbox, PollFlags::IN)], None).unwrap();
                        if let Some(value) = mailbox.take() {
                            assert!(*value > last, "values may be skipped, never reordered");
                            last = *value;
                        }
                    }
                })
            })
            .collect();
        for value in 1..=1000 {
            publisher.publish(Arc::new(value));
        }
        for worker in workers {
            worker.join().unwrap();
        }
    }
}

#[cfg(test)]
mod model {
    use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    use super::*;

    impl<T> Exchange<T> for AtomicPtr<T> {
        fn null() -> Self {
            Self::new(std::ptr::null_mut())
        }

        fn swap(&self, incoming: *mut T) -> *mut T {
            self.swap(incoming, Ordering::AcqRel)
        }
    }

    /// A bell that loom can see.
    struct Flag(Arc<AtomicBool>);

    impl Bell for Flag {
        type Pointer<T> = AtomicPtr<T>;

        fn ring(&self) {
            self.0.store(true, Ordering::Release);
        }

        fn silence(&self) {
            self.0.swap(false, Ordering::AcqRel);
        }
    }

    /// Written before it is published, read after it was taken: loom finds it if these two could meet.
    type Watched = loom::cell::UnsafeCell<u32>;

    fn read(value: &Watched) -> u32 {
        // The closure gets a raw pointer; loom fails the model if a write could run at the same time.
        value.with(|value| {
            #[allow(unsafe_code)]
            // SAFETY: published values are never written again.
            unsafe {
                *value
            }
        })
    }

    #[test]
    fn in_every_schedule_no_wake_up_is_lost_and_every_value_is_whole() {
        loom::model(|| {
            let rung = Arc::new(AtomicBool::new(false));
            let mut publisher = Publisher::with_bells();
            let mailbox = publisher.subscribe_with(Flag(Arc::clone(&rung)));
            let worker = loom::thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..2 {
                    if let Some(value) = mailbox.take() {
                        let value = read(&value);
                        assert!(value > seen, "values may be skipped, never reordered");
                        seen = value;
                    }
                }
                (mailbox, seen)
            });
            for value in 1..=2 {
                // Loom's cell is not `Sync` as std's is not; that no access races is what the model shows.
                #[allow(clippy::arc_with_non_send_sync)]
                publisher.publish(Arc::new(Watched::new(value)));
            }
            let (mailbox, seen) = worker.join().unwrap();
            // Either the worker saw the last value, or the bell still rings for it.
            if seen != 2 {
                assert!(rung.load(Ordering::Acquire), "the bell must ring while the newest value is untaken");
                let last = mailbox.take().expect("the newest value is in the slot");
                assert_eq!(read(&last), 2);
            }
        });
    }
}
