//! The YAML front end: a folder of Kubernetes, Gateway API and Istio objects becomes a [`Catalog`], and the catalog
//! becomes the intermediate form of routes and policies.
//!
//! Reading is total: whatever the text, it yields a catalog of the good objects and a [`Problem`] for everything
//! else, each with file, line, column, field and mend. Nothing here watches, serves or keeps state.

pub mod backend_policy;
pub mod catalog;
pub mod check;
pub mod cluster;
pub mod convert;
pub mod gateway;
pub mod istio;
mod kinds;
pub mod load;
pub mod mesh;
pub mod problem;
mod read;
mod reader;
mod references;
pub mod telemetry;
pub mod traffic;
mod yaml;

#[cfg(test)]
mod tests;

pub use catalog::{Catalog, Kind, Labels, MeshSettings, Meta, ObjectName, Objects, Position};
pub use check::check;
pub use load::{load_dir, load_documents};
pub use problem::{Problem, Severity};
pub use references::check_references;

/// What reading a folder gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The good objects.
    pub catalog: Catalog,
    /// All findings, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// Objects that were made out but refused: whoever holds an earlier good version keeps it in force.
    pub refused: Vec<(Kind, ObjectName)>,
    /// What remains of refused AuthorizationPolicies when every doubt counts against the request: an ALLOW without
    /// the rules that hold an error, a DENY without the conditions that do. For whoever holds no earlier version and
    /// would rather deny too much than enforce nothing. A policy whose action or target is unclear is not here.
    pub degraded: Objects<istio::AuthorizationPolicy>,
}
