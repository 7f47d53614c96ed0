//! Istio's Telemetry.

use std::sync::Arc;

use super::catalog::Meta;
use super::istio::{Attached, PolicyTarget};

#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    pub meta: Meta,
    pub target: PolicyTarget,
    pub logging: Vec<AccessLogging>,
}

/// `accessLogging[]`: later entries go before earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogging {
    pub mode: Mode,
    pub disabled: bool,
    /// `filter.expression`, which compiles.
    pub filter: Option<Arc<str>>,
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
