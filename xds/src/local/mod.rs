//! State written by hand: workloads, services and policies in the shape in which `/config_dump` shows them.
//!
//! The YAML becomes the messages that a control plane would send, and goes through the same decoder: what holds there
//! holds here. It is read once, at the start.

mod message;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use prost::Message;
use prost_types::Any;
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

use crate::delta::Sink;
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Bytes of the YAML at most.
pub const BYTES_MAX: usize = 64 << 20;

/// Why the local state is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    #[error("the local state is larger than {BYTES_MAX} bytes")]
    Size,
    #[error("local state, {0}")]
    Yaml(String),
    #[error("local state, line {line}, {what}: {reason}")]
    Entry { line: u64, what: String, reason: String },
}

/// Local state that has been read and checked as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocalState {
    resources: Vec<(&'static str, Arc<str>, Any)>,
}

impl LocalState {
    /// Reads the YAML; an error names the line and the field.
    pub fn parse(yaml: &str) -> Result<Self, LocalError> {
        if yaml.len() > BYTES_MAX {
            return Err(LocalError::Size);
        }
        let document: shape::Document = serde_saphyr::from_str_with_options(yaml, options())
            .map_err(|error| LocalError::Yaml(error.to_string()))?;
        let mut this = Self::default();
        // A trial run, so that what is wrong is said at the start and with its line.
        let mut trial = Store::new();
        for entry in document.workloads {
            let body = message::workload(&entry.value);
            this.add(&mut trial, &entry, (ADDRESS_TYPE, "workload", &entry.value.uid), body)?;
        }
        for entry in document.services {
            let name = format!("{}/{}", entry.value.namespace, entry.value.hostname);
            let body = message::service(&entry.value);
            this.add(&mut trial, &entry, (ADDRESS_TYPE, "service", &name), body)?;
        }
        for entry in document.policies {
            let name = format!("{}/{}", entry.value.namespace, entry.value.name);
            let body = message::policy(&entry.value);
            this.add(&mut trial, &entry, (AUTHORIZATION_TYPE, "policy", &name), body)?;
        }
        Ok(this)
    }

    fn add<T, M: Message>(
        &mut self,
        trial: &mut Store,
        entry: &Spanned<T>,
        (type_url, kind, name): (&'static str, &str, &str),
        body: Result<M, String>,
    ) -> Result<(), LocalError> {
        let refused = |reason| LocalError::Entry {
            line: entry.referenced.line(),
            what: format!("{kind} {name:?}"),
            reason,
        };
        let value = body.map_err(refused)?.encode_to_vec();
        let body = Any { type_url: type_url.to_owned(), value };
        if self.resources.iter().any(|(its_type, its_name, _)| *its_type == type_url && **its_name == *name) {
            return Err(refused("it is there twice; leave one out".to_owned()));
        }
        trial.upsert(type_url, name, &body).map_err(refused)?;
        self.resources.push((type_url, name.into(), body));
        Ok(())
    }

    /// Puts everything in force.
    pub fn apply(&self, store: &mut Store) {
        for (type_url, name, body) in &self.resources {
            // It was accepted on trial, and acceptance does not depend on what is held.
            if let Err(reason) = store.upsert(type_url, name, body) {
                tracing::error!(name = &**name, reason, "local state is not in force");
            }
        }
    }

    /// The mesh as it would be with nothing else in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let mut store = Store::new();
        self.apply(&mut store);
        store.snapshot().unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options
}
