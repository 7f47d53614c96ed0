//! Istio's Telemetry.

use std::collections::BTreeMap;
use std::sync::Arc;

use l7::ir::{CustomTag, Metric};

use super::catalog::{Meta, Position};
use super::istio::{Attached, PolicyTarget};

#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    pub meta: Meta,
    pub target: PolicyTarget,
    pub logging: Vec<AccessLogging>,
    /// `metrics[].overrides[]`: later ones go before earlier ones, field by field.
    pub metrics: Vec<MetricOverride>,
    /// `tracing[]`: what later ones say goes before what earlier ones do, field by field.
    pub tracing: Vec<Tracing>,
}

/// `accessLogging[]`: later entries go before earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogging {
    pub mode: Mode,
    pub disabled: bool,
    /// `filter.expression`, which compiles.
    pub filter: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricOverride {
    pub mode: Mode,
    pub metrics: Vec<Metric>,
    pub disabled: Option<bool>,
    /// What stands in the place of labels; `None`: they are left out.
    pub tags: BTreeMap<Arc<str>, Option<Arc<str>>>,
}

/// What is `None` is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    pub mode: Mode,
    pub provider: Option<TracingProvider>,
    pub disabled: Option<bool>,
    /// Requests of a million.
    pub sampling: Option<u32>,
    pub tags: Option<Vec<CustomTag>>,
    pub istio_tags: Option<bool>,
}

/// Who is named to take spans. They go to the collector that the proxy knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracingProvider {
    pub name: Arc<str>,
    pub at: Position,
    /// Path within the object.
    pub field: Arc<str>,
}

/// `match.mode`: whose side of the traffic is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Both,
    Client,
    Server,
}

/// One side of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Mode {
    pub fn covers(self, side: Side) -> bool {
        matches!((self, side), (Self::Both, _) | (Self::Client, Side::Client) | (Self::Server, Side::Server))
    }
}

impl Attached for Telemetry {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn target(&self) -> &PolicyTarget {
        &self.target
    }
}
