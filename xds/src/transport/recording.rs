//! What the discovery client starts with, and what it leaves for the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prost_types::Any;
use prost_types::value::Kind;

use super::discovery::DiscoveryConfig;
use crate::cache::{Cache, CacheError, Keeper};
use crate::delta::{Client, Sink};
use crate::local::LocalState;
use crate::proto::discovery::{DeltaDiscoveryResponse, Node};
use crate::store::Store;

/// Where state comes from besides the control plane.
#[derive(Debug, Clone, Default)]
pub struct StateSources {
    /// What was written by hand. In force from the start; the control plane's resources of the same names replace it.
    pub local: Option<Arc<LocalState>>,
    /// Where the last state is kept for a start while the control plane is away; see [`crate::cache`].
    pub directory: Option<PathBuf>,
}

/// What came of the state on disk.
#[derive(Debug)]
pub(super) enum Warm {
    Absent,
    Loaded { written: SystemTime, resources: usize },
}

/// A sink that passes everything on and notes what was refused.
struct Noting<'a> {
    store: &'a mut Store,
    refused: Vec<String>,
}

impl Sink for Noting<'_> {
    fn upsert(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), String> {
        let result = self.store.upsert(type_url, name, body);
        if result.is_err() {
            self.refused.push(name.to_owned());
        }
        result
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        self.store.remove(type_url, name);
    }

    fn answered(&mut self, type_url: &str, key: &str) {
        self.store.answered(type_url, key);
    }

    fn shared_name(&self, type_url: &str, name: &str) -> Option<Arc<str>> {
        self.store.shared_name(type_url, name)
    }
}

/// Applies a response, and notes in the cache what of it is in force now.
pub(super) fn apply(
    client: &mut Client,
    store: &mut Store,
    keeper: Option<&mut Keeper>,
    response: &DeltaDiscoveryResponse,
) -> (crate::proto::discovery::DeltaDiscoveryRequest, crate::delta::Outcome) {
    let Some(keeper) = keeper else { return client.response(response, store) };
    let mut noting = Noting { store, refused: Vec::new() };
    let (reply, outcome) = client.response(response, &mut noting);
    if matches!(outcome, crate::delta::Outcome::Ignored) {
        return (reply, outcome);
    }
    let (now, refused) = (Instant::now(), noting.refused);
    for resource in &response.resources {
        let body = resource.resource.as_ref().filter(|body| body.type_url == response.type_url);
        if let Some(body) = body.filter(|_| !refused.contains(&resource.name)) {
            keeper.cache.put(&response.type_url, &resource.name, &resource.version, &body.value, now);
        }
    }
    for name in &response.removed_resources {
        keeper.cache.remove(&response.type_url, name, now);
    }
    (reply, outcome)
}

/// A store with what was written by hand.
pub(super) fn fresh_store(sources: &StateSources, local_node: &Arc<str>) -> Store {
    let mut store = Store::of_node(Arc::clone(local_node));
    if let Some(local) = &sources.local {
        local.apply(&mut store);
    }
    store
}

/// The network that a node says it is in, as the proxies of istiod do.
pub(super) fn network(node: &Node) -> Arc<str> {
    let network = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NETWORK"));
    match network.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(network)) => network.as_str().into(),
        _ => "".into(),
    }
}

/// Puts the state on disk in force, whole or not at all, and tells the client of what is held.
pub(super) fn warm_start(
    client: &mut Client,
    store: &mut Store,
    config: &DiscoveryConfig,
    cache: &mut Cache,
) -> Result<Warm, CacheError> {
    let Some(loaded) = cache.load()? else { return Ok(Warm::Absent) };
    let mut warm = fresh_store(&config.sources, &config.local_node);
    warm.set_network(network(&config.node));
    let mut held = Vec::with_capacity(loaded.resources.len());
    for resource in loaded.resources.into_iter().filter(|it| client.subscribes(it.type_url)) {
        let body = Any { type_url: resource.type_url.to_owned(), value: resource.body };
        warm.upsert(resource.type_url, &resource.name, &body)
            .map_err(|reason| cache.refusal(&resource.name, reason))?;
        held.push((resource.type_url, resource.name, resource.version));
    }
    let resources = held.len();
    for (type_url, name, version) in held {
        let shared = warm.shared_name(type_url, &name);
        client.hold(type_url, shared.unwrap_or_else(|| name.as_str().into()), &version);
    }
    cache.build_upon();
    warm.set_stale(Some(loaded.written));
    *store = warm;
    Ok(Warm::Loaded { written: loaded.written, resources })
}
