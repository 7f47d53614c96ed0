//! One pod on one worker: its listeners and its pool of tunnels.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use model::Workload;
use slab::Slab;
use tunnel::hbone::Baggage;

use super::http::Authorizers;
use super::node::{Node, Role};
use super::state::LocalPod;
use super::{dns, inbound, listening, outbound, passthrough};
use crate::link::{Link, Pool};
use crate::net::{ListenOptions, Listener, Socket, SocketOptions, wildcard};
use crate::worker::{Census, Latch, Worker};

/// Turns of the runtime after the last connection is gone: to drop what its task held, to close it, one spare.
const CLOSING_TURNS: usize = 3;

pub(super) struct Pod {
    pub(super) local: Arc<LocalPod>,
    /// Tunnels that this pod's connections share. Never shared between pods: each proves its own identity.
    pub(super) pool: Pool,
    /// Connections to those who are asked about requests to this pod.
    pub(super) authorizers: Rc<Authorizers>,
    /// Tunnels that others have made to this pod.
    accepted: RefCell<Slab<Rc<Link>>>,
    /// Connections to the pod's applications wear the client's address. Given up where the process may not.
    pub(super) wears_clients: Cell<bool>,
    pub(super) closing: Rc<Latch>,
    /// Opens when the pod leaves, but not when only the proxy ends.
    pub(super) gone: Rc<Latch>,
    /// Its connections.
    pub(super) live: Rc<Census>,
    /// The workload's description as it is sent with each request, and the workload it was made from.
    baggage: RefCell<Option<(Arc<Workload>, Rc<str>)>>,
}

/// What a listener does with a connection.
type Serve = fn(Rc<Node>, Rc<Pod>, Socket, SocketAddr);

impl Pod {
    pub(super) fn start(node: &Rc<Node>, local: &Arc<LocalPod>) -> io::Result<Rc<Self>> {
        let ports = node.options.ports;
        let options = node.listen_options(&local.network);
        let bind_as = |port, options: &_| Listener::bind(wildcard(port, node.options.ipv6), options);
        let bind = |port| bind_as(port, &options);
        listening::pass_on_handshakes(&local.network);
        let mut listeners: Vec<(Listener, Serve)> = Vec::new();
        if node.options.proxies {
            listeners.push((bind(ports.inbound_hbone)?, inbound::serve));
        }
        let is_own = node.options.own_pod.as_ref() == Some(&local.uid);
        let is_captured = !is_own && node.options.role == Role::NodeProxy;
        if node.options.proxies && is_captured {
            // Captured connections live by the kernel's table of connections, in which only those that the proxy opens
            // need its mark. Replies that carried it would have each packet of the connection routed twice.
            let socket = SocketOptions { mark: None, ..options.socket.clone() };
            let unmarked = ListenOptions { socket, ..options.clone() };
            listeners.push((bind_as(ports.outbound, &unmarked)?, outbound::serve));
            listeners.push((bind(ports.inbound_plaintext)?, passthrough::serve));
        }
        let names = if is_captured { dns::Listeners::open(node, local)? } else { None };
        let pool = Pool::new(&node.worker, node.options.pool);
        let pod = Rc::new(Self {
            local: local.clone(),
            pool,
            authorizers: Authorizers::new(),
            accepted: RefCell::default(),
            wears_clients: Cell::new(node.options.keeps_source_address && is_captured),
            closing: Rc::default(),
            gone: Rc::default(),
            live: Rc::default(),
            baggage: RefCell::default(),
        });
        for (listener, serve) in listeners {
            let (node, pod) = (node.clone(), pod.clone());
            node.worker.clone().spawn(async move {
                listening::accept(&node, &pod, listener, |socket, remote| {
                    if node.is_full() {
                        socket.reset_on_close();
                    } else {
                        serve(node.clone(), pod.clone(), socket, remote);
                    }
                })
                .await;
            });
        }
        if let Some(names) = names {
            names.serve(node, &pod);
        }
        Ok(pod)
    }

    /// How the workload describes itself to the other side of a tunnel; encoded once per version of the workload.
    pub(super) fn baggage_of(&self, workload: &Arc<Workload>) -> Rc<str> {
        let mut kept = self.baggage.borrow_mut();
        if let Some((of, encoded)) = kept.as_ref()
            && Arc::ptr_eq(of, workload)
        {
            return encoded.clone();
        }
        let encoded: Rc<str> = Baggage::of_workload(workload).encode().into();
        *kept = Some((workload.clone(), encoded.clone()));
        encoded
    }

    /// Takes no new connections. Those that are open go on.
    pub(super) fn stop_listening(&self) {
        self.closing.open();
    }

    /// Takes no new connections and lets go of all tunnels, those included that others have made to the pod. The
    /// registry cuts what is open, before.
    pub(super) fn stop(&self) {
        self.closing.open();
        self.gone.open();
        self.authorizers.clear();
        self.pool.drain();
        // Out of the slab first: a link calls back when it ends.
        let accepted = std::mem::take(&mut *self.accepted.borrow_mut());
        for (_, link) in accepted {
            link.close(crate::link::CloseCause::LocalClose, "the pod leaves");
        }
    }

    /// Waits until no connection is left, and what they held is closed.
    pub(super) async fn stopped(&self, worker: &Worker) {
        self.live.wait_empty().await;
        for _ in 0..CLOSING_TURNS {
            worker.yield_now().await;
        }
    }

    /// Keeps an accepted tunnel until [`Pod::forget`].
    pub(super) fn keep(&self, link: Rc<Link>) -> usize {
        self.accepted.borrow_mut().insert(link)
    }

    pub(super) fn forget(&self, key: usize) {
        self.accepted.borrow_mut().try_remove(key);
    }
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod").field("local", &self.local).finish_non_exhaustive()
    }
}
