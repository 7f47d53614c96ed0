//! The DNS proxy in one pod, on one worker: its listeners, and what becomes of each query.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use model::Workload;

use super::answer::Question;
use super::message::{QUERY_BYTES_MAX, Query, Unusable};
use super::names::cluster_search_domains;
use super::upstream::{Upstream, framed, read_framed};
use super::{DnsOptions, SearchDomains};
use crate::metrics::{DnsLabels, DnsProtocol as Protocol, DnsSeries, Limit};
use crate::net::{Datagram, DatagramOptions, Listener, Socket};
use crate::session::listening;
use crate::session::node::{Node, workload_of};
use crate::session::pod::Pod;
use crate::session::state::{LocalPod, NodeState};

/// Queries of a pod that one worker has under way; further ones are answered with a failure.
pub const QUERIES_MAX: usize = 256;
/// TCP connections of a pod that one worker serves; further ones are reset.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a TCP connection waits for a whole query, and for a reply to be taken.
const IDLE: Duration = Duration::from_secs(10);
/// Datagrams taken in a row before other tasks get their turn.
const DATAGRAMS_IN_A_ROW_MAX: usize = 32;
/// Queries of a TCP connection that are answered before other tasks get their turn.
const QUERIES_IN_A_ROW_MAX: u32 = 32;
/// What still waits in a socket when it is closed for good: so many turns are answered.
const LAST_TURNS: usize = 8;
/// Rest of a socket that fails.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// The sockets of one pod, bound and not served yet.
#[derive(Debug)]
pub(in crate::session) struct Listeners {
    datagrams: Vec<Datagram>,
    streams: Vec<Listener>,
    options: DnsOptions,
}

/// What serves them.
struct Server {
    node: Rc<Node>,
    pod: Rc<Pod>,
    options: DnsOptions,
    queries: Rc<Cell<usize>>,
    connections: Rc<Cell<usize>>,
}

/// How far a query came without waiting.
enum Step {
    Answered(Vec<u8>),
    /// The mesh does not know the name.
    Forward(DnsSeries),
    /// The control plane has not told of the pod yet.
    UnknownClient,
}

/// One of a bounded number.
struct Place(Rc<Cell<usize>>);

// === impl Listeners ===

impl Listeners {
    /// Binds the sockets in the pod's namespace, if the proxy serves names at all.
    pub(in crate::session) fn open(node: &Node, local: &LocalPod) -> io::Result<Option<Self>> {
        let Some(options) = &node.options.dns else { return Ok(None) };
        let datagram_options =
            DatagramOptions { mark: node.options.packet_mark, namespace: Some(local.network.clone()) };
        let listen_options = node.listen_options(&local.network);
        let (mut datagrams, mut streams) = (Vec::new(), Vec::new());
        for at in options.addresses.iter().copied() {
            if at.is_ipv6() && !node.options.ipv6 {
                continue;
            }
            let pair = Datagram::bind(at, &datagram_options)
                .and_then(|datagram| Ok((datagram, Listener::bind(at, &listen_options)?)));
            match pair {
                Ok((datagram, stream)) => {
                    datagrams.push(datagram);
                    streams.push(stream);
                }
                // Nobody in a pod without IPv6 can ask there.
                Err(error) if at.is_ipv6() && is_absent(&error) => {
                    tracing::debug!(pod = %local.uid, %error, "no IPv6 in this pod");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Self { datagrams, streams, options: options.clone() }))
    }

    pub(in crate::session) fn serve(self, node: &Rc<Node>, pod: &Rc<Pod>) {
        let server = Rc::new(Server {
            node: Rc::clone(node),
            pod: Rc::clone(pod),
            options: self.options,
            queries: Rc::default(),
            connections: Rc::default(),
        });
        for datagram in self.datagrams {
            node.worker.spawn(Rc::clone(&server).serve_datagrams(Rc::new(datagram)));
        }
        for stream in self.streams {
            node.worker.spawn(Rc::clone(&server).accept(stream));
        }
    }
}

/// Whether the family, or its loopback address, is not there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

// === impl Server ===

impl Server {
    // --- UDP ---

    async fn serve_datagrams(self: Rc<Self>, socket: Rc<Datagram>) {
        loop {
            let mut closing = self.pod.closing.wait();
            let readable = monoio::select! {
                biased;
                () = &mut closing => None,
                readable = socket.readable() => Some(readable),
            };
            let taken = match readable {
                // The other workers, or the proxy that follows, get what comes from now on.
                None => return self.take_last(&socket),
                Some(readable) => readable.and_then(|()| self.take_datagrams(&socket)),
            };
            match taken {
                Ok(true) => self.node.worker.yield_now().await,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(pod = %self.pod.local.uid, %error, "a name query is lost");
                    monoio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    /// A proxy that makes room for its successor answers what has reached it already.
    fn take_last(self: &Rc<Self>, socket: &Rc<Datagram>) {
        if self.node.worker.drain().is_open() {
            (0..LAST_TURNS).all(|_| self.take_datagrams(socket).unwrap_or(false));
        }
    }

    /// Takes what is there; true if there may be more.
    fn take_datagrams(self: &Rc<Self>, socket: &Rc<Datagram>) -> io::Result<bool> {
        for _ in 0..DATAGRAMS_IN_A_ROW_MAX {
            let received = self.node.worker.lend(|buffer| {
                let received = socket.try_recv_from(buffer)?;
                Ok::<_, io::Error>(received.and_then(|(count, from)| {
                    let query = buffer.get(..count.min(QUERY_BYTES_MAX + 1))?;
                    Some((query.to_vec(), from))
                }))
            })?;
            match received {
                Some((query, from)) => self.take_datagram(socket, query, from),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn take_datagram(self: &Rc<Self>, socket: &Rc<Datagram>, bytes: Vec<u8>, from: SocketAddr) {
        let query = match Query::read(&bytes, Protocol::Udp) {
            Ok(query) => query,
            Err(Unusable::Ignored) => return,
            Err(Unusable::Refused(reply)) => return send(socket, &reply, from),
        };
        let step = match self.look_up(&query, &self.node.state()) {
            Step::Answered(reply) => return send(socket, &reply, from),
            step => step,
        };
        let Some(place) = Place::take(&self.queries, QUERIES_MAX) else {
            self.node.metrics.limit_hit(Limit::DnsQueries);
            return send(socket, &query.error(ResponseCode::ServFail), from);
        };
        let (server, socket) = (Rc::clone(self), Rc::clone(socket));
        self.node.worker.spawn(async move {
            let _live = (place, server.node.worker.hold(), server.pod.live.enter());
            if let Some(reply) = server.unless_gone(server.finish(&query, &bytes, step)).await {
                send(&socket, &reply, from);
            }
        });
    }

    // --- TCP ---

    async fn accept(self: Rc<Self>, listener: Listener) {
        listening::accept(&self.node, &self.pod, listener, |socket, _| self.take_connection(socket)).await;
    }

    fn take_connection(self: &Rc<Self>, socket: Socket) {
        let Some(place) = Place::take(&self.connections, CONNECTIONS_MAX) else {
            self.node.metrics.limit_hit(Limit::DnsConnections);
            return socket.reset_on_close();
        };
        let server = Rc::clone(self);
        self.node.worker.spawn(async move {
            let _live = (place, server.node.worker.hold(), server.pod.live.enter());
            server.unless_gone(server.serve_stream(&socket)).await;
        });
    }

    /// One query after the other: who sends more of them waits.
    async fn serve_stream(&self, socket: &Socket) {
        for number in 1_u32.. {
            if number.is_multiple_of(QUERIES_IN_A_ROW_MAX) {
                self.node.worker.yield_now().await;
            }
            let mut closing = self.pod.closing.wait();
            let next = monoio::time::timeout(IDLE, read_framed(socket, QUERY_BYTES_MAX));
            let next = monoio::select! {
                biased;
                () = &mut closing => return,
                next = next => next,
            };
            let Ok(Ok(Some(bytes))) = next else { return };
            let reply = match Query::read(&bytes, Protocol::Tcp) {
                Ok(query) => {
                    let step = self.look_up(&query, &self.node.state());
                    self.finish(&query, &bytes, step).await
                }
                Err(Unusable::Ignored) => return,
                Err(Unusable::Refused(reply)) => reply,
            };
            if reply.is_empty() {
                return;
            }
            if !matches!(monoio::time::timeout(IDLE, socket.write_all(&framed(&reply))).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    // --- Queries ---

    /// Decides what can be decided at once, and counts the query when its client is known.
    fn look_up(&self, query: &Query, state: &NodeState) -> Step {
        let Some(client) = workload_of(state, &self.pod.local) else { return Step::UnknownClient };
        let series = self.series(query, Some(client.clone()));
        series.request();
        let (Some(family), Some(host)) = (query.family(), &query.host) else {
            return Step::Forward(series);
        };
        let of_namespace;
        let search = match self.options.search {
            SearchDomains::OfFile => &state.resolv_conf.search,
            SearchDomains::OfNamespace => {
                of_namespace = cluster_search_domains(&client.namespace, &self.options.cluster_domain);
                &of_namespace
            }
        };
        let question = Question {
            host,
            family,
            client: &client,
            snapshot: &state.snapshot,
            options: &self.options,
            search,
            ipv6: self.node.options.ipv6,
            random: self.node.random(),
        };
        match question.answer() {
            Some(answer) => Step::Answered(query.answer(&answer)),
            None => Step::Forward(series),
        }
    }

    /// The reply, whatever has to be waited for.
    async fn finish(&self, query: &Query, bytes: &[u8], mut step: Step) -> Vec<u8> {
        if matches!(step, Step::UnknownClient)
            && let Some((state, _)) = self.node.workload(&self.pod.local).await
        {
            step = self.look_up(query, &state);
        }
        match step {
            Step::Answered(reply) => reply,
            Step::Forward(series) => self.forward(query, bytes, &series).await,
            Step::UnknownClient => {
                self.series(query, None).request();
                query.error(ResponseCode::ServFail)
            }
        }
    }

    /// Asks the node's name servers, from the pod's network.
    async fn forward(&self, query: &Query, bytes: &[u8], series: &DnsSeries) -> Vec<u8> {
        let state = self.node.state();
        let upstream = Upstream {
            worker: &self.node.worker,
            conf: &state.resolv_conf,
            mark: self.node.options.packet_mark,
            namespace: Some(&self.pod.local.network),
            random: self.node.random(),
        };
        series.upstream_request();
        let began = Instant::now();
        let answer = upstream.ask(bytes).await;
        series.upstream_duration(began.elapsed());
        match answer {
            Ok(answer) => query.relay(answer),
            Err(error) => {
                series.upstream_failure();
                tracing::debug!(pod = %self.pod.local.uid, host = ?query.host, %error, "a name query failed");
                query.error(ResponseCode::ServFail)
            }
        }
    }

    fn series(&self, query: &Query, client: Option<Arc<Workload>>) -> DnsSeries {
        self.node.metrics.dns(&DnsLabels {
            source: client,
            query_type: query.type_code(),
            protocol: query.protocol,
        })
    }

    /// Runs `future` unless the pod leaves.
    async fn unless_gone<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut gone = self.pod.gone.wait();
        monoio::select! {
            biased;
            () = &mut gone => None,
            done = future => Some(done),
        }
    }
}

/// A reply for which the kernel has no room is lost, as datagrams may be: the client asks again.
fn send(socket: &Datagram, reply: &[u8], to: SocketAddr) {
    if reply.is_empty() {
        return;
    }
    match socket.try_send_to(reply, to) {
        Ok(Some(_)) => {}
        Ok(None) => tracing::debug!(%to, "no room for a name reply"),
        Err(error) => tracing::debug!(%to, %error, "a name reply cannot be sent"),
    }
}

// === impl Place ===

impl Place {
    fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        if taken.get() >= max {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self(Rc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
