//! The keys of token issuers, fetched for those rules that say where they are (`jwksUri`) or leave it to the issuer
//! (OpenID Connect Discovery 1.0, section 4).
//!
//! Node proxies get every rule with its keys in it and fetch nothing. Keys that were good once stay in force until newer
//! ones are: an issuer that is away takes nobody's access. An issuer whose keys were never had has none, so its tokens are
//! refused.

mod fetch;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use l7::jwt::check_jwks;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::kube::istio::{KeySource, RequestAuthentication};
use crate::kube::{Catalog, Kind, Problem, Severity};
use crate::transport::Roots;

/// How long good keys are taken before the issuer is asked again.
const REFRESH: Duration = Duration::from_mins(20);
/// After a failure; doubled for each further one.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(5);
/// Most issuers that are asked.
const SOURCES_MAX: usize = 256;

/// What is known of each source.
pub(super) type Keys = BTreeMap<KeySource, Known>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// The last good JWKS.
    pub(super) keys: Option<Arc<str>>,
    /// Why the last attempt failed, if it did.
    pub(super) failure: Option<Arc<str>>,
}

/// Fetches what it is told to, for as long as somebody listens.
pub(super) struct Fetcher {
    wanted: watch::Receiver<Arc<BTreeSet<KeySource>>>,
    keys: watch::Sender<Arc<Keys>>,
    roots: Roots,
    due: BTreeMap<KeySource, Due>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    failures: u32,
}

impl Fetcher {
    pub(super) fn new(
        wanted: watch::Receiver<Arc<BTreeSet<KeySource>>>,
        keys: watch::Sender<Arc<Keys>>,
        roots: Roots,
    ) -> Self {
        Self { wanted, keys, roots, due: BTreeMap::new() }
    }

    pub(super) async fn run(mut self) {
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
        self.due.retain(|source, _| wanted.contains(source));
        if wanted.len() > SOURCES_MAX {
            warn!(
                issuers = wanted.len(),
                "keys are fetched from {SOURCES_MAX} issuers at most; the others have none"
            );
        }
        let now = Instant::now();
        for source in wanted.iter().take(SOURCES_MAX) {
            self.due.entry(source.clone()).or_insert(Due { at: now, failures: 0 });
        }
        self.keys.send_if_modified(|keys| {
            let gone = keys.keys().any(|source| !wanted.contains(source));
            if gone {
                Arc::make_mut(keys).retain(|source, _| wanted.contains(source));
            }
            gone
        });
    }

    async fn fetch_due(&mut self) {
        let now = Instant::now();
        let due = self.due.iter().filter(|(_, due)| due.at <= now).map(|(source, _)| source.clone());
        let due: Vec<KeySource> = due.collect();
        let roots = &self.roots.clone();
        let mut fetching: FuturesUnordered<_> = due
            .into_iter()
            .map(|source| async move {
                let fetched = fetch::keys(&source, roots).await.and_then(|text| match check_jwks(&text) {
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
                *due = Due { at: Instant::now() + REFRESH, failures: 0 };
                info!(%source, "keys fetched");
                Known { keys: Some(text.into()), failure: None }
            }
            Err(reason) => {
                let rest = RETRY.saturating_mul(1 << due.failures.min(16)).min(RETRY_MAX);
                *due = Due { at: Instant::now() + rest, failures: due.failures.saturating_add(1) };
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

/// The sources that a catalog's rules name.
pub(super) fn sources(catalog: &Catalog) -> BTreeSet<KeySource> {
    let rules = catalog.request_authentications.values().flat_map(|object| &object.sources);
    rules.filter(|source| source.is_remote()).cloned().collect()
}

/// The catalog with the keys that are known, and what is to be said of those that are not.
pub(super) fn completed(catalog: &Catalog, keys: &Keys) -> (Option<Catalog>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut completed: Option<Catalog> = None;
    for (name, object) in &catalog.request_authentications {
        if !object.sources.iter().any(KeySource::is_remote) {
            continue;
        }
        let mut filled = RequestAuthentication::clone(object);
        for (index, (rule, source)) in filled.rules.iter_mut().zip(&object.sources).enumerate() {
            let Some(known) = keys.get(source).filter(|_| source.is_remote()) else { continue };
            if let Some(text) = &known.keys {
                rule.jwks = text.clone();
            }
            if let Some(reason) = &known.failure {
                problems.push(failed(object, index, source, reason, known.keys.is_some()));
            }
        }
        let catalog = completed.get_or_insert_with(|| catalog.clone());
        catalog.request_authentications.insert(name.clone(), Arc::new(filled));
    }
    (completed, problems)
}

fn failed(
    object: &RequestAuthentication,
    index: usize,
    source: &KeySource,
    reason: &str,
    has_older: bool,
) -> Problem {
    let consequence = if has_older {
        "the keys fetched before stay in force"
    } else {
        "every token of this issuer is refused"
    };
    Problem {
        file: object.meta.source.file.clone(),
        line: object.meta.source.line,
        column: 1,
        object: format!("{} {}", Kind::RequestAuthentication, object.meta.object_name()),
        field: format!("spec.jwtRules[{index}]"),
        message: format!("keys cannot be fetched from {source}: {reason}; {consequence}"),
        fix: String::from("see that the control plane reaches the issuer, or write the keys under jwks"),
        severity: Severity::Warning,
    }
}
