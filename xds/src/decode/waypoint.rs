//! What a waypoint enforces: `corelane.l7.v1.WaypointPolicies`.

use std::sync::Arc;

use model::NamespacedHostname;

use super::{DecodeError, message, text};
use crate::proto::l7 as wire;

/// The destination of what is addressed by its own address, as the name of a resource.
const WORKLOADS: &str = "/";

/// Reads a `corelane.l7.v1.WaypointPolicies`: the destination, and the names of what is enforced for it. The destination
/// is `None` for whatever is addressed by its own address.
pub fn waypoint_policies(
    name: &str,
    bytes: &[u8],
) -> Result<(Option<NamespacedHostname>, Vec<Arc<str>>), DecodeError> {
    let message: wire::WaypointPolicies = message(bytes)?;
    Ok((waypoint_destination(name)?, message.names.iter().map(|it| text(it)).collect()))
}

/// The destination that the name of a resource stands for.
pub fn waypoint_destination(name: &str) -> Result<Option<NamespacedHostname>, DecodeError> {
    if name == WORKLOADS {
        return Ok(None);
    }
    let wrong = || {
        let mend = "name it as the service is named, or `/` for what is addressed by its own address";
        DecodeError::new("name", format!("{name:?} is no namespace/host"), mend)
    };
    NamespacedHostname::parse(name).map(Some).ok_or_else(wrong)
}
