//! What the waypoint stands before: whose a destination is, and what is to be done with traffic to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use l7::path::Normalization;
use model::{AppProtocol, Workload};
use tunnel::hbone::{Authority, Host};
use xds::snapshot::{Asked, Served, ServedHttp, ServedTcp, ServiceEntry, Snapshot};

use crate::session::lookup::Lookup;
use crate::session::state::NodeState;

/// What a client asked the waypoint for; looked up anew in each state.
#[derive(Debug, Clone)]
pub(in crate::session) struct Front {
    pub(super) authority: Authority,
    /// Of the client: routes may be for the clients of one namespace.
    pub(super) namespace: Arc<str>,
}

/// Why a destination is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unserved {
    #[error("{0} is not behind this waypoint")]
    NotBehindUs(Authority),
    #[error("the service {service} has no port {port}")]
    NoPort { service: String, port: u16 },
    #[error("what is enforced for {0} has not been told (yet)")]
    NotTold(Authority),
}

impl Unserved {
    /// The answer to who asks for a tunnel.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::NotBehindUs(_) => 404,
            Self::NoPort { .. } | Self::NotTold(_) => 503,
        }
    }
}

/// A destination that the waypoint serves.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) served: Served,
    /// The workload that was addressed by its own address.
    pub(crate) workload: Option<Arc<Workload>>,
    /// What policies see as the destination: of a service that was named, one of its addresses.
    pub(crate) address: SocketAddr,
}

/// What the waypoint `own` does, by its snapshot, for a client of a namespace that asks for an address; else why it does
/// nothing, in words. For who explains it.
pub(crate) fn fronted(
    snapshot: Arc<Snapshot>,
    own: &Workload,
    asked: SocketAddr,
    namespace: &str,
) -> Result<Found, String> {
    let authority = Authority { host: Host::Ip(asked.ip().to_canonical()), port: asked.port() };
    let state = NodeState { snapshot, ..NodeState::default() };
    Front { authority, namespace: namespace.into() }
        .find(&state, own)
        .map_err(|unserved| unserved.to_string())
}

impl Front {
    /// What `own`, the waypoint, does with the traffic.
    pub(super) fn find(&self, state: &NodeState, own: &Workload) -> Result<Found, Unserved> {
        let lookup = Lookup { state, workload: own };
        if state.snapshot.waypoint_config().is_some() {
            return self.find_configured(&lookup);
        }
        let snapshot = &state.snapshot;
        let is_ours = |entry: &&Arc<ServiceEntry>| {
            lookup.fronts(entry.service.waypoint.as_ref())
                || entry.service.weighted_waypoints.iter().any(|it| lookup.fronts(Some(&it.destination)))
        };
        match &self.authority.host {
            Host::Name(name) => match snapshot.services_of_host(name).find(is_ours) {
                Some(entry) => self.service(&lookup, entry),
                None => Err(Unserved::NotBehindUs(self.authority.clone())),
            },
            Host::Ip(ip) => match snapshot.services_of_vip(&own.network, ip.to_canonical()).find(is_ours) {
                Some(entry) => self.service(&lookup, entry),
                None => self.workload(&lookup, *ip),
            },
        }
    }

    /// istiod says itself what is behind the waypoint.
    fn find_configured(&self, lookup: &Lookup<'_>) -> Result<Found, Unserved> {
        let asked = match &self.authority.host {
            Host::Ip(ip) => Asked::Address(SocketAddr::new(*ip, self.authority.port)),
            Host::Name(hostname) => Asked::Name { hostname, port: self.authority.port },
        };
        let snapshot = &lookup.state.snapshot;
        let served = snapshot.served(asked).ok_or_else(|| Unserved::NotBehindUs(self.authority.clone()))?;
        let workload = match (&served.service, &self.authority.host) {
            (None, Host::Ip(ip)) => {
                let found = snapshot.workload_by_address(&lookup.workload.network, ip.to_canonical());
                Some(found.cloned().ok_or_else(|| Unserved::NotTold(self.authority.clone()))?)
            }
            _ => None,
        };
        Ok(Found { served, workload, address: self.address(lookup) })
    }

    fn service(&self, lookup: &Lookup<'_>, entry: &ServiceEntry) -> Result<Found, Unserved> {
        let (snapshot, port) = (&lookup.state.snapshot, self.authority.port);
        let declared = entry
            .service
            .port(port)
            .ok_or_else(|| Unserved::NoPort { service: entry.key().to_string(), port })?;
        let policies = snapshot.waypoint_policies(Some(entry.key()));
        let policies = policies.ok_or_else(|| Unserved::NotTold(self.authority.clone()))?;
        let router = snapshot.routes_for(entry.key(), port, &self.namespace).cloned();
        let http = ServedHttp { policies: policies.clone(), router, normalization: Normalization::Base };
        let (http, tcp) = by_protocol(declared.app_protocol, http);
        let served = Served { service: Some(entry.key().clone()), port, http, tcp };
        Ok(Found { served, workload: None, address: self.address(lookup) })
    }

    fn workload(&self, lookup: &Lookup<'_>, ip: IpAddr) -> Result<Found, Unserved> {
        let not_ours = || Unserved::NotBehindUs(self.authority.clone());
        let (snapshot, port) = (&lookup.state.snapshot, self.authority.port);
        let owner = snapshot.workload_by_address(&lookup.workload.network, ip.to_canonical());
        let owner = owner.filter(|it| lookup.fronts(it.waypoint.as_ref())).ok_or_else(not_ours)?;
        let policies = snapshot.waypoint_policies(None);
        let policies = policies.ok_or_else(|| Unserved::NotTold(self.authority.clone()))?.clone();
        let http = ServedHttp { policies, router: None, normalization: Normalization::Base };
        let (http, tcp) = by_protocol(lookup.declared(owner, port), http);
        let served = Served { service: None, port, http, tcp };
        Ok(Found { served, workload: Some(owner.clone()), address: SocketAddr::new(ip, port) })
    }

    fn address(&self, lookup: &Lookup<'_>) -> SocketAddr {
        let unknown = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), self.authority.port);
        lookup.address_of(&self.authority).unwrap_or(unknown)
    }
}

/// With both, the first bytes decide.
fn by_protocol(declared: AppProtocol, http: ServedHttp) -> (Option<ServedHttp>, Option<ServedTcp>) {
    let tcp = ServedTcp { policies: http.policies.clone(), way: None };
    match declared {
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => (Some(http), None),
        AppProtocol::Tcp | AppProtocol::Tls => (None, Some(tcp)),
        AppProtocol::Unknown => (Some(http), Some(tcp)),
    }
}
