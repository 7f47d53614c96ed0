//! What reaches a pod in plain text (port 15006): authorized without an identity, then handed to the application.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use super::admission::{Admission, Arrival, admit};
use super::application::dial_application;
use super::connection::Connection;
use super::http;
use super::lookup::Lookup;
use super::node::Node;
use super::outbound::carry_plain;
use super::pod::Pod;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Direction, Party};
use crate::net::{Socket, original_destination};

pub(super) fn serve(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let worker = node.worker.clone();
    let worker_here = worker.clone();
    worker.spawn(async move {
        let source = Party { address: Some(remote), workload: None, identity: None };
        let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
        let ready = {
            let preparing = pin!(prepare(&connection, &node, &pod, &socket, remote));
            connection.until_cut(preparing).await
        };
        match ready.and_then(|ready| ready) {
            Err(cause) => {
                socket.reset_on_close();
                connection.end(cause);
            }
            Ok(Ready { arrival, application, admission: Admission::ByRequest }) => {
                connection.established();
                let application =
                    http::Application { node, pod, target: arrival.destination, socket: application };
                worker_here.spawn(http::serve(connection, arrival, http::Wire::Socket(socket), application));
            }
            Ok(Ready { application, .. }) => {
                connection.established();
                // A task of its own, without the room that admission took.
                worker_here.spawn(carry_plain(connection, socket, application));
            }
        }
    });
}

/// An admitted connection and its application.
struct Ready {
    arrival: Arrival,
    application: Socket,
    admission: Admission,
}

async fn prepare(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    socket: &Socket,
    remote: SocketAddr,
) -> Result<Ready, CloseCause> {
    // A connection that was not redirected was made to the proxy itself.
    let to = original_destination(socket)
        .filter(|to| !node.is_own_port(to.port()))
        .ok_or(CloseCause::ReservedPort)?;
    connection.record.borrow_mut().destination.address = Some(to);
    let (state, workload) = node.workload(&pod.local).await.ok_or(CloseCause::UnknownWorkload)?;
    {
        let mut record = connection.record.borrow_mut();
        // Who owns the source address is a hint for the books, never a proof for policy.
        record.source.workload = state.snapshot.workload_by_address(&workload.network, remote.ip()).cloned();
        record.destination.workload = Some(workload.clone());
    }
    connection.note_telemetry(&state.snapshot);
    let arrival = Arrival { source: None, source_address: remote, destination: to };
    let admission = admit(connection, &state, &workload, &arrival)?;
    let lookup = Lookup { state: &state, workload: &workload };
    let speaks_first = admission == Admission::ByRequest || lookup.client_begins(to.port());
    let application = dial_application(node, pod, &arrival, to, speaks_first).await?;
    Ok(Ready { arrival, application, admission })
}
