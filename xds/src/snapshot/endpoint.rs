//! The choice among the endpoints of a service: a pure function of the service, the client and a random number.
//!
//! Eligible is an endpoint that is healthy (or of a service that allows all), serves the port, can be reached and
//! has capacity. Among those of the best locality rank the choice is random, weighted by capacity.
//!
//! Without locality preferences the choice probes random endpoints, so that it costs the same for ten endpoints and
//! for ten thousand; only if probing fails does it look at all of them.

use std::sync::Arc;

use model::{EndpointPort, Health, HealthPolicy, LoadBalancing, LoadBalancingMode, RoutingScope, Workload};

use super::ServiceEntry;

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
    /// There are some, all of them on networks that only a gateway reaches.
    OtherNetwork,
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
pub fn choose<'a>(
    entry: &'a ServiceEntry,
    service_port: u16,
    client: &Workload,
    random: &mut Random,
) -> Result<Choice<'a>, NoEndpoint> {
    let request = Request::new(entry, service_port, client);
    if request.preferences.is_none()
        && let Some(choice) = request.probe(random)
    {
        return Ok(choice);
    }
    request.look_at_all(random)
}

/// What is asked of every endpoint.
struct Request<'a, 'c> {
    entry: &'a ServiceEntry,
    service_port: u16,
    client: &'c Workload,
    unhealthy_too: bool,
    preferences: Option<&'a LoadBalancing>,
    /// The service's own target port; `None` where each endpoint carries one.
    target_port: Option<u16>,
}

impl<'a, 'c> Request<'a, 'c> {
    fn new(entry: &'a ServiceEntry, service_port: u16, client: &'c Workload) -> Self {
        let service = &entry.service;
        let balancing = service.load_balancing.as_ref();
        Self {
            entry,
            service_port,
            client,
            unhealthy_too: balancing.is_some_and(|it| it.health_policy == HealthPolicy::AllowAll),
            preferences: balancing.filter(|it| {
                matches!(it.mode, LoadBalancingMode::Strict | LoadBalancingMode::Failover)
                    && !it.routing_preference.is_empty()
            }),
            target_port: service.port(service_port).map(|port| port.target_port).filter(|port| *port != 0),
        }
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
    fn eligible(&self, endpoint: &Endpoint) -> Option<u16> {
        let workload = &endpoint.workload;
        let healthy = self.unhealthy_too || workload.health == Health::Healthy;
        let reachable = workload.network == self.client.network
            && (!workload.addresses.is_empty() || !workload.hostname.is_empty());
        if !healthy || !reachable || workload.capacity == 0 {
            return None;
        }
        endpoint
            .ports
            .iter()
            .find(|port| port.service_port == self.service_port && port.target_port != 0)
            .map(|port| port.target_port)
            .or(self.target_port)
    }

    /// How well the endpoint fits the routing preferences; `None` if they rule it out.
    fn rank(&self, workload: &Workload) -> Option<usize> {
        let Some(balancing) = self.preferences else { return Some(0) };
        let scopes = &balancing.routing_preference;
        let mut rank = 0;
        let mut matched = 0;
        for (position, scope) in scopes.iter().enumerate() {
            let network_first = position == 0 && *scope == RoutingScope::Network;
            let same = self.same(*scope, workload);
            matched += usize::from(same);
            match (same, network_first) {
                // The network outweighs what follows it, and its absence alone does not end the comparison.
                (true, true) => rank += scopes.len() - 1,
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
