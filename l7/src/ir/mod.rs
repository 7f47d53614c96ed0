//! The intermediate form of routes and policies: what every front end (YAML, istiod's feeds) compiles to.
//!
//! Plain data, no lookups: [`crate::router`] and [`crate::authz`] compile it into tables. A front end that
//! meets something it cannot express here must refuse the object; it may never leave a condition out.

mod authorizer;
mod backend_tls;
mod filter;
mod head;
mod mesh;
mod policy;
mod resilience;
mod route;
mod telemetry;
mod token;
mod traffic;

pub use authorizer::{Authorizer, CheckBody, CheckProtocol, HttpCheck, NameTest};
pub use backend_tls::{BackendTls, CertificateName, Trust};
pub use filter::{
    Cors, Filters, HeaderEdits, HeaderValue, Mirror, OriginMatch, PathRewrite, QueryEdits, Redirect, Scheme,
    UrlAction, UrlRewrite,
};
pub use head::{ConnectionAttributes, Header, RequestHead};
pub use mesh::MeshWide;
pub use policy::{Action, Attribute, AuthorizationPolicy, Clause, Condition, Match, Rule, Test};
pub use resilience::{
    AbortWith, Fault, FaultAbort, FaultDelay, Fraction, Retry, RetryBudget, RetryOn, SessionCarrier,
    SessionPersistence,
};
pub use route::{
    Backend, BackendTarget, DirectResponse, HttpMatch, HttpRoute, HttpRule, PathMatch, RouteKind, RouteOrder,
    SourceMatch, Timeouts, ValueMatch, ValueTest,
};
pub use telemetry::{
    CustomTag, LogRule, Metric, MetricRule, TagValue, Telemetry, TelemetrySide, TracingRule,
};
pub use token::{RequestAuthentication, TokenRule};
pub use traffic::{
    Balancing, ConnectionLimits, HashOn, HashPolicy, HashTable, Labels, OutlierDetection, PortSettings,
    Subset, TrafficPolicy, TrafficSettings,
};
