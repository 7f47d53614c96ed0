//! The mesh on one machine: every pod of a folder of YAML a network namespace, with node proxies, control plane and
//! real traffic.
//!
//! - [`sandbox`]: the process's own user and network namespace, so that the host's network is never touched.
//! - [`fabric`]: network namespaces, links and routes between them, virtual addresses of Services.
//! - [`workload`]: what runs in the pods: an HTTP server that answers with what it was asked.
//! - [`client`]: requests from inside a pod.
//!
//! Everything of a run hangs on descriptors of one process, so nothing is left behind however it ends, and two runs
//! at once cannot meet.

pub mod client;
pub mod fabric;
pub mod observer;
pub mod pattern;
pub mod plan;
pub mod report;
pub mod runner;
pub mod sandbox;
pub mod service_proxy;
pub mod state_folder;
pub mod workload;
pub mod world;
