//! The discovery and certificate clients against the embedded control plane, over real TLS and gRPC.

// A test that cannot go on panics; that is how it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{Identity, NamespacedHostname};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use xds::ca::{self, CaConfig, CaError, Command, Priority};
use xds::control::config::{ControlConfig, ListenAddress, NodeCredential, RootSource};
use xds::control::plane::{ControlPlane, SERVER_NAME};
use xds::delta::Subscription;
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE};
use xds::snapshot::{Client, RouteKind, Snapshot, Transport};
use xds::transport::discovery::{self, DemandAnswer, DiscoveryConfig, Event, NodeIdentity};
use xds::transport::{Credentials, Roots, Server, Token};

/// Of the example: the node of the client pod and of version 1.
const NODE: &str = "node-a";
/// For any one thing to happen; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A copy of the example folder and a place for the control plane's state.
struct Folder {
    yaml: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let (yaml, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello-world");
        for entry in std::fs::read_dir(example).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), yaml.path().join(entry.file_name())).unwrap();
        }
        Self { yaml, state }
    }

    fn config(&self) -> ControlConfig {
        let mut config = ControlConfig::new(self.yaml.path(), self.state.path().join("state"), NODE);
        // The same root and token after a restart.
        config.root = RootSource::Directory(self.state.path().join("root"));
        config.nodes = vec![NodeCredential { node: NODE.into(), token: Some("secret-of-node-a".into()) }];
        config
    }

    async fn start(&self) -> ControlPlane {
        ControlPlane::start(self.config()).await.unwrap()
    }
}

fn server(plane: &ControlPlane) -> Server {
    let address = match plane.address() {
        ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        ListenAddress::Tcp(address) => format!("https://{address}"),
    };
    Server::parse(&address, Some(SERVER_NAME), Roots::File(plane.root_path().to_owned())).unwrap()
}

fn credentials(plane: &ControlPlane) -> Credentials {
    Credentials {
        token: Token::File(plane.token_path(NODE).unwrap().to_owned()),
        cluster_id: "Kubernetes".into(),
        headers: vec![("x-extra".into(), "yes".into())],
    }
}

fn discovery_config(plane: &ControlPlane) -> DiscoveryConfig {
    let node = NodeIdentity {
        pod_name: "corelane".into(),
        pod_namespace: "istio-system".into(),
        node_name: NODE.into(),
        ..NodeIdentity::default()
    };
    DiscoveryConfig {
        server: server(plane),
        credentials: credentials(plane),
        node: node.node(),
        local_node: NODE.into(),
        subscriptions: [ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, AUTHORIZATION_POLICY_TYPE]
            .map(Subscription::wildcard)
            .to_vec(),
        sources: discovery::StateSources::default(),
    }
}

/// A discovery client that runs, and what it told.
struct Proxy {
    events: mpsc::UnboundedReceiver<Event>,
    demands: mpsc::Sender<String>,
    task: JoinHandle<std::convert::Infallible>,
}

impl Proxy {
    fn start(config: DiscoveryConfig) -> Self {
        let (told, events) = mpsc::unbounded_channel();
        let (demands, keys) = mpsc::channel(16);
        let task = tokio::spawn(discovery::run(config, keys, move |event| drop(told.send(event))));
        Self { events, demands, task }
    }

    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the client runs for ever");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                seen.push(event);
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("{what} did not happen; instead: {seen:?}"))
    }

    async fn snapshot(&mut self, what: &str, fits: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        self.until(what, |event| match event {
            Event::Snapshot { snapshot, ready: true } if fits(snapshot) => Some(Arc::clone(snapshot)),
            _ => None,
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_example_arrives_whole_and_resolves() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let mut proxy = Proxy::start(discovery_config(&plane));
    let snapshot = proxy.snapshot("readiness with routes", |it| it.routes().count() > 0).await;
    let pod = snapshot.workload_by_name("hello", "client", None).expect("the client's pod").clone();
    let service = snapshot.service("hello", "hello-world.hello.svc.cluster.local").unwrap();
    let vip = SocketAddr::new(service.service.vips[0].ip, 5000);
    let client = Client { workload: &pod, ip: pod.addresses[0] };
    let route = snapshot.resolve(client, vip, 1).unwrap();
    assert_eq!(route.kind, RouteKind::Direct);
    let Transport::Hbone { authority, next_hop, .. } = route.transport else { panic!("must be HBONE") };
    assert_eq!((authority.port(), next_hop.port()), (8080, 15008));
    let key = NamespacedHostname::new("hello", "hello-world.hello.svc.cluster.local");
    assert!(snapshot.routes_for(&key, 5000, "hello").is_some());
    assert!(snapshot.routes_for(&key, 5001, "hello").is_none(), "the route names its port");
    let guarded = snapshot.workload_by_name("hello", "hello-world-v1", None).unwrap();
    assert!(snapshot.policies_for(guarded).needs_request(), "an L7 policy governs the server");
}

#[tokio::test]
async fn a_change_of_the_yaml_arrives_as_a_delta() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let mut proxy = Proxy::start(discovery_config(&plane));
    let first = proxy.snapshot("readiness", |it| it.routes().count() > 0).await;
    assert!(first.workload_by_name("hello", "late", None).is_none());
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: hello}\nspec:\n  containers: [{name: c, image: c}]\n";
    std::fs::write(folder.yaml.path().join("90-late.yaml"), pod).unwrap();
    let second =
        proxy.snapshot("the new pod", |it| it.workload_by_name("hello", "late", None).is_some()).await;
    let unchanged = |it: &Snapshot| Arc::clone(it.workload_by_name("hello", "client", None).unwrap());
    assert!(Arc::ptr_eq(&unchanged(&first), &unchanged(&second)), "what did not change was not sent again");
    std::fs::remove_file(folder.yaml.path().join("90-late.yaml")).unwrap();
    proxy.snapshot("the pod's removal", |it| it.workload_by_name("hello", "late", None).is_none()).await;
}

#[tokio::test]
async fn the_state_outlives_the_control_plane_and_resumes_with_it() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let mut proxy = Proxy::start(discovery_config(&plane));
    let before = proxy.snapshot("readiness", |it| it.routes().count() > 0).await;
    plane.shutdown().await;
    proxy.until("the end of the stream", |it| matches!(it, Event::Disconnected { .. }).then_some(())).await;
    std::fs::remove_file(folder.yaml.path().join("50-outside.yaml")).unwrap();
    let _plane = folder.start().await;
    proxy.until("another stream", |it| matches!(it, Event::Connected).then_some(())).await;
    let gone = |it: &Snapshot| it.workloads().all(|it| &*it.namespace != "outside");
    assert!(!gone(&before));
    let after = proxy.snapshot("what changed meanwhile", gone).await;
    assert!(after.workload_by_name("hello", "client", None).is_some());
    assert!(after.generation() > before.generation());
}

#[tokio::test]
async fn on_demand_only_what_is_asked_for_and_what_is_near_comes() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let mut config = discovery_config(&plane);
    config.subscriptions =
        vec![Subscription::on_demand(ADDRESS_TYPE), Subscription::wildcard(AUTHORIZATION_TYPE)];
    let mut proxy = Proxy::start(config);
    proxy.until("a stream", |it| matches!(it, Event::Connected).then_some(())).await;
    let key = "hello/hello-world.hello.svc.cluster.local";
    proxy.demands.send(key.to_owned()).await.unwrap();
    let has = |it: &Snapshot| it.service("hello", "hello-world.hello.svc.cluster.local").is_some();
    proxy.snapshot("the service", has).await;
    proxy.demands.send(key.to_owned()).await.unwrap();
    let held = |event: &Event| match event {
        Event::Demanded { key: its, answer } if its == key => Some(*answer),
        _ => None,
    };
    let answer = proxy.until("the second answer", held).await;
    assert_eq!(answer, DemandAnswer::Held);
}

async fn disconnect_reason(config: DiscoveryConfig) -> String {
    let mut proxy = Proxy::start(config);
    proxy
        .until("a failure", |event| match event {
            Event::Disconnected { reason, .. } => Some(reason.clone()),
            Event::Connected | Event::Snapshot { .. } => panic!("must not be let in"),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn what_does_not_fit_is_told_apart() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let config = || discovery_config(&plane);

    let mut wrong_token = config();
    let token_file = folder.state.path().join("token");
    std::fs::write(&token_file, "nonsense\n").unwrap();
    wrong_token.credentials.token = Token::File(token_file.clone());
    let reason = disconnect_reason(wrong_token.clone()).await;
    assert!(reason.contains("does not accept the token in "), "{reason}");

    // The file is read anew for each connection.
    let mut proxy = Proxy::start(wrong_token);
    proxy.until("a refusal", |it| matches!(it, Event::Disconnected { .. }).then_some(())).await;
    std::fs::copy(plane.token_path(NODE).unwrap(), &token_file).unwrap();
    proxy.snapshot("readiness with the new token", |_| true).await;

    let mut wrong_name = config();
    wrong_name.server.server_name = "other.example".into();
    let reason = disconnect_reason(wrong_name).await;
    assert!(reason.contains("NotValidForName") || reason.contains("not valid for name"), "{reason}");

    let mut no_roots = config();
    no_roots.server.roots = Roots::File("/nowhere/root.pem".into());
    let reason = disconnect_reason(no_roots).await;
    assert!(reason.contains("/nowhere/root.pem"), "{reason}");

    let mut no_server = config();
    no_server.server.address = xds::transport::ServerAddress::Unix("/nowhere/socket".into());
    let reason = disconnect_reason(no_server).await;
    assert!(reason.contains("unix:/nowhere/socket"), "{reason}");

    let foreign = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    let mut other_root = config();
    other_root.server.roots = Roots::Pem(foreign.cert.pem().into_bytes().into());
    let reason = disconnect_reason(other_root).await;
    assert!(reason.contains("UnknownIssuer") || reason.contains("certificate"), "{reason}");
}

#[tokio::test]
async fn certificates_come_for_the_identities_of_the_node_and_for_no_others() {
    let folder = Folder::new();
    let mut config = folder.config();
    config.listen = ListenAddress::Tcp(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0));
    let plane = ControlPlane::start(config).await.unwrap();
    let config = CaConfig {
        server: server(&plane),
        credentials: credentials(&plane),
        validity: Duration::from_hours(1),
        impersonate: true,
    };
    let (told, mut events) = mpsc::unbounded_channel();
    let (commands, orders) = mpsc::channel(16);
    let task = tokio::spawn(ca::run(config, orders, move |event| drop(told.send(event))));
    let client = Identity::new("cluster.local", "hello", "client").unwrap();
    // Runs, but on the other node.
    let stranger = Identity::new("cluster.local", "hello", "hello-world-v2").unwrap();
    commands.send(Command::Want(client.clone(), Priority::WarmUp)).await.unwrap();
    commands.send(Command::Want(stranger.clone(), Priority::RealTime)).await.unwrap();
    let (mut issued, mut failed) = (None, None);
    while issued.is_none() || failed.is_none() {
        match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            ca::Event::Issued(bundle) => issued = Some(bundle),
            ca::Event::Failed { identity, error } => {
                assert_eq!(identity, stranger, "{error}");
                failed = Some((identity, error));
            }
        }
    }
    let bundle = issued.unwrap();
    assert_eq!(bundle.identity, client);
    assert!(!bundle.chain_der.is_empty() && bundle.roots_der.len() == 1);
    let validity = bundle.not_after.duration_since(bundle.not_before).unwrap();
    assert!(validity >= Duration::from_hours(1) && validity < Duration::from_hours(2), "{validity:?}");
    assert!(!format!("{bundle:?}").contains("key"), "the key is not printed");
    let (identity, error) = failed.unwrap();
    assert_eq!(identity, stranger);
    assert!(matches!(error, CaError::Refused { .. }), "{error}");
    drop(commands);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

/// The same, with a place for the last state.
fn keeping(plane: &ControlPlane, directory: &Path) -> DiscoveryConfig {
    let mut config = discovery_config(plane);
    config.sources.directory = Some(directory.to_owned());
    config
}

async fn written(directory: &Path, than: Option<std::time::SystemTime>) -> std::time::SystemTime {
    let file = directory.join(xds::cache::FILE);
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let at = std::fs::metadata(&file).and_then(|it| it.modified()).ok();
        if let Some(at) = at.filter(|at| than.is_none_or(|than| *at > than)) {
            return at;
        }
        assert!(std::time::Instant::now() < deadline, "the state was not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_start_without_the_control_plane_goes_on_from_the_last_state() {
    let (folder, state) = (Folder::new(), tempfile::tempdir().unwrap());
    let plane = folder.start().await;
    let config = keeping(&plane, state.path());
    let mut first = Proxy::start(config.clone());
    let before = first.snapshot("readiness", |it| it.routes().count() > 0).await;
    assert_eq!(before.stale_since(), None);
    written(state.path(), None).await;
    drop(first);
    plane.shutdown().await;
    let mut second = Proxy::start(config);
    let resources = second
        .until("the state on disk", |event| match event {
            Event::StateLoaded { resources, .. } => Some(*resources),
            _ => None,
        })
        .await;
    let warm = second.snapshot("the last state", |it| it.stale_since().is_some()).await;
    let counts = |it: &Snapshot| {
        [it.workloads().count(), it.services().count(), it.policies().count(), it.routes().count()]
    };
    assert_eq!((counts(&warm), resources), (counts(&before), counts(&before).iter().sum()));
    let guarded = warm.workload_by_name("hello", "hello-world-v1", None).unwrap();
    assert!(warm.policies_for(guarded).needs_request(), "its policies are in force");
    // What is gone meanwhile goes when the control plane is back.
    std::fs::remove_file(folder.yaml.path().join("50-outside.yaml")).unwrap();
    let old = written(state.path(), None).await;
    let _plane = folder.start().await;
    let gone =
        |it: &Snapshot| it.stale_since().is_none() && it.workloads().all(|it| &*it.namespace != "outside");
    assert!(!gone(&warm));
    let after = second.snapshot("the present state", gone).await;
    assert!(after.workload_by_name("hello", "client", None).is_some());
    written(state.path(), Some(old)).await;
    let text = std::fs::read(state.path().join(xds::cache::FILE)).unwrap();
    assert!(!text.windows(7).any(|it| it == b"PRIVATE"), "no key is ever written");
}

#[tokio::test]
async fn a_damaged_state_is_refused_and_replaced() {
    let (folder, state) = (Folder::new(), tempfile::tempdir().unwrap());
    let file = state.path().join(xds::cache::FILE);
    std::fs::write(&file, b"corelane-state\n\0 and then nonsense").unwrap();
    let damaged = std::fs::metadata(&file).unwrap().modified().unwrap();
    let plane = folder.start().await;
    let mut proxy = Proxy::start(keeping(&plane, state.path()));
    let reason = proxy
        .until("the refusal", |event| match event {
            Event::StateRefused { reason } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains(file.to_str().unwrap()), "{reason}");
    let snapshot = proxy.snapshot("readiness", |it| it.routes().count() > 0).await;
    assert_eq!(snapshot.stale_since(), None);
    written(state.path(), Some(damaged)).await;
    drop(proxy);
    plane.shutdown().await;
    let mut again = Proxy::start(keeping_without(&folder, state.path()).await);
    again.snapshot("the state that replaced it", |it| it.stale_since().is_some()).await;
}

/// The configuration of a control plane that is gone again.
async fn keeping_without(folder: &Folder, directory: &Path) -> DiscoveryConfig {
    let plane = folder.start().await;
    let config = keeping(&plane, directory);
    plane.shutdown().await;
    config
}

#[tokio::test]
async fn local_state_is_in_force_beside_the_control_plane_s() {
    let folder = Folder::new();
    let plane = folder.start().await;
    let yaml = "workloads:\n- {uid: by-hand, name: by-hand, namespace: local, workloadIps: [192.0.2.9]}\n";
    let local = xds::local::LocalState::parse(yaml).unwrap();
    let mut config = discovery_config(&plane);
    config.sources.local = Some(Arc::new(local));
    let sources = config.sources.clone();
    let mut proxy = Proxy::start(config);
    let both = proxy.snapshot("both", |it| it.routes().count() > 0).await;
    assert!(
        both.workload_by_uid("by-hand").is_some() && both.workload_by_name("hello", "client", None).is_some()
    );
    // And without any control plane.
    let (told, mut events) = mpsc::unbounded_channel();
    let task =
        tokio::spawn(discovery::run_without(sources, NODE.into(), move |event| drop(told.send(event))));
    let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    let Event::Snapshot { snapshot, ready: true } = event else { panic!("{event:?}") };
    assert_eq!(snapshot.workloads().count(), 1);
    task.abort();
}
