//! Drives the delta client over a real connection, for as long as the proxy lives.
//!
//! Runs on the control thread. Each response is applied, acknowledged, and turned into a snapshot for [`Event`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prost::Message;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

pub use super::recording::StateSources;
use super::recording::{self, Warm};
use super::token_keys::TokenKeys;
use super::{Credentials, MESSAGE_BYTES_MAX, Server};
use crate::cache::{Cache, CacheError, Keeper};
use crate::delta::{Client, Demand, End, Outcome, Sink, Subscription};
use crate::issuer::Keys;
use crate::proto::ADDRESS_TYPE;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Requests that may wait for a server that does not read; then the stream is given up.
const REQUESTS_WAITING_MAX: usize = 1024;

/// What to connect to, as whom, for what.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    pub server: Server,
    pub credentials: Credentials,
    pub node: Node,
    /// The node whose workloads the snapshots show as local.
    pub local_node: Arc<str>,
    pub subscriptions: Vec<Subscription>,
    pub sources: StateSources,
}

/// What the control thread hears.
#[derive(Debug)]
pub enum Event {
    /// The state changed, or is complete for the first time. `ready`: each wildcard type has been accepted once, or a
    /// complete state was on disk (see [`Snapshot::stale_since`]).
    Snapshot { snapshot: Arc<Snapshot>, ready: bool },
    /// Something was refused; what was in force before stays.
    Rejected { type_url: String, reason: String },
    /// A stream was opened.
    Connected,
    /// No connection, or the stream ended. What is held stays in force.
    Disconnected { end: End, reason: String },
    /// A response came, of this type and size.
    Message { type_url: String, bytes: usize },
    /// A state on disk is in force until the control plane answers.
    StateLoaded { written: SystemTime, resources: usize },
    /// The state on disk is not used, or none can be kept.
    StateRefused { reason: String },
    /// The state could not be written; it is tried again.
    StateNotKept { reason: String },
    /// What a demand led to at once; what comes later comes as a snapshot.
    Demanded { key: String, answer: DemandAnswer },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemandAnswer {
    /// It is held already.
    Held,
    /// It was asked for.
    Asked,
    /// The server has said that there is none, or everything that exists is held.
    Absent,
    /// Too much is asked for.
    Refused,
}

/// What a proxy is to a control plane: the first part of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeKind {
    #[default]
    NodeProxy,
    Waypoint,
}

/// The node as a node proxy names itself.
#[derive(Debug, Clone, Default)]
pub struct NodeIdentity {
    pub kind: NodeKind,
    pub instance_ip: Option<IpAddr>,
    pub pod_name: String,
    pub pod_namespace: String,
    pub node_name: String,
    /// More metadata, such as that of `ISTIO_METAJSON_*`; wins over what is derived.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

impl NodeIdentity {
    pub fn node(&self) -> Node {
        let ip = self.instance_ip.unwrap_or(IpAddr::from([1, 1, 1, 1]));
        let (name, namespace) = (&self.pod_name, &self.pod_namespace);
        let kind = match self.kind {
            NodeKind::NodeProxy => "ztunnel",
            NodeKind::Waypoint => "waypoint",
        };
        let metadata = BTreeMap::from([
            ("NAME".to_owned(), name.clone()),
            ("NAMESPACE".to_owned(), namespace.clone()),
            ("INSTANCE_IPS".to_owned(), ip.to_string()),
            ("NODE_NAME".to_owned(), self.node_name.clone()),
        ]);
        let derived = metadata.into_iter().map(|(key, value)| (key, text(value)));
        let given = self.metadata.iter().map(|(key, value)| (key.clone(), from_json(value)));
        Node {
            id: format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields: derived.chain(given).collect() }),
            ..Node::default()
        }
    }
}

fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => return text(value.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(from_json).collect() }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// Connects and reconnects for ever, telling `tell` what happens. `demands` brings keys of addresses to ask for; if
/// its senders are gone, nothing more is asked for. Ends only by being dropped.
pub async fn run(
    config: DiscoveryConfig,
    mut demands: mpsc::Receiver<String>,
    mut tell: impl FnMut(Event),
) -> std::convert::Infallible {
    let client = Client::new(config.node.clone(), config.subscriptions.clone(), Instant::now());
    let store = Store::of_node(Arc::clone(&config.local_node));
    let mut driver = Driver { client, store, was_ready: false, keeper: None, keys: TokenKeys::start() };
    driver.begin(&config, &mut tell);
    loop {
        while let Some(at) = driver.client.connect_at() {
            let complete = driver.client.ready();
            tokio::select! {
                error = keep(&mut driver.keeper, complete) => tell(Event::StateNotKept { reason: error.to_string() }),
                () = tokio::time::sleep_until(at.into()) => driver.client.connecting(),
                Some(key) = demands.recv() => driver.demand(&key, None, &mut tell),
                keys = driver.keys.changed() => driver.take_keys(keys, &mut tell),
            }
        }
        let (end, reason) = driver.stream(&config, &mut demands, &mut tell).await;
        driver.client.closed(Instant::now(), &end);
        tell(Event::Disconnected { end, reason });
    }
}

/// In place of [`run`] where there is no control plane: what was written by hand is all there is.
pub async fn run_without(
    sources: StateSources,
    local_node: Arc<str>,
    mut tell: impl FnMut(Event),
) -> std::convert::Infallible {
    let mut store = recording::fresh_store(&sources, &local_node);
    let snapshot = store.snapshot().unwrap_or_default();
    tell(Event::Snapshot { snapshot, ready: true });
    std::future::pending().await
}

struct Driver {
    client: Client,
    store: Store,
    was_ready: bool,
    keeper: Option<Keeper>,
    keys: TokenKeys,
}

async fn keep(keeper: &mut Option<Keeper>, complete: bool) -> CacheError {
    match keeper {
        Some(keeper) => keeper.work(complete).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Puts in force what is there without the control plane.
    fn begin(&mut self, config: &DiscoveryConfig, tell: &mut impl FnMut(Event)) {
        self.store = recording::fresh_store(&config.sources, &config.local_node);
        self.store.set_network(recording::network(&config.node));
        if let Some(directory) = &config.sources.directory {
            let warm = Cache::new(directory, scope(config)).and_then(|mut cache| {
                let warm = recording::warm_start(&mut self.client, &mut self.store, config, &mut cache);
                // A file that is refused is replaced by the next state.
                self.keeper = Some(Keeper::new(cache));
                warm
            });
            match warm {
                Ok(Warm::Absent) => {}
                Ok(Warm::Loaded { written, resources }) => tell(Event::StateLoaded { written, resources }),
                Err(error) => tell(Event::StateRefused { reason: error.to_string() }),
            }
        }
        self.keys.follow(&self.store);
        self.tell_changed(tell);
    }

    fn take_keys(&mut self, keys: Arc<Keys>, tell: &mut impl FnMut(Event)) {
        self.store.set_keys(keys);
        self.tell_changed(tell);
    }

    fn tell_changed(&mut self, tell: &mut impl FnMut(Event)) {
        if let Some(snapshot) = self.store.snapshot() {
            tell(Event::Snapshot { snapshot, ready: self.is_ready() });
        }
    }

    fn is_ready(&self) -> bool {
        self.client.ready() || self.store.state().stale_since().is_some()
    }

    /// One connection and its stream, from dialling to its end.
    async fn stream(
        &mut self,
        config: &DiscoveryConfig,
        demands: &mut mpsc::Receiver<String>,
        tell: &mut impl FnMut(Event),
    ) -> (End, String) {
        let (channel, metadata) = match (config.server.connect().await, config.credentials.metadata()) {
            (Ok(channel), Ok(metadata)) => (channel, metadata),
            (Err(error), _) | (_, Err(error)) => return (End::ConnectFailed, error.to_string()),
        };
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
        for request in self.client.opened() {
            if requests.try_send(request).is_err() {
                return overflow();
            }
        }
        let mut request = Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() = metadata;
        let mut service =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut responses = match service.delta_aggregated_resources(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return ended(&status, config),
        };
        tell(Event::Connected);
        loop {
            let complete = self.client.ready();
            tokio::select! {
                error = keep(&mut self.keeper, complete) => tell(Event::StateNotKept { reason: error.to_string() }),
                response = next(&mut responses) => match response {
                    Ok(Some(response)) => {
                        for request in self.apply(&response, tell) {
                            if requests.try_send(request).is_err() {
                                return overflow();
                            }
                        }
                    }
                    Ok(None) => return (End::Clean, "the control plane ended the stream".to_owned()),
                    Err(status) => return ended(&status, config),
                },
                Some(key) = demands.recv() => self.demand(&key, Some(&requests), tell),
                keys = self.keys.changed() => self.take_keys(keys, tell),
            }
        }
    }

    fn apply(
        &mut self,
        response: &DeltaDiscoveryResponse,
        tell: &mut impl FnMut(Event),
    ) -> Vec<DeltaDiscoveryRequest> {
        tell(Event::Message { type_url: response.type_url.clone(), bytes: response.encoded_len() });
        let (reply, outcome) =
            recording::apply(&mut self.client, &mut self.store, self.keeper.as_mut(), response);
        let mut requests = vec![reply];
        requests.extend(self.client.follow(&mut self.store));
        self.keys.follow(&self.store);
        if let Outcome::Rejected { reason } = outcome {
            tell(Event::Rejected { type_url: response.type_url.clone(), reason });
        }
        if self.client.ready() {
            self.store.set_stale(None);
        }
        let ready = self.is_ready();
        let newly_ready = ready && !self.was_ready;
        self.was_ready = ready;
        // An empty mesh is a state too: readiness is told even if nothing was received.
        let snapshot =
            self.store.snapshot().or_else(|| newly_ready.then(|| Arc::new(self.store.state().clone())));
        if let Some(snapshot) = snapshot {
            tell(Event::Snapshot { snapshot, ready });
        }
        requests
    }

    fn demand(
        &mut self,
        key: &str,
        requests: Option<&mpsc::Sender<DeltaDiscoveryRequest>>,
        tell: &mut impl FnMut(Event),
    ) {
        let answer = if self.holds(key) { DemandAnswer::Held } else { self.ask(key, requests) };
        tell(Event::Demanded { key: key.to_owned(), answer });
        if answer == DemandAnswer::Held {
            // The server will not say it again, so whoever waits is told here.
            self.store.answered(ADDRESS_TYPE, key);
            self.tell_changed(tell);
        }
    }

    fn ask(&mut self, key: &str, requests: Option<&mpsc::Sender<DeltaDiscoveryRequest>>) -> DemandAnswer {
        match self.client.demand(ADDRESS_TYPE, key) {
            Demand::Request(request) => {
                // A full queue ends the stream at the next acknowledgement; the new one asks for all keys again.
                let sent = requests.is_some_and(|requests| requests.try_send(*request).is_ok());
                if sent { DemandAnswer::Asked } else { DemandAnswer::Refused }
            }
            Demand::Pending => DemandAnswer::Asked,
            Demand::Absent | Demand::NotOnDemand => DemandAnswer::Absent,
            Demand::Full => DemandAnswer::Refused,
        }
    }

    /// The server does not answer for what it has sent under another key, so the store is looked at first.
    fn holds(&self, key: &str) -> bool {
        let state = self.store.state();
        let Some((first, second)) = key.split_once('/') else { return state.workload_by_uid(key).is_some() };
        if let Ok(ip) = second.parse() {
            return state.workload_by_address(first, ip).is_some() || state.has_vip(first, ip);
        }
        state.service(first, second).is_some() || state.workload_by_uid(key).is_some()
    }
}

/// Whose state it is: that of another control plane or node says nothing here.
fn scope(config: &DiscoveryConfig) -> String {
    format!("{} {}", config.server.address, config.local_node)
}

async fn next(
    responses: &mut Streaming<DeltaDiscoveryResponse>,
) -> Result<Option<DeltaDiscoveryResponse>, Status> {
    responses.message().await
}

fn ended(status: &Status, config: &DiscoveryConfig) -> (End, String) {
    let end = End::Status { code: status.code(), message: status.message().to_owned() };
    let reason = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => format!(
            "the control plane does not accept {}: {}; it must be valid for this node's pod, audience istio-ca",
            config.credentials.token,
            status.message()
        ),
        code => format!("the stream ended: {code}: {}", super::chain(status)),
    };
    (end, reason)
}

fn overflow() -> (End, String) {
    let message = format!("the control plane left {REQUESTS_WAITING_MAX} requests unread");
    (End::Status { code: Code::ResourceExhausted, message: message.clone() }, message)
}
