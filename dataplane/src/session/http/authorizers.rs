//! Connections to authorizers, which the questions about all requests to a pod share.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::shelf::Kept;
use crate::worker::Worker;

/// Connections over which nobody asked for so long are closed.
const REST: Duration = Duration::from_mins(1);

/// Those of one pod on one worker. In HTTP/1.1 one question at a time has a connection, over gRPC many share one.
#[derive(Debug)]
pub(in crate::session) struct Authorizers {
    kept: Kept,
    used: Cell<bool>,
    /// A task waits to close what rests.
    watched: Cell<bool>,
}

impl Authorizers {
    pub(in crate::session) fn new() -> Rc<Self> {
        Rc::new(Self { kept: Kept::shared_by_many(), used: Cell::default(), watched: Cell::default() })
    }

    /// For a question that is to be asked now.
    pub(super) fn used(self: &Rc<Self>, worker: &Worker) -> &Kept {
        self.used.set(true);
        if !self.watched.replace(true) {
            let watched = Rc::downgrade(self);
            worker.spawn(async move {
                loop {
                    monoio::time::sleep(REST).await;
                    let Some(own) = watched.upgrade() else { return };
                    if !own.used.replace(false) {
                        own.kept.clear();
                        return own.watched.set(false);
                    }
                }
            });
        }
        &self.kept
    }

    /// Closes those that rest.
    pub(in crate::session) fn clear(&self) {
        self.kept.clear();
    }
}
