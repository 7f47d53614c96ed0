//! Reaching the application of a local pod: as the client's own connection, or through the application's tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use model::{ApplicationTunnel, ApplicationTunnelProtocol};
use tunnel::proxy_protocol::ProxyHeader;

use super::admission::Arrival;
use super::dial::connect_cause;
use super::node::Node;
use super::pod::Pod;
use crate::access_log::cause::CloseCause;
use crate::net::{ConnectError, ConnectOptions, Socket, connect};

/// Connects to the application, wearing the client's address unless that is the pod's own. With `speaks_first` the
/// application says nothing before it has heard from the client.
pub(super) async fn dial_application(
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    arrival: &Arrival,
    to: SocketAddr,
    speaks_first: bool,
) -> Result<Socket, CloseCause> {
    let client = arrival.source_address.ip();
    // A connection from the pod to itself with the pod's own address twice would meet its own reply.
    let wears = pod.wears_clients.get() && client != to.ip() && client.is_ipv4() == to.is_ipv4();
    let source = wears.then(|| SocketAddr::new(client, 0));
    let options = ConnectOptions { source, speaks_first, ..node.connect_options(&pod.local.network) };
    let connected = match connect(to, &options).await {
        Err(error) if source.is_some() && may_go_without(node, &error) => {
            tracing::warn!(pod = %pod.local.uid, %error, "applications of this pod see the proxy as their client");
            pod.wears_clients.set(false);
            connect(to, &ConnectOptions { source: None, ..options }).await
        }
        connected => connected,
    };
    connected.map_err(|error| {
        tracing::debug!(%error, %to, "the application did not accept");
        connect_cause(&error)
    })
}

/// Whether the source address is given up rather than the connection: only where the process may not wear any.
fn may_go_without(node: &Node, error: &ConnectError) -> bool {
    !node.options.source_address_required
        && matches!(error, ConnectError::Source { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
}

/// Connects to the application through its own tunnel and introduces the client. `asked` is what the client asked for,
/// as an address.
pub(super) async fn dial_application_tunnel(
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    arrival: &Arrival,
    tunnel: ApplicationTunnel,
    target: SocketAddr,
    asked: SocketAddr,
    speaks_first: bool,
) -> Result<Socket, CloseCause> {
    let application = if node.options.localhost_application_tunnel {
        // From loopback to loopback: an application that listens there trusts what the header says.
        let loopback: IpAddr = match target.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let options = node.connect_options(&pod.local.network);
        let to = SocketAddr::new(loopback, target.port());
        connect(to, &options).await.map_err(|error| connect_cause(&error))?
    } else {
        dial_application(node, pod, arrival, target, speaks_first).await?
    };
    if tunnel.protocol == ApplicationTunnelProtocol::Proxy {
        let header = ProxyHeader {
            source: arrival.source_address,
            destination: asked,
            identity: arrival.source.as_ref().map(|identity| Box::from(identity.uri())),
        };
        application.write_all(&header.encode()).await.map_err(|_| CloseCause::ServerReset)?;
    }
    Ok(application)
}
