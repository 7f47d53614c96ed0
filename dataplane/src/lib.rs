//! The node proxy: command line, workers, I/O shell, sessions, capture, admin.
//!
//! Protocol logic lives in the crates `tunnel`, `l7` and `xds`, which own no socket and no clock. This crate
//! moves their bytes: [`worker`] is a pinned thread with its runtime, [`net`] the sockets, [`link`] the
//! shell around one tunnel connection.

pub mod access_log;
pub mod admin;
pub mod capture;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod control;
pub mod explain;
pub mod link;
pub mod mesh;
pub mod metrics;
pub mod net;
pub mod preflight;
pub mod proxy;
mod resident;
pub mod session;
pub mod trace;
pub mod worker;
pub mod zds;
