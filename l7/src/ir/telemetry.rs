//! What is told of the traffic of a workload, or of a destination behind a waypoint.

use std::collections::BTreeMap;
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
    /// What is said of metrics; of those that are not here nothing is.
    pub metrics: BTreeMap<Metric, MetricRule>,
    pub tracing: TracingRule,
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

/// Istio's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Metric {
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
    /// Known to ambient meshes only, so named by nobody but by those who mean all.
    TcpFailed,
}

/// How a metric is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricRule {
    /// Not at all.
    pub disabled: bool,
    /// Values in the place of the usual ones, or beside them; `None`: the label is left out.
    pub tags: BTreeMap<Arc<str>, Option<Arc<str>>>,
}

/// Which spans are made, and what stands in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingRule {
    /// None.
    pub disabled: bool,
    /// Requests of a million that begin a trace; `None`: as the proxy is configured.
    pub sampling: Option<u32>,
    pub tags: Vec<CustomTag>,
    /// Without the attributes that Istio's proxies add to Envoy's.
    pub without_istio_tags: bool,
}

/// An attribute that spans have beside the usual ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomTag {
    pub name: Arc<str>,
    pub value: TagValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagValue {
    Literal(Arc<str>),
    /// A variable of the proxy's environment.
    Environment {
        name: Arc<str>,
        default: Arc<str>,
    },
    /// A header of the request, in lower case.
    Header {
        name: Arc<str>,
        default: Arc<str>,
    },
}

impl Metric {
    pub const ALL: [Self; 11] = [
        Self::RequestCount,
        Self::RequestDuration,
        Self::RequestSize,
        Self::ResponseSize,
        Self::RequestMessages,
        Self::ResponseMessages,
        Self::TcpOpened,
        Self::TcpClosed,
        Self::TcpSent,
        Self::TcpReceived,
        Self::TcpFailed,
    ];
}
