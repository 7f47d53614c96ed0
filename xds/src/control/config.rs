//! Configuration of the embedded control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::kube::MeshSettings;
use crate::transport::Roots;

/// Time that a burst of file changes may last before the folder is read again.
pub const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often the folder is compared without any notification: notifications get lost on some file systems.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Lifetime of a workload certificate whose request names none.
pub const LEAF_LIFETIME: Duration = Duration::from_hours(24);
/// Longest lifetime that a request may ask for.
pub const LEAF_LIFETIME_MAX: Duration = Duration::from_hours(90 * 24);

/// Everything that is chosen before the control plane starts; immutable afterwards.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Folder of YAML files, read recursively and watched.
    pub directory: PathBuf,
    pub listen: ListenAddress,
    /// Private folder for what clients need to come in: root certificate and token files. Made if absent.
    pub state_directory: PathBuf,
    /// Where the root of the certificate authority comes from.
    pub root: RootSource,
    /// The nodes that may connect, each with its own token.
    pub nodes: Vec<NodeCredential>,
    /// Node of the pods that name none.
    pub default_node: Arc<str>,
    pub cluster_id: Arc<str>,
    pub mesh: MeshSettings,
    /// Addresses for pods without status.
    pub pod_network: Ipv4Net,
    /// Addresses for Services without `clusterIP`.
    pub service_network: Ipv4Net,
    /// Addresses for ServiceEntries without any.
    pub service_entry_network: Ipv4Net,
    pub gateway_class: GatewayClassNames,
    pub waypoints: WaypointPods,
    /// What the issuers of tokens must prove themselves by where their keys are fetched over TLS.
    pub issuer_roots: Roots,
    pub debounce: Duration,
    pub poll_interval: Duration,
    pub leaf_lifetime: Duration,
    pub leaf_lifetime_max: Duration,
}

/// What Istio's variables of the same meaning set: the class `name` exists, under `controller`, beside the classes of the
/// waypoints, which are constants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayClassNames {
    /// `PILOT_GATEWAY_API_DEFAULT_GATEWAYCLASS_NAME`
    pub name: Arc<str>,
    /// `PILOT_GATEWAY_API_CONTROLLER_NAME`
    pub controller: Arc<str>,
}

impl Default for GatewayClassNames {
    fn default() -> Self {
        Self { name: Arc::from("istio"), controller: Arc::from("istio.io/gateway-controller") }
    }
}

/// Who makes the pods of waypoint Gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaypointPods {
    /// Whoever writes the configuration: what has no pods does not run.
    #[default]
    Written,
    /// A Gateway without pods gets one, and a Service, of its own name.
    Made,
}

/// Where the server listens; always with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A socket file, readable and writable for the owner only.
    Unix(PathBuf),
    /// A loopback address; port 0 takes any free one.
    Tcp(SocketAddr),
}

/// Root certificate and key of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// Made anew at each start, its key never written.
    Generated,
    /// Read from `root-cert.pem` and `root-key.pem` of this folder, made there if both are absent.
    Directory(PathBuf),
}

/// A node proxy's right to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeCredential {
    pub node: Arc<str>,
    /// Bearer token; `None` draws a random one.
    pub token: Option<Arc<str>>,
}

impl std::fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCredential").field("node", &self.node).finish_non_exhaustive()
    }
}

impl ControlConfig {
    /// One node named `node`, everything else by default; the state lives in `state_directory`.
    pub fn new(
        directory: impl Into<PathBuf>,
        state_directory: impl Into<PathBuf>,
        node: impl Into<Arc<str>>,
    ) -> Self {
        let state_directory = state_directory.into();
        let node = node.into();
        Self {
            directory: directory.into(),
            listen: ListenAddress::Unix(state_directory.join("control.sock")),
            state_directory,
            root: RootSource::Generated,
            nodes: vec![NodeCredential { node: node.clone(), token: None }],
            default_node: node,
            cluster_id: Arc::from("Kubernetes"),
            mesh: MeshSettings::default(),
            pod_network: default_network([10, 244, 0, 0]),
            service_network: default_network([10, 96, 0, 0]),
            service_entry_network: default_network([240, 240, 0, 0]),
            gateway_class: GatewayClassNames::default(),
            waypoints: WaypointPods::default(),
            issuer_roots: Roots::System,
            debounce: DEBOUNCE,
            poll_interval: POLL_INTERVAL,
            leaf_lifetime: LEAF_LIFETIME,
            leaf_lifetime_max: LEAF_LIFETIME_MAX,
        }
    }
}

fn default_network(octets: [u8; 4]) -> Ipv4Net {
    // 16 is a valid prefix length, so the assertion of the constructor holds.
    Ipv4Net::new_assert(octets.into(), 16)
}
