//! How the traffic to a service is spread over its endpoints, and what bounds it (`DestinationRule`).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use model::{NamespacedHostname, SourceRef};

/// Labels of a workload, or those that a selector asks for.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// What holds for the traffic to one service. Everything is merged: of the settings for a port and a subset exactly one
/// applies, and inherits nothing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficPolicy {
    /// Of the object that says so.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service: NamespacedHostname,
    /// Only for clients of this namespace, and for them before any that is for all.
    pub consumer_namespace: Option<Arc<str>>,
    pub all: PortSettings,
    pub subsets: Vec<Subset>,
    pub source: Option<SourceRef>,
}

/// A named part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subset {
    pub name: Arc<str>,
    /// All of them an endpoint must have.
    pub labels: Labels,
    pub settings: PortSettings,
}

/// Settings by port of the service.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSettings {
    /// For ports that are not listed.
    pub others: TrafficSettings,
    pub ports: Vec<(u16, TrafficSettings)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrafficSettings {
    pub balancing: Balancing,
    pub outliers: Option<OutlierDetection>,
    pub limits: ConnectionLimits,
}

/// How one of several endpoints is chosen (`LoadBalancerSettings`).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Balancing {
    /// As the proxy is configured.
    #[default]
    Unset,
    RoundRobin,
    LeastRequest,
    Random,
    /// The address that the client asked for.
    Passthrough,
    Hash(HashPolicy),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashPolicy {
    /// All of these together. Empty: what the route says.
    pub on: Vec<HashOn>,
    pub table: HashTable,
}

/// What is hashed. A request without it goes to any endpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum HashOn {
    /// Lower case.
    Header(Arc<str>),
    /// With a lifetime the cookie is set where a request has none; 0 is as long as the client's session.
    Cookie {
        name: Arc<str>,
        path: Arc<str>,
        lifetime_s: Option<u32>,
    },
    SourceIp,
    QueryParameter(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum HashTable {
    /// With at least so many places.
    Ring(u32),
    /// With so many places, a prime number.
    Maglev(u32),
}

/// Endpoints that fail are left out for a while (`OutlierDetection`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutlierDetection {
    /// So many 5xx or broken connections in a row; 0 for never.
    pub consecutive_5xx: u32,
    /// The same for 502, 503, 504 and broken connections.
    pub consecutive_gateway_errors: u32,
    /// Connections that cannot be made, break off or do not answer are no 5xx, but counted apart.
    #[serde(default)]
    pub split_local_origin: bool,
    /// So many of these in a row, where they are counted apart; 0 for never.
    #[serde(default)]
    pub consecutive_local_origin: u32,
    /// An endpoint that lasts this long without a new ejection is one ejection better off.
    pub interval_ms: NonZeroU32,
    /// Times the number of ejections so far.
    pub base_ejection_ms: NonZeroU32,
    /// Of the service's endpoints at most so many are out.
    pub ejection_percent_max: u32,
    /// Where fewer endpoints are left than this share, none is out.
    pub health_percent_min: u32,
}

/// Bounds on what is under way to a service; `None` for no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Open at the same time.
    pub connections: Option<u32>,
    pub connect_timeout_ms: Option<NonZeroU32>,
    /// Requests that wait for a connection.
    pub pending_requests: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
    pub requests_per_connection: Option<NonZeroU32>,
    /// Further tries under way.
    pub retries: Option<u32>,
    /// Of a connection without request.
    pub idle_timeout_ms: Option<NonZeroU32>,
}

impl TrafficSettings {
    /// Nothing is said.
    pub fn is_unset(&self) -> bool {
        self.balancing == Balancing::Unset
            && self.outliers.is_none()
            && self.limits == ConnectionLimits::default()
    }
}

impl TrafficPolicy {
    /// The settings for a port, and for a subset where one is named that exists.
    pub fn settings(&self, subset: Option<&str>, port: u16) -> &TrafficSettings {
        let named = subset.and_then(|name| self.subset(name));
        named.map_or(&self.all, |subset| &subset.settings).of(port)
    }

    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| &*subset.name == name)
    }
}

impl PortSettings {
    pub fn of(&self, port: u16) -> &TrafficSettings {
        self.ports.iter().find(|(own, _)| *own == port).map_or(&self.others, |(_, settings)| settings)
    }
}
