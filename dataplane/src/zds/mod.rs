//! The client of the node agent: learns which pods of this node are in the mesh, and their network namespaces.
//!
//! The agent listens on a Unix socket and speaks ZDS (package `istio.workload.zds`), as Istio's CNI agent does.
//! [`protocol`] holds the rules and is pure; `connection` moves packets and descriptors; `manager` carries the orders
//! out. Each packet is answered before the next is read, so the agent is held up by what is not done yet.

mod connection;
mod manager;
pub mod protocol;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use manager::{Pods, RETRY_AFTER};
use protocol::{Conversation, Order, ProtocolError, answer, hello};

use self::connection::{Buffer, Connection};
use self::manager::Manager;
use crate::admin::Readiness;
use crate::net::NetworkNamespace;

/// The first wait for the next connection; each failure doubles it.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// The agent has broken the protocol: it is not known any more which pods it means, so the process must end.
#[derive(Debug, thiserror::Error)]
#[error("the node agent at {path} breaks the protocol (ZDS): {error}; it must be one that speaks version 1")]
pub struct AgentError {
    pub path: PathBuf,
    pub error: ProtocolError,
}

/// How a connection ended.
enum End {
    /// The agent has gone, or never was there.
    Lost {
        reason: String,
        agent_spoke: bool,
    },
    Broken(ProtocolError),
}

/// Follows the agent behind the socket at `path` for as long as it keeps to the protocol. Between connections the pods
/// go on; `readiness` is pending until the agent has named all pods on the present connection and each is served.
pub async fn run<P: Pods>(path: &Path, node: &P, readiness: Readiness) -> AgentError {
    let mut manager = Manager::new(node, readiness);
    let mut backoff = BACKOFF_FIRST;
    let mut failing = false;
    loop {
        let end = match Connection::open(path) {
            Ok(connection) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(path = %path.display(), "connected to the node agent again");
                }
                converse(&connection, &mut manager).await
            }
            Err(error) => End::Lost { reason: error.to_string(), agent_spoke: false },
        };
        manager.disconnected();
        match end {
            End::Broken(error) => return AgentError { path: path.to_owned(), error },
            End::Lost { reason, agent_spoke } => {
                if agent_spoke {
                    backoff = BACKOFF_FIRST;
                }
                if !std::mem::replace(&mut failing, true) {
                    let path = path.display();
                    tracing::warn!(%path, reason, "no connection to the node agent; the pods that run stay");
                }
            }
        }
        let next = tokio::time::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                () = manager.retry_due() => manager.retry().await,
            }
        }
    }
}

/// Serves one connection to its end.
async fn converse<P: Pods>(connection: &Connection, manager: &mut Manager<'_, P>) -> End {
    let mut agent_spoke = false;
    let lost = |reason: String, agent_spoke| End::Lost { reason, agent_spoke };
    if let Err(error) = connection.send(&hello()).await {
        return lost(error.to_string(), agent_spoke);
    }
    let mut conversation = Conversation::default();
    loop {
        let order = match next_order(connection, &mut conversation, manager).await {
            Ok(Some(Ok(order))) => order,
            Ok(Some(Err(error))) => {
                // The connection may be gone already.
                drop(connection.send(&answer(Err(error.to_string()))).await);
                return End::Broken(error);
            }
            Ok(None) => return lost("the agent has closed the connection".to_owned(), agent_spoke),
            Err(error) => return lost(error.to_string(), agent_spoke),
        };
        agent_spoke = true;
        let outcome = manager.carry_out(order).await;
        if let Err(error) = connection.send(&answer(outcome)).await {
            return lost(error.to_string(), agent_spoke);
        }
    }
}

/// What the next packet means; meanwhile what has failed is tried again. `None` at the end of the connection.
async fn next_order<P: Pods>(
    connection: &Connection,
    conversation: &mut Conversation,
    manager: &mut Manager<'_, P>,
) -> io::Result<Option<Result<Order<NetworkNamespace>, ProtocolError>>> {
    let mut buffer = Buffer::default();
    loop {
        tokio::select! {
            packet = connection.receive(&mut buffer) => {
                let Some(packet) = packet? else { return Ok(None) };
                return Ok(Some(conversation.receive(packet).map(in_namespace)));
            }
            () = manager.retry_due() => {}
        }
        manager.retry().await;
    }
}

fn in_namespace(order: Order<std::os::fd::OwnedFd>) -> Order<NetworkNamespace> {
    match order {
        Order::Start { pod, network } => {
            Order::Start { pod, network: NetworkNamespace::from_descriptor(network) }
        }
        Order::Keep { uid } => Order::Keep { uid },
        Order::Stop { uid } => Order::Stop { uid },
        Order::StopAllBut(named) => Order::StopAllBut(named),
    }
}

#[cfg(test)]
mod tests;
