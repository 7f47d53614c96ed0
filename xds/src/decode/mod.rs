//! From the bytes of a resource to the nouns of the mesh and the intermediate form of routes and policies.
//!
//! Invariants:
//! - A resource is taken whole or refused with the path of the field at fault and how to mend it. Nothing that bears
//!   on security is guessed or left out: an enum value that this version does not know refuses the resource.
//! - The name of a resource is its key (uid, `namespace/hostname`, `namespace/name`, ...), so that a removal by name
//!   always finds what it means.
//! - What comes out is compiled once for trial, so that a regular expression or a template that does not compile is
//!   refused here, at its sender, and not found out by a worker.

mod intern;
mod policy;
mod route;
mod service;
mod telemetry;
mod traffic;
mod waypoint;
mod workload;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use model::{GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, Service, Workload};
use prost::Message;

pub use intern::Interner;
pub use policy::{authorization, authorization_policy, request_authentication};
pub use route::{http_route, route_name};
pub use telemetry::{TelemetrySubject, telemetry, telemetry_subject};
pub use traffic::{mesh_wide, traffic_policy, traffic_policy_name, workload_labels};
pub use waypoint::{waypoint_destination, waypoint_policies};

use crate::proto::workload as wire;

/// Where a gateway takes HBONE unless it says otherwise.
const HBONE_PORT: u16 = 15008;

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}; {mend}")]
pub struct DecodeError {
    /// Field path inside the resource, such as `addresses[1]`.
    pub path: String,
    pub what: String,
    pub mend: String,
}

impl DecodeError {
    fn new(path: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into(), mend: mend.into() }
    }

    /// The same, seen from the field that holds the message.
    fn within(mut self, parent: impl fmt::Display) -> Self {
        self.path = format!("{parent}.{}", self.path);
        self
    }
}

/// An `istio.workload.Address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Workload(Workload),
    Service(Service),
}

/// Reads an `istio.workload.Address`.
pub fn address(name: &str, bytes: &[u8], interner: &mut Interner) -> Result<Address, DecodeError> {
    let message: wire::Address = message(bytes)?;
    match message.r#type {
        Some(wire::address::Type::Workload(it)) => {
            let decoded = workload::workload(&it, interner).map_err(|error| error.within("workload"))?;
            same_name(name, "workload.uid", &decoded.uid)?;
            Ok(Address::Workload(decoded))
        }
        Some(wire::address::Type::Service(it)) => {
            let decoded = service::service(&it, interner).map_err(|error| error.within("service"))?;
            same_name(name, "service.namespace and .hostname", &decoded.key.to_string())?;
            Ok(Address::Service(decoded))
        }
        None => Err(DecodeError::new(
            "type",
            "neither a workload nor a service",
            "send one of the two; kinds added later are not known to this version",
        )),
    }
}

/// Reads an `istio.workload.Workload` that travels without its `Address`.
pub fn bare_workload(name: &str, bytes: &[u8], interner: &mut Interner) -> Result<Workload, DecodeError> {
    let message: wire::Workload = message(bytes)?;
    let decoded = workload::workload(&message, interner)?;
    same_name(name, "uid", &decoded.uid)?;
    Ok(decoded)
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    M::decode(bytes)
        .map_err(|error| DecodeError::new("message", error.to_string(), "send it in its protobuf encoding"))
}

fn same_name(name: &str, path: &str, key: &str) -> Result<(), DecodeError> {
    if name == key {
        return Ok(());
    }
    let what = format!("{key:?} is not the name of the resource, {name:?}");
    Err(DecodeError::new(path, what, "name the resource by its key, or it could not be removed by name"))
}

/// 4 or 16 bytes.
fn ip(path: impl fmt::Display, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    let what = format!("an address of {} bytes", bytes.len());
    Err(DecodeError::new(path.to_string(), what, "send 4 bytes for IPv4, 16 for IPv6"))
}

fn port(path: impl fmt::Display, number: u32) -> Result<u16, DecodeError> {
    u16::try_from(number).map_err(|_| {
        DecodeError::new(path.to_string(), format!("{number} is not a port"), "ports go from 0 to 65535")
    })
}

/// An enum value, or an error that says that it is not known.
fn known<E: TryFrom<i32>>(path: impl fmt::Display, value: i32) -> Result<E, DecodeError> {
    E::try_from(value).map_err(|_| {
        let what = format!("enum value {value} is not known");
        let mend = "it may come from a newer control plane: update the proxy, or take the setting back";
        DecodeError::new(path.to_string(), what, mend)
    })
}

fn namespaced_hostname(
    path: impl fmt::Display,
    namespace: &str,
    hostname: &str,
    interner: &mut Interner,
) -> Result<NamespacedHostname, DecodeError> {
    if namespace.is_empty() || hostname.is_empty() {
        let what = format!("{namespace:?}/{hostname:?} lacks a part");
        return Err(DecodeError::new(path.to_string(), what, "name the namespace and the host"));
    }
    Ok(NamespacedHostname { namespace: interner.text(namespace), hostname: interner.text(hostname) })
}

fn gateway(
    path: &str,
    message: &wire::GatewayAddress,
    interner: &mut Interner,
) -> Result<GatewayAddress, DecodeError> {
    use wire::gateway_address::Destination;
    let destination = match &message.destination {
        Some(Destination::Hostname(it)) => {
            let path = format!("{path}.hostname");
            GatewayDestination::Hostname(namespaced_hostname(path, &it.namespace, &it.hostname, interner)?)
        }
        Some(Destination::Address(it)) => GatewayDestination::Address(NetworkAddress {
            network: interner.text(&it.network),
            ip: ip(format!("{path}.address.address"), &it.address)?,
        }),
        None => {
            let path = format!("{path}.destination");
            // Without its waypoint the traffic would go past what the waypoint enforces.
            return Err(DecodeError::new(
                path,
                "neither host name nor address",
                "name the gateway by one of them",
            ));
        }
    };
    let hbone_mtls_port = match port(format!("{path}.hbone_mtls_port"), message.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_mtls_port })
}

fn optional_gateway(
    path: &str,
    message: Option<&wire::GatewayAddress>,
    interner: &mut Interner,
) -> Result<Option<GatewayAddress>, DecodeError> {
    message.map(|message| gateway(path, message, interner)).transpose()
}

fn text(value: &str) -> Arc<str> {
    Arc::from(value)
}

#[cfg(test)]
mod tests;
