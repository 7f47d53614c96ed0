//! A running mesh: control plane, node proxies, pods, kept as the configuration says.
//!
//! One task owns everything that changes ([`Keeper`]); others see it through a [`Directory`] that is replaced as a
//! whole once a configuration is in force everywhere on this machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use model::Identity;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tunnel::h2;
use xds::control::plane::{ControlError, ControlPlane};
use xds::control::{ClusterView, ControlConfig, GatewayClassNames, NodeCredential, PodView, WaypointPods};
use xds::snapshot::Snapshot;
use xds::transport::discovery::{NodeIdentity, NodeKind};

use super::fabric::{Fabric, FabricError};
use super::service_proxy::VirtualPort;
use super::workload::{PodLabel, WorkloadError, Workloads};
use crate::access_log::Recorder;
use crate::admin::{self, AdminSite, Binding, MetricsSite, ReadinessSite};
use crate::capture::{self, Redirection};
use crate::config::Upstream;
use crate::control::{NodeConfig, NodeError, NodeProxy, PodError};
use crate::metrics::Metrics;
use crate::net::NetworkNamespace;
use crate::session::{
    DNS_PORT, DnsOptions, LocalPod, NodeOptions, Role, WAYPOINT_CONNECTION_WINDOW, WAYPOINT_STREAM_WINDOW,
    WAYPOINT_STREAMS_MAX,
};
use crate::worker::DriverChoice;

/// Node of the pods that name none, where the configuration holds no Node at all.
const DEFAULT_NODE: &str = "local";
/// Time for connections to end by themselves when the mesh ends.
const DRAIN: Duration = Duration::from_millis(500);

/// What a mesh is made of.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// The folder of YAML, watched.
    pub directory: PathBuf,
    /// A private folder for sockets, tokens and the root certificate.
    pub state_directory: PathBuf,
    /// Workers of each node proxy.
    pub workers: Option<usize>,
    pub driver: DriverChoice,
    /// The node proxies ask for workloads and services as connections need them.
    pub on_demand: bool,
}

/// Why there is no mesh.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error("the admin socket {path} cannot be made: {source}")]
    Admin { path: PathBuf, source: std::io::Error },
    #[error("the control plane has no token for node {0}")]
    Token(Arc<str>),
}

/// Why a waypoint does not run.
#[derive(Debug, thiserror::Error)]
enum WaypointError {
    #[error(transparent)]
    World(#[from] WorldError),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// The pods and Services as they are in force.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    pub view: Arc<ClusterView>,
    /// By `namespace/name`.
    pub pods: BTreeMap<String, PodPlace>,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct PodPlace {
    pub ips: Vec<IpAddr>,
    pub network: NetworkNamespace,
    /// Captured by its node proxy.
    pub enrolled: bool,
    pub node: Arc<str>,
}

/// A handle on the running mesh.
#[derive(Debug)]
pub struct World {
    directory: watch::Receiver<Arc<Directory>>,
    metrics: Vec<Rc<Metrics>>,
    ready: Vec<admin::Readiness>,
    quit: Vec<watch::Receiver<bool>>,
    driver: crate::worker::Driver,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// What is known of a pod that was made.
#[derive(Debug, Clone, PartialEq)]
struct Placed {
    view: PodView,
    serving: Vec<u16>,
    /// Under which node proxy and identity its traffic is captured.
    captured: Option<(Arc<str>, Identity)>,
}

/// Owns what changes.
struct Keeper {
    control: ControlPlane,
    config: WorldConfig,
    recorder: Recorder,
    nodes: BTreeMap<Arc<str>, NodeProxy>,
    /// By the uid of the pod that each is.
    waypoints: BTreeMap<Arc<str>, NodeProxy>,
    fabric: Fabric,
    workloads: Workloads,
    placed: BTreeMap<Arc<str>, Placed>,
    published: watch::Sender<Arc<Directory>>,
    sites: Vec<JoinHandle<()>>,
}

// === impl World ===

impl World {
    /// Brings everything up. When this returns, the first configuration is in force.
    pub async fn start(config: WorldConfig, recorder: &Recorder) -> Result<Self, WorldError> {
        let fabric = Fabric::new()?;
        let workloads = Workloads::start()?;
        let names = node_names(&config.directory);
        let control = ControlPlane::start(control_config(&config, &names)).await?;
        let mut nodes = BTreeMap::new();
        let mut sites = Vec::new();
        for name in &names {
            let proxy = NodeProxy::start(node_config(&config, &control, name)?, recorder.clone())?;
            sites.extend(open_sites(&proxy, &config.state_directory.join(&**name)).await?);
            nodes.insert(Arc::clone(name), proxy);
        }
        let (published, directory) = watch::channel(Arc::default());
        let (stop, stopped) = oneshot::channel();
        let metrics = nodes.values().map(NodeProxy::metrics).collect();
        let ready = nodes.values().map(NodeProxy::readiness).collect();
        let quit = nodes.values().map(NodeProxy::quit).collect();
        let driver = nodes.values().next().map_or(crate::worker::Driver::Epoll, NodeProxy::driver);
        let mut keeper = Keeper {
            control,
            config,
            recorder: recorder.clone(),
            nodes,
            waypoints: BTreeMap::new(),
            fabric,
            workloads,
            placed: BTreeMap::new(),
            published,
            sites,
        };
        let view = keeper.control.view().borrow_and_update().clone();
        keeper.apply(view).await;
        let keeper = tokio::task::spawn_local(keeper.run(stopped));
        Ok(Self { directory, metrics, ready, quit, driver, stop, keeper })
    }

    /// What is in force, with every change of it.
    pub fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.directory.clone()
    }

    pub fn metrics(&self) -> &[Rc<Metrics>] {
        &self.metrics
    }

    pub fn driver(&self) -> crate::worker::Driver {
        self.driver
    }

    /// What the node proxies still wait for; empty when all serve.
    pub fn pending(&self) -> Vec<String> {
        self.ready.iter().flat_map(admin::Readiness::tasks).collect()
    }

    /// Resolves when somebody asks for the end over an admin page.
    pub async fn quit(&self) {
        let waits = self.quit.iter().cloned().map(|mut quit| {
            Box::pin(async move {
                // A node proxy that is gone asks for nothing.
                if quit.wait_for(|quit| *quit).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        futures::future::select_all(waits).await;
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        // A keeper that has ended already needs no telling.
        let _ = self.stop.send(());
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the mesh did not end in order");
        }
    }
}

impl Directory {
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodPlace> {
        self.pods.get(&format!("{namespace}/{name}"))
    }
}

/// The nodes of the configuration: those that exist and those that pods name.
fn node_names(directory: &Path) -> Vec<Arc<str>> {
    let catalog = xds::kube::load_dir(directory).catalog;
    let mut names: Vec<Arc<str>> = catalog.nodes.keys().map(|node| Arc::clone(&node.name)).collect();
    names.extend(catalog.pods.values().map(|pod| Arc::clone(&pod.node_name)).filter(|name| !name.is_empty()));
    if names.is_empty() {
        names.push(Arc::from(DEFAULT_NODE));
    }
    names.sort();
    names.dedup();
    names
}

fn control_config(config: &WorldConfig, nodes: &[Arc<str>]) -> ControlConfig {
    let first = nodes.first().map_or_else(|| Arc::from(DEFAULT_NODE), Arc::clone);
    let mut control = ControlConfig::new(&config.directory, config.state_directory.join("control"), first);
    control.waypoints = WaypointPods::Made;
    control.gateway_class = gateway_class();
    control.nodes = nodes.iter().map(|node| NodeCredential { node: Arc::clone(node), token: None }).collect();
    control
}

fn node_config(
    config: &WorldConfig,
    control: &ControlPlane,
    node: &Arc<str>,
) -> Result<NodeConfig, WorldError> {
    let credentials = control.credentials(node).ok_or_else(|| WorldError::Token(Arc::clone(node)))?;
    let server = control.server();
    let upstream = Upstream { address: server.address.to_string(), server, credentials };
    Ok(NodeConfig {
        node: Arc::clone(node),
        discovery: Some(upstream.clone()),
        authority: upstream,
        identity: NodeIdentity { node_name: node.to_string(), ..NodeIdentity::default() },
        certificate_validity: xds::ca::VALIDITY,
        impersonates: true,
        workers: config.workers,
        driver: config.driver,
        options: NodeOptions { dns: Some(DnsOptions::default()), ..NodeOptions::default() },
        crypto: tunnel::tls::CryptoPolicy::default(),
        crl_file: None,
        layer_7: true,
        on_demand: config.on_demand,
        sources: xds::transport::discovery::StateSources::default(),
        shown: serde_json::Value::Null,
    })
}

/// As istiod is told, where it is.
fn gateway_class() -> GatewayClassNames {
    let set = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty()).map(Arc::from);
    let GatewayClassNames { name, controller } = GatewayClassNames::default();
    GatewayClassNames {
        name: set("PILOT_GATEWAY_API_DEFAULT_GATEWAYCLASS_NAME").unwrap_or(name),
        controller: set("PILOT_GATEWAY_API_CONTROLLER_NAME").unwrap_or(controller),
    }
}

/// As for the node that the pod runs on, whose token it has; but it serves the one pod.
fn waypoint_config(
    config: &WorldConfig,
    control: &ControlPlane,
    pod: &PodView,
) -> Result<NodeConfig, WorldError> {
    let node = node_config(config, control, &pod.node)?;
    let identity = NodeIdentity {
        kind: NodeKind::Waypoint,
        instance_ip: pod.ips.first().copied(),
        pod_name: pod.name.to_string(),
        pod_namespace: pod.namespace.to_string(),
        ..node.identity
    };
    let window = |http: h2::Config| h2::Config {
        initial_stream_window: WAYPOINT_STREAM_WINDOW,
        connection_window: WAYPOINT_CONNECTION_WINDOW,
        ..http
    };
    let options = NodeOptions {
        role: Role::Waypoint,
        packet_mark: None,
        keeps_source_address: false,
        http_client: window(h2::Config::hbone_client()),
        http_server: window(h2::Config {
            max_concurrent_streams: WAYPOINT_STREAMS_MAX,
            ..h2::Config::hbone_server()
        }),
        ..NodeOptions::default()
    };
    Ok(NodeConfig { identity, options, on_demand: false, ..node })
}

/// The three sites of a proxy, as socket files of a folder.
async fn open_sites(proxy: &NodeProxy, folder: &Path) -> Result<Vec<JoinHandle<()>>, WorldError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WorldError::Admin { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let [admin_path, metrics_path, ready_path] =
        ["admin.sock", "metrics.sock", "ready.sock"].map(|name| folder.join(name));
    let admin_site = Rc::new(AdminSite::new(Rc::new(proxy.inspect())));
    let (_, admin_task) =
        admin::serve(&Binding::Unix(admin_path.clone()), admin_site).await.map_err(failed(&admin_path))?;
    let metrics_site = Rc::new(MetricsSite::new(proxy.metrics()));
    let (_, metrics_task) = admin::serve(&Binding::Unix(metrics_path.clone()), metrics_site)
        .await
        .map_err(failed(&metrics_path))?;
    let ready_site = Rc::new(ReadinessSite::new(proxy.readiness()));
    let (_, ready_task) =
        admin::serve(&Binding::Unix(ready_path.clone()), ready_site).await.map_err(failed(&ready_path))?;
    Ok(vec![admin_task, metrics_task, ready_task])
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut views = self.control.view();
        let mut snapshots = self.nodes.values().next().map(NodeProxy::snapshots);
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                changed = views.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let view = views.borrow_and_update().clone();
                    self.apply(view).await;
                }
                Some(snapshot) = next_snapshot(&mut snapshots) => self.lead_services(&snapshot),
            }
        }
        self.end().await;
    }

    async fn end(self) {
        for site in &self.sites {
            site.abort();
        }
        let deadline = Instant::now() + DRAIN;
        let proxies = self.waypoints.into_values().chain(self.nodes.into_values());
        join_all(proxies.map(|proxy| proxy.drain(deadline))).await;
        self.control.shutdown().await;
    }

    /// Makes this machine what the view says. What cannot be done is logged; the rest is done.
    async fn apply(&mut self, view: Arc<ClusterView>) {
        let wanted: BTreeMap<Arc<str>, &PodView> =
            view.pods.values().filter(|pod| runs_here(pod)).map(|pod| (Arc::clone(&pod.uid), pod)).collect();
        let mut leaving = Vec::new();
        for (uid, placed) in &self.placed {
            let stays = wanted.get(uid).is_some_and(|pod| self.capture_of(pod) == placed.captured);
            let same_place = wanted.get(uid).is_some_and(|pod| pod.ips == placed.view.ips);
            if placed.captured.is_some() && !(stays && same_place) {
                leaving.push(Arc::clone(uid));
            }
        }
        join_all(leaving.iter().map(|uid| self.release(uid))).await;
        for uid in leaving {
            if let Some(placed) = self.placed.get_mut(&uid) {
                placed.captured = None;
            }
        }
        let gone: Vec<_> = self.placed.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in gone {
            if let Some(waypoint) = self.waypoints.remove(&uid) {
                waypoint.drain(Instant::now() + DRAIN).await;
            }
            self.remove(&uid);
        }
        for pod in wanted.values() {
            self.place(pod);
        }
        for pod in wanted.values().filter(|pod| pod.waypoint.is_some()) {
            if let Err(error) = self.run_waypoint(pod).await {
                tracing::error!(pod = %pod.uid, %error, "the waypoint does not run");
            }
        }
        let joining: Vec<_> = wanted
            .values()
            .filter(|pod| self.placed.get(&pod.uid).is_some_and(|placed| placed.captured.is_none()))
            .filter_map(|pod| Some((*pod, self.capture_of(pod)?)))
            .collect();
        let joined = join_all(joining.into_iter().map(|(pod, capture)| self.take_in(pod, capture))).await;
        for (uid, capture) in joined.into_iter().flatten() {
            if let Some(placed) = self.placed.get_mut(&uid) {
                placed.captured = Some(capture);
            }
        }
        self.publish(&view);
    }

    /// Which node proxy captures the pod under which identity, if any shall.
    fn capture_of(&self, pod: &PodView) -> Option<(Arc<str>, Identity)> {
        (pod.enrolled && self.nodes.contains_key(&pod.node))
            .then(|| (Arc::clone(&pod.node), pod.identity.clone()))
    }

    /// Makes the pod's network and has its ports served.
    fn place(&mut self, pod: &PodView) {
        if pod.enrolled && !self.nodes.contains_key(&pod.node) {
            tracing::error!(pod = %pod.uid, node = %pod.node, "no proxy runs for this new node; restart the mesh");
        }
        // A waypoint listens for itself.
        let ports = if pod.waypoint.is_some() { Vec::new() } else { pod.tcp_ports() };
        let known = self.placed.get(&pod.uid);
        if known.is_some_and(|placed| placed.view.ips == pod.ips && placed.serving == ports) {
            if let Some(placed) = self.placed.get_mut(&pod.uid) {
                placed.view = pod.clone();
            }
            return;
        }
        let made = self.fabric.add_pod(&pod.uid, &pod.ips).map(|network| network.namespace.clone());
        let namespace = match made {
            Ok(namespace) => namespace,
            Err(error) => {
                tracing::error!(pod = %pod.uid, %error, "the pod has no network");
                return;
            }
        };
        let label = PodLabel {
            namespace: Arc::clone(&pod.namespace),
            pod: Arc::clone(&pod.name),
            node: Arc::clone(&pod.node),
        };
        if let Err(error) = self.workloads.serve(&pod.uid, label, &namespace, &ports) {
            tracing::error!(pod = %pod.uid, %error, "the pod does not serve");
        }
        let captured = known.and_then(|placed| placed.captured.clone());
        self.placed.insert(Arc::clone(&pod.uid), Placed { view: pod.clone(), serving: ports, captured });
    }

    /// Starts the waypoint that a pod is, unless it runs.
    async fn run_waypoint(&mut self, pod: &PodView) -> Result<(), WaypointError> {
        let Some(network) = self.fabric.pod(&pod.uid).map(|pod| pod.namespace.clone()) else { return Ok(()) };
        if self.waypoints.contains_key(&pod.uid) {
            return Ok(());
        }
        let config = waypoint_config(&self.config, &self.control, pod)?;
        let proxy = NodeProxy::start(config, self.recorder.clone()).map_err(WorldError::from)?;
        let folder = format!("{}.{}", pod.name, pod.namespace);
        self.sites.extend(open_sites(&proxy, &self.config.state_directory.join(folder)).await?);
        let local = LocalPod {
            uid: Arc::clone(&pod.uid),
            name: Arc::clone(&pod.name),
            namespace: Arc::clone(&pod.namespace),
            service_account: Arc::clone(&pod.service_account),
            network,
        };
        proxy.add_pod(local).await?;
        tracing::info!(pod = %pod.uid, node = %pod.node, "a waypoint runs");
        self.waypoints.insert(Arc::clone(&pod.uid), proxy);
        Ok(())
    }

    fn remove(&mut self, uid: &Arc<str>) {
        self.placed.remove(uid);
        if let Err(error) = self.workloads.stop(uid) {
            tracing::error!(pod = %uid, %error, "the pod's server does not end");
        }
        if let Err(error) = self.fabric.remove_pod(uid) {
            tracing::error!(pod = %uid, %error, "the pod's link cannot be taken away");
        }
    }

    /// Has the pod's node proxy listen for it, then redirects its traffic there. What was done, if it succeeded.
    async fn take_in(
        &self,
        pod: &PodView,
        capture: (Arc<str>, Identity),
    ) -> Option<(Arc<str>, (Arc<str>, Identity))> {
        let network = self.fabric.pod(&pod.uid)?.namespace.clone();
        let (node, _) = &capture;
        let local = LocalPod {
            uid: Arc::clone(&pod.uid),
            name: Arc::clone(&pod.name),
            namespace: Arc::clone(&pod.namespace),
            service_account: Arc::clone(&pod.service_account),
            network: network.clone(),
        };
        let proxy = self.nodes.get(node)?;
        let _pending = proxy.readiness().pending("pods");
        if let Err(error) = proxy.add_pod(local).await {
            tracing::error!(pod = %pod.uid, %error, "the pod is not taken in");
            return None;
        }
        let redirection = Redirection { dns_port: Some(DNS_PORT), ..Redirection::default() };
        match capture::enroll(&network, &redirection) {
            Ok(()) => {
                tracing::info!(pod = %pod.uid, %node, "in the mesh");
                Some((Arc::clone(&pod.uid), capture))
            }
            Err(error) => {
                tracing::error!(pod = %pod.uid, %error, "the pod's traffic cannot be redirected");
                None
            }
        }
    }

    /// Ends the redirection of new connections, has the node proxy let go of the pod, and ends it for good.
    async fn release(&self, uid: &Arc<str>) {
        let Some(placed) = self.placed.get(uid) else { return };
        let Some((node, _)) = &placed.captured else { return };
        let redirected = |result: Result<(), capture::ToolError>| {
            if let Err(error) = result {
                tracing::error!(pod = %uid, %error, "the pod's traffic is still redirected");
            }
        };
        let network = self.fabric.pod(uid).map(|pod| pod.namespace.clone());
        if let Some(network) = &network {
            redirected(capture::stop(network));
        }
        if let Some(proxy) = self.nodes.get(node)
            && let Err(error) = proxy.remove_pod(uid).await
        {
            tracing::error!(pod = %uid, %error, "the node proxy holds on to the pod");
        }
        if let Some(network) = &network {
            redirected(capture::leave(network));
        }
        tracing::info!(pod = %uid, %node, "out of the mesh");
    }

    fn lead_services(&mut self, snapshot: &Snapshot) {
        if let Err(error) = self.fabric.set_virtual_ports(virtual_ports(snapshot)) {
            tracing::error!(%error, "pods outside the mesh do not reach Services");
        }
    }

    fn publish(&self, view: &Arc<ClusterView>) {
        let pods = self.placed.values().filter_map(|placed| {
            let pod = &placed.view;
            let network = self.fabric.pod(&pod.uid)?.namespace.clone();
            let place = PodPlace {
                ips: pod.ips.clone(),
                network,
                enrolled: placed.captured.is_some(),
                node: Arc::clone(&pod.node),
            };
            Some((format!("{}/{}", pod.namespace, pod.name), place))
        });
        self.published.send_replace(Arc::new(Directory { view: Arc::clone(view), pods: pods.collect() }));
    }
}

async fn next_snapshot(snapshots: &mut Option<watch::Receiver<Arc<Snapshot>>>) -> Option<Arc<Snapshot>> {
    let receiver = snapshots.as_mut()?;
    if receiver.changed().await.is_err() {
        // The node proxy has ended: nothing more will come.
        *snapshots = None;
        return None;
    }
    Some(Arc::clone(&receiver.borrow_and_update()))
}

/// Pods of the host's network have no namespace to be made, and a pod without address cannot be reached.
fn runs_here(pod: &PodView) -> bool {
    !pod.host_network && !pod.ips.is_empty()
}

/// Each port of each Service's virtual addresses with where it leads.
fn virtual_ports(snapshot: &Snapshot) -> Vec<VirtualPort> {
    let mut ports = Vec::new();
    for entry in snapshot.services() {
        for vip in entry.service.vips.iter().filter(|vip| vip.is_single()) {
            for port in &entry.service.ports {
                let endpoints =
                    entry.endpoints.iter().filter(|it| it.workload.health == model::Health::Healthy);
                let endpoints = endpoints.flat_map(|endpoint| {
                    let own = endpoint.ports.iter().find(|it| it.service_port == port.service_port);
                    let target = own.map_or(port.target_port, |it| it.target_port);
                    endpoint.workload.addresses.iter().map(move |ip| SocketAddr::new(*ip, target))
                });
                let mut endpoints: Vec<_> = endpoints.filter(|endpoint| endpoint.port() != 0).collect();
                endpoints.sort_unstable();
                let address = SocketAddr::new(vip.ip, port.service_port);
                ports.push(VirtualPort { address, endpoints });
            }
        }
    }
    ports.sort();
    ports.dedup_by_key(|port| port.address);
    ports
}
