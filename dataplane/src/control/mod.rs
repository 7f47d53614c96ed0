//! The control side of a node proxy: takes state and certificates from the control plane, publishes them to the
//! workers, and follows what the workers tell.
//!
//! Everything here runs on one thread, inside a tokio `LocalSet`, and may be slow: the data path never waits for it.
//! The workers are reached through three ways only, each bounded: the mailbox of [`xds::publish`], the workers' job
//! queue, and, back, the queues of pod events and access-log records.

mod certificates;
mod inspect;
mod log_pump;
mod name_servers;
mod node;
mod pods;
mod problems;
mod revocation;
mod workers;

pub use log_pump::LogPump;
pub use node::{NodeConfig, NodeError, NodeProxy};
pub use pods::PodError;
