//! What is said: the shape of `--json`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use l7::ir::Timeouts;
use model::SourceRef;
use serde::Serialize;

/// The answer. Fields that have nothing to say are left out.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    pub decision: Decision,
    /// What the client is answered by a proxy; left out where the application answers, or where the connection is reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The decision in one sentence.
    pub reason: String,
    pub from: Pod,
    pub to: To,
    /// As it is decided: the path is normalised.
    pub request: Shown,
    /// What stands before the destination: it decides in the place of the client's node, and what follows is its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Waypoint>,
    /// The rule that takes the request; left out where no route governs the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// Where the request may go, each with its share. One without `backend` is the destination itself.
    pub backends: Vec<Backend>,
    /// What is wrong with the folder: objects that are named are not in force, or only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It arrives at the application.
    Allowed,
    /// A policy denies it.
    Denied,
    /// The client is sent elsewhere.
    Redirected,
    /// A proxy answers: no route takes it, or its backend is not valid.
    Answered,
    /// There is nowhere to go to: the connection is reset, or the request answered with 503.
    Refused,
    /// It goes to a waypoint of which nothing is known here, and which decides.
    Waypoint,
    /// Nobody in the mesh has the address; it is passed on as it is.
    Passthrough,
    /// It depends on the backend or endpoint that is chosen.
    Mixed,
}

#[derive(Debug, Clone, Serialize)]
pub struct Pod {
    /// `NAMESPACE/NAME`.
    #[serde(rename = "pod")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Whether the mesh carries its connections.
    pub in_mesh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    pub node: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, Serialize)]
pub struct To {
    pub asked: String,
    pub address: SocketAddr,
    /// How the name became the address.
    pub resolved: String,
    pub kind: ToKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Where it is a pod's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKind {
    Service,
    Workload,
    Unknown,
}

#[derive(Debug, Clone, Serialize)]
pub struct Service {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
}

/// An instance of a waypoint.
#[derive(Debug, Clone, Serialize)]
pub struct Waypoint {
    #[serde(flatten)]
    pub pod: Pod,
    /// From the client's node.
    pub transport: Transport,
    /// What is enforced there for the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub method: String,
    pub authority: String,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Route {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Index of the rule in the route, from 0.
    pub rule: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<Arc<str>>,
    /// Index of the match in the rule, from 0, and what it says.
    #[serde(rename = "match")]
    pub matched: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<l7::ir::HttpMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<l7::ir::Filters>>,
    #[serde(skip_serializing_if = "Timeouts::is_off")]
    pub timeouts: Timeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Arc<l7::ir::Retry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Arc<l7::ir::SessionPersistence>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Arc<l7::ir::Fault>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Backend {
    #[serde(rename = "backend", skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Of all requests that the rule takes: 0 to 1.
    pub share: f64,
    pub decision: Decision,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// What filters made of the request; left out where they changed nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<Shown>,
    /// Of the backend alone; those of the rule come before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<l7::ir::Filters>>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Target {
    pub service: Arc<str>,
    pub port: u16,
    pub weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Endpoint {
    #[serde(flatten)]
    pub pod: Pod,
    /// Whether it may be chosen.
    pub eligible: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transport {
    /// Plain TCP.
    Tcp { to: String },
    /// A tunnel with mutual TLS.
    Hbone { next_hop: SocketAddr, authority: String, identities: Vec<String> },
    /// A tunnel to another network's gateway, and one within it.
    DoubleHbone { next_hop: SocketAddr, authority: String, identities: Vec<String> },
}

/// What the policies of the server, or of the destination at a waypoint, say.
#[derive(Debug, Clone, Serialize)]
pub struct Policy {
    pub allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether the head of the request was needed.
    pub decided_by: DecidedBy,
    pub reason: String,
    /// The rule that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// CUSTOM rules that hold: whoever is asked about the request may deny it still.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Rule>,
    /// ALLOW policies of which none matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<Rule>,
    /// What dry-run policies would have decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    Connection,
    Request,
}

/// A policy, and one of its rules where one decided.
#[derive(Debug, Clone, Serialize)]
pub struct Rule {
    pub action: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// From 0.
    #[serde(rename = "rule", skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
}

// === impl Decision, Rule ===

impl Decision {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Redirected => "redirected",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Waypoint => "waypoint",
            Self::Passthrough => "passthrough",
            Self::Mixed => "mixed",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.action, self.namespace, self.name)?;
        if let Some(rule) = self.index {
            write!(f, " rule {rule}")?;
        }
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}
