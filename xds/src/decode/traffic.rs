//! Traffic policies, labels of workloads and what holds for the whole mesh: the remaining types of `corelane.l7.v1`.

use std::sync::Arc;

use l7::ir::{Labels, MeshWide, TrafficPolicy};

use super::{DecodeError, message, same_name, text};
use crate::proto::l7 as wire;

/// Reads a `corelane.l7.v1.TrafficPolicy`.
pub fn traffic_policy(name: &str, bytes: &[u8]) -> Result<Arc<TrafficPolicy>, DecodeError> {
    let message: wire::TrafficPolicy = message(bytes)?;
    let policy: TrafficPolicy = serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))?;
    same_name(name, "ir", &traffic_policy_name(&policy))?;
    Ok(Arc::new(policy))
}

/// The name of a policy's resource: `namespace/host/consumer-namespace`, the last empty where it is for all clients.
pub fn traffic_policy_name(policy: &TrafficPolicy) -> String {
    format!("{}/{}", policy.service, policy.consumer_namespace.as_deref().unwrap_or_default())
}

/// Reads a `corelane.l7.v1.WorkloadLabels`.
pub fn workload_labels(bytes: &[u8]) -> Result<Arc<Labels>, DecodeError> {
    let message: wire::WorkloadLabels = message(bytes)?;
    Ok(Arc::new(message.labels.iter().map(|(key, value)| (text(key), text(value))).collect()))
}

/// Reads a `corelane.l7.v1.MeshWide`.
pub fn mesh_wide(bytes: &[u8]) -> Result<MeshWide, DecodeError> {
    let message: wire::MeshWide = message(bytes)?;
    serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))
}
