//! What a client asks for of one type, and what it holds of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::difference::Difference;
use super::{NAME_BYTES_MAX, SUBSCRIBED_NAMES_MAX, SessionError};
use crate::control::desired::{DesiredResource, ResourceKind, View};

/// Subscribes to everything of a type.
const WILDCARD: &str = "*";

/// What the client wants of one type and what it holds.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub(super) wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client will hold once it has read all we sent.
    pub(super) sent: HashMap<Arc<str>, Held>,
    /// Subscribed names of which the client knows that they do not exist.
    reported_missing: BTreeSet<Arc<str>>,
    /// Names just subscribed: answered even if the client holds them.
    newly_subscribed: BTreeSet<Arc<str>>,
    /// The first request of a type is answered even with nothing, because readiness may hang on it.
    pub(super) answer_owed: bool,
}

/// A resource that the client holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) version: Arc<str>,
    /// [`DesiredResource::narrowness`] of that version; `None` if an earlier stream sent it.
    pub(super) narrowness: Option<u8>,
}

// === impl Subscription ===

impl Subscription {
    pub(super) fn subscribe(&mut self, kind: ResourceKind, names: Vec<String>) -> Result<(), SessionError> {
        for name in names {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(SessionError::NameTooLong);
            }
            let name: Arc<str> = name.into();
            self.reported_missing.remove(&name);
            self.newly_subscribed.insert(name.clone());
            self.names.insert(name);
            if self.names.len() > SUBSCRIBED_NAMES_MAX {
                return Err(SessionError::TooManyNames(kind.type_url()));
            }
        }
        Ok(())
    }

    /// What a client no longer wants is told to it as removed by the next difference, so that both sides agree.
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.names.remove(name.as_str());
            self.newly_subscribed.remove(name.as_str());
            self.reported_missing.remove(name.as_str());
        }
    }

    /// Brings `sent` up to the desired state and returns what that takes.
    pub(super) fn difference<'a>(&mut self, kind: ResourceKind, view: View<'a>) -> Difference<'a> {
        let mut visible: BTreeMap<&str, &Arc<DesiredResource>> = BTreeMap::new();
        let mut asked_again: BTreeSet<&str> = BTreeSet::new();
        let mut missing = Vec::new();
        for name in &self.names {
            let found = view.lookup(kind, name);
            if found.is_empty() {
                missing.push(name.clone());
            } else if self.newly_subscribed.contains(name) {
                asked_again.extend(found.iter().map(|resource| &*resource.name));
            }
            visible.extend(found.into_iter().map(|resource| (&*resource.name, resource)));
        }
        if self.wildcard {
            visible.extend(view.resources(kind).values().map(|resource| (&*resource.name, resource)));
        } else if kind == ResourceKind::Address {
            visible.extend(view.node_local().map(|resource| (&*resource.name, resource)));
        }
        let upserts: Vec<&Arc<DesiredResource>> = visible
            .values()
            .filter(|resource| {
                asked_again.contains(&*resource.name)
                    || self.sent.get(&resource.name).is_none_or(|held| held.version != resource.version)
            })
            .copied()
            .collect();
        let (narrowed, upserts): (Vec<_>, Vec<_>) = upserts.into_iter().partition(|resource| {
            let held = self.sent.get(&resource.name).and_then(|held| held.narrowness);
            held.is_some_and(|held| held < resource.narrowness)
        });
        let mut removed: Vec<Arc<str>> =
            self.sent.keys().filter(|name| !visible.contains_key(&***name)).cloned().collect();
        removed.extend(
            missing
                .iter()
                .filter(|name| !self.reported_missing.contains(*name) && !self.sent.contains_key(*name))
                .cloned(),
        );
        removed.sort_unstable();
        for name in &removed {
            self.sent.remove(name);
        }
        for resource in upserts.iter().chain(&narrowed) {
            let held = Held { version: resource.version.clone(), narrowness: Some(resource.narrowness) };
            self.sent.insert(resource.name.clone(), held);
        }
        self.reported_missing = missing.into_iter().collect();
        self.newly_subscribed.clear();
        let answer_owed = std::mem::take(&mut self.answer_owed);
        Difference { upserts, narrowed, removed, with_aliases: !self.wildcard, answer_owed }
    }
}
