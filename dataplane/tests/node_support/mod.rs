//! Nodes as they are in a cluster: each a network namespace with a whole `corelane proxy` process, its node agent, and
//! pods whose traffic is redirected; a scripted control plane and authority behind the same router.
//!
//! Each test runs in a process and a network namespace of its own, so tests neither meet nor need root.
//!
//! ```no_run
//! inside("the_name_of_the_test", || {
//!     let mut bed = Bed::new(&["a", "b"]);
//!     bed.pod("a", "client");
//!     bed.pod("b", "server");
//!     bed.ready();
//!     let server = bed.echo("server", 8080);
//!     assert_eq!(bed.request("client", server.v4).unwrap(), bed.answer("server", bed.v4("client")));
//! });
//! ```

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // the support of tests only

pub mod agent;
pub mod control;
#[path = "../session_support/hop.rs"]
pub mod hop;
#[path = "../session_support/inside.rs"]
mod inside;
pub mod istiod;
pub mod load;
#[path = "../session_support/names.rs"]
pub mod names;
pub mod node;
#[path = "../session_support/pki.rs"]
pub mod pki;
#[path = "../session_support/raw.rs"]
pub mod raw;
pub mod resources;
#[path = "../session_support/traffic.rs"]
pub mod traffic;
pub mod waypoint;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::capture::{self, Redirection};
use dataplane::mesh::fabric::Fabric;
use dataplane::net::NetworkNamespace;
use xds::proto::zds::WorkloadInfo;

use agent::AgentPod;
use control::{ControlPlane, Resource};
pub use inside::inside;
use node::Node;
pub use resources::{NAMESPACE, ip_of};

/// How long anything may take. Only a failure waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the control plane is.
const CONTROL_PLANE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 100));

/// What [`Bed::request`] sends: easy to find on the wire.
pub const PLAINTEXT: &[u8] = b"hello in plain text";

/// One address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Both {
    pub v4: SocketAddr,
    pub v6: SocketAddr,
}

impl IntoIterator for Both {
    type Item = SocketAddr;
    type IntoIter = std::array::IntoIter<SocketAddr, 2>;

    fn into_iter(self) -> Self::IntoIter {
        [self.v4, self.v6].into_iter()
    }
}

/// A pod of the bed.
#[derive(Debug, Clone)]
pub struct Pod {
    pub name: String,
    /// `None` is a pod outside the mesh.
    pub node: Option<String>,
    pub uid: String,
    pub ips: [IpAddr; 2],
    pub network: NetworkNamespace,
    number: u8,
}

/// Nodes, pods, control plane.
pub struct Bed {
    // Dropped in this order: the nodes end first.
    pub nodes: BTreeMap<String, Node>,
    pub control: ControlPlane,
    pub pods: BTreeMap<String, Pod>,
    pub fabric: Fabric,
    /// How the traffic of pods is redirected that are enrolled from now on.
    pub redirection: Redirection,
    /// Files of the nodes and the control plane.
    pub folder: tempfile::TempDir,
    services: u8,
    placed: u8,
}

impl Bed {
    /// The control plane and nodes of these names, their proxies running.
    pub fn new(nodes: &[&str]) -> Self {
        Self::with(nodes, |_| {})
    }

    /// As [`Bed::new`]; `prepare` sees each node before its proxy starts.
    pub fn with(nodes: &[&str], prepare: impl Fn(&mut Node)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut fabric = Fabric::new().unwrap();
        let network =
            fabric.add_pod(&Arc::from("control-plane"), &[CONTROL_PLANE]).unwrap().namespace.clone();
        let address = SocketAddr::new(CONTROL_PLANE, control::PORT);
        let control = ControlPlane::start(network, address, folder.path());
        let (pods, empty) = (BTreeMap::new(), BTreeMap::new());
        let redirection = Redirection::default();
        let mut bed =
            Self { nodes: empty, control, pods, fabric, redirection, folder, services: 0, placed: 0 };
        for name in nodes {
            bed.node(name, &prepare);
        }
        bed
    }

    /// One more node.
    pub fn node(&mut self, name: &str, prepare: impl Fn(&mut Node)) {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        let ips = [IpAddr::from([10, 99, 0, number]), format!("fd00:99::{number:x}").parse().unwrap()];
        let network = self.fabric.add_pod(&format!("node-{name}").into(), &ips).unwrap().namespace.clone();
        let mut node = Node::new(name, network, &ips, self.folder.path(), self.control.environment());
        prepare(&mut node);
        node.start();
        self.nodes.insert(name.to_owned(), node);
    }

    pub fn at(&mut self, node: &str) -> &mut Node {
        self.nodes.get_mut(node).unwrap_or_else(|| panic!("no node {node}"))
    }

    /// A pod in the mesh, on a node: network, workload, ZDS, redirection.
    pub fn pod(&mut self, node: &str, name: &str) -> Pod {
        let pod = self.place(Some(node), name);
        self.control.put([self.workload(name).into()]);
        self.enroll(name).unwrap();
        pod
    }

    /// A pod with a proxy of its own, which runs in the pod's network and has no node agent; the node has its name.
    pub fn dedicated(&mut self, name: &str) -> Pod {
        let pod = self.place(Some(name), name);
        self.control.put([self.workload(name).into()]);
        // The rules come first, as an init container's do, and leave the control plane alone: what is connected already
        // would be torn by them.
        let mut redirection = self.redirection.clone();
        redirection.host_probes.push(CONTROL_PLANE);
        capture::enroll(&pod.network, &redirection).unwrap();
        let environment = self.control.environment();
        let mut node = Node::new(name, pod.network.clone(), &pod.ips, self.folder.path(), environment);
        node.set("PROXY_MODE", "dedicated");
        node.set("PROXY_WORKLOAD_INFO", format!("{NAMESPACE}/{name}/{name}"));
        // The redirection tells the proxy's own connections by their mark.
        node.set("PACKET_MARK", capture::PROXY_MARK);
        node.start();
        node.until_ready(true);
        self.nodes.insert(name.to_owned(), node);
        pod
    }

    /// A pod that the control plane knows as one outside the mesh.
    pub fn plain_pod(&mut self, name: &str) -> Pod {
        let pod = self.place(None, name);
        self.control.put([self.workload(name).into()]);
        pod
    }

    /// The network of a pod alone: nobody knows of it.
    pub fn place(&mut self, node: Option<&str>, name: &str) -> Pod {
        self.placed += 1;
        let number = self.placed;
        let ips = [IpAddr::from([10, 244, 1, number]), format!("fd00:244::{number:x}").parse().unwrap()];
        let uid = format!("uid-{name}");
        let network = self.fabric.add_pod(&name.into(), &ips).unwrap().namespace.clone();
        let node = node.map(str::to_owned);
        let pod = Pod { name: name.to_owned(), node, uid, ips, network, number };
        self.pods.insert(name.to_owned(), pod.clone());
        pod
    }

    /// Tells the pod's node agent of it, and redirects it; the proxy's complaint.
    pub fn enroll(&self, name: &str) -> Result<(), String> {
        let told = self.agent(name).add(self.agent_pod(name));
        self.capture(name);
        told
    }

    /// Redirects a pod's traffic to where its proxy listens.
    pub fn capture(&self, name: &str) {
        capture::enroll(self.network(name), &self.redirection).unwrap();
    }

    /// A pod as its node's agent describes it.
    pub fn agent_pod(&self, name: &str) -> AgentPod {
        let pod = self.get(name);
        let info = WorkloadInfo {
            name: pod.name.clone(),
            namespace: NAMESPACE.to_owned(),
            service_account: pod.name.clone(),
        };
        AgentPod { uid: pod.uid.clone(), info, network: Some(pod.network.clone()) }
    }

    /// The agent of the pod's node.
    pub fn agent(&self, pod: &str) -> &agent::Agent {
        let node = self.get(pod).node.as_ref().expect("a pod in the mesh");
        &self.nodes[node].agent
    }

    /// Deletes a pod over ZDS, as kubelet's end of it goes: the agent first, then the resource.
    pub fn delete(&self, name: &str) {
        let uid = self.get(name).uid.clone();
        self.agent(name).delete(&uid).unwrap();
        self.control.remove([&*self.workload(name).uid]);
    }

    pub fn get(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// All addresses of a pod.
    pub fn ips(&self, name: &str) -> [IpAddr; 2] {
        self.get(name).ips
    }

    pub fn network(&self, name: &str) -> &NetworkNamespace {
        &self.get(name).network
    }

    pub fn v4(&self, name: &str) -> IpAddr {
        self.get(name).ips[0]
    }

    pub fn v6(&self, name: &str) -> IpAddr {
        self.get(name).ips[1]
    }

    /// A port of a pod, in both families.
    pub fn address(&self, name: &str, port: u16) -> Both {
        Both { v4: SocketAddr::new(self.v4(name), port), v6: SocketAddr::new(self.v6(name), port) }
    }

    /// Puts resources in force and waits until every node has taken them.
    pub fn apply<R: Into<Resource>>(&self, resources: impl IntoIterator<Item = R>) {
        self.control.put(resources.into_iter().map(Into::into));
        self.settle();
    }

    /// Waits until every node has answered everything that the control plane holds.
    pub fn settle(&self) {
        self.control.settle(self.nodes.values().filter(|node| node.has_control_plane()).count());
    }

    /// Waits until every node is ready and every pod in the mesh has its certificate.
    pub fn ready(&mut self) {
        for node in self.nodes.values_mut() {
            node.until_ready(true);
        }
        self.settle();
        for pod in self.pods.values().filter(|pod| pod.node.is_some()) {
            self.control.authority.until_issued(&resources::identity(&pod.name));
        }
    }

    /// Listens in a pod and answers each connection once it has read its end: name, client's address, what it read.
    pub fn echo(&self, pod: &str, port: u16) -> Both {
        let name = pod.to_owned();
        traffic::serve(self.network(pod), port, move |socket, peer| {
            traffic::answer_once(&name, socket, peer);
        });
        self.address(pod, port)
    }

    /// Listens in a pod and gives back each piece as it comes.
    pub fn pieces(&self, pod: &str, port: u16) -> Both {
        traffic::serve(self.network(pod), port, traffic::serve_pieces);
        self.address(pod, port)
    }

    pub fn connect(&self, pod: &str, to: SocketAddr) -> io::Result<TcpStream> {
        traffic::connect(self.network(pod), to)
    }

    /// One exchange of [`PLAINTEXT`] with a server of [`Bed::echo`]; an answer without a byte is an error.
    pub fn request(&self, pod: &str, to: SocketAddr) -> io::Result<String> {
        let answer = traffic::exchange(&self.connect(pod, to)?, PLAINTEXT)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8(answer).unwrap())
    }

    /// What a server of [`Bed::echo`] answers to [`Bed::request`] from `client`.
    #[allow(clippy::unused_self)] // reads well where it is used
    pub fn answer(&self, server: &str, client: IpAddr) -> String {
        format!("{server} {client} {}", String::from_utf8_lossy(PLAINTEXT))
    }

    /// Waits until a request succeeds; its answer.
    pub fn until_answered(&self, pod: &str, to: SocketAddr) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.request(pod, to) {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{pod} to {to}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a request is answered so.
    pub fn until_answer(&self, pod: &str, to: SocketAddr, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.request(pod, to);
            if matches!(&answer, Ok(text) if text == expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{pod} to {to}: {answer:?} is not {expected:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until requests fail.
    pub fn until_refused(&self, pod: &str, to: SocketAddr) {
        self.until(&format!("{pod} does not reach {to}"), |bed| bed.request(pod, to).is_err());
    }

    /// Waits until `holds`.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Records what crosses the wire from now on.
    pub fn tap(&self) -> wire::Tap {
        wire::Tap::on(self.fabric.router())
    }
}
