//! One node proxy: its workers, its connection to the control plane, its pods.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Receiver;
use model::{Identity, TunnelProtocol, Workload};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tunnel::tls::{CryptoPolicy, RevocationLists};
use xds::ca::{self, CaConfig};
use xds::delta::{End, Subscription};
use xds::local::LocalState;
use xds::proto::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, CLUSTER_TYPE, HTTP_ROUTE_TYPE,
    LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE, MESH_WIDE_TYPE, REQUEST_AUTHENTICATION_TYPE, TELEMETRY_TYPE,
    TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE, WORKLOAD_LABELS_TYPE, WORKLOAD_TYPE,
};
use xds::publish::Publisher;
use xds::snapshot::Snapshot;
use xds::transport::discovery::{self, DemandAnswer, DiscoveryConfig, NodeIdentity, StateSources};

use super::certificates::{COMMANDS_WAITING_MAX, Certificates, rfc3339};
use super::name_servers::{self, NameServers};
use super::pods::{PodBook, PodError, WORKERS_PATIENCE};
use super::problems::Problems;
use super::revocation::{POLL, RevocationFile, RevocationFileError};
use super::workers;
use crate::access_log::Recorder;
use crate::admin::{Pending, Readiness};
use crate::config::Upstream;
use crate::metrics::{ControlCounter, Metrics, TerminationReason, metrics};
use crate::session::{Demander, LocalPod, NodeOptions, NodeState, PodEvent, Role};
use crate::worker::{DriverChoice, StartError, Supervisor, WorkerHandle, outbox};
use crate::zds::Pods;

/// How often the workers' events are taken and old states are freed.
const HOUSEKEEPING: Duration = Duration::from_millis(10);
/// How often they are taken while somebody waits for them: a node agent names its pods one after the other.
const EVENTS_POLL: Duration = Duration::from_millis(1);
/// Pod events that may wait for the control thread.
const EVENTS_WAITING_MAX: usize = 65_536;
/// How often it is said that the control plane has not described the mesh yet.
const SYNC_NOTICE: Duration = Duration::from_mins(1);

/// What a node proxy is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub node: Arc<str>,
    /// The control plane; `None` where there is none to be asked.
    pub discovery: Option<Upstream>,
    pub authority: Upstream,
    /// How it names itself to the control plane.
    pub identity: NodeIdentity,
    /// Validity that certificates are asked for.
    pub certificate_validity: Duration,
    /// Asks for the certificates of its pods as their node's proxy, not as the one workload that it serves.
    pub impersonates: bool,
    /// Number of workers; `None` is one for each CPU.
    pub workers: Option<usize>,
    pub driver: DriverChoice,
    pub options: NodeOptions,
    pub crypto: CryptoPolicy,
    /// Certificates that count no more, as a file of revocation lists in PEM. Followed as it changes; what cannot be read
    /// leaves the last good lists in force.
    pub crl_file: Option<PathBuf>,
    /// Also takes the types that only our own control plane serves: routes and request policies for the node.
    pub layer_7: bool,
    /// Workloads and services are asked for as connections need them, instead of all being held.
    pub on_demand: bool,
    /// Where state comes from besides the control plane.
    pub sources: StateSources,
    /// What the admin page shows as `config`.
    pub shown: Value,
}

/// Why a node proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("a mailbox for a worker cannot be made: {0}")]
    Mailbox(#[source] io::Error),
    #[error(transparent)]
    Workers(#[from] StartError),
}

/// A running node proxy. Dropping it leaves its workers to themselves; end it with [`NodeProxy::drain`].
#[derive(Debug)]
pub struct NodeProxy {
    pub(super) shared: Rc<Shared>,
    supervisor: Supervisor,
    tasks: Tasks,
}

/// What the tasks of the control thread have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: Arc<str>,
    pub(super) options: NodeOptions,
    pub(super) workers: Vec<WorkerHandle>,
    pub(super) metrics: Rc<Metrics>,
    pub(super) readiness: Readiness,
    pub(super) book: RefCell<PodBook>,
    pub(super) certificates: RefCell<Certificates>,
    name_servers: RefCell<NameServers>,
    /// What the workers tell of pods.
    told: Receiver<PodEvent>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    publisher: RefCell<Publisher<NodeState>>,
    /// Rises with everything that somebody may wait for.
    progress: watch::Sender<u64>,
    /// Each wildcard type has been received once.
    is_synced: Cell<bool>,
    /// What the admin page shows as `config`.
    pub(super) shown: Value,
    /// The mesh as local state alone describes it.
    pub(super) written: Arc<Snapshot>,
    pub(super) quit: watch::Sender<bool>,
}

#[derive(Debug)]
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

// === impl NodeProxy ===

impl NodeProxy {
    /// Starts the workers and connects to the control plane. Must be called inside a `LocalSet`.
    pub fn start(mut config: NodeConfig, recorder: Recorder) -> Result<Self, NodeError> {
        let (demander, demands) = Demander::new();
        config.options.demander = config.on_demand.then_some(demander);
        let (worker_metrics, metrics) = metrics(workers::count(config.workers));
        let (events, told) = outbox(EVENTS_WAITING_MAX);
        let mut publisher = Publisher::new();
        let supervisor = workers::start(workers::Parts {
            driver: config.driver,
            options: config.options.clone(),
            metrics: worker_metrics,
            recorder,
            events,
            publisher: &mut publisher,
        })?;
        let (commands, orders) = mpsc::channel(COMMANDS_WAITING_MAX);
        let readiness = Readiness::default();
        let shared = Rc::new(Shared {
            node: Arc::clone(&config.node),
            options: config.options.clone(),
            workers: supervisor.handles().to_vec(),
            metrics: Rc::new(metrics),
            book: RefCell::new(PodBook::new(supervisor.handles().len())),
            certificates: RefCell::new(Certificates::new(commands, config.crypto)),
            name_servers: RefCell::new(NameServers::new(config.options.resolv_conf.clone())),
            told,
            snapshots: watch::Sender::new(Arc::default()),
            publisher: RefCell::new(publisher),
            progress: watch::Sender::new(0),
            // What nobody will describe need not be waited for.
            is_synced: Cell::new(false),
            shown: config.shown.clone(),
            written: config.sources.local.as_deref().map(LocalState::snapshot).unwrap_or_default(),
            quit: watch::Sender::new(false),
            readiness: readiness.clone(),
        });
        let state_pending = readiness.pending("state manager");
        let mut tasks = vec![
            tokio::task::spawn_local(Shared::follow_certificates(
                Rc::clone(&shared),
                ca_config(&config),
                orders,
            )),
            tokio::task::spawn_local(Shared::keep_house(Rc::clone(&shared))),
            tokio::task::spawn_local(Shared::follow_name_servers(Rc::clone(&shared))),
        ];
        let discovery = discovery_config(&config);
        let sources = config.sources.clone();
        let following =
            Shared::follow_discovery(Rc::clone(&shared), discovery, sources, demands, state_pending);
        tasks.push(tokio::task::spawn_local(following));
        if let Some(path) = config.crl_file {
            let mut file = RevocationFile::new(path);
            // In force before the first certificate is there to make a handshake with.
            shared.take_revocation(file.look());
            tasks.push(tokio::task::spawn_local(Shared::follow_revocation(Rc::clone(&shared), file)));
        }
        Ok(Self { shared, supervisor, tasks: Tasks(tasks) })
    }

    pub fn node(&self) -> &Arc<str> {
        &self.shared.node
    }

    pub fn metrics(&self) -> Rc<Metrics> {
        Rc::clone(&self.shared.metrics)
    }

    pub fn readiness(&self) -> Readiness {
        self.shared.readiness.clone()
    }

    /// The mesh as this node proxy sees it, with every change.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshots.subscribe()
    }

    /// Turns true when somebody asked for the end over the admin page.
    pub fn quit(&self) -> watch::Receiver<bool> {
        self.shared.quit.subscribe()
    }

    pub fn driver(&self) -> crate::worker::Driver {
        self.supervisor.driver()
    }

    /// Waits until the mesh is known: each wildcard type has been received once.
    pub async fn synced(&self) {
        let is_synced = || self.shared.is_synced.get().then_some(());
        while self.shared.until(SYNC_NOTICE, is_synced).await.is_none() {
            tracing::warn!(node = %self.shared.node, "still waiting for the control plane to describe the mesh");
        }
    }

    /// Takes a pod in: when this returns, every worker listens for it, so its traffic may be redirected. Its
    /// certificate follows from its workload; connections wait for it for a while.
    pub async fn add_pod(&self, pod: LocalPod) -> Result<(), PodError> {
        let shared = &self.shared;
        let uid = Arc::clone(&pod.uid);
        shared.book.borrow_mut().insert(pod);
        shared.publish();
        let listening = shared.until_told(|| shared.book.borrow().is_listening(&uid)).await;
        listening.unwrap_or(Err(PodError::TimedOut { uid }))
    }

    /// Lets a pod go: when this returns, no worker listens for it any more. Its traffic must not be redirected then.
    pub async fn remove_pod(&self, uid: &Arc<str>) -> Result<(), PodError> {
        let shared = &self.shared;
        if !shared.book.borrow_mut().remove(uid) {
            return Ok(());
        }
        shared.publish();
        let left = || shared.book.borrow().has_left(uid).then_some(());
        shared.until_told(left).await.ok_or_else(|| PodError::TimedOut { uid: Arc::clone(uid) })
    }

    /// Ends in order: no new connections, tunnels end politely, what is left at `deadline` is cut.
    pub async fn drain(self, deadline: Instant) {
        let Self { shared, supervisor, tasks } = self;
        supervisor.drain(deadline);
        // Joining blocks; the control thread goes on meanwhile and takes the last records of the log.
        drop(tokio::task::spawn_blocking(move || supervisor.join()).await);
        drop(tasks);
        drop(shared);
    }
}

impl Pods for NodeProxy {
    async fn add(&self, pod: LocalPod) -> Result<(), PodError> {
        self.add_pod(pod).await
    }

    async fn remove(&self, uid: &Arc<str>) -> Result<(), PodError> {
        self.remove_pod(uid).await
    }

    fn count(&self, counter: ControlCounter) {
        self.shared.metrics.count(counter);
    }
}

fn discovery_config(config: &NodeConfig) -> Option<DiscoveryConfig> {
    let Upstream { server, credentials, .. } = config.discovery.clone()?;
    Some(DiscoveryConfig {
        server,
        credentials,
        node: config.identity.node(),
        // Whoever else runs on its node is nothing to a waypoint.
        local_node: match config.options.role {
            Role::NodeProxy => Arc::clone(&config.node),
            Role::Waypoint => Arc::from(""),
        },
        subscriptions: subscriptions(config),
        sources: config.sources.clone(),
    })
}

/// What is asked of the control plane. Ours tells of requests in types of its own; another one tells a waypoint all by
/// Envoy's resources, of which the clusters come first, and by the workloads that they lead to.
fn subscriptions(config: &NodeConfig) -> Vec<Subscription> {
    let of_role = match config.options.role {
        Role::NodeProxy => AUTHORIZATION_TYPE,
        Role::Waypoint if config.layer_7 => WAYPOINT_POLICIES_TYPE,
        Role::Waypoint => {
            return vec![
                Subscription::wildcard(CLUSTER_TYPE),
                Subscription::followed(LOAD_ASSIGNMENT_TYPE),
                Subscription::wildcard(LISTENER_TYPE),
                Subscription::wildcard(WORKLOAD_TYPE),
            ];
        }
    };
    let own = [
        HTTP_ROUTE_TYPE,
        AUTHORIZATION_POLICY_TYPE,
        REQUEST_AUTHENTICATION_TYPE,
        TRAFFIC_POLICY_TYPE,
        WORKLOAD_LABELS_TYPE,
        MESH_WIDE_TYPE,
        TELEMETRY_TYPE,
    ];
    let own = own.into_iter().filter(|_| config.layer_7);
    let types = [ADDRESS_TYPE, of_role].into_iter().chain(own);
    let subscription = |type_url| match type_url {
        ADDRESS_TYPE if config.on_demand => Subscription::on_demand(type_url),
        _ => Subscription::wildcard(type_url),
    };
    types.map(subscription).collect()
}

fn ca_config(config: &NodeConfig) -> CaConfig {
    CaConfig {
        server: config.authority.server.clone(),
        credentials: config.authority.credentials.clone(),
        validity: config.certificate_validity,
        impersonate: config.impersonates,
    }
}

// === impl Shared ===

impl Shared {
    /// Hands the present state to the workers, and has the certificates follow it.
    fn publish(&self) {
        self.certificates.borrow_mut().follow(self.local_identities());
        let state = NodeState {
            snapshot: self.snapshot(),
            credentials: self.certificates.borrow().contexts(),
            revocation: self.certificates.borrow().revocation(),
            pods: self.book.borrow().pods(),
            resolv_conf: self.name_servers.borrow().conf(),
        };
        self.metrics.follow(state.snapshot.telemetry());
        self.publisher.borrow_mut().publish(Arc::new(state));
        self.advance();
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Those of the workloads that the control plane places on this node and that take part in mTLS, and of the pods
    /// that are served here.
    fn local_identities(&self) -> BTreeSet<Identity> {
        let snapshot = self.snapshot();
        let is_in_mesh =
            |workload: &Workload| workload.tunnel_protocol == TunnelProtocol::Hbone || workload.native_tunnel;
        let placed = snapshot.local_workloads().filter(|workload| is_in_mesh(workload));
        let pods = self.book.borrow().pods();
        let served = pods.values().filter_map(|pod| {
            snapshot.workload_by_name(&pod.namespace, &pod.name, Some(&*pod.service_account))
        });
        placed.chain(served).map(|workload| workload.identity.clone()).collect()
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// The value of `condition` once it has one, asked anew with every progress.
    async fn until<T>(&self, patience: Duration, condition: impl Fn() -> Option<T>) -> Option<T> {
        let mut progress = self.progress.subscribe();
        let waiting = async {
            loop {
                if let Some(value) = condition() {
                    return Some(value);
                }
                // The sender lives in `self`.
                progress.changed().await.ok()?;
            }
        };
        tokio::time::timeout(patience, waiting).await.ok().flatten()
    }

    /// As [`Shared::until`], for what the workers tell.
    async fn until_told<T>(&self, condition: impl Fn() -> Option<T>) -> Option<T> {
        let polling = async {
            loop {
                tokio::time::sleep(EVENTS_POLL).await;
                self.take_events();
            }
        };
        tokio::select! {
            value = self.until(WORKERS_PATIENCE, condition) => value,
            () = polling => None,
        }
    }

    /// Tells what is to be known of a state that is not all that it should be.
    fn note_defects(&self, snapshot: &Snapshot, problems: &mut Problems) {
        let stale = snapshot.stale_since();
        self.metrics.count(ControlCounter::StateStale(stale.is_some()));
        self.readiness.with_reservation(stale.map(|since| {
            format!("with the state of {}: the control plane has not answered", rfc3339(since))
        }));
        let count = problems.follow(&self.node, snapshot);
        self.metrics.count(ControlCounter::WaypointProblems(count));
    }

    async fn follow_discovery(
        self: Rc<Self>,
        config: Option<DiscoveryConfig>,
        sources: StateSources,
        demands: mpsc::Receiver<String>,
        pending: Pending,
    ) {
        let mut pending = Some(pending);
        let mut failing = false;
        let mut problems = Problems::default();
        let hear = |event| match event {
            discovery::Event::Snapshot { snapshot, ready } => {
                self.note_defects(&snapshot, &mut problems);
                self.snapshots.send_replace(snapshot);
                self.publish();
                if ready && pending.take().is_some() {
                    self.is_synced.set(true);
                    self.advance();
                }
            }
            discovery::Event::Rejected { type_url, reason } => {
                tracing::error!(node = %self.node, type_url, reason, "the control plane sent what cannot be used");
            }
            discovery::Event::StateLoaded { written, resources } => {
                let written = rfc3339(written);
                tracing::warn!(
                    node = %self.node, written, resources,
                    "the state on disk is in force until the control plane answers"
                );
            }
            discovery::Event::StateRefused { reason } => {
                tracing::error!(node = %self.node, reason, "there is no state on disk to start from");
            }
            discovery::Event::StateNotKept { reason } => {
                tracing::error!(node = %self.node, reason, "the state cannot be kept on disk");
            }
            discovery::Event::Connected => {
                tracing::info!(node = %self.node, "connected to the control plane");
                failing = false;
            }
            discovery::Event::Disconnected { end, reason } => {
                let termination = match end {
                    End::ConnectFailed => TerminationReason::ConnectionError,
                    End::Clean => TerminationReason::Complete,
                    End::Status { .. } if end.is_routine() => TerminationReason::Reconnect,
                    End::Status { .. } => TerminationReason::Error,
                };
                self.metrics.count(ControlCounter::XdsTermination(termination));
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(node = %self.node, reason, "no connection to the control plane; what is known stays");
                }
            }
            discovery::Event::Message { type_url, bytes } => {
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                self.metrics.count(ControlCounter::XdsMessage { type_url, bytes });
            }
            discovery::Event::Demanded { key, answer: DemandAnswer::Refused } => {
                tracing::warn!(node = %self.node, key, "not asked for: too much is asked for on demand already");
            }
            discovery::Event::Demanded { .. } => {}
        };
        match config {
            Some(config) => drop(discovery::run(config, demands, hear).await),
            None => drop(discovery::run_without(sources, Arc::clone(&self.node), hear).await),
        }
    }

    async fn follow_certificates(self: Rc<Self>, config: CaConfig, orders: mpsc::Receiver<ca::Command>) {
        ca::run(config, orders, |event| match event {
            ca::Event::Issued(bundle) => {
                let identity = bundle.identity.clone();
                let issued = self.certificates.borrow_mut().issued(bundle);
                match issued {
                    Ok(()) => tracing::debug!(node = %self.node, %identity, "certificate issued"),
                    Err(reason) => {
                        tracing::error!(node = %self.node, %identity, reason, "the certificate cannot be used");
                    }
                }
                self.publish();
            }
            ca::Event::Failed { identity, error } => {
                tracing::warn!(node = %self.node, %identity, %error, "no certificate was issued");
                self.certificates.borrow_mut().failed(&identity, error.to_string());
            }
        })
        .await;
    }

    async fn follow_revocation(self: Rc<Self>, mut file: RevocationFile) {
        loop {
            tokio::time::sleep(POLL).await;
            // Reading and parsing block.
            let looked = tokio::task::spawn_blocking(move || {
                let found = file.look();
                (file, found)
            });
            let Ok((again, found)) = looked.await else { return };
            file = again;
            self.take_revocation(found);
        }
    }

    fn take_revocation(&self, found: Option<Result<RevocationLists, RevocationFileError>>) {
        match found {
            None => {}
            Some(Ok(lists)) => {
                tracing::info!(node = %self.node, lists = lists.len(), "revocation lists are in force");
                self.certificates.borrow_mut().revoke(lists);
                self.publish();
            }
            Some(Err(error)) => {
                tracing::error!(node = %self.node, %error, "the revocation lists that were in force stay so");
            }
        }
    }

    async fn follow_name_servers(self: Rc<Self>) {
        loop {
            tokio::time::sleep(name_servers::LOOK_EVERY).await;
            let changed = self.name_servers.borrow_mut().look();
            if changed {
                self.publish();
            }
        }
    }

    /// Takes in what the workers have told.
    fn take_events(&self) {
        let mut any = false;
        for event in self.told.try_iter().take(EVENTS_WAITING_MAX) {
            if let PodEvent::CertificateNeeded { identity } = &event {
                self.certificates.borrow_mut().need(identity);
            }
            self.book.borrow_mut().note(event);
            any = true;
        }
        if any {
            self.advance();
        }
    }

    async fn keep_house(self: Rc<Self>) {
        let mut tick = tokio::time::interval(HOUSEKEEPING);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.take_events();
            self.publisher.borrow_mut().reclaim();
            self.metrics.update();
            let expired = self.certificates.borrow_mut().expire(SystemTime::now());
            if expired {
                self.publish();
            }
        }
    }
}
