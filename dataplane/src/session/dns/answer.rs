//! What the mesh knows of a host name: a pure decision from one snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use model::{Health, HealthPolicy, IpFamilies, Service, Visibility, Workload};
use xds::snapshot::endpoint::Random;
use xds::snapshot::{ServiceEntry, Snapshot};

use super::DnsOptions;
use super::message::{Answer, Family};
use super::names::{self, Candidate};

/// Addresses of one answer at most: what fits a message over TCP.
const ADDRESSES_MAX: usize = 1_024;
/// Endpoints of a headless service that are looked at for one answer.
const ENDPOINTS_EXAMINED_MAX: usize = 8_192;

/// From what it is decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    /// Lower case, without the final dot.
    pub(super) host: &'a str,
    pub(super) family: Family,
    pub(super) client: &'a Workload,
    pub(super) snapshot: &'a Snapshot,
    pub(super) options: &'a DnsOptions,
    /// Domains that the client's resolver may have appended.
    pub(super) search: &'a [String],
    /// Whether IPv6 addresses are told.
    pub(super) ipv6: bool,
    pub(super) random: u64,
}

impl Question<'_> {
    /// The answer if the mesh knows the name, with no addresses if it knows none of that family; `None` has others
    /// asked.
    pub(super) fn answer(&self) -> Option<Answer> {
        let namespace = &*self.client.namespace;
        let candidates = names::candidates(self.host, namespace, &self.options.cluster_domain, self.search);
        for Candidate { name, kept } in candidates {
            let Some((entry, by_wildcard)) = names::with_wildcards(&name, |name| self.service(name)) else {
                continue;
            };
            let addresses = self.addresses(entry);
            // A wildcard is no name that an alias could point to.
            return Some(Answer { alias: kept.filter(|_| !by_wildcard), addresses });
        }
        None
    }

    /// Of the services of a host name: the one in the client's namespace, in the preferred one, the canonical one, the
    /// first.
    fn service(&self, hostname: &str) -> Option<&Arc<ServiceEntry>> {
        let own = &*self.client.namespace;
        let preferred = self.options.preferred_namespace.as_deref();
        let rank = |service: &Service| {
            let namespace = &*service.key.namespace;
            (namespace != own, Some(namespace) != preferred, !service.canonical)
        };
        let visible =
            |service: &Service| service.visibility == Visibility::Public || &*service.key.namespace == own;
        let services = self.snapshot.services_of_host(hostname);
        let services = services.filter(|it| visible(&it.service) && self.is_answered(&it.service));
        services.min_by_key(|it| rank(&it.service))
    }

    /// A name outside the cluster that has no address in the mesh is left to the servers that know it.
    fn is_answered(&self, service: &Service) -> bool {
        service.vips.iter().any(model::ServiceVip::is_single) || self.is_in_cluster(&service.key.hostname)
    }

    fn is_in_cluster(&self, hostname: &str) -> bool {
        let rest = hostname.strip_suffix(&*self.options.cluster_domain);
        rest.is_some_and(|rest| rest.ends_with(".svc."))
    }

    fn addresses(&self, entry: &ServiceEntry) -> Vec<IpAddr> {
        let service = &entry.service;
        let offered = match (self.family, service.ip_families) {
            (Family::V4, IpFamilies::Ipv6Only) | (Family::V6, IpFamilies::Ipv4Only) => false,
            (Family::V6, _) => self.ipv6,
            (Family::V4, _) => true,
        };
        if !offered {
            return Vec::new();
        }
        let mut random = Random::new(self.random);
        let mut addresses: Vec<IpAddr> = if service.vips.iter().any(model::ServiceVip::is_single) {
            let reachable = |vip: &&model::ServiceVip| vip.is_single() && vip.network == self.client.network;
            let own = service.vips.iter().filter(reachable).map(|vip| vip.ip);
            own.filter(|ip| Family::of(*ip) == self.family).take(ADDRESSES_MAX).collect()
        } else {
            self.endpoint_addresses(entry, &mut random)
        };
        shuffle(&mut addresses, &mut random);
        addresses
    }

    /// Of a headless service: an address of each endpoint that may be used, from a random one on.
    fn endpoint_addresses(&self, entry: &ServiceEntry, random: &mut Random) -> Vec<IpAddr> {
        let unready_too = entry
            .service
            .load_balancing
            .as_ref()
            .is_some_and(|balancing| balancing.health_policy == HealthPolicy::AllowAll);
        let count = entry.endpoints.len();
        let start = usize::try_from(random.below(count as u64)).unwrap_or_default();
        let from_start = (start..count).chain(0..start).take(ENDPOINTS_EXAMINED_MAX);
        from_start
            .filter_map(|index| entry.endpoints.get(index))
            .filter(|endpoint| unready_too || endpoint.workload.health == Health::Healthy)
            .filter_map(|endpoint| {
                let mut own = endpoint.workload.addresses.iter();
                own.find(|ip| Family::of(**ip) == self.family).copied()
            })
            .take(ADDRESSES_MAX)
            .collect()
    }
}

/// Fisher and Yates.
fn shuffle<T>(list: &mut [T], random: &mut Random) {
    for last in (1..list.len()).rev() {
        let other = usize::try_from(random.below(last as u64 + 1)).unwrap_or(last);
        list.swap(last, other);
    }
}
