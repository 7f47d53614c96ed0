//! The embedded control plane: a folder of YAML served over real delta xDS, with a certificate authority of its own.
//!
//! The way from file to wire: [`crate::kube`] reads the folder into a catalog, [`index`] turns it into the resources
//! that node proxies shall hold ([`desired`]), [`session`] works out for each connected client what to send, and the
//! shell ([`plane`]) moves the bytes. Everything but the shell is pure and has no clock.
//!
//! It is the embedded default, not a test double: node proxies reach it the way they reach a foreign control plane,
//! over gRPC with TLS and a bearer token.

pub mod auth;
pub mod ca;
pub mod config;
pub mod desired;
mod files;
pub mod index;
pub mod ipam;
pub mod last_good;
mod listener;
pub mod plane;
pub mod server;
pub mod session;
mod token_keys;
pub mod view;
mod watch;

pub use config::{ControlConfig, GatewayClassNames, ListenAddress, NodeCredential, RootSource, WaypointPods};
pub use plane::{ControlError, ControlPlane, SERVER_NAME};
pub use server::NodeRejection;
pub use view::{ClusterView, NamespaceView, PodView, ServiceView};
