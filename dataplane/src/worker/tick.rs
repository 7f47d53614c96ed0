//! Coarse time for long-lived things: one timer per worker instead of one per connection.
//!
//! While anything is registered, the worker wakes every [`TICK`] and asks each thing; an idle worker sleeps.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::signal::Signal;

/// How late a coarse deadline may be noticed.
pub const TICK: Duration = Duration::from_millis(250);

/// Something with coarse deadlines (keep-alive pings, idle timeouts).
pub trait Tick: Any {
    fn tick(self: Rc<Self>, now: Instant);
}

/// All things of a worker that want ticks. Holds none of them alive.
#[derive(Default)]
pub struct TickList {
    members: RefCell<Vec<Weak<dyn Tick>>>,
    first: Signal,
}

impl TickList {
    /// Ticks `member` from now on until it is dropped.
    pub fn add(&self, member: Weak<dyn Tick>) {
        let mut members = self.members.borrow_mut();
        members.push(member);
        if members.len() == 1 {
            self.first.raise();
        }
    }

    /// Those that are alive, for whoever must find some of them.
    pub fn members(&self) -> Vec<Rc<dyn Any>> {
        self.members.borrow().iter().filter_map(Weak::upgrade).map(|member| member as Rc<dyn Any>).collect()
    }

    /// The ticker: runs for as long as the worker does.
    pub(super) async fn run(&self) {
        let mut due: Vec<Rc<dyn Tick>> = Vec::new();
        loop {
            if self.members.borrow().is_empty() {
                self.first.wait().await;
            }
            monoio::time::sleep(TICK).await;
            self.members.borrow_mut().retain(|member| {
                let alive = member.upgrade();
                let keep = alive.is_some();
                due.extend(alive);
                keep
            });
            let now = Instant::now();
            for member in due.drain(..) {
                member.tick(now);
            }
        }
    }
}

impl fmt::Debug for TickList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TickList").field("members", &self.members.borrow().len()).finish_non_exhaustive()
    }
}
