//! The rules of the conversation with the node agent: what a packet means, and which are broken.
//!
//! One protobuf message a packet (`xds/proto/zds.proto`). The agent asks, we answer each request before it sends the
//! next. On each connection it first describes every pod of the node (add, or keep for one that it cannot open just
//! now), says that this was all, and then goes on with changes. Pure: packets and descriptors in, orders out; the
//! descriptors are of any type, for nothing here looks at them.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;
use xds::proto::zds::workload_request::Payload;
use xds::proto::zds::workload_response;
use xds::proto::zds::{Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello};

/// Longest packet in either direction.
pub const PACKET_BYTES_MAX: usize = 1024;
/// Pods of one node.
pub const PODS_MAX: usize = 16_384;
/// Most of a reason that an answer carries; the rest of the packet is its frame.
const REASON_BYTES_MAX: usize = PACKET_BYTES_MAX - 24;

/// A packet as it came out of the socket.
#[derive(Debug)]
pub struct Packet<'a, D> {
    pub bytes: &'a [u8],
    /// It was longer than [`PACKET_BYTES_MAX`].
    pub is_cut: bool,
    pub descriptors: Vec<D>,
    /// More descriptors came with it than there was room for.
    pub has_more_descriptors: bool,
}

/// Who a pod is, as the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// What is to be done before the packet is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Order<D> {
    /// Serve this pod, whose network namespace the descriptor stands for.
    Start { pod: PodName, network: D },
    /// A pod that may be running stays.
    Keep { uid: Arc<str> },
    /// The pod is gone.
    Stop { uid: Arc<str> },
    /// The agent has named all pods: any other is gone.
    StopAllBut(BTreeSet<Arc<str>>),
}

/// What the agent has done against the rules. Nothing that follows on the connection could be trusted to mean what it
/// seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a packet is longer than {PACKET_BYTES_MAX} bytes")]
    TooLong,
    #[error("a packet is no WorkloadRequest: {0}")]
    Undecodable(String),
    #[error("a WorkloadRequest holds no request that is known here; its agent is of a newer version")]
    UnknownRequest,
    #[error("the add of pod {0} holds no workload_info")]
    NoInfo(String),
    #[error("the add of pod {uid} carries {count} descriptors; it needs one, of the pod's network namespace")]
    Descriptors { uid: String, count: DescriptorCount },
    #[error("a {0} carries a descriptor; only an add may")]
    UnexpectedDescriptor(&'static str),
    #[error("a second snapshot_sent on one connection")]
    SecondSnapshot,
    #[error("the keep of pod {0} comes after snapshot_sent")]
    LateKeep(String),
    #[error("more than {PODS_MAX} pods on one node")]
    TooManyPods,
}

/// How many descriptors came with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescriptorCount {
    Exactly(usize),
    MoreThan(usize),
}

impl std::fmt::Display for DescriptorCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(count) => write!(f, "{count}"),
            Self::MoreThan(count) => write!(f, "more than {count}"),
        }
    }
}

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Conversation {
    /// The pods named so far; `None` once the agent has named all.
    naming: Naming,
}

#[derive(Debug)]
enum Naming {
    Open(BTreeSet<Arc<str>>),
    Done,
}

impl Default for Naming {
    fn default() -> Self {
        Self::Open(BTreeSet::new())
    }
}

/// The packet that opens a connection.
pub fn hello() -> Vec<u8> {
    ZdsHello { version: Version::V1.into() }.encode_to_vec()
}

/// The answer to a request: done, or why not.
pub fn answer(outcome: Result<(), String>) -> Vec<u8> {
    let error = match outcome {
        Ok(()) => String::new(),
        // The empty reason would mean that it was done.
        Err(reason) if reason.is_empty() => "it failed".to_owned(),
        Err(mut reason) => {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            reason
        }
    };
    let payload = workload_response::Payload::Ack(Ack { error });
    WorkloadResponse { payload: Some(payload) }.encode_to_vec()
}

impl Conversation {
    /// Takes in the next packet. After an error the connection must end.
    pub fn receive<D>(&mut self, packet: Packet<'_, D>) -> Result<Order<D>, ProtocolError> {
        if packet.is_cut {
            return Err(ProtocolError::TooLong);
        }
        let request = WorkloadRequest::decode(packet.bytes)
            .map_err(|error| ProtocolError::Undecodable(error.to_string()))?;
        let is_bare = packet.descriptors.is_empty() && !packet.has_more_descriptors;
        let none = |request| if is_bare { Ok(()) } else { Err(ProtocolError::UnexpectedDescriptor(request)) };
        match request.payload.ok_or(ProtocolError::UnknownRequest)? {
            Payload::Add(add) => {
                let Some(info) = add.workload_info else { return Err(ProtocolError::NoInfo(add.uid)) };
                let network = single(packet.descriptors, packet.has_more_descriptors)
                    .map_err(|count| ProtocolError::Descriptors { uid: add.uid.clone(), count })?;
                let pod = PodName {
                    uid: add.uid.into(),
                    name: info.name.into(),
                    namespace: info.namespace.into(),
                    service_account: info.service_account.into(),
                };
                self.name(&pod.uid)?;
                Ok(Order::Start { pod, network })
            }
            Payload::Keep(keep) => {
                none("keep")?;
                if matches!(self.naming, Naming::Done) {
                    return Err(ProtocolError::LateKeep(keep.uid));
                }
                let uid = keep.uid.into();
                self.name(&uid)?;
                Ok(Order::Keep { uid })
            }
            Payload::Del(del) => {
                none("del")?;
                if let Naming::Open(named) = &mut self.naming {
                    named.remove(&*del.uid);
                }
                Ok(Order::Stop { uid: del.uid.into() })
            }
            Payload::SnapshotSent(_) => {
                none("snapshot_sent")?;
                match std::mem::replace(&mut self.naming, Naming::Done) {
                    Naming::Open(named) => Ok(Order::StopAllBut(named)),
                    Naming::Done => Err(ProtocolError::SecondSnapshot),
                }
            }
        }
    }

    fn name(&mut self, uid: &Arc<str>) -> Result<(), ProtocolError> {
        if let Naming::Open(named) = &mut self.naming {
            if named.len() >= PODS_MAX && !named.contains(uid) {
                return Err(ProtocolError::TooManyPods);
            }
            named.insert(Arc::clone(uid));
        }
        Ok(())
    }
}

fn single<D>(descriptors: Vec<D>, has_more: bool) -> Result<D, DescriptorCount> {
    let count = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next()) {
        _ if has_more => Err(DescriptorCount::MoreThan(count)),
        (Some(only), None) => Ok(only),
        _ => Err(DescriptorCount::Exactly(count)),
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
