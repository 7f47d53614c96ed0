//! A node proxy's part of one worker.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Identity, Workload};
use socket2::TcpKeepalive;
use tunnel::h2::Config;
use tunnel::pool::PoolConfig;
use xds::publish::Mailbox;
use xds::snapshot::{Chooser, Route, Snapshot};

use super::arrivals::Arrivals;
use super::backend_tls::BackendContexts;
use super::demand::{DEMAND_WAIT, Demander, Demands};
use super::dns::{DnsOptions, Resolver};
use super::load::{EndpointChoice, EndpointLoads, LoadGuard};
use super::pod::Pod;
use super::registry::{Books, Registry};
use super::retry_budgets::RetryBudgets;
use super::state::{LocalPod, NodeState, PodEvent, TlsContexts};
use super::traffic::Clusters;
use crate::access_log::queue::Recorder;
use crate::metrics::{Counter, Gauge, Limit, WorkerMetrics};
use crate::net::{
    Congestion, ConnectOptions, KEEPALIVE, ListenOptions, NetworkNamespace, SocketOptions, Transparent,
    take_exhaustions,
};
use crate::trace::Sampling;
use crate::worker::{BoxError, Latch, Outbox, TICK, Worker};

/// How long a captured connection waits for its own pod to be known to the control plane.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// How long the connections of a pod that leaves may take to close after they were cut.
const STOPPING_MAX: Duration = Duration::from_secs(5);

/// So long before the deadline of a drain what is left is cut, for the resets must still be sent.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The ports inside each pod that traffic is redirected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub outbound: u16,
    pub inbound_plaintext: u16,
    pub inbound_hbone: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, inbound_plaintext: 15006, inbound_hbone: 15008 }
    }
}

/// What the pods of a proxy are served as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Applications, whose connections are captured.
    #[default]
    NodeProxy,
    /// The proxy's own pod: others are behind it.
    Waypoint,
}

/// How to be a node proxy. The same for all workers of a node.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub role: Role,
    pub ports: Ports,
    /// Listens on IPv6 as well.
    pub ipv6: bool,
    /// `SO_MARK` of every socket, by which the redirection tells the proxy's own packets.
    pub packet_mark: Option<u32>,
    /// The application sees the client's address as its peer's (needs CAP_NET_ADMIN).
    pub keeps_source_address: bool,
    /// Without that capability nothing is listened for and no application dialled. Otherwise applications then see the
    /// proxy as their client. Means nothing where `keeps_source_address` is off.
    pub source_address_required: bool,
    /// An application tunnel is dialled at loopback, from loopback, rather than at the pod's address.
    pub localhost_application_tunnel: bool,
    /// Workloads describe themselves in baggage: ours to the client, and the client to us where it came through a
    /// gateway.
    pub response_baggage: bool,
    /// Decisions of policies are logged at level info rather than debug.
    pub policy_decisions_at_info: bool,
    /// Connections are carried; without it pods are only answered names.
    pub proxies: bool,
    /// Keep-alive of the sockets of applications and next hops.
    pub keepalive: Option<TcpKeepalive>,
    /// `TCP_USER_TIMEOUT` of every socket.
    pub user_timeout: Option<Duration>,
    /// What tunnels that we dial offer.
    pub http_client: Config,
    /// What tunnels that we accept offer.
    pub http_server: Config,
    pub pool: PoolConfig,
    /// Uid of the pod that the proxy itself runs in, if that pod is served: tunnels to it are accepted, nothing else of
    /// it is captured.
    pub own_pod: Option<Arc<str>>,
    /// `TCP_CONGESTION` of every socket; `None` leaves the host's.
    pub congestion: Option<Congestion>,
    /// How many workers there are, each with a node of its own.
    pub workers: usize,
    /// Connections and accepted tunnels of one worker at most; beyond it new ones are refused.
    pub connections_max: usize,
    /// Bytes that one worker holds for others at most; new work is refused from nine tenths on.
    pub memory_max: usize,
    /// Tunnels that one client address may have open to a worker.
    pub tunnels_of_client_max: usize,
    /// Handshakes of clients that may be under way on a worker.
    pub handshakes_max: usize,
    /// A connection over which nothing went for so long is cut; `None` never.
    pub idle_timeout: Option<Duration>,
    /// How long a connection waits for its own pod to be known to the control plane.
    pub workload_wait: Duration,
    /// Answers the pods' name queries; `None` leaves names alone.
    pub dns: Option<DnsOptions>,
    /// The file that names the node's name servers.
    pub resolv_conf: PathBuf,
    /// Requests that are read have spans, so many of those that no client has begun one for; `None` passes on what
    /// clients say of theirs and adds nothing.
    pub traces: Option<Sampling>,
    /// How one of several endpoints is chosen.
    pub endpoint_choice: EndpointChoice,
    /// Asks for what is not held; `None` where everything that exists is held.
    pub demander: Option<Demander>,
    /// How long a connection waits for the answers to what is asked for on demand.
    pub demand_wait: Duration,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            role: Role::default(),
            ports: Ports::default(),
            ipv6: true,
            packet_mark: Some(1337),
            keeps_source_address: true,
            source_address_required: false,
            localhost_application_tunnel: true,
            response_baggage: true,
            policy_decisions_at_info: false,
            proxies: true,
            keepalive: Some(KEEPALIVE),
            user_timeout: None,
            http_client: Config::hbone_client(),
            http_server: Config::hbone_server(),
            pool: PoolConfig::DEFAULT,
            own_pod: None,
            congestion: None,
            workers: 1,
            connections_max: 100_000,
            memory_max: 1 << 30,
            tunnels_of_client_max: 1_000,
            handshakes_max: 4_096,
            idle_timeout: None,
            workload_wait: WORKLOAD_WAIT,
            dns: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            traces: None,
            endpoint_choice: EndpointChoice::default(),
            demander: None,
            demand_wait: DEMAND_WAIT,
        }
    }
}

/// What connects a worker's node to the control thread.
#[derive(Debug)]
pub struct NodeParts {
    pub mailbox: Mailbox<NodeState>,
    pub metrics: WorkerMetrics,
    pub recorder: Recorder,
    /// Where the listeners' fate is told. Never waited for: a full queue drops the event.
    pub events: Outbox<PodEvent>,
}

/// The part of a node proxy that lives on one worker.
#[derive(Debug)]
pub struct Node {
    pub(super) worker: Worker,
    _books: Rc<Books>,
    pub(super) options: NodeOptions,
    pub(super) metrics: WorkerMetrics,
    pub(super) recorder: Recorder,
    pub(super) registry: Registry,
    pub(super) resolver: Resolver,
    /// Tunnels that others have made to the pods, those included that have not proved themselves.
    pub(super) accepted_tunnels: Cell<usize>,
    /// Accepted tunnels by their client's address, and those of them whose handshake is under way.
    pub(super) arrivals: Arrivals,
    pub(super) demands: Demands,
    pub(super) backend_contexts: BackendContexts,
    pub(super) retry_budgets: RetryBudgets,
    pub(super) clusters: Clusters,
    /// Copies of requests that are under way.
    pub(super) copies: Rc<Cell<usize>>,
    events: Outbox<PodEvent>,
    state: RefCell<Arc<NodeState>>,
    /// Opens when the next state is in force.
    superseded: RefCell<Rc<Latch>>,
    pods: RefCell<HashMap<Arc<str>, Rc<Pod>>>,
    random: Cell<u64>,
    /// Kept only where endpoints are chosen by it.
    loads: Option<Rc<EndpointLoads>>,
    /// Identities whose certificate has been asked for in this state.
    needed: RefCell<HashSet<Identity>>,
}

impl Node {
    /// Starts following the mailbox. Lives as long as the worker.
    pub fn start(worker: &Worker, parts: NodeParts, options: NodeOptions) -> Result<Rc<Self>, BoxError> {
        let seed = Instant::now();
        let workers = options.workers;
        let by_load = options.endpoint_choice == EndpointChoice::LeastLoaded;
        let node = Rc::new_cyclic(|node| Self {
            worker: worker.clone(),
            _books: Books::keep(worker, node.clone()),
            options,
            metrics: parts.metrics,
            recorder: parts.recorder,
            registry: Registry::default(),
            resolver: Resolver::default(),
            accepted_tunnels: Cell::new(0),
            arrivals: Arrivals::default(),
            demands: Demands::default(),
            backend_contexts: BackendContexts::default(),
            retry_budgets: RetryBudgets::new(workers),
            clusters: Clusters::new(workers),
            copies: Rc::default(),
            events: parts.events,
            state: RefCell::default(),
            superseded: RefCell::default(),
            pods: RefCell::default(),
            random: Cell::new(random_seed(seed, worker.index())),
            loads: by_load.then(Rc::default),
            needed: RefCell::default(),
        });
        worker.memory().set_max(node.options.memory_max);
        let following = node.clone();
        worker.follow(parts.mailbox, move |state| following.take(state))?;
        node.metrics.set(Gauge::ThreadId, thread_number());
        worker.spawn(node.clone().drain());
        Ok(node)
    }

    /// Waits for the worker's drain: takes no new connections, and cuts in time what does not end by itself.
    async fn drain(self: Rc<Self>) {
        self.worker.drain().wait().await;
        // From now on each listener holds the worker until it has closed; so far nobody may.
        let hold = self.worker.hold();
        for pod in self.pods.borrow().values() {
            pod.stop_listening();
            // Those that rest would hold the worker for as long as they may rest.
            pod.authorizers.clear();
        }
        // Without any time left the worker is about to end: the resets must be on their way before another turn.
        if !self.is_cutting() {
            self.worker.yield_now().await;
        }
        drop(hold);
        loop {
            let Some(deadline) = self.worker.drain_deadline() else { return };
            let now = Instant::now();
            if is_up(deadline, now) {
                return self.registry.cut_all();
            }
            let left = deadline.saturating_duration_since(now).saturating_sub(LAST_WORDS);
            // The deadline may be brought forward.
            monoio::time::sleep(left.min(TICK)).await;
        }
    }

    /// Whether the drain's time is so far up that what is left is cut.
    pub(super) fn is_cutting(&self) -> bool {
        self.worker.drain_deadline().is_some_and(|deadline| is_up(deadline, Instant::now()))
    }

    /// The state to decide from. Hold on to it for one decision, not for a connection's life.
    pub(super) fn state(&self) -> Arc<NodeState> {
        self.state.borrow().clone()
    }

    /// Opens when a state after the present one is in force.
    pub(super) fn superseded(&self) -> Rc<Latch> {
        self.superseded.borrow().clone()
    }

    /// A number for a choice that must be spread, not secret.
    pub(super) fn random(&self) -> u64 {
        // splitmix64: every step of the counter gives an independent looking number.
        let counter = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(counter);
        let mut mixed = counter;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// How to choose an endpoint for one connection.
    pub(super) fn chooser(&self) -> Chooser<'_> {
        let seed = self.random();
        self.loads.as_ref().map_or_else(|| Chooser::random(seed), |loads| loads.chooser(seed))
    }

    /// Counts a connection at the endpoint of its route, where that is asked for by the choice.
    pub(super) fn loaded(&self, route: &Route) -> Option<LoadGuard> {
        Some(self.loads.as_ref()?.enter(route.workload.as_ref()?))
    }

    /// Tells of the end of a pod when its last connection has been closed: until then its redirection is needed.
    fn tell_stopped(self: Rc<Self>, pod: Rc<Pod>) {
        self.worker.clone().spawn(async move {
            // Everything has been cut, so the wait is short; the bound is for what cannot be foreseen.
            drop(monoio::time::timeout(STOPPING_MAX, pod.stopped(&self.worker)).await);
            let (uid, worker) = (pod.local.uid.clone(), self.worker.index());
            self.tell(PodEvent::Stopped { uid, worker });
        });
    }

    pub(super) fn tell(&self, event: PodEvent) {
        // The control thread asks again with its next state; a worker never waits for it.
        if self.events.try_send(event).is_err() {
            tracing::warn!(
                worker = self.worker.index(),
                "a pod event was dropped: the control thread is behind"
            );
        }
    }

    /// The workload of a local pod, waited for while the control plane has not told of it yet.
    pub(super) async fn workload(&self, pod: &LocalPod) -> Option<(Arc<NodeState>, Arc<Workload>)> {
        let deadline = Instant::now() + self.options.workload_wait;
        loop {
            let superseded = self.superseded();
            let state = self.state();
            if let Some(workload) = workload_of(&state, pod) {
                return Some((state.clone(), workload));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            monoio::time::timeout(left, superseded.wait()).await.ok()?;
        }
    }

    /// The certificate of a local workload, waited for while it is being issued.
    pub(super) async fn contexts(&self, workload: &Workload) -> Option<Arc<TlsContexts>> {
        let deadline = Instant::now() + self.options.workload_wait;
        loop {
            let superseded = self.superseded.borrow().clone();
            if let Some(contexts) = contexts_of(&self.state(), workload) {
                return Some(contexts);
            }
            if self.needed.borrow_mut().insert(workload.identity.clone()) {
                self.tell(PodEvent::CertificateNeeded { identity: workload.identity.clone() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            monoio::time::timeout(left, superseded.wait()).await.ok()?;
        }
    }

    fn take(self: &Rc<Self>, state: Arc<NodeState>) {
        self.metrics.set_generation(state.snapshot.generation());
        let before = self.state.replace(state.clone());
        if !before.revocation.is_same(&state.revocation) {
            self.end_revoked(&state.revocation);
        }
        self.needed.borrow_mut().clear();
        self.sync_pods(&state);
        self.registry.enforce(&state);
        if !Arc::ptr_eq(before.snapshot.telemetry(), state.snapshot.telemetry()) {
            let role = self.options.role;
            self.registry.for_each(|connection| connection.note_telemetry(&state.snapshot, role));
        }
        self.sweep_metrics(&before.snapshot, &state.snapshot);
        self.demands.settle(&state.snapshot);
        self.superseded.take().open();
    }

    /// Forgets the series of workloads that have gone.
    fn sweep_metrics(&self, before: &Snapshot, now: &Snapshot) {
        let known = |workload: &Workload| now.workload_by_uid(&workload.uid).is_some();
        if before.workload_removals() == now.workload_removals() {
            self.metrics.sweep_new(known);
        } else {
            self.metrics.sweep(known);
        }
    }

    fn sync_pods(self: &Rc<Self>, state: &NodeState) {
        let worker = self.worker.index();
        let mut pods = self.pods.borrow_mut();
        pods.retain(|uid, pod| {
            // The same uid with another namespace is another pod that took its name.
            let stays = state.pods.get(uid).is_some_and(|local| local.network.is_same(&pod.local.network));
            if !stays {
                self.registry.cut_pod(uid);
                pod.stop();
                self.clone().tell_stopped(pod.clone());
            }
            stays
        });
        if self.worker.drain().is_open() {
            return;
        }
        for (uid, local) in state.pods.iter() {
            if pods.contains_key(uid) {
                continue;
            }
            match Pod::start(self, local) {
                Ok(pod) => {
                    pods.insert(uid.clone(), pod);
                    self.tell(PodEvent::Listening { uid: uid.clone(), worker });
                }
                Err(error) => {
                    let reason = error.to_string();
                    tracing::error!(pod = %uid, worker, %reason, "the pod's listeners cannot be opened");
                    self.tell(PodEvent::Failed { uid: uid.clone(), worker, reason });
                }
            }
        }
    }

    /// Tells the metrics how the worker is, and how `late` they are told.
    pub(super) fn note_health(&self, now: Instant, late: Duration) {
        let number = |amount: usize| u64::try_from(amount).unwrap_or(u64::MAX);
        self.metrics.heartbeat(now, late);
        let pods = self.pods.borrow();
        self.metrics
            .count_many(Counter::LinksConnected, pods.values().map(|pod| pod.pool.take_dialled()).sum());
        let links =
            pods.values().map(|pod| pod.pool.link_count()).sum::<usize>() + self.accepted_tunnels.get();
        self.metrics.set(Gauge::Links, number(links));
        self.metrics.set(Gauge::HeldBytes, number(self.worker.memory().held()));
        self.metrics.limit_hits(Limit::Memory, self.worker.memory().take_refused());
        self.metrics.limit_hits(Limit::Descriptors, take_exhaustions());
        self.metrics.set(Gauge::Connections, number(self.registry.len()));
        self.metrics.set(Gauge::SpareBufferBytes, number(self.worker.spare_buffers().bytes()));
        self.metrics.set(Gauge::SparePipes, number(self.worker.pipes().kept()));
    }

    /// Whether there is no room for one more connection; counted where it is asked.
    pub(super) fn is_full(&self) -> bool {
        let limit = if self.registry.len() + self.accepted_tunnels.get() >= self.options.connections_max {
            Limit::Connections
        } else if self.worker.memory().is_tight() {
            Limit::Memory
        } else {
            return false;
        };
        self.metrics.limit_hit(limit);
        true
    }

    pub(super) fn socket_options(&self) -> SocketOptions {
        SocketOptions {
            mark: self.options.packet_mark,
            congestion: self.options.congestion.clone(),
            keepalive: self.options.keepalive.clone(),
            user_timeout: self.options.user_timeout,
        }
    }

    pub(super) fn listen_options(&self, network: &NetworkNamespace) -> ListenOptions {
        let transparent = match (self.options.keeps_source_address, self.options.source_address_required) {
            (false, _) => Transparent::Off,
            (true, false) => Transparent::BestEffort,
            (true, true) => Transparent::Required,
        };
        ListenOptions {
            socket: self.socket_options(),
            transparent,
            namespace: Some(network.clone()),
            backlog: 0,
        }
    }

    pub(super) fn connect_options(&self, network: &NetworkNamespace) -> ConnectOptions {
        ConnectOptions {
            socket: self.socket_options(),
            namespace: Some(network.clone()),
            ..ConnectOptions::default()
        }
    }

    /// Whether one of the proxy's own ports, which no connection may be led to.
    pub(super) fn is_own_port(&self, port: u16) -> bool {
        let Ports { outbound, inbound_plaintext, inbound_hbone } = self.options.ports;
        [outbound, inbound_plaintext, inbound_hbone].contains(&port)
    }
}

/// Whether what is left of a drain with this deadline is to be cut.
fn is_up(deadline: Instant, now: Instant) -> bool {
    deadline.saturating_duration_since(now) <= LAST_WORDS
}

/// The workload that the control plane describes for a pod.
pub(super) fn workload_of(state: &NodeState, pod: &LocalPod) -> Option<Arc<Workload>> {
    state.snapshot.workload_by_name(&pod.namespace, &pod.name, Some(&*pod.service_account)).cloned()
}

/// The certificate of a workload, if it has been issued.
pub(super) fn contexts_of(state: &NodeState, workload: &Workload) -> Option<Arc<TlsContexts>> {
    state.credentials.get(&workload.identity).cloned()
}

/// The kernel's number of the calling thread.
fn thread_number() -> u64 {
    u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(0)
}

/// Differs between workers and starts. The hasher's keys come from the system's random source.
fn random_seed(now: Instant, worker: usize) -> u64 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one((now, worker))
}
