//! The work of a node proxy: connections of its pods, captured, decided, carried.
//!
//! One [`Node`] per worker. It follows the published [`NodeState`]; for each pod of that state it opens
//! listeners inside the pod's network namespace and serves them until the pod leaves:
//! - [`outbound`](mod@outbound) (15001): what the pod dials goes through HBONE to mesh workloads, in plain text to others; where
//!   HTTPRoutes govern the service, each request is routed on its own;
//! - [`inbound`](mod@inbound) (15008): what other proxies send is authorized and handed to the application;
//! - [`passthrough`](mod@passthrough) (15006): what comes in plain text, likewise, without an identity;
//! - [`waypoint`] (15008, in the place of all these where the proxy is a waypoint);
//! - [`dns`] (15053, where it is turned on): names that the pod asks for.
//!
//! Invariants:
//! - A connection is decided from one state, taken when it begins; a request from the state when its head arrives.
//! - Nothing is forwarded before it is authorized; whatever cannot be decided is closed.
//! - Every live connection is in the node's registry, by which a changed policy or a leaving pod cuts it.

mod admission;
mod application;
mod arrivals;
mod backend_tls;
mod connection;
mod demand;
mod dial;
mod dns;
mod http;
mod inbound;
mod inspect;
mod listening;
mod load;
mod lookup;
mod node;
mod outbound;
mod passthrough;
mod pod;
mod registry;
mod retry_budgets;
mod revocation;
mod shadow;
mod state;
mod tls_stream;
mod traffic;
mod waypoint;

pub(crate) use admission::{Admission, judge};
pub use backend_tls::load_system_authorities;
pub use demand::{Demander, WAITING_MAX as DEMANDS_WAITING_MAX};
pub(crate) use dns::names;
pub use dns::resolv_conf::{RESOLV_CONF_BYTES_MAX, ResolvConf};
pub use dns::{DNS_CONNECTIONS_MAX, DNS_PORT, DNS_QUERIES_MAX, DnsOptions, SearchDomains};
pub use http::COPIES_MAX;
pub(crate) use http::NORMALIZATION;
pub use load::EndpointChoice;
pub use node::{Node, NodeOptions, NodeParts, Ports, Role};
pub(crate) use outbound::governed;
pub use state::{LocalPod, NodeState, PodEvent, TlsContexts};
pub(crate) use waypoint::fronted;
pub use waypoint::{
    CONNECTION_WINDOW as WAYPOINT_CONNECTION_WINDOW, STREAM_WINDOW as WAYPOINT_STREAM_WINDOW,
    STREAMS_MAX as WAYPOINT_STREAMS_MAX,
};
