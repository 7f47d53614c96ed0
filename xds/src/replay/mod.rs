//! Feeds a captured stream into the real client and the real store, as if it came from the wire.
//!
//! A capture is a folder of files in the order of the stream, `NNN-STEP-req-TYPE.pb` and `NNN-STEP-resp-TYPE.pb`, each
//! one message. Responses are applied; requests are compared with what the client sends at that point. A request with
//! a node that repeats a type begins a new stream.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use serde_json::{Value, json};

use crate::delta::{Client, Demand, End, Mode, Outcome, Subscription};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::proto::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, CLUSTER_TYPE, HTTP_ROUTE_TYPE,
    LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE, MESH_WIDE_TYPE, REQUEST_AUTHENTICATION_TYPE, TELEMETRY_TYPE,
    TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE, WORKLOAD_LABELS_TYPE, WORKLOAD_TYPE,
};
use crate::snapshot::{Snapshot, dump};
use crate::store::Store;

/// Types that the store takes; a stream may carry others, which the client acknowledges and ignores.
const KNOWN_TYPES: [&str; 14] = [
    CLUSTER_TYPE,
    LISTENER_TYPE,
    LOAD_ASSIGNMENT_TYPE,
    ADDRESS_TYPE,
    WORKLOAD_TYPE,
    AUTHORIZATION_TYPE,
    HTTP_ROUTE_TYPE,
    AUTHORIZATION_POLICY_TYPE,
    REQUEST_AUTHENTICATION_TYPE,
    WAYPOINT_POLICIES_TYPE,
    TRAFFIC_POLICY_TYPE,
    WORKLOAD_LABELS_TYPE,
    MESH_WIDE_TYPE,
    TELEMETRY_TYPE,
];

/// What came of a capture.
#[derive(Debug)]
pub struct Replay {
    pub responses: Vec<ResponseResult>,
    /// Captured requests that ours were compared with.
    pub requests: usize,
    /// Where our requests differ from the captured ones, as `file: difference`.
    pub differences: Vec<String>,
    pub snapshot: Arc<Snapshot>,
}

#[derive(Debug)]
pub struct ResponseResult {
    pub file: String,
    pub outcome: Outcome,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{path}: {error}; name the folder of one client, such as SCENARIO/CLIENT")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}; a .pb file holds one bare message of the discovery protocol")]
    Decode { path: PathBuf, error: prost::DecodeError },
    #[error("{path} holds no *-req-*.pb with a node; name the folder of one client, such as SCENARIO/CLIENT")]
    Empty { path: PathBuf },
}

/// Replays the capture in a client's folder.
pub fn replay(folder: &Path) -> Result<Replay, ReplayError> {
    let capture = Capture::read(folder)?;
    let mut player = Player::new(&capture, folder)?;
    for (file, message) in &capture.messages {
        match message {
            Captured::Request(request) => player.request(file, request),
            Captured::Response(response) => player.response(file, response),
        }
    }
    Ok(player.finish())
}

impl Replay {
    /// One JSON object a line: each response, then the state.
    pub fn lines(&self) -> impl Iterator<Item = Value> + '_ {
        let responses = self.responses.iter().map(ResponseResult::json);
        responses.chain(std::iter::once_with(|| dump::state(&self.snapshot)))
    }

    /// True if every response was accepted and every request was the captured one.
    pub fn is_faithful(&self) -> bool {
        let rejected = |it: &ResponseResult| matches!(it.outcome, Outcome::Rejected { .. });
        self.differences.is_empty() && !self.responses.iter().any(rejected)
    }
}

impl ResponseResult {
    fn json(&self) -> Value {
        let (result, reason) = match &self.outcome {
            Outcome::Accepted { .. } => ("ACK", ""),
            Outcome::Ignored => ("ACK", "type ignored"),
            Outcome::Rejected { reason } => ("NACK", reason.as_str()),
        };
        json!({ "file": self.file, "result": result, "reason": reason })
    }
}

struct Capture {
    messages: Vec<(String, Captured)>,
}

enum Captured {
    Request(DeltaDiscoveryRequest),
    Response(DeltaDiscoveryResponse),
}

impl Capture {
    fn read(folder: &Path) -> Result<Self, ReplayError> {
        let failed = |path: &Path, error| ReplayError::Read { path: path.to_owned(), error };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
            let entry = entry.map_err(|error| failed(folder, error))?;
            if entry.path().extension().is_some_and(|extension| extension == "pb") {
                names.extend(entry.file_name().into_string());
            }
        }
        // The number in front gives the order.
        names.sort();
        let mut messages = Vec::with_capacity(names.len());
        for name in names {
            let path = folder.join(&name);
            let bytes = fs::read(&path).map_err(|error| failed(&path, error))?;
            let message = if name.contains("-resp-") {
                DeltaDiscoveryResponse::decode(&*bytes).map(Captured::Response)
            } else {
                DeltaDiscoveryRequest::decode(&*bytes).map(Captured::Request)
            };
            let message = message.map_err(|error| ReplayError::Decode { path, error })?;
            messages.push((name, message));
        }
        Ok(Self { messages })
    }

    /// The first request of each type, in order.
    fn first_requests(&self) -> Vec<&DeltaDiscoveryRequest> {
        let mut first = Vec::<&DeltaDiscoveryRequest>::new();
        for (_, message) in &self.messages {
            if let Captured::Request(request) = message
                && !first.iter().any(|it| it.type_url == request.type_url)
            {
                first.push(request);
            }
        }
        first
    }
}

struct Player {
    client: Client,
    store: Store,
    now: Instant,
    /// What the client has sent and the capture has not shown yet.
    sent: VecDeque<DeltaDiscoveryRequest>,
    /// Types begun on the current stream.
    begun: Vec<String>,
    snapshot: Arc<Snapshot>,
    responses: Vec<ResponseResult>,
    requests: usize,
    differences: Vec<String>,
}

impl Player {
    fn new(capture: &Capture, folder: &Path) -> Result<Self, ReplayError> {
        let first = capture.first_requests();
        let empty = || ReplayError::Empty { path: folder.to_owned() };
        let node = first.iter().find_map(|it| it.node.clone()).ok_or_else(empty)?;
        let subscriptions = first
            .iter()
            .filter(|it| KNOWN_TYPES.contains(&&*it.type_url))
            .map(|it| Subscription {
                type_url: it.type_url.as_str().into(),
                mode: match it.type_url.as_str() {
                    LOAD_ASSIGNMENT_TYPE => Mode::Followed,
                    _ if it.resource_names_unsubscribe.is_empty() => Mode::Wildcard,
                    _ => Mode::OnDemand,
                },
            })
            .collect();
        let now = Instant::now();
        Ok(Self {
            client: Client::new(node, subscriptions, now),
            store: Store::new(),
            now,
            sent: VecDeque::new(),
            begun: Vec::new(),
            snapshot: Arc::new(Snapshot::default()),
            responses: Vec::new(),
            requests: 0,
            differences: Vec::new(),
        })
    }

    fn request(&mut self, file: &str, captured: &DeltaDiscoveryRequest) {
        if captured.node.is_some() && (self.begun.is_empty() || self.begun.contains(&captured.type_url)) {
            self.open();
        }
        if captured.node.is_some() {
            self.begun.push(captured.type_url.clone());
        }
        let ignored = !KNOWN_TYPES.contains(&&*captured.type_url) && captured.response_nonce.is_empty();
        if ignored {
            return;
        }
        self.requests += 1;
        let is_followed = captured.type_url == LOAD_ASSIGNMENT_TYPE;
        let is_demand = captured.response_nonce.is_empty() && captured.node.is_none() && !is_followed;
        if is_demand {
            self.demand(file, captured);
            return;
        }
        let same_kind = |ours: &DeltaDiscoveryRequest| {
            ours.type_url == captured.type_url
                && ours.response_nonce.is_empty() == captured.response_nonce.is_empty()
        };
        let Some(index) = self.sent.iter().position(same_kind) else {
            self.differences.push(format!("{file}: we send nothing here"));
            return;
        };
        if let Some(ours) = self.sent.remove(index)
            && ours != *captured
        {
            self.differences.push(format!("{file}: we send {ours:?} instead of {captured:?}"));
        }
    }

    /// The captured client asks for more on demand.
    fn demand(&mut self, file: &str, captured: &DeltaDiscoveryRequest) {
        for key in &captured.resource_names_subscribe {
            match self.client.demand(&captured.type_url, key) {
                Demand::Request(ours) if *ours == *captured => {}
                // Asked before: known, or renewed in one request at the start of this stream.
                Demand::Pending | Demand::Absent => {}
                other => self.differences.push(format!("{file}: {key}: {other:?}")),
            }
        }
    }

    fn open(&mut self) {
        if self.client.connect_at().is_none() {
            self.client.closed(self.now, &End::Clean);
        }
        self.client.connecting();
        self.begun.clear();
        self.sent = self.client.opened().into();
    }

    fn response(&mut self, file: &str, response: &DeltaDiscoveryResponse) {
        let (reply, outcome) = self.client.response(response, &mut self.store);
        self.sent.push_back(reply);
        self.sent.extend(self.client.follow(&mut self.store));
        self.responses.push(ResponseResult { file: file.to_owned(), outcome });
        // After each response, as the proxy does: so that incremental compilation is what is tested.
        if let Some(snapshot) = self.store.snapshot() {
            self.snapshot = snapshot;
        }
    }

    fn finish(self) -> Replay {
        let Self { responses, requests, differences, snapshot, .. } = self;
        Replay { responses, requests, differences, snapshot }
    }
}
