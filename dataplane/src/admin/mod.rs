//! The pages that operators, probes and Prometheus read: admin (15000), metrics (15020), readiness (15021).
//!
//! Runs on the control thread, over TCP or a Unix socket. Nothing here is on the way of traffic; connections are few
//! and bounded.

pub mod logging;
mod memory;
mod negotiation;
pub mod page;
mod profile;
pub mod readiness;
pub mod server;
pub mod sites;

pub use page::{Ask, Page};
pub use readiness::{Pending, Readiness};
pub use server::{Binding, Site, serve};
pub use sites::{AdminSite, Inspect, MetricsSite, ReadinessSite};

#[cfg(test)]
mod tests;
