//! What is told of the traffic of a workload, or of a destination behind a waypoint.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Everything that Istio's Telemetry objects say of one workload, merged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Of what the workload sends.
    pub client: TelemetrySide,
    /// Of what it is sent.
    pub server: TelemetrySide,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySide {
    pub log: LogRule,
}

/// Which lines stand in the access log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogRule {
    /// None.
    pub disabled: bool,
    /// Those of which this expression holds ([`crate::cel`]); `None`: all.
    pub filter: Option<Arc<str>>,
}
