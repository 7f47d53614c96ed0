//! What becomes of a request, and why: `corelane explain DIR --from POD --to HOST:PORT`.
//!
//! The folder is read as the embedded control plane reads it, and its resources are given to the very store that a node
//! proxy keeps; then the questions are asked that the client's node, and after it the server's, ask of their snapshot.
//! Nothing here knows what a route or a policy means. No packet is sent: whether something listens is not looked at.

mod client;
mod report;
mod request;
mod server;
mod text;
mod waypoint;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use l7::http1::Http1Error;
use model::Identity;
use xds::kube::{MeshSettings, Problem};

pub use report::{Decision, Explanation};

use client::Asking;
use request::Asked;
use world::World;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// `NAMESPACE/NAME` of the pod, or its name where no other has it.
    pub from: String,
    /// `HOST:PORT`, where HOST is an address or a name as the pod would write it, or `pod/NAMESPACE/NAME:PORT`.
    pub to: String,
    pub method: String,
    /// With its query.
    pub path: String,
    /// `NAME: VALUE` of each; `host` takes the place of HOST:PORT as the authority.
    pub headers: Vec<String>,
    /// What policies take for the identity that the client has proved, in the place of the pod's.
    pub identity: Option<String>,
    /// What policies and routes take for the client's address, in the place of the pod's.
    pub ip: Option<IpAddr>,
    pub mesh: MeshSettings,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("{} holds no configuration that can be read: {problem}", .folder.display())]
    Folder { folder: PathBuf, problem: Box<Problem> },
    #[error("--from {0:?}: there is no such pod; name one of the folder's as NAMESPACE/NAME{1}")]
    UnknownPod(String, String),
    #[error("--from {0:?} may be {1}; name it as NAMESPACE/NAME")]
    AmbiguousPod(String, String),
    #[error("the pod {0} has no address: give it `status.podIP` or the annotation corelane.io/ip")]
    NoAddress(String),
    #[error("--to {0:?} is not HOST:PORT, such as web.app:80, 10.96.0.1:80 or [fd00::1]:80")]
    Destination(String),
    #[error(
        "--to {asked:?}: nothing in the folder has that name (looked for {tried}); name a Service, a ServiceEntry's host \
         or pod/NAMESPACE/NAME, or give the address"
    )]
    UnknownHost { asked: String, tried: String },
    #[error("--to {0:?}: {1} has no address that the pod could dial")]
    Unreachable(String, String),
    #[error("--identity {0:?} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT: {1}")]
    Identity(String, String),
    #[error("--header {0:?} is not NAME: VALUE")]
    Header(String),
    #[error("the request cannot be sent: {0}; look at --method, --path and --header")]
    Request(Http1Error),
    #[error("the resources of the folder are not accepted by a node proxy: {0}")]
    Store(String),
}

/// Says what becomes of a request.
pub fn explain(folder: &Path, question: &Question) -> Result<Explanation, ExplainError> {
    let world = World::read(folder, &question.mesh)?;
    let pod = world.pod(&question.from)?;
    let ip =
        *pod.ips.first().ok_or_else(|| ExplainError::NoAddress(format!("{}/{}", pod.namespace, pod.name)))?;
    let destination = world.destination(pod, &question.to)?;
    let asked = Asked::new(question)?;
    let proved = match &question.identity {
        None => pod.enrolled.then(|| pod.identity.clone()),
        Some(text) => {
            Some(text.parse().map_err(|error| ExplainError::Identity(text.clone(), format!("{error}")))?)
        }
    };
    let source = Source { identity: proved, ip: question.ip.unwrap_or(ip) };
    Asking {
        world: &world,
        snapshot: &world.snapshot,
        pod,
        ip,
        source: &source,
        sender: source.ip,
        tunnels: pod.enrolled,
        destination: &destination,
        asked: &asked,
    }
    .explain()
}

/// Whom policies and routes take the client for.
#[derive(Debug, Clone)]
pub(in crate::explain) struct Source {
    /// Proved by the tunnel; `None` in the clear.
    pub(in crate::explain) identity: Option<Identity>,
    pub(in crate::explain) ip: IpAddr,
}

/// Where the pod connects to.
#[derive(Debug, Clone)]
pub(in crate::explain) struct Resolved {
    pub(in crate::explain) asked: String,
    pub(in crate::explain) to: SocketAddr,
    /// How the name became the address, in words.
    pub(in crate::explain) how: String,
}

#[cfg(test)]
mod tests;
