//! Accepting the connections of a pod, and the end of it.
//!
//! A listener that closes resets what waits in its queue and refuses the handshakes that are under way, also where a
//! successor listens on the same port already. So that an upgrade loses nobody, a listener of a draining worker
//! 1. lets no further handshake begin, where the kernel does not pass them on, and goes on with those that have begun;
//! 2. takes whoever is in the queue, until it is empty;
//! 3. closes, in the same turn.
//!
//! Linux passes handshakes and queues on by itself where `net.ipv4.tcp_migrate_req` is 1 in the pod's namespace (since
//! 5.14). A container may not write the setting unless it is privileged, hence the first step.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::node::Node;
use super::pod::Pod;
use crate::net::{Listener, NetworkNamespace, Socket};

/// How long handshakes that are under way may take to end: some round trips of a client that is far away. Who begins one
/// meanwhile tries again by itself after a second, so longer is not better.
const HANDSHAKES_MAX: Duration = Duration::from_millis(100);

/// Connections that a listener takes at most when it is to close; no backlog is longer.
const LAST_ACCEPTS_MAX: u32 = 4_096;

/// Of these, how many before other tasks get their turn.
const LAST_ACCEPTS_IN_A_ROW_MAX: u32 = 32;

/// Whether, and how, the kernel passes on what a closing listener has.
const PASSES_ON: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Gives each connection to `take` until the pod takes no more.
pub(super) async fn accept(
    node: &Node,
    pod: &Pod,
    listener: Listener,
    mut take: impl FnMut(Socket, SocketAddr),
) {
    loop {
        let mut closing = pod.closing.wait();
        let accepted = monoio::select! {
            biased;
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, remote)) => take(socket, remote),
            Err(error) => {
                tracing::error!(pod = %pod.local.uid, %error, "a listener is broken");
                return;
            }
        }
    }
    let _closing = node.worker.hold();
    end_handshakes(node, pod, &listener, &mut take).await;
    for count in 1..=LAST_ACCEPTS_MAX {
        // Who leaves, or has no time left, would only cut them.
        if pod.gone.is_open() || node.is_cutting() {
            return;
        }
        let Ok(Some((socket, remote))) = listener.try_accept() else { return };
        take(socket, remote);
        if count.is_multiple_of(LAST_ACCEPTS_IN_A_ROW_MAX) {
            node.worker.yield_now().await;
        }
    }
}

/// Serves those whose handshake is under way, unless the kernel passes them on.
async fn end_handshakes(
    node: &Node,
    pod: &Pod,
    listener: &Listener,
    take: &mut impl FnMut(Socket, SocketAddr),
) {
    if pod.gone.is_open() || passes_on_handshakes(&pod.local.network) {
        return;
    }
    if let Err(error) = listener.begin_no_more() {
        tracing::debug!(pod = %pod.local.uid, %error, "handshakes that are under way are refused");
        return;
    }
    let until = Instant::now() + HANDSHAKES_MAX;
    let mut over = pin!(monoio::time::sleep(HANDSHAKES_MAX));
    while Instant::now() < until && !node.is_cutting() {
        let mut gone = pod.gone.wait();
        let accepted = monoio::select! {
            biased;
            () = &mut gone => return,
            () = &mut over => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, remote)) = accepted else { return };
        take(socket, remote);
    }
}

/// Has the kernel give handshakes that are under way when a listener closes to another one of the same port, if it can
/// and the process may.
pub(super) fn pass_on_handshakes(network: &NetworkNamespace) {
    drop(network.within(|| std::fs::write(PASSES_ON, "1")));
}

fn passes_on_handshakes(network: &NetworkNamespace) -> bool {
    network
        .within(|| std::fs::read(PASSES_ON))
        .is_ok_and(|value| value.is_ok_and(|value| value.starts_with(b"1")))
}
