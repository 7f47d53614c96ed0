//! Names: the DNS proxy of the pods, and the addresses of workloads that are known by host name only.
//!
//! - [`names`]: under which names a host may be known to the mesh;
//! - [`message`]: queries and replies as bytes;
//! - [`answer`]: what the mesh knows of a name, decided from one snapshot;
//! - [`resolv_conf`]: the node's name servers;
//! - [`upstream`]: asking one of them;
//! - [`server`]: the listeners in each pod;
//! - [`cache`] and [`resolver`]: addresses of host names, for the proxy itself.
//!
//! Invariants:
//! - What the mesh knows is answered from the snapshot alone; no name server learns of it.
//! - A reply leaves from the address that the query was sent to; queries to other servers carry the proxy's mark, so
//!   that they are not led back here.
//! - Every message, wait, table and number of things at once has a bound.

mod answer;
mod cache;
#[cfg(test)]
mod fuzz;
mod message;
pub(crate) mod names;
pub(super) mod resolv_conf;
mod resolver;
mod server;
#[cfg(test)]
mod tests;
mod upstream;

pub(super) use resolver::{ResolveError, Resolver};
pub(super) use server::Listeners;
pub use server::{CONNECTIONS_MAX as DNS_CONNECTIONS_MAX, QUERIES_MAX as DNS_QUERIES_MAX};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Where the DNS proxy listens in each pod.
pub const DNS_PORT: u16 = 15053;

/// How to be the pods' name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Where it listens in each pod, UDP and TCP. IPv6 addresses count only where the node and the pod have IPv6.
    pub addresses: Vec<SocketAddr>,
    /// Suffix of the cluster's names, without dots at its ends.
    pub cluster_domain: Arc<str>,
    /// Wins among services that share a host name, behind the client's own namespace.
    pub preferred_namespace: Option<Arc<str>>,
    /// Which domains the clients' resolvers append.
    pub search: SearchDomains,
}

/// Where the search domains are known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SearchDomains {
    /// Those that Kubernetes writes for pods of the client's namespace.
    #[default]
    OfNamespace,
    /// Those of the proxy's own resolv.conf, where it serves one workload in whose network it runs.
    OfFile,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            addresses: [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
                .map(|ip| SocketAddr::new(ip, DNS_PORT))
                .to_vec(),
            cluster_domain: Arc::from("cluster.local"),
            preferred_namespace: None,
            search: SearchDomains::default(),
        }
    }
}
