//! The choice among the endpoints of a service: a pure function of the service, the client and a random number.
//!
//! Eligible is an endpoint that is healthy (or of a service that allows all), serves the port, can be reached (if need
//! be through its network's gateway) and has capacity. Among those of the best locality rank the choice is random,
//! weighted by capacity; a [`super::Chooser`] that knows the load of endpoints draws two and takes the one with less to do
//! for its capacity, and one with a [`Balancer`] has it take one.
//!
//! Without locality preferences the choice probes random endpoints, so that it costs the same for ten endpoints and
//! for ten thousand; only if probing fails does it look at all of them.

use std::sync::Arc;

use model::{EndpointPort, Health, HealthPolicy, LoadBalancing, LoadBalancingMode, RoutingScope, Workload};

use super::ServiceEntry;
use super::chooser::{Among, Balancer, Choosing, Load, Within};

/// Random probes before every endpoint is looked at.
const PROBES_MAX: usize = 8;

/// A workload as an endpoint of one service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// The ports of this service as this endpoint serves them; shared between endpoints where equal.
    pub ports: Arc<[EndpointPort]>,
}

/// An endpoint with the port to dial.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    pub endpoint: &'a Endpoint,
    pub target_port: u16,
}

/// Why no endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// None is healthy and serves the port.
    Unavailable,
    /// There are some, all of them on other networks and without a gateway that leads there.
    OtherNetwork,
}

/// What an endpoint is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve a port of its service, directly or through its network's gateway.
    Destination,
    /// To be the waypoint. One that takes its traffic through an application tunnel need not declare the port: what
    /// arrives at its HBONE port finds its way there.
    Waypoint,
    /// To be a network's gateway: dialled directly, on whichever network it is.
    Gateway,
}

/// A sequence of random numbers from one seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is below `bound`, so it fits; the bias of 2^-64 * bound does not matter.
        #[allow(clippy::cast_possible_truncation)]
        {
            ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
        }
    }
}

/// Chooses an endpoint of a service for one connection.
pub(super) fn choose<'a>(
    entry: &'a Arc<ServiceEntry>,
    service_port: u16,
    purpose: Purpose,
    client: &Workload,
    choosing: &mut Choosing<'_>,
) -> Result<Choice<'a>, NoEndpoint> {
    let request = Request::new(entry, service_port, purpose, client, choosing);
    if let Some(choice) = choosing.prefer.and_then(|uid| request.of(uid)) {
        return Ok(choice);
    }
    if let Some(balancer) = request.balancer
        && let Some(choice) = balancer.pick(&Among::new(&request)).and_then(|index| request.at(index))
    {
        return Ok(choice);
    }
    let first = request.draw(&mut choosing.random)?;
    let Some(load) = choosing.load else { return Ok(first) };
    let second = request.draw(&mut choosing.random)?;
    Ok(lighter(load, first, second))
}

/// The one that would have fewer connections for its capacity with one more; the first where they are equal.
fn lighter<'a>(load: &dyn Load, first: Choice<'a>, second: Choice<'a>) -> Choice<'a> {
    let after = |choice: &Choice<'_>| u64::from(load.connections(&choice.endpoint.workload)) + 1;
    let capacity = |choice: &Choice<'_>| u64::from(choice.endpoint.workload.capacity);
    let (one, other) = (after(&first) * capacity(&second), after(&second) * capacity(&first));
    if other < one { second } else { first }
}

/// Whether an endpoint may be chosen, for those who ask why one is or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it is not ready")]
    Unhealthy,
    #[error("it has not the labels of the subset")]
    OtherSubset,
    #[error("its capacity is 0")]
    NoCapacity,
    #[error("it has no address, or is on another network and no gateway leads there")]
    Unreachable,
    #[error("it does not serve this port")]
    NoPort,
    #[error("endpoints nearer to the client are preferred")]
    Further,
}

/// Every endpoint of a service, with the port to dial where the endpoint may be chosen.
pub(super) fn standings<'a>(
    entry: &'a Arc<ServiceEntry>,
    service_port: u16,
    client: &Workload,
) -> Vec<(&'a Endpoint, Result<u16, Unfit>)> {
    let request = Request::new(entry, service_port, Purpose::Destination, client, &Choosing::at_random());
    let ranked = |endpoint: &'a Endpoint| {
        let standing = request.standing(endpoint);
        (
            endpoint,
            standing.and_then(|port| Ok((port, request.rank(&endpoint.workload).ok_or(Unfit::Further)?))),
        )
    };
    let all: Vec<_> = entry.endpoints.iter().map(ranked).collect();
    let best = all.iter().filter_map(|(_, standing)| standing.as_ref().ok().map(|(_, rank)| *rank)).max();
    let nearest = |(port, rank)| if Some(rank) == best { Ok(port) } else { Err(Unfit::Further) };
    all.into_iter().map(|(endpoint, standing)| (endpoint, standing.and_then(nearest))).collect()
}

/// What is asked of every endpoint.
pub(super) struct Request<'a, 'c> {
    pub(super) entry: &'a Arc<ServiceEntry>,
    service_port: u16,
    purpose: Purpose,
    pub(super) client: &'c Workload,
    avoid: &'c [Arc<Workload>],
    within: Option<Within<'c>>,
    balancer: Option<&'c dyn Balancer>,
    unhealthy_too: bool,
    preferences: Option<&'a LoadBalancing>,
    /// The service's own target port, 0 where each endpoint carries one; `None` if the service has no such port.
    target_port: Option<u16>,
}

impl<'a, 'c> Request<'a, 'c> {
    fn new(
        entry: &'a Arc<ServiceEntry>,
        service_port: u16,
        purpose: Purpose,
        client: &'c Workload,
        choosing: &Choosing<'c>,
    ) -> Self {
        let service = &entry.service;
        let balancing = service.load_balancing.as_ref();
        // What concerns the service is not asked of those that carry its traffic.
        let of_service = purpose == Purpose::Destination;
        Self {
            entry,
            service_port,
            purpose,
            client,
            avoid: choosing.avoid,
            within: choosing.within.filter(|_| of_service),
            balancer: choosing.balancer.filter(|_| of_service),
            unhealthy_too: balancing.is_some_and(|it| it.health_policy == HealthPolicy::AllowAll),
            preferences: balancing.filter(|it| {
                matches!(it.mode, LoadBalancingMode::Strict | LoadBalancingMode::Failover)
                    && !it.routing_preference.is_empty()
            }),
            target_port: service.port(service_port).map(|port| port.target_port),
        }
    }

    /// The endpoint at this index, if it is eligible.
    fn at(&self, index: usize) -> Option<Choice<'a>> {
        let endpoint = self.entry.endpoints.get(index)?;
        Some(Choice { endpoint, target_port: self.eligible(endpoint)? })
    }

    /// The endpoint of this name, if it is eligible.
    fn of(&self, uid: &str) -> Option<Choice<'a>> {
        let endpoint = self.entry.endpoints.iter().find(|endpoint| &*endpoint.workload.uid == uid)?;
        Some(Choice { endpoint, target_port: self.eligible(endpoint)? })
    }

    fn draw(&self, random: &mut Random) -> Result<Choice<'a>, NoEndpoint> {
        if self.preferences.is_none()
            && let Some(choice) = self.probe(random)
        {
            return Ok(choice);
        }
        self.look_at_all(random)
    }

    /// Rejection sampling: an endpoint drawn uniformly is taken with probability capacity / greatest capacity, so
    /// that whatever is taken has the exact weighted distribution.
    fn probe(&self, random: &mut Random) -> Option<Choice<'a>> {
        let count = self.entry.endpoints.len();
        for _ in 0..PROBES_MAX {
            let index = usize::try_from(random.below(count as u64)).ok()?;
            let endpoint = self.entry.endpoints.get(index)?;
            let Some(target_port) = self.eligible(endpoint) else { continue };
            let capacity_max = u64::from(self.entry.capacity_max.max(1));
            if u64::from(endpoint.workload.capacity) > random.below(capacity_max) {
                return Some(Choice { endpoint, target_port });
            }
        }
        None
    }

    /// One pass that keeps the best rank so far and a weighted reservoir of one within it.
    fn look_at_all(&self, random: &mut Random) -> Result<Choice<'a>, NoEndpoint> {
        let mut chosen = None;
        let mut best_rank = 0;
        let mut capacity_sum = 0_u64;
        let mut other_network = false;
        for endpoint in &self.entry.endpoints {
            let Some(target_port) = self.eligible(endpoint) else {
                other_network |= *endpoint.workload.network != *self.client.network;
                continue;
            };
            let Some(rank) = self.rank(&endpoint.workload) else { continue };
            if chosen.is_some() && rank < best_rank {
                continue;
            }
            if rank > best_rank {
                best_rank = rank;
                capacity_sum = 0;
            }
            let capacity = u64::from(endpoint.workload.capacity);
            capacity_sum = capacity_sum.saturating_add(capacity);
            if random.below(capacity_sum) < capacity {
                chosen = Some(Choice { endpoint, target_port });
            }
        }
        chosen.ok_or(if other_network { NoEndpoint::OtherNetwork } else { NoEndpoint::Unavailable })
    }

    /// The port to dial, if this endpoint may serve the request.
    pub(super) fn eligible(&self, endpoint: &Endpoint) -> Option<u16> {
        let workload = &endpoint.workload;
        let avoided = self.avoid.iter().any(|avoid| avoid.uid == workload.uid)
            || self.balancer.is_some_and(|balancer| balancer.is_out(workload));
        self.standing(endpoint).ok().filter(|_| !avoided)
    }

    /// The best rank of an eligible endpoint.
    pub(super) fn best_rank(&self) -> usize {
        if self.preferences.is_none() {
            return 0;
        }
        let eligible = self.entry.endpoints.iter().filter(|endpoint| self.eligible(endpoint).is_some());
        eligible.filter_map(|endpoint| self.rank(&endpoint.workload)).max().unwrap_or_default()
    }

    /// The same with the reason, for an endpoint that is not to be avoided.
    pub(super) fn standing(&self, endpoint: &Endpoint) -> Result<u16, Unfit> {
        let workload = &endpoint.workload;
        if !self.unhealthy_too && workload.health != Health::Healthy {
            return Err(Unfit::Unhealthy);
        }
        if self.within.is_some_and(|within| !within.has(workload)) {
            return Err(Unfit::OtherSubset);
        }
        if workload.capacity == 0 {
            return Err(Unfit::NoCapacity);
        }
        if !self.is_reachable(workload) {
            return Err(Unfit::Unreachable);
        }
        self.port_of(endpoint).ok_or(Unfit::NoPort)
    }

    fn is_reachable(&self, workload: &Workload) -> bool {
        let has_address = !workload.addresses.is_empty() || !workload.hostname.is_empty();
        match self.purpose {
            Purpose::Gateway => has_address,
            _ if workload.network == self.client.network => has_address,
            _ => workload.network_gateway.is_some(),
        }
    }

    fn port_of(&self, endpoint: &Endpoint) -> Option<u16> {
        let found_anyway =
            self.purpose == Purpose::Waypoint && endpoint.workload.application_tunnel.is_some();
        if self.target_port.is_none() && !found_anyway {
            return None;
        }
        let own = endpoint.ports.iter().find(|port| port.service_port == self.service_port);
        own.map(|port| port.target_port)
            .filter(|port| *port != 0)
            .or(self.target_port.filter(|port| *port != 0))
            .or(found_anyway.then_some(self.service_port))
    }

    /// How well the endpoint fits the routing preferences; `None` if they rule it out.
    pub(super) fn rank(&self, workload: &Workload) -> Option<usize> {
        let Some(balancing) = self.preferences else { return Some(0) };
        let scopes = &balancing.routing_preference;
        let mut rank = 0;
        let mut matched = 0;
        for (position, scope) in scopes.iter().enumerate() {
            let network_first = position == 0 && *scope == RoutingScope::Network;
            let same = self.same(*scope, workload);
            matched += usize::from(same);
            match (same, network_first) {
                // The network weighs as much as all that follows, and its absence alone does not end the comparison.
                (true, true) => rank += (scopes.len() - 1).max(1),
                (false, true) => {}
                (true, false) => rank += 1,
                (false, false) => break,
            }
        }
        let all_needed = balancing.mode == LoadBalancingMode::Strict;
        (!all_needed || matched == scopes.len()).then_some(rank)
    }

    fn same(&self, scope: RoutingScope, workload: &Workload) -> bool {
        let (ours, theirs) = (&self.client.locality, &workload.locality);
        match scope {
            RoutingScope::Region => ours.region == theirs.region,
            RoutingScope::Zone => ours.zone == theirs.zone,
            RoutingScope::Subzone => ours.subzone == theirs.subzone,
            RoutingScope::Node => self.client.node == workload.node,
            RoutingScope::Cluster => self.client.cluster_id == workload.cluster_id,
            RoutingScope::Network => self.client.network == workload.network,
        }
    }
}
