//! What is told of traffic: `corelane.l7.v1.Telemetry`.

use std::fmt;
use std::sync::Arc;

use l7::ir;
use l7::telemetry::Telemetry;
use model::NamespacedHostname;

use super::{DecodeError, message, text, waypoint_destination};
use crate::proto::l7 as wire;

const MESH: &str = "mesh";
const NAMESPACE: &str = "namespace/";
const WORKLOAD: &str = "workload/";
const DESTINATION: &str = "destination/";

/// Whose traffic it is; what the name of the resource says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TelemetrySubject {
    /// That of all workloads.
    Mesh,
    Namespace(Arc<str>),
    /// By its uid.
    Workload(Arc<str>),
    /// That to a service behind a waypoint; `None` is whatever is addressed by its own address.
    Destination(Option<NamespacedHostname>),
}

impl TelemetrySubject {
    /// The name of the resource for a destination, which is named as that of its policies is.
    pub fn destination_name(destination: &str) -> String {
        format!("{DESTINATION}{destination}")
    }
}

impl fmt::Display for TelemetrySubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str(MESH),
            Self::Namespace(name) => write!(f, "{NAMESPACE}{name}"),
            Self::Workload(uid) => write!(f, "{WORKLOAD}{uid}"),
            Self::Destination(Some(service)) => write!(f, "{DESTINATION}{service}"),
            Self::Destination(None) => write!(f, "{DESTINATION}/"),
        }
    }
}

/// Reads a `corelane.l7.v1.Telemetry`.
pub fn telemetry(name: &str, bytes: &[u8]) -> Result<(TelemetrySubject, Telemetry), DecodeError> {
    let message: wire::Telemetry = message(bytes)?;
    let written: ir::Telemetry = serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))?;
    let compiled = Telemetry::compile(&written)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))?;
    Ok((telemetry_subject(name)?, compiled))
}

/// What the name of a resource stands for.
pub fn telemetry_subject(name: &str) -> Result<TelemetrySubject, DecodeError> {
    if name == MESH {
        return Ok(TelemetrySubject::Mesh);
    }
    if let Some(namespace) = name.strip_prefix(NAMESPACE) {
        return Ok(TelemetrySubject::Namespace(text(namespace)));
    }
    if let Some(uid) = name.strip_prefix(WORKLOAD) {
        return Ok(TelemetrySubject::Workload(text(uid)));
    }
    if let Some(destination) = name.strip_prefix(DESTINATION) {
        return Ok(TelemetrySubject::Destination(waypoint_destination(destination)?));
    }
    let mend = "name it mesh, namespace/NAMESPACE, workload/UID or destination/NAMESPACE/HOST";
    Err(DecodeError::new("name", format!("{name:?} names nobody"), mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let service = NamespacedHostname::new("app", "web.app.svc.cluster.local");
        for subject in [
            TelemetrySubject::Mesh,
            TelemetrySubject::Namespace("app".into()),
            TelemetrySubject::Workload("Kubernetes//Pod/app/web-1".into()),
            TelemetrySubject::Destination(Some(service)),
            TelemetrySubject::Destination(None),
        ] {
            assert_eq!(telemetry_subject(&subject.to_string()), Ok(subject));
        }
        assert!(telemetry_subject("app").unwrap_err().to_string().contains("names nobody"));
    }
}
