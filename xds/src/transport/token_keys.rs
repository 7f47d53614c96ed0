//! The keys of token issuers that the control plane leaves to us: fetched beside the stream, for the store.

use std::sync::Arc;

use tokio::sync::watch;

use super::Roots;
use crate::issuer::{Fetcher, Keys, Wanted};
use crate::store::Store;

/// What is fetched, and what has come of it. Dropping it ends the fetching.
#[derive(Debug)]
pub(super) struct TokenKeys {
    want: watch::Sender<Arc<Wanted>>,
    known: watch::Receiver<Arc<Keys>>,
}

impl TokenKeys {
    /// Spawns the one who fetches.
    pub(super) fn start() -> Self {
        let (want, wanted) = watch::channel(Arc::default());
        let (tell, known) = watch::channel(Arc::default());
        tokio::spawn(Fetcher::new(wanted, tell, Roots::System).run());
        Self { want, known }
    }

    /// Has fetched what the store wants now.
    pub(super) fn follow(&self, store: &Store) {
        let wanted = store.wanted_keys();
        self.want.send_if_modified(|held| {
            let changed = **held != wanted;
            if changed {
                *held = Arc::new(wanted);
            }
            changed
        });
    }

    /// Waits until more is known, or less.
    pub(super) async fn changed(&mut self) -> Arc<Keys> {
        if self.known.changed().await.is_err() {
            // Who fetches has ended, which happens with the runtime only.
            return std::future::pending().await;
        }
        self.known.borrow_and_update().clone()
    }
}
