//! A control plane that does what a test says: raw resources over delta ADS, certificates from an authority of its
//! own, restarts, and garbage. It shares no code with the client beyond the generated messages.

pub mod authority;
pub mod discovery;
mod server;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dataplane::net::NetworkNamespace;
use prost::Message;
use prost_types::Any;
use tokio::sync::watch;
use xds::proto::discovery::DeltaDiscoveryResponse;
use xds::proto::security::Authorization;
use xds::proto::workload::{Address, Service, Workload, address};
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::PATIENCE;
use authority::Authority;

/// The name on its certificate.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
/// What its clients must show.
pub const TOKEN: &str = "a-token-of-the-test";
pub const PORT: u16 = 15012;

/// A resource of any type, under its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resource {
    pub name: String,
    pub body: Any,
    /// Keys `NETWORK/IP` by which it may be asked for.
    pub aliases: Vec<String>,
    /// Of a workload: its node, and the names of its services.
    pub node: String,
    pub services: Vec<String>,
}

/// What the control plane holds, and what it has seen of its clients.
#[derive(Debug, Default)]
pub struct State {
    /// By type and name, with the time of the last change.
    pub(super) resources: BTreeMap<(String, String), (u64, Resource)>,
    /// Rises with every change.
    pub(super) clock: u64,
    pub(super) streams: BTreeMap<u64, StreamState>,
    pub(super) streams_opened: u64,
    /// Reasons of responses that clients refused.
    pub(super) refusals: Vec<String>,
    /// Responses to send to each open stream, at which time.
    pub(super) injected: Vec<(u64, DeltaDiscoveryResponse)>,
    /// Nothing is answered.
    pub(super) is_silent: bool,
    /// Names that clients asked for one by one.
    pub(super) asked: Vec<String>,
}

/// How far one client is.
#[derive(Debug, Clone, Default)]
pub struct StreamState {
    pub node: String,
    /// Types asked for.
    pub types: usize,
    /// It has been sent everything up to this time.
    pub seen: u64,
    /// Responses not answered yet.
    pub unanswered: usize,
}

/// What all parts share.
#[derive(Debug)]
pub struct Script {
    state: Mutex<State>,
    /// Tells of changes; the value is the clock.
    pub(super) changes: watch::Sender<u64>,
    /// Rises when all streams shall end.
    pub(super) cuts: watch::Sender<u64>,
}

/// The control plane: running or not, its script stays.
pub struct ControlPlane {
    pub script: Arc<Script>,
    pub authority: Arc<Authority>,
    network: NetworkNamespace,
    address: SocketAddr,
    folder: PathBuf,
    running: Option<server::Running>,
}

impl Script {
    fn new() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0), cuts: watch::Sender::new(0) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state();
        state.clock += 1;
        let result = change(&mut state);
        self.changes.send_replace(state.clock);
        result
    }
}

impl ControlPlane {
    /// Running in `network` on `address`; its files are in `folder`.
    pub fn start(network: NetworkNamespace, address: SocketAddr, folder: &Path) -> Self {
        let authority = Arc::new(Authority::new(&folder.join("authority")));
        std::fs::write(folder.join("root-cert.pem"), authority.root_pem()).unwrap();
        std::fs::write(folder.join("token"), TOKEN).unwrap();
        let script = Arc::new(Script::new());
        let mut plane =
            Self { script, authority, network, address, folder: folder.to_owned(), running: None };
        plane.resume();
        plane
    }

    /// What a node proxy is told of it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let address = format!("https://{}", self.address);
        let path = |name| self.folder.join(name).display().to_string();
        let pairs = [
            ("XDS_ADDRESS", address.clone()),
            ("CA_ADDRESS", address),
            ("ALT_XDS_HOSTNAME", SERVER_NAME.to_owned()),
            ("ALT_CA_HOSTNAME", SERVER_NAME.to_owned()),
            ("XDS_ROOT_CA", path("root-cert.pem")),
            ("CA_ROOT_CA", path("root-cert.pem")),
            ("AUTH_TOKEN", path("token")),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Serves again after [`ControlPlane::halt`], with all that the script holds.
    pub fn resume(&mut self) {
        if self.running.is_none() {
            let listener = self.network.within(|| TcpListener::bind(self.address)).unwrap().unwrap();
            self.running = Some(server::Running::start(listener, &self.script, &self.authority));
        }
    }

    /// Ends like a process that is killed: all connections and the listener are gone.
    pub fn halt(&mut self) {
        self.running = None;
        self.script.state().streams.clear();
    }

    /// Answers every connection with bytes that mean nothing, until the returned value is dropped.
    pub fn talk_nonsense(&mut self) -> server::Nonsense {
        self.halt();
        let listener = self.network.within(|| TcpListener::bind(self.address)).unwrap().unwrap();
        server::Nonsense::start(listener)
    }

    /// Ends every stream with a status, as a server does that sheds load. The connections stay.
    pub fn cut_streams(&self) {
        self.script.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Puts resources in force.
    pub fn put(&self, resources: impl IntoIterator<Item = Resource>) {
        self.script.change(|state| {
            let clock = state.clock;
            for resource in resources {
                let key = (resource.body.type_url.clone(), resource.name.clone());
                state.resources.insert(key, (clock, resource));
            }
        });
    }

    /// Takes resources away by their names; each must be there.
    pub fn remove<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        self.script.change(|state| {
            for name in names {
                let before = state.resources.len();
                state.resources.retain(|(_, held), _| held != name);
                assert!(state.resources.len() < before, "there is no resource {name}");
            }
        });
    }

    /// Sends a response as it is to each client that is connected. Its nonce is replaced.
    pub fn inject(&self, response: DeltaDiscoveryResponse) {
        self.script.change(|state| state.injected.push((state.clock, response)));
    }

    /// Has questions and changes wait for their answers, or answers them all.
    pub fn set_silent(&self, is_silent: bool) {
        self.script.change(|state| state.is_silent = is_silent);
    }

    /// Names that clients have asked for one by one, in order.
    pub fn asked(&self) -> Vec<String> {
        self.script.state().asked.clone()
    }

    /// The workload or the service of a name.
    pub fn get(&self, name: &str) -> Option<Resource> {
        let key = (ADDRESS_TYPE.to_owned(), name.to_owned());
        self.script.state().resources.get(&key).map(|(_, it)| it.clone())
    }

    /// Reasons of refused responses, each told once.
    pub fn refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.script.state().refusals)
    }

    /// Streams opened since the beginning.
    pub fn streams_opened(&self) -> u64 {
        self.script.state().streams_opened
    }

    /// Waits until `clients` clients have been sent everything and have answered.
    pub fn settle(&self, clients: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (clock, streams) = {
                let state = self.script.state();
                (state.clock, state.streams.clone())
            };
            let done =
                |stream: &StreamState| stream.types >= 2 && stream.seen == clock && stream.unanswered == 0;
            if streams.len() >= clients && streams.values().all(done) {
                return;
            }
            assert!(Instant::now() < deadline, "{clients} clients at {clock}: {streams:?}");
            std::thread::yield_now();
        }
    }
}

impl From<Workload> for Resource {
    fn from(workload: Workload) -> Self {
        let aliases = workload.addresses.iter().map(|ip| alias(&workload.network, ip)).collect();
        let (name, node) = (workload.uid.clone(), workload.node.clone());
        let services = workload.services.keys().cloned().collect();
        let address = Address { r#type: Some(address::Type::Workload(workload)) };
        Self { name, body: any(ADDRESS_TYPE, &address), aliases, node, services }
    }
}

impl From<Service> for Resource {
    fn from(service: Service) -> Self {
        let aliases = service.addresses.iter().map(|it| alias(&it.network, &it.address)).collect();
        let name = format!("{}/{}", service.namespace, service.hostname);
        let address = Address { r#type: Some(address::Type::Service(service)) };
        Self { name, body: any(ADDRESS_TYPE, &address), aliases, ..Self::default() }
    }
}

impl From<Authorization> for Resource {
    fn from(policy: Authorization) -> Self {
        let name = format!("{}/{}", policy.namespace, policy.name);
        Self { name, body: any(AUTHORIZATION_TYPE, &policy), ..Self::default() }
    }
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn alias(network: &str, ip: &[u8]) -> String {
    format!("{network}/{}", super::ip_of(ip))
}
