//! A mesh for whole node proxies: the embedded control plane, a node agent for each node, one client and one server.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::capture::{self, Redirection};
use dataplane::net::NetworkNamespace;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::oneshot;
use xds::control::plane::{ControlPlane, SERVER_NAME};
use xds::control::{ControlConfig, ListenAddress, NodeCredential};

use super::agent::{Agent, Pod};
use super::peers::Rules;
use super::site::{BACKEND_PORT, CLIENT, SERVER, SERVICE, Site, WAYPOINT};
use crate::Failure;

/// Names of the nodes of the client and of the server.
pub(super) const NODES: [&str; 2] = ["node-a", "node-b"];
/// Where a node proxy finds the control plane, in its own network.
const CONTROL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15012);
const PATIENCE: Duration = Duration::from_secs(20);

/// What governs the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mesh {
    /// Bytes in tunnels; an identity may connect or not.
    L4,
    /// Routes at the client's node, a policy of methods and paths at the server's.
    L7(Rules),
    /// Routes at the client's node, and a server outside the mesh.
    Hop(Rules),
    /// Routes and policies at a waypoint between the nodes.
    Waypoint(Rules),
}

/// Where and as what a proxy is started; the environment is as `corelane proxy` and ztunnel read it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) network: NetworkNamespace,
    /// The subcommand.
    pub(super) role: &'static str,
    pub(super) environment: Vec<(String, String)>,
}

/// Runs until it is dropped; then the pods are left alone again.
#[derive(Debug)]
pub(super) struct Running {
    mesh: Mesh,
    agents: Vec<Agent>,
    environments: Vec<Vec<(String, String)>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    captured: Vec<NetworkNamespace>,
}

impl Running {
    /// Everything but the proxies; `folder` is for its files and must exist.
    pub(super) fn start(site: &Site, mesh: Mesh, folder: &Path) -> Result<Self, Failure> {
        let yaml = folder.join("mesh");
        fs::create_dir_all(&yaml)?;
        fs::write(yaml.join("mesh.yaml"), resources(mesh))?;
        let (stop, stopped) = oneshot::channel();
        let (told, started) = mpsc::channel();
        let (state, mut nodes) = (folder.join("control"), site.nodes.clone());
        nodes.push(site.waypoint.clone());
        let thread = std::thread::spawn(move || {
            let ended = serve(yaml, state, &nodes, &told, stopped);
            if let Err(error) = ended {
                // Nobody listens any more if the start was waited for in vain.
                let _ = told.send(Err(error.to_string()));
            }
        });
        let environments = started.recv_timeout(PATIENCE)??;
        let mut running = Self {
            mesh,
            agents: Vec::new(),
            environments,
            stop: Some(stop),
            thread: Some(thread),
            captured: Vec::new(),
        };
        let server_is_in = !matches!(mesh, Mesh::Hop(_));
        let pods = [("client", &site.client, true), ("server", &site.server, server_is_in)];
        for ((name, network, is_in), node) in pods.into_iter().zip(NODES) {
            let pod = is_in.then(|| Pod { name: name.to_owned(), network: network.clone() });
            running.agents.push(Agent::start(&folder.join(format!("{node}.sock")), pod)?);
            if is_in {
                capture::enroll(network, &Redirection { ipv6: false, ..Redirection::default() })?;
                running.captured.push(network.clone());
            }
        }
        Ok(running)
    }

    /// Each proxy's, in the order in which a request meets them.
    pub(super) fn places(&self, site: &Site) -> Vec<Place> {
        let mut places = Vec::new();
        let nodes = site.nodes.iter().zip(&self.environments).zip(&self.agents);
        for ((network, environment), agent) in nodes {
            let mut environment = environment.clone();
            environment.push(("INPOD_UDS".to_owned(), agent.path().display().to_string()));
            places.push(Place { network: network.clone(), role: "proxy", environment });
        }
        match self.mesh {
            Mesh::L4 | Mesh::L7(_) => {}
            Mesh::Hop(_) => places.truncate(1),
            Mesh::Waypoint(_) => {
                let mut environment = self.environments.get(1).cloned().unwrap_or_default();
                environment.retain(|(name, _)| !name.starts_with("POD_"));
                let own =
                    [("POD_NAME", "waypoint"), ("POD_NAMESPACE", "perf"), ("SERVICE_ACCOUNT", "waypoint")];
                environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
                environment.push(("INSTANCE_IP".to_owned(), WAYPOINT.to_string()));
                places.insert(1, Place { network: site.waypoint.clone(), role: "waypoint", environment });
            }
        }
        places
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pod in &self.captured {
            // The namespace goes with the run at the latest.
            let _ = capture::leave(pod);
        }
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Started = Result<Vec<Vec<(String, String)>>, String>;

/// The control plane's thread.
fn serve(
    yaml: PathBuf,
    state: PathBuf,
    nodes: &[NetworkNamespace],
    told: &mpsc::Sender<Started>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), Failure> {
    // It shares a CPU with the load and is not what is measured: it gets what the load leaves, and leaves as soon as the load wakes.
    // A nice value alone would let it finish its time slice, and requests wait that long when something changes.
    give_way()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut config = ControlConfig::new(yaml, &state, NODES[0]);
        config.nodes = NODES.map(|node| NodeCredential { node: Arc::from(node), token: None }).to_vec();
        let ListenAddress::Unix(socket) = config.listen.clone() else {
            return Err("the control plane has no socket file".into());
        };
        let control = ControlPlane::start(config).await?;
        let problems = control.problems().borrow().clone();
        if let Some(problem) = problems.first() {
            return Err(format!("the mesh of the comparison is wrong: {problem:?}").into());
        }
        let mut environments = Vec::new();
        for network in nodes {
            let listener = network.within(|| std::net::TcpListener::bind(CONTROL))??;
            listener.set_nonblocking(true)?;
            tokio::spawn(forward(TcpListener::from_std(listener)?, socket.clone()));
        }
        for node in NODES {
            let token = control.token_path(node).ok_or("a node has no token")?;
            environments.push(environment(node, control.root_path(), token));
        }
        told.send(Ok(environments))?;
        // An error means that the owner is gone, which is the same.
        let _ = stopped.await;
        control.shutdown().await;
        Ok(())
    })
}

/// Has the calling thread, and those that it starts, run only when nobody else wants the CPU (`SCHED_IDLE`, sched(7)).
fn give_way() -> Result<(), Failure> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let changed = std::process::Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status()?;
    if changed.success() { Ok(()) } else { Err(format!("chrt --idle --pid 0 {thread}: {changed}").into()) }
}

/// The control plane serves a socket file; a node proxy of another make dials addresses only.
async fn forward(listener: TcpListener, socket: PathBuf) {
    while let Ok((mut near, _)) = listener.accept().await {
        let socket = socket.clone();
        tokio::spawn(async move {
            if let Ok(mut far) = UnixStream::connect(socket).await {
                // Either side may end it.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

fn environment(node: &str, root: &Path, token: &Path) -> Vec<(String, String)> {
    let address = format!("https://{CONTROL}");
    let root = root.display().to_string();
    let pairs = [
        ("XDS_ADDRESS", address.clone()),
        ("CA_ADDRESS", address),
        ("ALT_XDS_HOSTNAME", SERVER_NAME.to_owned()),
        ("ALT_CA_HOSTNAME", SERVER_NAME.to_owned()),
        ("XDS_ROOT_CA", root.clone()),
        ("CA_ROOT_CA", root),
        ("AUTH_TOKEN", token.display().to_string()),
        ("NODE_NAME", node.to_owned()),
        ("POD_NAME", format!("proxy-{node}")),
        ("POD_NAMESPACE", "istio-system".to_owned()),
        ("IPV6_ENABLED", "false".to_owned()),
        ("ISTIO_META_DNS_CAPTURE", "false".to_owned()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

// === The mesh as YAML ===

fn resources(mesh: Mesh) -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: perf\n  labels:\n    istio.io/dataplane-mode: ambient\n",
    );
    for node in NODES {
        document(&mut yaml, &format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n"));
    }
    let outside = matches!(mesh, Mesh::Hop(_));
    document(&mut yaml, &pod("client", NODES[0], &CLIENT.to_string(), ""));
    let mode = if outside { OUTSIDE } else { "" };
    document(&mut yaml, &pod("server", NODES[1], &SERVER.to_string(), mode));
    let port = match mesh {
        Mesh::L4 => "name: tcp\n    appProtocol: tcp",
        Mesh::L7(Rules::Grpc) => "name: grpc\n    appProtocol: grpc",
        _ => "name: http\n    appProtocol: http",
    };
    let behind = matches!(mesh, Mesh::Waypoint(_));
    let uses = if behind { "\n  labels:\n    istio.io/use-waypoint: waypoint" } else { "" };
    document(
        &mut yaml,
        &format!(
            "apiVersion: v1
kind: Service
metadata:
  name: app
  namespace: perf{uses}
spec:
  clusterIP: {}
  selector:
    app: server
  ports:
  - port: {}
    targetPort: {BACKEND_PORT}
    {port}
",
            SERVICE.ip(),
            SERVICE.port()
        ),
    );
    match mesh {
        Mesh::L4 => document(&mut yaml, &connection_policy()),
        Mesh::L7(rules) => {
            routes(&mut yaml, rules);
            policies(&mut yaml, rules, OF_PODS);
        }
        Mesh::Waypoint(rules) => {
            document(&mut yaml, &pod("waypoint", NODES[1], &WAYPOINT.to_string(), OF_WAYPOINT));
            document(&mut yaml, GATEWAY);
            routes(&mut yaml, rules);
            policies(&mut yaml, rules, OF_SERVICE);
        }
        Mesh::Hop(rules) => routes(&mut yaml, rules),
    }
    yaml
}

/// The change of this number: a route, and a pod that answers to nobody.
pub(super) fn changed(number: usize) -> String {
    let name = format!("churn-{number}");
    let ip = format!("10.244.9.{}", 1 + number % 250);
    let mut yaml = pod(&name, NODES[1], &ip, OUTSIDE);
    let rule = format!(
        "  - matches:\n    - path:\n        type: PathPrefix\n        value: /churn/{number}\n{}",
        backend()
    );
    document(&mut yaml, &route(&name, &rule));
    yaml
}

fn document(yaml: &mut String, text: &str) {
    yaml.push_str("---\n");
    yaml.push_str(text);
}

/// A pod's labels, as lines.
const OUTSIDE: &str = "\n    istio.io/dataplane-mode: none";
const OF_WAYPOINT: &str =
    "\n    istio.io/dataplane-mode: none\n    gateway.networking.k8s.io/gateway-name: waypoint";

fn pod(name: &str, node: &str, ip: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: perf
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: perf
  labels:
    app: {name}{labels}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
  - name: main
    image: main
    ports:
    - containerPort: {BACKEND_PORT}
status:
  podIP: {ip}
  podIPs:
  - ip: {ip}
"
    )
}

fn connection_policy() -> String {
    "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: app
  namespace: perf
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [\"cluster.local/ns/perf/sa/client\"]
"
    .to_owned()
}

fn route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {name}
  namespace: perf
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: app
    port: {}
  rules:
{rules}",
        SERVICE.port()
    )
}

fn backend() -> String {
    format!("    backendRefs:\n    - name: app\n      port: {}\n", SERVICE.port())
}

/// One route, or a thousand: an HTTPRoute holds sixteen rules at most.
fn routes(yaml: &mut String, rules: Rules) {
    let path = |value: &str| {
        format!("  - matches:\n    - path:\n        type: PathPrefix\n        value: {value}\n")
    };
    let backend = backend();
    document(yaml, &route("version-1", &format!("{}{backend}", path("/v1"))));
    if rules != Rules::Many {
        return;
    }
    let numbers: Vec<usize> = (0..1000).collect();
    for (index, numbers) in numbers.chunks(16).enumerate() {
        let mut text = String::new();
        for number in numbers {
            // Writing into a String cannot fail.
            let _ = write!(
                text,
                "{}      headers:\n      - name: x-tenant\n        value: tenant-{number}\n{backend}",
                path(&format!("/svc/{number}/api"))
            );
        }
        document(yaml, &route(&format!("tenants-{index}"), &text));
    }
}

/// Whom a policy is for.
const OF_PODS: &str = "  selector:\n    matchLabels:\n      app: server\n";
const OF_SERVICE: &str = "  targetRefs:\n  - group: \"\"\n    kind: Service\n    name: app\n";

/// The waypoint and the service that leads to its pod.
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: perf
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
---
apiVersion: v1
kind: Service
metadata:
  name: waypoint
  namespace: perf
  labels:
    gateway.networking.k8s.io/gateway-name: waypoint
spec:
  clusterIP: 10.96.0.2
  selector:
    gateway.networking.k8s.io/gateway-name: waypoint
  ports:
  - name: mesh
    port: 15008
    appProtocol: hbone
";

/// One policy of methods, paths and a template; or a hundred, of which the last allows what is asked for.
fn policies(yaml: &mut String, rules: Rules, of: &str) {
    let policy = |name: &str, paths: &str| {
        format!(
            "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
  namespace: perf
spec:
{of}  action: ALLOW
  rules:
  - from:
    - source:
        principals: [\"cluster.local/ns/perf/sa/client\"]
    to:
    - operation:
        methods: [\"GET\", \"POST\"]
        paths: [{paths}]
"
        )
    };
    match rules {
        Rules::One | Rules::Grpc | Rules::Changing => {
            document(yaml, &policy("app", "\"/\", \"/api/*\", \"*/healthz\", \"/v1/{*}/users/{**}\""));
        }
        Rules::Many => {
            for number in 0..99 {
                let paths = format!("\"/team-{number}/{{*}}/users/{{**}}\", \"/team-{number}/{{**}}/edit\"");
                document(yaml, &policy(&format!("p{number:02}"), &paths));
            }
            document(yaml, &policy("z", "\"/svc/{*}/api/{**}\", \"/\""));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_is_without_problems() {
        let meshes = [
            Mesh::L4,
            Mesh::L7(Rules::One),
            Mesh::L7(Rules::Many),
            Mesh::L7(Rules::Grpc),
            Mesh::L7(Rules::Changing),
            Mesh::Hop(Rules::Many),
            Mesh::Waypoint(Rules::Many),
        ];
        for mesh in meshes {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("mesh.yaml"), resources(mesh)).unwrap();
            let loaded = xds::kube::load_dir(folder.path());
            assert!(loaded.problems.is_empty(), "{mesh:?}: {:?}", loaded.problems.first());
            assert!(loaded.catalog.pods.len() >= 2);
        }
    }
}
