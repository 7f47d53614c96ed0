//! The body of a request as far as it has been passed on, so that the request can be sent again or elsewhere.

use std::cell::{Cell, RefCell};

use tunnel::h2::Headers;

use super::body::Broken;
use super::books::Meter;
use super::side::{Place, Sink};
use crate::worker::Worker;

/// Longest body that is kept.
pub(in crate::session) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// What has been passed on of a request's body. Content only, whatever framed it.
#[derive(Debug)]
pub(in crate::session) struct Replay {
    worker: Worker,
    content: RefCell<Vec<u8>>,
    trailers: RefCell<Option<Headers>>,
    state: Cell<State>,
    /// Most bytes of content that are kept.
    max: Cell<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There may be more to come.
    Open,
    Complete,
    /// Something went by that was not kept.
    Lost,
}

impl Replay {
    pub(super) fn new(worker: &Worker) -> Self {
        Self {
            worker: worker.clone(),
            content: RefCell::default(),
            trailers: RefCell::default(),
            state: Cell::new(State::Open),
            max: Cell::new(REPLAY_BYTES_MAX),
        }
    }

    /// Has at least so many bytes kept.
    pub(super) fn make_room(&self, bytes: usize) {
        self.max.set(self.max.get().max(bytes));
    }

    /// Keeps a piece before it is passed on.
    pub(super) fn keep(&self, piece: &[u8]) {
        if self.state.get() != State::Open {
            return;
        }
        let mut content = self.content.borrow_mut();
        if content.len() + piece.len() > self.max.get() || self.worker.memory().is_tight() {
            drop(content);
            return self.lose();
        }
        self.worker.memory().take(piece.len());
        content.extend_from_slice(piece);
    }

    /// The body has ended.
    pub(super) fn complete(&self, trailers: Option<&Headers>) {
        if self.state.get() == State::Open {
            self.state.set(State::Complete);
            self.trailers.replace(trailers.cloned());
        }
    }

    /// Forgets what was kept, and keeps nothing more: the request cannot be sent again.
    pub(super) fn lose(&self) {
        self.state.set(State::Lost);
        let content = self.content.take();
        self.worker.memory().give_back(content.len());
    }

    /// Whether the request can be sent again.
    pub(super) fn is_possible(&self) -> bool {
        self.state.get() != State::Lost
    }

    /// Whether all of the body is here.
    pub(in crate::session) fn is_complete(&self) -> bool {
        self.state.get() == State::Complete
    }

    /// Whether the body has ended and there was none.
    pub(super) fn is_empty_message(&self) -> bool {
        self.is_complete() && self.content.borrow().is_empty() && self.trailers.borrow().is_none()
    }

    /// Shows what was kept of the content.
    pub(super) fn with_content<R>(&self, show: impl FnOnce(&[u8]) -> R) -> R {
        show(&self.content.borrow())
    }

    /// Whether nothing has been kept yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.state.get() == State::Open && self.content.borrow().is_empty()
    }

    /// Passes on what was kept, and the end if that was.
    pub(super) async fn pass(&self, to: &Sink<'_>, meter: Meter<'_, '_>) -> Result<(), Broken> {
        let content = self.content.borrow().clone();
        if !content.is_empty() {
            to.write(&content, Place::Within).await?;
            meter.bytes(content.len());
        }
        if self.is_complete() {
            let trailers = self.trailers.borrow().clone();
            to.end(trailers).await?;
        }
        Ok(())
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.worker.memory().give_back(self.content.get_mut().len());
    }
}
