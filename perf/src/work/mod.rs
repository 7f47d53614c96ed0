//! The work that is put through a proxy, and the backend that does it.

pub(crate) mod backend;
pub(crate) mod client;
