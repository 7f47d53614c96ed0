//! Copies of requests, for mirrors: sent when the request itself is over, their answers thrown away.
//!
//! A copy delays nothing and changes nothing: it is a task of its own, on connections of its own, and whatever becomes
//! of it the client's answer has gone before. What cannot be kept to be sent again is not copied; what would be too
//! much for the worker is left out and counted. A mirror is spoken to in the version that it would be as a backend.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use l7::filter::Chain;
use l7::ir::{BackendTarget, BackendTls};
use model::{NamespacedHostname, Workload};
use tunnel::h2::Headers;
use xds::snapshot::resolve::Client;

use super::route::{Caller, Goal};
use super::upstream::{protocol_to, transport};
use super::{Protocol, Wire};
use crate::access_log::cause::CloseCause;
use crate::link::{Link, Taken};
use crate::metrics::Limit;
use crate::session::dial::{Dialler, UpstreamFacts, refusal_cause};
use crate::session::node::Node;
use crate::session::pod::Pod;
use crate::session::state::NodeState;

/// Copies under way on a worker.
pub const COPIES_MAX: usize = 1024;
/// From the connection to the end of the answer.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of an answer that is read over before the connection is closed.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The mirrors that get a copy of one request.
#[derive(Debug)]
pub(in crate::session) struct Copies {
    sender: Sender,
    targets: Vec<Target>,
}

#[derive(Debug, Clone)]
struct Sender {
    node: Rc<Node>,
    pod: Rc<Pod>,
    workload: Arc<Workload>,
    /// The client's own address.
    client: SocketAddr,
    state: Arc<NodeState>,
}

#[derive(Debug)]
struct Target {
    service: NamespacedHostname,
    port: u16,
    subset: Option<Arc<str>>,
    tls: Option<Arc<BackendTls>>,
    protocol: Protocol,
}

/// A whole request, for either version.
#[derive(Debug)]
pub(super) struct Message {
    /// As it goes to an upstream in HTTP/1.1.
    pub(super) head: Vec<u8>,
    pub(super) headers: Headers,
    pub(super) content: Vec<u8>,
    pub(super) is_chunked: bool,
}

/// Counts a copy while it is under way.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn enter(count: &Rc<Cell<usize>>) -> Option<Self> {
        let now = count.get();
        (now < COPIES_MAX).then(|| {
            count.set(now + 1);
            Self(Rc::clone(count))
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Copies {
    /// Draws for each mirror of the filters whether it gets this request; `None` if none does.
    pub(super) fn drawn(
        chain: &Chain,
        caller: &Caller,
        workload: &Arc<Workload>,
        state: &Arc<NodeState>,
        downstream: Protocol,
    ) -> Option<Self> {
        let targets: Vec<_> = chain
            .mirrors(|| caller.node.random())
            .filter_map(|mirror| match &mirror.target {
                BackendTarget::Service { service, port } => {
                    let declared = Goal::Service(service.clone()).declared(state, *port);
                    Some(Target {
                        service: service.clone(),
                        port: *port,
                        subset: mirror.subset.clone(),
                        tls: mirror.tls.clone(),
                        protocol: protocol_to(declared, downstream),
                    })
                }
                BackendTarget::Invalid(_) => None,
            })
            .collect();
        let sender = || Sender {
            node: Rc::clone(&caller.node),
            pod: Rc::clone(&caller.pod),
            workload: Arc::clone(workload),
            client: caller.remote,
            state: Arc::clone(state),
        };
        (!targets.is_empty()).then(|| Self { sender: sender(), targets })
    }

    pub(super) fn send(self, message: Message) {
        let message = Rc::new(message);
        let worker = self.sender.node.worker.clone();
        for target in self.targets {
            let Some(counted) = Counted::enter(&self.sender.node.copies) else {
                self.sender.node.metrics.limit_hit(Limit::Copies);
                return;
            };
            let (sender, message) = (self.sender.clone(), Rc::clone(&message));
            worker.spawn(async move {
                let sent = monoio::time::timeout(COPY_TIMEOUT, sender.send(&target, &message)).await;
                if let Ok(Err(cause)) = sent {
                    tracing::debug!(service = %target.service, ?cause, "a copy was not sent");
                }
                drop(counted);
            });
        }
    }
}

impl Sender {
    async fn send(&self, target: &Target, message: &Message) -> Result<(), CloseCause> {
        let client = Client { workload: &self.workload, ip: self.client.ip() };
        let Target { service, port, subset, .. } = target;
        let chooser = self.node.chooser();
        let route = self.state.snapshot.resolve_backend(client, service, *port, subset.as_deref(), chooser);
        let route = route.map_err(|refusal| refusal_cause(&refusal))?;
        let mut facts = UpstreamFacts { backend_tls: target.tls.clone(), ..UpstreamFacts::of_route(&route) };
        let dialler =
            Dialler { node: &self.node, pod: &self.pod, workload: &self.workload, client: self.client };
        let wants_http2 = target.protocol == Protocol::Http2;
        let wire = dialler.dial_backend(&self.state, &route, &mut facts, wants_http2).await?;
        let is_http2 = match &wire {
            Wire::Tls(stream) => stream.speaks_http2(),
            Wire::Tunnel(_) | Wire::Socket(_) => wants_http2,
        };
        if is_http2 {
            return self.send_http2(wire, message).await;
        }
        let message = message.to_http1().ok_or(CloseCause::InvalidHttp)?;
        wire.write_all(&message).await.map_err(|_| CloseCause::ServerReset)?;
        self.read_over(&wire).await.map_err(|_| CloseCause::ServerReset)
    }

    async fn send_http2(&self, wire: Wire, message: &Message) -> Result<(), CloseCause> {
        let link = transport(wire).and_then(|transport| Link::clear_client(&self.node.worker, transport));
        let link = link.map_err(|_| CloseCause::ServerReset)?;
        let asked = async {
            let stream = link.ask(&message.headers, message.content.is_empty()).ok()?;
            if !message.content.is_empty() {
                stream.write_last(&message.content).await.ok()?;
            }
            let mut left = ANSWER_BYTES_MAX;
            while left > 0 {
                match stream.take(left).await.ok()? {
                    Taken::Payload(payload) => left = left.saturating_sub(payload.bytes().len()),
                    Taken::End(_) | Taken::Nothing => break,
                }
            }
            Some(())
        };
        let answered = asked.await;
        link.drain();
        answered.ok_or(CloseCause::ServerReset)
    }

    /// Takes the answer to its end, so that the mirror sees a client like any other.
    async fn read_over(&self, wire: &Wire) -> std::io::Result<()> {
        let mut left = ANSWER_BYTES_MAX;
        while left > 0 {
            match self.node.worker.lend(|lent| wire.try_read(lent))? {
                Some(0) => return wire.finish(),
                Some(count) => left = left.saturating_sub(count),
                None => wire.readable().await?,
            }
        }
        Ok(())
    }
}

impl Message {
    /// In HTTP/1.1, asking for the end of the connection. `None` for a head that says nothing of its end.
    fn to_http1(&self) -> Option<Vec<u8>> {
        let fields = self.head.strip_suffix(b"\r\n")?;
        let content = &*self.content;
        let mut out = Vec::with_capacity(fields.len() + content.len() + 64);
        out.extend_from_slice(fields);
        out.extend_from_slice(b"connection: close\r\n\r\n");
        if self.is_chunked {
            if !content.is_empty() {
                out.extend_from_slice(format!("{:x}\r\n", content.len()).as_bytes());
                out.extend_from_slice(content);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        } else {
            out.extend_from_slice(content);
        }
        Some(out)
    }
}
