//! What must still happen before the proxy serves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

/// Names of tasks that are pending. Shared on the control thread.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// With how many holders each.
    pending: Rc<RefCell<BTreeMap<String, usize>>>,
    reservation: Rc<RefCell<Option<String>>>,
    /// Told when nothing is pending any more.
    reached: Rc<Notify>,
}

/// Something is pending for as long as this lives.
#[derive(Debug)]
pub struct Pending {
    task: String,
    readiness: Readiness,
}

impl Readiness {
    /// Not ready, because of `task`, until the returned value is dropped.
    pub fn pending(&self, task: impl Into<String>) -> Pending {
        let task = task.into();
        *self.pending.borrow_mut().entry(task.clone()).or_default() += 1;
        Pending { task, readiness: self.clone() }
    }

    /// The names of what is pending; empty means ready.
    pub fn tasks(&self) -> Vec<String> {
        self.pending.borrow().keys().cloned().collect()
    }

    /// What whoever hears "ready" should know besides; `None` takes it back.
    pub fn with_reservation(&self, reservation: Option<String>) {
        self.reservation.replace(reservation);
    }

    /// What is said of a state that is ready.
    pub fn text(&self) -> String {
        self.reservation.borrow().as_ref().map_or("ready".to_owned(), |it| format!("ready, {it}"))
    }

    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Waits until nothing is pending. For one task.
    pub async fn reached(&self) {
        while !self.is_ready() {
            self.reached.notified().await;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.readiness.pending.borrow_mut();
        if let Some(holders) = pending.get_mut(&self.task) {
            *holders -= 1;
            if *holders == 0 {
                pending.remove(&self.task);
            }
        }
        if pending.is_empty() {
            self.readiness.reached.notify_one();
        }
    }
}
