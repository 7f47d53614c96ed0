//! From what istiod has sent to what the workers look up: services, routes, and a [`WaypointConfig`].
//!
//! An endpoint of a cluster is an address. Whose it is the workloads tell, which istiod sends on the same stream, and with
//! them the identity that must be proved: exactly that one, where Envoy takes any of the namespace or of the trust domain.
//! An endpoint that takes HBONE and whose workload is not known (yet) is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;
use l7::authz::PolicySet;
use l7::ir::{self, HttpRoute};
use l7::telemetry::Telemetry;
use model::{
    AppProtocol, EndpointPort, Identity, NamespacedHostname, NetworkMode, Service, ServicePort, ServiceVip,
    Services, TunnelProtocol, Workload, WorkloadType,
};

use super::Refusal;
use super::chain;
use super::cluster::{ReadCluster, ServiceCluster};
use super::destinations::Chains;
use super::endpoints::{Endpoint, Host};
use super::names::ClusterName;
use super::state::{CompiledChain, State};
use crate::issuer::{Keys, Wanted};
use crate::proto::{CLUSTER_TYPE, LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE};
use crate::snapshot::waypoint::{Cluster, ClusterKey};
use crate::snapshot::{self, Served, ServedHttp, ServedTcp, ServiceEntry, Snapshot, WaypointConfig};

/// What a waypoint under istiod holds and serves.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    /// The network that the waypoint is in, as istiod names it.
    network: Arc<str>,
    state: State,
    config: WaypointConfig,
    /// Clusters by the addresses of their endpoints.
    users: HashMap<IpAddr, BTreeSet<Box<str>>, RandomState>,
    /// What the store was told of.
    told: Told,
}

/// Names of what the store holds on behalf of the filter chains.
#[derive(Debug, Default)]
struct Told {
    chains: BTreeSet<Arc<str>>,
    services: BTreeSet<NamespacedHostname>,
}

/// Something to be taken over by the store, and what is gone.
#[derive(Debug)]
pub(crate) struct News<K, V> {
    pub(crate) held: Vec<(K, V)>,
    pub(crate) gone: Vec<K>,
}

impl<K: Ord + Clone, V> News<K, V> {
    /// `told` is what was held before, and then what is held now.
    fn since(told: &mut BTreeSet<K>, held: BTreeMap<K, V>) -> Self {
        let names = held.keys().cloned().collect();
        let gone = std::mem::replace(told, names);
        let gone = gone.into_iter().filter(|name| !held.contains_key(name)).collect();
        Self { held: held.into_iter().collect(), gone }
    }
}

impl Serving {
    pub(crate) fn new(network: Arc<str>) -> Self {
        Self { network, ..Self::default() }
    }

    pub(crate) fn upsert(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        match type_url {
            LISTENER_TYPE => self.state.upsert_listener(name, bytes),
            CLUSTER_TYPE => self.state.upsert_cluster(name, bytes),
            LOAD_ASSIGNMENT_TYPE => self.state.upsert_assignment(name, bytes),
            _ => Ok(()),
        }
    }

    pub(crate) fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            LISTENER_TYPE => self.state.remove_listener(name),
            CLUSTER_TYPE => self.state.remove_cluster(name),
            LOAD_ASSIGNMENT_TYPE => self.state.remove_assignment(name),
            _ => {}
        }
    }

    /// The workloads of these addresses have changed.
    pub(crate) fn soil_addresses(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            let users = self.users.get(&address.to_canonical()).into_iter().flatten();
            self.state.changed.clusters.extend(users.cloned());
        }
    }

    /// The names of the endpoints that are wanted.
    pub(crate) fn wanted_assignments(&self) -> BTreeSet<&str> {
        self.state.wanted_assignments()
    }

    /// The keys of token issuers that have to be fetched.
    pub(crate) fn wanted_keys(&self) -> Wanted {
        self.state.wanted_keys()
    }

    /// Takes what is known of those keys.
    pub(crate) fn set_keys(&mut self, keys: Arc<Keys>) {
        self.state.set_keys(keys);
    }

    /// Whether anything has to be put together anew.
    pub(crate) fn has_changed(&self) -> bool {
        self.state.changed.chains || !self.state.changed.clusters.is_empty()
    }

    /// The routes of all filter chains, by the name of the chain.
    pub(crate) fn routes(&mut self) -> News<Arc<str>, Arc<HttpRoute>> {
        let chains = self.state.chains.iter();
        let routes = chains.filter_map(|(name, held)| {
            let route = held.compiled.http.as_ref()?.route.as_ref()?;
            Some((Arc::clone(name), Arc::clone(route)))
        });
        News::since(&mut self.told.chains, routes.collect())
    }

    /// What is told of the traffic to each destination: of its requests, where any of its ports has them. A destination without a log has none if others have one; if
    /// nobody has, istiod says nothing of logs.
    pub(crate) fn telemetry(&self) -> snapshot::Map<Option<NamespacedHostname>, Telemetry> {
        let chains =
            || self.state.chains.iter().filter_map(|(name, held)| Some((name, held.compiled.told.as_ref()?)));
        let any_has_log = chains().any(|(_, told)| told.has_log);
        let mut telemetry = snapshot::Map::default();
        let (of_requests, of_connections): (Vec<_>, Vec<_>) =
            chains().partition(|(name, _)| chain::is_http(name));
        for (name, told) in of_requests.into_iter().chain(of_connections) {
            let destination = ClusterName::parse(name).map(|name| self.known_as(&name).1);
            let mut side = told.side.clone();
            side.log.disabled = any_has_log && !told.has_log;
            let written = ir::Telemetry { client: side.clone(), server: side };
            // Expressions were compiled when they were read.
            if let Ok(compiled) = Telemetry::compile(&written) {
                telemetry.entry(destination).or_insert(compiled);
            }
        }
        telemetry
    }

    /// The services that the waypoint fronts.
    pub(crate) fn services(&mut self) -> News<NamespacedHostname, Service> {
        let mut services = BTreeMap::new();
        let destinations = &self.state.destinations;
        for (block, port, chains) in &destinations.addresses {
            let Some(name) = named(chains) else { continue };
            let network = Arc::clone(&self.network);
            let vip = ServiceVip { network, ip: block.addr(), prefix_len: block.prefix_len() };
            self.note(&mut services, &name, *port, chains, Some(vip));
        }
        for (_, chains) in &destinations.names {
            let Some(name) = named(chains) else { continue };
            self.note(&mut services, &name, name.port, chains, None);
        }
        News::since(&mut self.told.services, services)
    }

    fn note(
        &self,
        services: &mut BTreeMap<NamespacedHostname, Service>,
        name: &ClusterName,
        port: u16,
        chains: &Chains,
        vip: Option<ServiceVip>,
    ) {
        let (short, key) = self.known_as(name);
        let service = services.entry(key.clone()).or_insert_with(|| service(short, key));
        if let Some(vip) = vip.filter(|vip| !service.vips.contains(vip)) {
            service.vips.push(vip);
        }
        if service.port(port).is_none() {
            let app_protocol = match (&chains.http, &chains.tcp) {
                (Some(_), None) => AppProtocol::Http11,
                (None, Some(_)) => AppProtocol::Tcp,
                _ => AppProtocol::Unknown,
            };
            service.ports.push(ServicePort { service_port: port, target_port: 0, app_protocol });
        }
    }

    /// Short name and key of a service, from the metadata of its clusters where they tell.
    fn known_as(&self, name: &ClusterName) -> (Arc<str>, NamespacedHostname) {
        let told =
            name.candidates().into_iter().find_map(|name| match &self.state.clusters.get(&*name)?.value {
                ReadCluster::Service(cluster) => cluster.service.clone(),
                ReadCluster::Tunnel => None,
            });
        let derived = name.service();
        match told {
            Some((short, namespace)) => (short, NamespacedHostname { namespace, ..derived }),
            None => (derived.hostname.split('.').next().unwrap_or_default().into(), derived),
        }
    }

    /// Puts together what changed. The routes must be compiled in `snapshot`, and the services be there.
    pub(crate) fn serve(&mut self, snapshot: &Snapshot) -> Arc<WaypointConfig> {
        // Clusters tell the namespaces of services.
        if std::mem::take(&mut self.state.changed.chains) || !self.state.changed.clusters.is_empty() {
            self.serve_destinations(snapshot);
        }
        for name in std::mem::take(&mut self.state.changed.clusters) {
            self.serve_cluster(&name, snapshot);
        }
        self.config.problems = self.state.problems().into();
        Arc::new(self.config.clone())
    }

    fn serve_destinations(&mut self, snapshot: &Snapshot) {
        let destinations = &self.state.destinations;
        let mut by_address = snapshot::Map::default();
        let mut by_block = Vec::new();
        for (block, port, chains) in &destinations.addresses {
            let served = Arc::new(self.served(chains, *port, snapshot));
            if block.prefix_len() == block.max_prefix_len() {
                // Of two that claim an address, the first one has it.
                by_address.entry(SocketAddr::new(block.addr(), *port)).or_insert(served);
            } else {
                by_block.push((*block, *port, served));
            }
        }
        by_block
            .sort_by_key(|(block, _, _): &(IpNet, u16, Arc<Served>)| std::cmp::Reverse(block.prefix_len()));
        let names = destinations.names.iter().map(|(name, chains)| {
            let port = name.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
            (Arc::clone(name), Arc::new(self.served(chains, port, snapshot)))
        });
        let by_name = names.collect();
        let direct =
            destinations.workloads.first().map(|(_, chains)| Arc::new(self.served(chains, 0, snapshot)));
        let workloads = destinations.workloads.iter().map(|(block, _)| *block).collect();
        self.config.by_address = by_address;
        self.config.by_block = by_block.into();
        self.config.by_name = by_name;
        self.config.direct = direct;
        self.config.workloads = workloads;
    }

    fn served(&self, chains: &Chains, port: u16, snapshot: &Snapshot) -> Served {
        let held = |name: &Arc<str>| self.state.chains.get(name).map(|held| &held.compiled);
        let missing = |name: &str| Arc::new(PolicySet::deny_all(format!("filter chain {name} is not there")));
        let http = chains.http.as_ref().map(|name| match held(name) {
            Some(chain) => served_http(chain, snapshot),
            None => ServedHttp { policies: missing(name), router: None, normalization: <_>::default() },
        });
        let tcp = chains.tcp.as_ref().map(|name| match held(name) {
            Some(chain) => ServedTcp { policies: Arc::clone(&chain.policies), way: chain.tcp.clone() },
            None => ServedTcp { policies: missing(name), way: None },
        });
        Served { service: named(chains).map(|name| self.known_as(&name).1), port, http, tcp }
    }

    // --- Clusters ---

    fn serve_cluster(&mut self, name: &str, snapshot: &Snapshot) {
        self.forget_addresses(name);
        let Some(parsed) = ClusterName::parse(name) else { return };
        let key = ClusterKey {
            hostname: Arc::clone(&parsed.hostname),
            port: parsed.port,
            subset: Arc::clone(&parsed.subset),
        };
        // Of the clusters of one port, all of which hold the same endpoints, one serves.
        let held =
            parsed.candidates().into_iter().find_map(|name| match &self.state.clusters.get(&*name)?.value {
                ReadCluster::Service(cluster) => Some((name, cluster.clone())),
                ReadCluster::Tunnel => None,
            });
        let Some((name, cluster)) = held else {
            self.config.clusters.remove(&key);
            return;
        };
        let assignment = self.state.endpoints(&cluster);
        let levels = assignment.iter().flat_map(|it| &it.levels);
        let levels: Vec<_> = levels.map(|level| Arc::new(self.entry(&cluster, level, snapshot))).collect();
        for endpoint in assignment.iter().flat_map(|it| &it.levels).flatten() {
            if let Host::Address(ip) = endpoint.host {
                self.users.entry(ip).or_default().insert(name.clone().into());
            }
        }
        let settings = Arc::clone(&cluster.settings);
        self.config.clusters.insert(key, Arc::new(Cluster { levels, settings }));
    }

    fn forget_addresses(&mut self, name: &str) {
        self.users.retain(|_, users| {
            users.remove(name);
            !users.is_empty()
        });
    }

    fn entry(&self, cluster: &ServiceCluster, level: &[Endpoint], snapshot: &Snapshot) -> ServiceEntry {
        let (short, key) = self.known_as(&cluster.name);
        let held = snapshot.service(&key.namespace, &key.hostname).map(|entry| Arc::clone(&entry.service));
        let service = held.unwrap_or_else(|| Arc::new(service(short, key)));
        let endpoints: imbl::Vector<_> = level
            .iter()
            .filter_map(|endpoint| {
                let workload = self.workload(endpoint, &service.key, snapshot)?;
                let ports =
                    [EndpointPort { service_port: cluster.name.port, target_port: endpoint.port }].into();
                Some(snapshot::Endpoint { workload: Arc::new(workload), ports })
            })
            .collect();
        let capacity_max = endpoints.iter().map(|endpoint| endpoint.workload.capacity).max().unwrap_or(1);
        ServiceEntry { service, endpoints, capacity_max }
    }

    /// The workload behind an endpoint, as the endpoint shows it. `None`: it takes HBONE and is not known.
    fn workload(
        &self,
        endpoint: &Endpoint,
        service: &NamespacedHostname,
        snapshot: &Snapshot,
    ) -> Option<Workload> {
        let known = match endpoint.host {
            Host::Address(ip) => snapshot.workload_by_address(&self.network, ip),
            Host::Name(_) => None,
        };
        let base = match known {
            Some(workload) => Workload::clone(workload),
            None if endpoint.tunnel == TunnelProtocol::Hbone => return None,
            None => stranger(endpoint, service)?,
        };
        let (addresses, hostname) = match &endpoint.host {
            Host::Address(ip) => (vec![*ip], Arc::from("")),
            Host::Name(name) => (Vec::new(), Arc::clone(name)),
        };
        Some(Workload {
            addresses,
            hostname,
            network: Arc::clone(&self.network),
            tunnel_protocol: endpoint.tunnel,
            health: endpoint.health,
            capacity: endpoint.weight,
            locality: endpoint.locality.clone(),
            waypoint: None,
            ..base
        })
    }
}

/// The service that the name of a chain tells.
fn named(chains: &Chains) -> Option<ClusterName> {
    ClusterName::parse(chains.http.as_ref().or(chains.tcp.as_ref())?)
}

fn served_http(chain: &CompiledChain, snapshot: &Snapshot) -> ServedHttp {
    let http = chain.http.as_ref();
    let route = http.and_then(|http| http.route.as_ref());
    let router = chain.service.as_ref().filter(|_| route.is_some()).and_then(|(service, port)| {
        // No client of istiod's routes is told from another.
        snapshot.routes_for(service, *port, "").cloned()
    });
    let policies = match (route, &router) {
        (Some(_), None) => Arc::new(PolicySet::deny_all("the routes are not compiled")),
        _ => Arc::clone(&chain.policies),
    };
    ServedHttp { policies, router, normalization: http.map_or(<_>::default(), |http| http.normalization) }
}

fn service(short: Arc<str>, key: NamespacedHostname) -> Service {
    Service {
        name: short,
        key,
        vips: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: None,
        ip_families: model::IpFamilies::default(),
        canonical: false,
        visibility: model::Visibility::default(),
    }
}

/// Somebody outside the mesh.
fn stranger(endpoint: &Endpoint, service: &NamespacedHostname) -> Option<Workload> {
    let host = match &endpoint.host {
        Host::Address(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    };
    let facts = &endpoint.facts;
    let named =
        |text: &Arc<str>, otherwise: &str| if text.is_empty() { otherwise.into() } else { Arc::clone(text) };
    let namespace = named(&facts.namespace, &service.namespace);
    // Of no consequence: whoever is dialled in the clear proves nothing.
    let identity =
        Identity::new("unknown", if namespace.is_empty() { "unknown" } else { &namespace }, "unknown");
    Some(Workload {
        uid: format!("endpoint/{host}:{}", endpoint.port).into(),
        name: named(&facts.name, &host),
        namespace,
        identity: identity.ok()?,
        addresses: Vec::new(),
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::None,
        native_tunnel: false,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        authorization_policies: Vec::new(),
        services: Services::default(),
        health: endpoint.health,
        locality: endpoint.locality.clone(),
        node: "".into(),
        cluster_id: Arc::clone(&facts.cluster),
        capacity: endpoint.weight,
        workload_name: Arc::clone(&facts.name),
        workload_type: WorkloadType::default(),
        canonical_name: Arc::clone(&facts.application),
        canonical_revision: Arc::clone(&facts.revision),
    })
}
