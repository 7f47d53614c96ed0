//! The control plane protocol: from bytes of delta xDS to the snapshot that the workers read.
//!
//! [`proto`] holds the messages of the wire.

pub mod ca;
pub mod control;
pub mod decode;
pub mod delta;
pub mod kube;
pub mod proto;
pub mod publish;
pub mod replay;
pub mod snapshot;
pub mod store;
pub mod transport;
