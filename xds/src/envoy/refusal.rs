//! Why something that istiod sent is not taken.

use std::fmt;

use prost::Message;
use prost::Name;
use prost_types::Any;

use super::shape;

/// What is not supported or not valid, and where in the resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// From the outermost field to the innermost; as text, so that it can be told as it is.
    path: String,
    reason: String,
}

impl Refusal {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// What `field` does not support.
    pub(super) fn at(field: &str, reason: impl Into<String>) -> Self {
        Self { path: field.to_owned(), reason: reason.into() }
    }

    /// The same, seen from the message that holds `field`.
    pub(super) fn within(self, field: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{field}{separator}{}", self.path), reason: self.reason }
    }

    /// The same, seen from the message that holds the list `field`; the first item may be the only one, and is not
    /// numbered.
    pub(super) fn within_item(self, field: &str, index: usize) -> Self {
        if index == 0 { self.within(field) } else { self.within(&format!("{field}[{index}]")) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// Puts the place of a refusal before its path.
pub(super) trait Within: Sized {
    fn within(self, field: &str) -> Self;

    fn within_item(self, field: &str, index: usize) -> Self;
}

impl<T> Within for Result<T, Refusal> {
    fn within(self, field: &str) -> Self {
        self.map_err(|refusal| refusal.within(field))
    }

    fn within_item(self, field: &str, index: usize) -> Self {
        self.map_err(|refusal| refusal.within_item(field, index))
    }
}

/// Reads a message; what it holds and we do not know is refused.
pub(super) fn read<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, Refusal> {
    shape::check::<M>(bytes)?;
    M::decode(bytes).map_err(|error| Refusal::new(error.to_string()))
}

/// Reads what an `Any` holds, which must be of a type of the public API.
pub(super) fn unpack<M: Message + Name + Default>(any: &Any, type_name: &str) -> Result<M, Refusal> {
    if type_of(any) != type_name {
        return Err(Refusal::new(format!("{} is not supported here", type_of(any))));
    }
    read(&any.value)
}

/// The name of the type that an `Any` holds, such as `envoy.config.cluster.v3.Cluster`.
pub(super) fn type_of(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}
