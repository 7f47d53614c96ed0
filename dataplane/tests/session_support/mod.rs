//! A node proxy in network namespaces: real pods, real captures, real workers; configuration from YAML through the
//! control plane's index and the client's store, certificates from an authority of the test.
//!
//! Each test runs in a process and a network namespace of its own, so tests neither meet nor need root.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

pub mod hop;
pub mod http;
pub mod http2;
mod inside;
pub mod message;
pub mod names;
pub mod pki;
pub mod raw;
pub mod traffic;
pub mod versions;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use dataplane::access_log::{CloseCause, Direction, Record};
use dataplane::access_log::{Records, queue};
use dataplane::capture::{self, Redirection};
use dataplane::mesh::fabric::Fabric;
use dataplane::metrics::{Metrics, metrics};
use dataplane::net::NetworkNamespace;
use dataplane::session::{
    DNS_PORT, LocalPod, Node, NodeOptions, NodeParts, NodeState, PodEvent, ResolvConf, TlsContexts,
};
use dataplane::worker::{DriverChoice, Supervisor, Worker, WorkerOptions, outbox};
use model::{Identity, Service, Workload};
use tunnel::tls::{Credentials, CryptoPolicy};
use xds::control::desired::ResourceKind;
use xds::control::index::{Indexed, Indexer};
use xds::control::last_good::InForce;
use xds::control::{ClusterView, ControlConfig};
use xds::decode::Address;
use xds::delta::Sink;
use xds::kube::{Catalog, MeshSettings, Problem};
use xds::proto::ADDRESS_TYPE;
use xds::publish::Publisher;
use xds::store::Store;

pub use inside::inside;
pub use pki::Pki;
#[allow(unused_imports)] // each test program uses a part
pub use traffic::{connect, exchange, ping};

/// How long anything may take. Only a failure waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long servers leave a body unread whose path ends in `late`.
pub const LATE: Duration = Duration::from_millis(500);

thread_local! {
    static NODE: RefCell<Option<Rc<Node>>> = const { RefCell::new(None) };
}

/// The node, its pods and its configuration.
pub struct Bed {
    pub fabric: Fabric,
    pub pki: Pki,
    pub view: ClusterView,
    pub publisher: Publisher<NodeState>,
    pub state: NodeState,
    /// What the node's identities prove themselves with.
    pub issued: BTreeMap<Identity, Credentials>,
    supervisor: Option<Supervisor>,
    store: Store,
    indexer: Indexer,
    names: BTreeSet<(ResourceKind, Arc<str>)>,
    events: Receiver<PodEvent>,
    log: Records,
    pub records: Vec<Record>,
    metrics: Metrics,
    workers: usize,
    redirection: Redirection,
}

/// What differs between beds.
#[derive(Clone)]
pub struct Setup {
    pub driver: DriverChoice,
    pub workers: usize,
    pub options: NodeOptions,
    /// The node's own.
    pub resolv_conf: String,
    /// Runs on each worker's thread before it does anything.
    pub prepare: fn(),
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            workers: 2,
            options: NodeOptions::default(),
            resolv_conf: String::new(),
            prepare: || (),
        }
    }
}

impl Bed {
    pub fn new(yaml: &str) -> Self {
        Self::with(yaml, &Setup::default())
    }

    /// A running node with the pods of `yaml`: those that are enrolled are captured.
    pub fn with(yaml: &str, setup: &Setup) -> Self {
        let (parts, metrics) = metrics(setup.workers);
        let (recorder, log) = queue();
        let (tell, events) = outbox(4096);
        let mut publisher = Publisher::new();
        let parts = parts.into_iter().map(|metrics| {
            let mailbox = publisher.subscribe().unwrap();
            Some(NodeParts { mailbox, metrics, recorder: recorder.clone(), events: tell.clone() })
        });
        let parts = Mutex::new(parts.collect::<Vec<_>>());
        let (options, prepare) = (setup.options.clone(), setup.prepare);
        let start = move |worker: &Worker| {
            prepare();
            let parts = parts.lock().unwrap()[worker.index()].take().unwrap();
            let node = Node::start(worker, parts, options.clone())?;
            NODE.with(|place| place.replace(Some(node)));
            Ok(())
        };
        let workers = WorkerOptions { workers: Some(setup.workers), driver: setup.driver };
        let mut bed = Self {
            fabric: Fabric::new().unwrap(),
            pki: Pki::new("cluster.local"),
            view: ClusterView::default(),
            publisher,
            state: NodeState::default(),
            issued: BTreeMap::new(),
            supervisor: Some(Supervisor::start(&workers, start).unwrap()),
            store: Store::new(),
            indexer: Indexer::new(&ControlConfig::new("/nowhere", "/nowhere", "node")),
            names: BTreeSet::new(),
            events,
            log,
            records: Vec::new(),
            metrics,
            workers: setup.workers,
            redirection: Redirection {
                dns_port: setup.options.dns.as_ref().map(|_| DNS_PORT),
                ..Redirection::default()
            },
        };
        bed.state.resolv_conf = Arc::new(ResolvConf::parse(&setup.resolv_conf));
        bed.index(yaml);
        bed.place();
        bed.publish();
        bed
    }

    /// Puts another configuration into force on all workers. The pods stay what they are.
    pub fn apply(&mut self, yaml: &str) {
        self.index(yaml);
        self.publish();
        self.settle();
    }

    /// Publishes the state as the test has changed it.
    pub fn publish(&mut self) {
        self.publisher.publish(Arc::new(self.state.clone()));
    }

    fn index(&mut self, yaml: &str) {
        let loaded = xds::kube::load_documents(vec![("bed.yaml", yaml)]);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        let problems = self.build(&loaded.catalog);
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// As [`Bed::apply`] for what may have faults: what is in force remains so where the new is refused. The complaints.
    pub fn apply_faulty(&mut self, yaml: &str, in_force: &mut InForce) -> Vec<String> {
        let loaded = xds::kube::load_documents(vec![("bed.yaml", yaml)]);
        let mut problems = in_force.update(loaded, std::path::Path::new(""));
        problems.extend(xds::kube::check_references(in_force.catalog(), &MeshSettings::default()));
        problems.extend(self.build(in_force.catalog()));
        self.publish();
        self.settle();
        problems.iter().map(ToString::to_string).collect()
    }

    fn build(&mut self, catalog: &Catalog) -> Vec<Problem> {
        let Indexed { desired, view, problems } = self.indexer.build(catalog, 1);
        let mut names = BTreeSet::new();
        for kind in ResourceKind::ALL {
            for (name, resource) in desired.resources(kind) {
                self.store.upsert(kind.type_url(), name, &resource.to_any(kind)).unwrap();
                names.insert((kind, name.clone()));
            }
        }
        for (kind, gone) in self.names.difference(&names) {
            self.store.remove(kind.type_url(), gone);
        }
        self.names = names;
        self.view = view;
        if let Some(snapshot) = self.store.snapshot() {
            self.metrics.follow(snapshot.telemetry());
            self.state.snapshot = snapshot;
        }
        problems
    }

    /// Makes the network of each pod, has the node listen for those that are enrolled, and captures them.
    fn place(&mut self) {
        let pods: Vec<_> = self.view.pods.values().cloned().collect();
        for pod in &pods {
            self.fabric.add_pod(&pod.uid, &pod.ips).unwrap();
            if pod.enrolled {
                self.issue(&pod.identity);
            }
        }
        for pod in pods.iter().filter(|pod| pod.enrolled) {
            self.add(&pod.name);
        }
    }

    /// Gives the node a certificate of the identity.
    pub fn issue(&mut self, identity: &Identity) {
        self.issued.insert(identity.clone(), self.pki.issue(identity.uri()));
        self.make_contexts(identity);
    }

    fn make_contexts(&mut self, identity: &Identity) {
        let credentials = self.issued[identity].with_revocation_lists(&self.state.revocation);
        let contexts = TlsContexts::new(&credentials, CryptoPolicy::default()).unwrap();
        Arc::make_mut(&mut self.state.credentials).insert(identity.clone(), Arc::new(contexts));
    }

    /// Revokes the certificates that these pods have now, and no others.
    pub fn revoke(&mut self, pods: &[&str]) {
        let revoked: Vec<_> = pods.iter().map(|pod| &self.issued[&self.identity(pod)]).collect();
        self.state.revocation = self.pki.revoke(&revoked);
        for identity in self.issued.keys().cloned().collect::<Vec<_>>() {
            self.make_contexts(&identity);
        }
        self.publish();
    }

    /// Takes a pod in, and captures it when every worker listens.
    pub fn add(&mut self, name: &str) {
        let local = self.local(name);
        let uid = local.uid.clone();
        Arc::make_mut(&mut self.state.pods).insert(uid.clone(), Arc::new(local));
        self.publish();
        for _ in 0..self.workers {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                PodEvent::Listening { uid: listening, .. } => assert_eq!(listening, uid),
                other => panic!("{other:?}"),
            }
        }
        capture::enroll(self.network(name), &self.redirection).unwrap();
    }

    /// Takes a resource from the node, as if its update were late.
    pub fn lose(&mut self, kind: ResourceKind, name: &str) {
        assert!(self.names.remove(&(kind, Arc::from(name))), "{name} is not among {:?}", self.names);
        self.store.remove(kind.type_url(), name);
        self.take_up();
    }

    /// Changes the description of a pod's workload, as another version from the control plane.
    pub fn change_workload(&mut self, pod: &str, change: impl FnOnce(&mut Workload)) {
        let namespace = self.pod(pod).namespace.clone();
        let held = self.state.snapshot.workload_by_name(&namespace, pod, None).unwrap();
        let mut workload = Workload::clone(held);
        change(&mut workload);
        self.store.upsert_address(Address::Workload(workload));
        self.take_up();
    }

    /// Likewise of a service.
    pub fn change_service(&mut self, hostname: &str, change: impl FnOnce(&mut Service)) {
        let held = self.state.snapshot.service_by_host(hostname, "app").unwrap();
        let mut service = Service::clone(&held.service);
        change(&mut service);
        self.store.upsert_address(Address::Service(service));
        self.take_up();
    }

    /// Holds a workload or a service, as the answer to a demand.
    pub fn hold(&mut self, address: Address) {
        let name = match &address {
            Address::Workload(workload) => workload.uid.clone(),
            Address::Service(service) => service.key.to_string().into(),
        };
        self.names.insert((ResourceKind::Address, name));
        self.store.upsert_address(address);
        self.take_up();
    }

    /// Has the control plane say that there is nothing by this key.
    pub fn answer_absent(&mut self, key: &str) {
        self.store.answered(ADDRESS_TYPE, key);
        self.take_up();
    }

    fn take_up(&mut self) {
        // Nothing changed if there is none.
        if let Some(snapshot) = self.store.snapshot() {
            self.state.snapshot = snapshot;
        }
        self.publish();
        self.settle();
    }

    /// Waits until a connection has asked for the certificate of an identity.
    pub fn needed(&self, identity: &Identity) {
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                PodEvent::CertificateNeeded { identity: needed } if needed == *identity => return,
                _ => {}
            }
        }
    }

    /// A client that speaks HBONE to a pod's tunnel port itself, from a pod outside the mesh.
    pub fn raw(&self, to: IpAddr) -> raw::RawClient {
        let server = self.view.pods.values().find(|pod| pod.ips.contains(&to)).unwrap();
        raw::RawClient {
            from: self.network("plain").clone(),
            credentials: self.pki.issue("spiffe://cluster.local/ns/app/sa/raw"),
            to: SocketAddr::new(to, 15008),
            expected: server.identity.clone(),
        }
    }

    /// A local pod as a node agent describes it.
    pub fn local(&self, name: &str) -> LocalPod {
        let pod = self.pod(name);
        LocalPod {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            network: self.network(name).clone(),
        }
    }

    /// Ends the capture of a pod and has the node let go of it.
    pub fn remove(&mut self, name: &str) {
        let uid = self.pod(name).uid.clone();
        capture::stop(self.network(name)).unwrap();
        Arc::make_mut(&mut self.state.pods).remove(&uid).unwrap();
        self.publish();
        for _ in 0..self.workers {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                PodEvent::Stopped { uid: stopped, .. } => assert_eq!(stopped, uid),
                other => panic!("{other:?}"),
            }
        }
        capture::leave(self.network(name)).unwrap();
    }

    fn pod(&self, name: &str) -> &xds::control::PodView {
        self.view.pods.values().find(|pod| &*pod.name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    pub fn network(&self, name: &str) -> &NetworkNamespace {
        &self.fabric.pod(&self.pod(name).uid).unwrap().namespace
    }

    pub fn identity(&self, name: &str) -> Identity {
        self.pod(name).identity.clone()
    }

    /// The first address of the pod.
    pub fn ip(&self, name: &str) -> IpAddr {
        self.pod(name).ips[0]
    }

    /// Runs `ask` on each worker until `holds` is true of all answers.
    pub fn until<R: Send + 'static>(
        &self,
        what: &str,
        ask: impl Fn(&Node) -> R + Clone + Send + 'static,
        holds: impl Fn(&[R]) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.ask(ask.clone())) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            thread::yield_now();
        }
    }

    pub fn ask<R: Send + 'static>(&self, ask: impl Fn(&Node) -> R + Clone + Send + 'static) -> Vec<R> {
        self.ask_workers(move |_| NODE.with(|node| ask(node.borrow().as_ref().unwrap())))
    }

    fn ask_workers<R: Send + 'static>(&self, ask: impl Fn(&Worker) -> R + Clone + Send + 'static) -> Vec<R> {
        let handles = self.supervisor.as_ref().unwrap().handles();
        let answers = handles.iter().map(|handle| {
            let (tell, answer) = mpsc::channel();
            let ask = ask.clone();
            handle.post(move |worker| tell.send(ask(worker)).unwrap()).unwrap();
            answer.recv_timeout(PATIENCE).unwrap()
        });
        answers.collect()
    }

    /// Descriptors that are open in this process, without the pipes that idle in the workers' pools: a pool grows
    /// whenever more relays of a worker than ever before happen to have bytes in flight at once.
    pub fn descriptors(&self) -> usize {
        let pooled: usize = self.ask_workers(|worker| worker.pipes().kept()).iter().sum();
        std::fs::read_dir("/proc/self/fd").unwrap().count() - 2 * pooled
    }

    /// Waits until at most `count` descriptors are open.
    pub fn until_descriptors(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.descriptors() > count {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let open = || open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
            assert!(Instant::now() < deadline, "more than {count}: {:?}", open().collect::<Vec<_>>());
            thread::yield_now();
        }
    }

    /// Waits until every worker decides from the newest snapshot.
    pub fn settle(&self) {
        let wanted = self.state.snapshot.generation();
        self.until("the snapshot is in force", Node::generation, move |seen| {
            seen.iter().all(|generation| *generation == wanted)
        });
    }

    /// Waits until no connection is open.
    pub fn until_idle(&self) {
        self.until("no connection is open", Node::live_connections, |live| live.iter().all(|it| *it == 0));
    }

    /// Waits for a log record and takes it out.
    pub fn record(&mut self, what: &str, is: impl Fn(&Record) -> bool) -> Record {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = &mut self.records;
            self.log.drain(|record| records.push(record));
            if let Some(at) = records.iter().position(&is) {
                return records.remove(at);
            }
            assert!(Instant::now() < deadline, "no record of {what}: {records:#?}");
            thread::yield_now();
        }
    }

    pub fn ended(&mut self, direction: Direction, cause: CloseCause) -> Record {
        self.record(&format!("{direction:?} {cause:?}"), |it| it.direction == direction && it.cause == cause)
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        self.metrics.text().unwrap()
    }

    /// The sum of the samples of a counter whose labels contain all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics();
        let lines = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Begins the drain; what is left is cut after `patience`.
    pub fn drain(&self, patience: Duration) {
        self.supervisor.as_ref().unwrap().drain(Instant::now() + patience);
    }

    /// Waits until the workers have ended.
    pub fn join(&mut self) {
        self.supervisor.take().unwrap().join();
    }

    /// Connects from inside a pod.
    pub fn connect(&self, pod: &str, to: SocketAddr) -> io::Result<TcpStream> {
        connect(self.network(pod), to)
    }

    /// Listens in a pod; each connection is served by `serve` on a thread of its own.
    pub fn serve(
        &self,
        pod: &str,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
    ) -> SocketAddr {
        traffic::serve(self.network(pod), port, serve);
        SocketAddr::new(self.ip(pod), port)
    }

    /// Listens in a pod with a server that gives back each piece as it comes.
    pub fn serve_pieces(&self, pod: &str, port: u16) -> SocketAddr {
        self.serve(pod, port, traffic::serve_pieces)
    }

    /// Listens in a pod with a server that answers, once it has read the end, with its client's address and what it
    /// read.
    pub fn serve_echo(&self, pod: &str, port: u16) -> SocketAddr {
        self.serve(pod, port, |mut socket, peer| {
            let mut all = Vec::new();
            if socket.read_to_end(&mut all).is_ok() {
                // The client may have broken off.
                let _ = socket.write_all(format!("{} ", peer.ip()).as_bytes());
                let _ = socket.write_all(&all);
            }
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.drain(Instant::now());
            supervisor.join();
        }
    }
}

/// Waits for the end of a connection; true if it was a reset.
pub fn is_reset(mut socket: &TcpStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{error}"),
    }
}

/// Connects and asks; true if the connection was cut without an answer.
pub fn is_refused(from: &NetworkNamespace, to: SocketAddr) -> bool {
    match connect(from, to).and_then(|socket| exchange(&socket, b"?")) {
        Ok(answer) => answer.is_empty(),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::BrokenPipe => {
                true
            }
            io::ErrorKind::NotConnected => true,
            _ => panic!("{error}"),
        },
    }
}

/// A body whose every byte depends on its place.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 251).unwrap()).collect()
}

/// FNV-1a: enough to tell a wrong byte.
pub fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}/{}", bytes.len())
}

/// A mesh of two clients, a server with two addresses of its families, and a pod that is not in the mesh.
pub fn pods() -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: app, labels: { istio.io/dataplane-mode: ambient } }\n",
    );
    for (name, number) in [("client", 1), ("server", 2), ("other", 3), ("plain", 9)] {
        let mode = if name == "plain" { "none" } else { "ambient" };
        writeln!(
            yaml,
            "---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: app, labels: {{ app: {name}, istio.io/dataplane-mode: {mode} }} }}
spec: {{ nodeName: node, serviceAccountName: {name}, containers: [{{ name: c, image: c, ports: [{{ containerPort: 8080 }}] }}] }}
status: {{ podIPs: [{{ ip: 10.244.1.{number} }}, {{ ip: \"fd00::1:{number}\" }}] }}"
        )
        .unwrap();
    }
    yaml
}

/// An AuthorizationPolicy of the server.
pub fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: {name}, namespace: app }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  action: {action}
  rules: {rules}
"
    )
}
