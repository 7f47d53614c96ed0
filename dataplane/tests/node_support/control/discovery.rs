//! Delta ADS from the script: each client is sent what it has not been sent yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use xds::proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::{Resource, Script, State, StreamState, TOKEN};

pub(super) struct Discovery {
    pub(super) script: Arc<Script>,
}

type Answer = Result<DeltaDiscoveryResponse, Status>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Answer>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<ReceiverStream<Answer>>, Status> {
        authenticate(request.metadata())?;
        let (responses, queued) = mpsc::channel(4);
        let id = {
            let mut state = self.script.state();
            state.streams_opened += 1;
            let id = state.streams_opened;
            state.streams.insert(id, StreamState::default());
            id
        };
        let clock = self.script.state().clock;
        let script = self.script.clone();
        let (types, unanswered) = (BTreeMap::new(), BTreeSet::new());
        let node = String::new();
        let stream = Stream { id, node, script, types, nonces: 0, unanswered, injected: clock };
        tokio::spawn(stream.run(request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(queued)))
    }
}

pub(super) fn authenticate(metadata: &tonic::metadata::MetadataMap) -> Result<(), Status> {
    let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
    if shown != Some(format!("Bearer {TOKEN}").as_str()) {
        return Err(Status::unauthenticated("no such token"));
    }
    Ok(())
}

/// What a client wants of one type, and has.
#[derive(Default)]
struct Subscription {
    wildcard: bool,
    /// On demand: the node whose workloads come unasked.
    node: Option<String>,
    names: BTreeSet<String>,
    /// Names asked for since the last response: each is answered, also if there is none.
    asked: BTreeSet<String>,
    /// Names it has, with the version.
    held: BTreeMap<String, String>,
    has_answer: bool,
}

struct Stream {
    id: u64,
    /// The name of the client's node.
    node: String,
    script: Arc<Script>,
    types: BTreeMap<String, Subscription>,
    nonces: u64,
    unanswered: BTreeSet<String>,
    /// Injected responses up to this time have been sent.
    injected: u64,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>, responses: mpsc::Sender<Answer>) {
        let (mut changes, mut cuts) = (self.script.changes.subscribe(), self.script.cuts.subscribe());
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.take(request),
                    Ok(None) | Err(_) => break,
                },
                _ = changes.changed() => {}
                _ = cuts.changed() => {
                    // The client may be gone already.
                    let _ = responses.send(Err(Status::unavailable("the test cuts the stream"))).await;
                    break;
                }
                () = responses.closed() => break,
            }
            for response in self.responses() {
                if responses.send(Ok(response)).await.is_err() {
                    break;
                }
            }
        }
        self.script.state().streams.remove(&self.id);
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) {
        let is_answer = !request.response_nonce.is_empty();
        if is_answer {
            assert!(self.unanswered.remove(&request.response_nonce), "an unknown nonce");
        }
        if let Some(error) = request.error_detail {
            self.script.state().refusals.push(error.message);
        }
        if let Some(node) = request.node {
            let name = node.metadata.as_ref().and_then(|it| it.fields.get("NODE_NAME")?.kind.clone());
            if let Some(Kind::StringValue(name)) = name {
                self.node = name;
            }
            if let Some(stream) = self.script.state().streams.get_mut(&self.id) {
                stream.node = node.id;
            }
        }
        if is_answer && !self.types.contains_key(&request.type_url) {
            return;
        }
        let subscription = self.types.entry(request.type_url).or_insert_with(|| Subscription {
            // An opening request that names nothing wants everything.
            wildcard: request.resource_names_subscribe.is_empty(),
            node: request.resource_names_unsubscribe.iter().any(|it| it == "*").then(|| self.node.clone()),
            held: request.initial_resource_versions.into_iter().collect(),
            ..Subscription::default()
        });
        for name in request.resource_names_subscribe {
            if name == "*" {
                subscription.wildcard = true;
            } else {
                self.script.state().asked.push(name.clone());
                subscription.asked.insert(name.clone());
                subscription.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            subscription.wildcard &= name != "*";
            subscription.names.remove(&name);
        }
    }

    /// What is to be sent now.
    fn responses(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let script = self.script.clone();
        let mut state = script.state();
        if state.is_silent {
            return Vec::new();
        }
        let mut responses = Vec::new();
        for (type_url, subscription) in &mut self.types {
            responses.extend(subscription.response(type_url, &state));
        }
        let due = state.injected.iter().filter(|(time, _)| *time > self.injected);
        responses.extend(due.map(|(_, response)| response.clone()));
        self.injected = state.clock;
        for response in &mut responses {
            self.nonces += 1;
            response.nonce = format!("{}-{}", self.id, self.nonces);
            self.unanswered.insert(response.nonce.clone());
        }
        let (clock, types) = (state.clock, self.types.values().filter(|it| it.has_answer).count());
        let unanswered = self.unanswered.len();
        if let Some(stream) = state.streams.get_mut(&self.id) {
            (stream.seen, stream.types, stream.unanswered) = (clock, types, unanswered);
        }
        responses
    }
}

impl Subscription {
    /// What the client does not have yet; `None` if it has everything and has been told so.
    fn response(&mut self, type_url: &str, state: &State) -> Option<DeltaDiscoveryResponse> {
        let of_type = || state.resources.iter().filter(|((held, _), _)| held == type_url);
        let named = of_type().map(|(_, (_, resource))| resource).filter(|resource| self.names(resource));
        let named: BTreeSet<_> = named.map(|resource| resource.name.as_str()).collect();
        let wanted: BTreeMap<_, _> = of_type()
            .map(|((_, name), (version, resource))| (name.clone(), (version.to_string(), resource)))
            .filter(|(_, (_, resource))| self.wants(resource, &named))
            .collect();
        let changed = wanted.iter().filter(|(name, (version, _))| self.held.get(*name) != Some(version));
        let resources: Vec<_> = changed.map(|(_, (version, it))| envelope(version, it)).collect();
        let gone = self.held.keys().filter(|name| !wanted.contains_key(*name)).cloned();
        let mut removed_resources: Vec<_> = gone.collect();
        let exists =
            |key: &String| wanted.values().any(|(_, it)| it.name == *key || it.aliases.contains(key));
        let asked = std::mem::take(&mut self.asked);
        removed_resources.extend(asked.into_iter().filter(|key| !exists(key)));
        if resources.is_empty() && removed_resources.is_empty() && self.has_answer {
            return None;
        }
        self.has_answer = true;
        self.held = wanted.into_iter().map(|(name, (version, _))| (name, version)).collect();
        let type_url = type_url.to_owned();
        Some(DeltaDiscoveryResponse { resources, removed_resources, type_url, ..Default::default() })
    }

    /// Whether it was asked for by one of its names.
    fn names(&self, resource: &Resource) -> bool {
        std::iter::once(&resource.name).chain(&resource.aliases).any(|name| self.names.contains(name))
    }

    /// Who asks for a service gets its endpoints as well. `named` are those asked for.
    fn wants(&self, resource: &Resource, named: &BTreeSet<&str>) -> bool {
        self.wildcard
            || self.node.as_ref() == Some(&resource.node)
            || named.contains(resource.name.as_str())
            || resource.services.iter().any(|service| named.contains(service.as_str()))
    }
}

fn envelope(version: &str, resource: &Resource) -> discovery::Resource {
    discovery::Resource {
        version: version.to_owned(),
        resource: Some(resource.body.clone()),
        name: resource.name.clone(),
        aliases: resource.aliases.clone(),
        ..discovery::Resource::default()
    }
}
