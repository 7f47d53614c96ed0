//! The keys of token issuers, fetched for those rules that say where they are (`jwksUri`) or leave it to the issuer
//! (OpenID Connect Discovery 1.0, section 4).
//!
//! The embedded control plane fetches them, so that node proxies get every rule with its keys in it; a waypoint fetches
//! those that its istiod leaves to it. Keys that were good once stay in force until newer ones are: an issuer that is away
//! takes nobody's access. An issuer whose keys were never had has none, so its tokens are refused.

mod fetch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use l7::jwt::check_jwks;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::kube::istio::KeySource;
use crate::transport::Roots;

/// How long good keys are taken before the issuer is asked again, where nothing else is said.
pub(crate) const REFRESH: Duration = Duration::from_mins(20);
/// After a failure; doubled for each further one.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(5);
/// Most issuers that are asked.
const SOURCES_MAX: usize = 256;

/// How long an issuer may take, where nothing else is said; and at most, for the others wait for the slowest.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// What is to be fetched.
pub(crate) type Wanted = BTreeMap<KeySource, Pace>;

/// How an issuer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// For how long good keys are taken before it is asked again.
    refresh: Duration,
    /// How long it may take, never longer than [`PATIENCE_MAX`].
    patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { refresh: REFRESH, patience: PATIENCE }
    }
}

impl Pace {
    pub(crate) fn every(refresh: Duration) -> Self {
        Self { refresh, ..Self::default() }
    }

    /// Zero stands for as long as possible.
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        let patience = if patience.is_zero() { PATIENCE_MAX } else { patience.min(PATIENCE_MAX) };
        Self { patience, ..self }
    }

    /// What serves two who want the same keys: the newest, and the one who waits longer.
    pub(crate) fn for_both(self, other: Self) -> Self {
        let Self { refresh, patience } = self;
        Self { refresh: refresh.min(other.refresh), patience: patience.max(other.patience) }
    }
}

/// What is known of each source.
pub(crate) type Keys = BTreeMap<KeySource, Known>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    /// The last good JWKS.
    pub(crate) keys: Option<Arc<str>>,
    /// Why the last attempt failed, if it did.
    pub(crate) failure: Option<Arc<str>>,
}

/// Fetches what it is told to, for as long as somebody listens.
#[derive(Debug)]
pub(crate) struct Fetcher {
    wanted: watch::Receiver<Arc<Wanted>>,
    keys: watch::Sender<Arc<Keys>>,
    roots: Roots,
    due: BTreeMap<KeySource, Due>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    failures: u32,
    pace: Pace,
}

impl Fetcher {
    pub(crate) fn new(
        wanted: watch::Receiver<Arc<Wanted>>,
        keys: watch::Sender<Arc<Keys>>,
        roots: Roots,
    ) -> Self {
        Self { wanted, keys, roots, due: BTreeMap::new() }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.follow();
            let next = self.due.values().map(|due| due.at).min();
            let waiting = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = waiting => self.fetch_due().await,
            }
        }
    }

    /// Forgets what nobody wants any more, and has what is new fetched at once.
    fn follow(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.due.retain(|source, _| wanted.contains_key(source));
        if wanted.len() > SOURCES_MAX {
            warn!(
                issuers = wanted.len(),
                "keys are fetched from {SOURCES_MAX} issuers at most; the others have none"
            );
        }
        let now = Instant::now();
        for (source, pace) in wanted.iter().take(SOURCES_MAX) {
            let new = Due { at: now, failures: 0, pace: *pace };
            self.due.entry(source.clone()).or_insert(new).pace = *pace;
        }
        self.keys.send_if_modified(|keys| {
            let gone = keys.keys().any(|source| !wanted.contains_key(source));
            if gone {
                Arc::make_mut(keys).retain(|source, _| wanted.contains_key(source));
            }
            gone
        });
    }

    async fn fetch_due(&mut self) {
        let now = Instant::now();
        let due = self.due.iter().filter(|(_, due)| due.at <= now);
        let due: Vec<_> = due.map(|(source, due)| (source.clone(), due.pace.patience)).collect();
        let roots = &self.roots.clone();
        let mut fetching: FuturesUnordered<_> = due
            .into_iter()
            .map(|(source, patience)| async move {
                let fetched =
                    fetch::keys(&source, patience, roots).await.and_then(|text| match check_jwks(&text) {
                        Ok(()) => Ok(text),
                        Err(error) => Err(error.to_string()),
                    });
                (source, fetched)
            })
            .collect();
        while let Some((source, fetched)) = fetching.next().await {
            self.note(&source, fetched);
        }
    }

    fn note(&mut self, source: &KeySource, fetched: Result<String, String>) {
        let Some(due) = self.due.get_mut(source) else { return };
        let known = match fetched {
            Ok(text) => {
                *due = Due { at: Instant::now() + due.pace.refresh, failures: 0, ..*due };
                info!(%source, "keys fetched");
                Known { keys: Some(text.into()), failure: None }
            }
            Err(reason) => {
                let rest = RETRY.saturating_mul(1 << due.failures.min(16)).min(RETRY_MAX);
                *due = Due { at: Instant::now() + rest, failures: due.failures.saturating_add(1), ..*due };
                warn!(%source, reason, "keys cannot be fetched; trying again in {rest:?}");
                let keys = self.keys.borrow().get(source).and_then(|known| known.keys.clone());
                Known { keys, failure: Some(reason.into()) }
            }
        };
        self.keys.send_if_modified(|keys| {
            let changed = keys.get(source) != Some(&known);
            if changed {
                Arc::make_mut(keys).insert(source.clone(), known);
            }
            changed
        });
    }
}

impl Known {
    /// What is to be said of keys that cannot be fetched.
    pub(crate) fn complaint(&self, source: &KeySource) -> Option<String> {
        let reason = self.failure.as_ref()?;
        let consequence = match self.keys {
            Some(_) => "the keys fetched before stay in force",
            None => "every token of this issuer is refused",
        };
        Some(format!("keys cannot be fetched from {source}: {reason}; {consequence}"))
    }
}
