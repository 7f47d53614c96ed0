//! One connection's life in the books: registry, metrics, access log.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use l7::telemetry::Telemetry;
use slab::Slab;
use tunnel::h2::ErrorCode;
use tunnel::tls::CipherSuite;
use xds::snapshot::{Snapshot, TelemetryTable};

use super::admission::Arrival;
use super::http::Allowed;
use super::node::{Node, Role};
use super::pod::Pod;
use super::state::LocalPod;
use super::traffic::Hold;
use super::waypoint::Front;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, Direction, Party, Record, Stage, TlsFacts};
use crate::link::CloseCause::TlsCertificateRevoked;
use crate::link::{Flow, StreamEnd, StreamRelayEnd, TunnelStream};
use crate::metrics::{
    ConnectionSecurity, Gauge, Labels, Reporter, RequestCounts, RequestKey, RequestOutcome, Subject,
    SubjectRef, TcpSeries,
};
use crate::net::{ByteCounters, Socket};
use crate::worker::{CensusGuard, Signal};

/// A connection that is being decided or carried. Dropping it takes it out of the books.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) node: Rc<Node>,
    pub(super) shared: Rc<Shared>,
    /// What the log line will say; filled in as it becomes known.
    pub(super) record: Rc<RefCell<Record>>,
    /// What it counts for, where endpoints are chosen by load or connections are bounded.
    pub(super) hold: RefCell<Option<Box<Hold>>>,
    started: Instant,
    key: usize,
    ended: Cell<bool>,
    /// Of the worker and of the pod.
    _live: [CensusGuard; 2],
}

/// What a connection costs in memory beside the payload it holds.
const CONNECTION_BYTES: usize = 2 * 1024;

/// The part of a connection that the registry sees.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pod: Arc<LocalPod>,
    pub(super) direction: Direction,
    pub(super) counters: Rc<ByteCounters>,
    /// The connection's own, for whoever lists connections.
    pub(super) record: Rc<RefCell<Record>>,
    /// Where the client wanted to go, of outbound connections.
    pub(super) wanted: Cell<Option<SocketAddr>>,
    /// Set once the connection counts in a series.
    pub(super) series: RefCell<Option<Counted>>,
    /// What policy decided about; only of inbound connections that were authorized.
    pub(super) authorized: RefCell<Option<Authorized>>,
    /// The requests in flight that policy has let pass.
    pub(super) running: RefCell<Slab<Rc<RequestInFlight>>>,
    cut: Signal,
    cut_cause: Cell<Option<CloseCause>>,
}

/// A series, and how much of the connection's bytes it has been told.
#[derive(Debug)]
pub(super) struct Counted {
    series: TcpSeries,
    sent: u64,
    received: u64,
    /// When it was seen last that bytes had moved.
    moved: Instant,
}

/// What is asked again when policies change.
#[derive(Debug)]
pub(super) struct Authorized {
    pub(super) source: Option<model::Identity>,
    pub(super) source_ip: std::net::IpAddr,
    pub(super) destination_ip: std::net::IpAddr,
    pub(super) destination_port: u16,
    /// HTTP is parsed: each request is decided on its own.
    pub(super) reads_requests: bool,
    /// What was asked of us as a waypoint; `None` for the applications of pods.
    pub(super) front: Option<Box<Front>>,
}

impl Authorized {
    /// Of a connection to what is behind the waypoint that we are.
    pub(super) fn of_waypoint(arrival: &Arrival, front: Front, reads_requests: bool) -> Self {
        Self {
            source: arrival.source.clone(),
            source_ip: arrival.source_address.ip(),
            destination_ip: arrival.destination.ip(),
            destination_port: arrival.destination.port(),
            reads_requests,
            front: Some(Box::new(front)),
        }
    }
}

/// A request in flight, for as long as it is decided again when policies change.
#[derive(Debug)]
pub(super) struct Running<'s> {
    shared: &'s Shared,
    key: usize,
    request: Rc<RequestInFlight>,
}

/// What is decided again, and how that request ends. Without somebody who waits for its cut the connection has to end
/// instead.
#[derive(Debug)]
pub(super) struct RequestInFlight {
    pub(super) allowed: Allowed,
    cause: Cell<Option<CloseCause>>,
    cut: Signal,
    heard: Cell<bool>,
}

impl Running<'_> {
    /// Runs `work` until it is done or the request is cut.
    pub(super) async fn until_cut<T>(&self, work: impl Future<Output = T>) -> Result<T, CloseCause> {
        self.request.heard.set(true);
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.request.cut.poll_wait(context).is_ready()
                && let Some(cause) = self.request.cause.get()
            {
                return Poll::Ready(Err(cause));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.running.borrow_mut().try_remove(self.key);
    }
}

impl Shared {
    /// Notes a request that policy has let pass, for as long as it runs.
    pub(super) fn run(&self, allowed: Allowed) -> Running<'_> {
        let (cause, cut, heard) = (Cell::default(), Signal::default(), Cell::default());
        let request = Rc::new(RequestInFlight { allowed, cause, cut, heard });
        let key = self.running.borrow_mut().insert(request.clone());
        Running { shared: self, key, request }
    }

    /// Ends those of the requests in flight for which `holds` is false: alone where that can be, else with the connection.
    pub(super) fn cut_requests(&self, cause: CloseCause, holds: impl Fn(&Allowed) -> bool) {
        for (_, request) in self.running.borrow().iter() {
            if holds(&request.allowed) {
                continue;
            }
            if request.heard.get() {
                request.cause.set(Some(cause));
                request.cut.raise();
            } else {
                self.cut(cause);
            }
        }
    }

    /// Ends the connection, wherever it waits. The first cause counts; false if it had one already.
    pub(super) fn cut(&self, cause: CloseCause) -> bool {
        let first = self.cut_cause.get().is_none();
        if first {
            self.cut_cause.set(Some(cause));
        }
        self.cut.raise();
        first
    }

    /// Brings the metrics up to date with the counters. "Sent" in the metrics is what the server sent.
    pub(super) fn account(&self) {
        let mut counted = self.series.borrow_mut();
        let Some(counted) = counted.as_mut() else { return };
        let (sent, received) = (self.counters.sent.get(), self.counters.received.get());
        counted.series.client_to_server(sent.saturating_sub(counted.sent));
        counted.series.server_to_client(received.saturating_sub(counted.received));
        if (counted.sent, counted.received) != (sent, received) {
            (counted.sent, counted.received) = (sent, received);
            counted.moved = Instant::now();
        }
    }

    /// Notes what is to be told of it by this state.
    pub(super) fn note_telemetry(&self, snapshot: &Snapshot, role: Role) {
        let mut record = self.record.borrow_mut();
        let table = snapshot.telemetry();
        let own = match (role, self.direction) {
            (Role::Waypoint, _) => table.of_destination(record.service.as_ref().map(|service| &service.key)),
            (Role::NodeProxy, Direction::Inbound) => of_party(table, &record.destination),
            (Role::NodeProxy, Direction::Outbound) => of_party(table, &record.source),
        };
        let own = own.map(|telemetry| match self.direction {
            Direction::Inbound => Arc::clone(&telemetry.server),
            Direction::Outbound => Arc::clone(&telemetry.client),
        });
        record.telemetry = own;
    }

    /// Whether no byte has moved for `timeout`, as far as the metrics were told. A connection that is still being
    /// established is not idle.
    pub(super) fn is_idle(&self, timeout: Duration, now: Instant) -> bool {
        let counted = self.series.borrow();
        counted.as_ref().is_some_and(|counted| now.saturating_duration_since(counted.moved) >= timeout)
    }
}

impl Connection {
    /// Enters an accepted connection into the books.
    pub(super) fn begin(node: &Rc<Node>, pod: &Pod, direction: Direction, source: Party) -> Self {
        let worker = u16::try_from(node.worker.index()).unwrap_or(u16::MAX);
        let record = Rc::new(RefCell::new(Record { source, worker, ..blank(direction) }));
        let shared = Rc::new(Shared {
            pod: pod.local.clone(),
            direction,
            counters: Rc::default(),
            record: record.clone(),
            wanted: Cell::new(None),
            series: RefCell::default(),
            authorized: RefCell::default(),
            running: RefCell::default(),
            cut: Signal::default(),
            cut_cause: Cell::new(None),
        });
        node.worker.memory().take(CONNECTION_BYTES);
        let key = node.registry.add(shared.clone());
        node.metrics.raise(Gauge::sockets(reporter(node, direction)));
        Self {
            node: node.clone(),
            shared,
            record,
            hold: RefCell::default(),
            started: Instant::now(),
            key,
            ended: Cell::new(false),
            _live: [node.worker.hold(), pod.live.enter()],
        }
    }

    /// The connection is established end to end: it counts from here.
    pub(super) fn established(&self) {
        let series = self.series(CloseCause::Finished);
        series.opened();
        self.shared.series.replace(Some(Counted { series, sent: 0, received: 0, moved: Instant::now() }));
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            self.node.recorder.record(Record { stage: Stage::Opened, ..self.record.borrow().clone() });
        }
    }

    /// Runs `work` until it is done or the connection is cut.
    pub(super) async fn until_cut<T>(&self, work: impl Future<Output = T>) -> Result<T, CloseCause> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.shared.cut.poll_wait(context).is_ready() {
                return Poll::Ready(Err(self.cut_cause()));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Relays between the stream and the pod's socket until the end. A cut resets both, so that neither side takes
    /// what it got for the whole.
    pub(super) async fn relay(&self, stream: TunnelStream, socket: Socket, flow: Flow) -> CloseCause {
        let cutter = stream.cutter();
        let mut relay = pin!(stream.relay(socket, flow, &self.shared.counters));
        match self.until_cut(relay.as_mut()).await {
            Ok(end) => stream_cause(&end, flow),
            Err(cause) => {
                cutter.cut(ErrorCode::CONNECT_ERROR);
                relay.await;
                cause
            }
        }
    }

    /// The same for a task of its own, which closes the books.
    pub(super) async fn carry(self, stream: TunnelStream, socket: Socket, flow: Flow) {
        let cause = self.relay(stream, socket, flow).await;
        self.end(cause);
    }

    /// Closes the books with the connection's log line.
    pub(super) fn end(self, cause: CloseCause) {
        let cause = attributed(cause, self.node.is_cutting());
        let record = self.record.borrow().clone();
        self.close_books(cause);
        self.log(record, cause, self.started);
    }

    /// Closes the books without a line: each of its requests has had its own.
    pub(super) fn end_silently(self, cause: CloseCause) {
        self.close_books(cause);
    }

    /// Takes it out of the books without a trace: it was only waited with.
    pub(super) fn strike_out(self) {
        self.ended.set(true);
    }

    /// Why it was cut, if it was.
    pub(super) fn cut_cause(&self) -> CloseCause {
        self.shared.cut_cause.get().unwrap_or(CloseCause::Drained)
    }

    /// Counts one request of this connection and writes its line, for which it takes its record; `began` is when its
    /// head was complete. The bytes are those from client to server, and back.
    pub(super) fn log_request(
        &self,
        record: &mut Record,
        cause: CloseCause,
        began: Instant,
        bytes: (u64, u64),
    ) {
        let cause = attributed(cause, self.node.is_cutting());
        let mut record = std::mem::replace(record, blank(self.shared.direction));
        let duration = began.elapsed();
        self.count_request(&record, cause, duration, bytes);
        (record.bytes_sent, record.bytes_received) = self.of_the_pod(bytes);
        record.duration = duration;
        record.cause = cause;
        self.node.recorder.record(record);
    }

    fn count_request(
        &self,
        record: &Record,
        cause: CloseCause,
        duration: Duration,
        (request_bytes, response_bytes): (u64, u64),
    ) {
        let Some(facts) = &record.http else { return };
        let reporter = reporter(&self.node, self.shared.direction);
        let key = RequestKey {
            reporter,
            source: subject(&record.source),
            destination: subject(&record.destination),
            service: record.service.as_ref(),
            security: request_security(reporter, record),
            outcome: RequestOutcome {
                protocol: facts.protocol,
                status: facts.status,
                grpc_status: facts.grpc_status,
                flag: cause.request_flag(facts.status),
            },
        };
        let [request_messages, response_messages] = facts.messages;
        let counts =
            RequestCounts { duration, request_bytes, response_bytes, request_messages, response_messages };
        self.node.metrics.request_ended(&key, &counts);
    }

    fn log(&self, mut record: Record, cause: CloseCause, began: Instant) {
        let counters = &self.shared.counters;
        (record.bytes_sent, record.bytes_received) =
            self.of_the_pod((counters.sent.get(), counters.received.get()));
        record.duration = began.elapsed();
        record.cause = cause;
        self.node.recorder.record(record);
    }

    /// Turns (client to server, server to client) into (sent, received) of the local pod.
    fn of_the_pod(&self, (to_server, to_client): (u64, u64)) -> (u64, u64) {
        match self.shared.direction {
            Direction::Outbound => (to_server, to_client),
            Direction::Inbound => (to_client, to_server),
        }
    }

    fn close_books(&self, cause: CloseCause) {
        if self.ended.replace(true) {
            return;
        }
        self.shared.account();
        self.node.metrics.ended(cause);
        // As ztunnel counts: every connection is opened without a flag, its end carries the flag.
        let established = self.shared.series.take().is_some();
        if !established {
            self.series(CloseCause::Finished).opened();
        }
        let series = self.series(cause);
        series.closed();
        if !established {
            series.failed();
        }
    }

    fn series(&self, cause: CloseCause) -> TcpSeries {
        self.node.metrics.tcp(&self.labels(&self.record.borrow(), cause))
    }

    fn labels(&self, record: &Record, cause: CloseCause) -> Labels {
        let subject =
            |party: &Party| Subject { workload: party.workload.clone(), identity: party.identity.clone() };
        Labels {
            reporter: reporter(&self.node, self.shared.direction),
            source: subject(&record.source),
            destination: subject(&record.destination),
            service: record.service.clone(),
            flag: cause.flag(),
            security: if record.tls.is_some() {
                ConnectionSecurity::MutualTls
            } else {
                ConnectionSecurity::Unknown
            },
        }
    }

    /// Notes what is to be told of it, once it is known whose it is.
    pub(super) fn note_telemetry(&self, snapshot: &Snapshot) {
        self.shared.note_telemetry(snapshot, self.node.options.role);
    }

    /// Notes that a tunnel carries it.
    pub(super) fn describe_tunnel(&self, cipher: CipherSuite, authority: Authority) {
        let mut record = self.record.borrow_mut();
        record.tls = Some(TlsFacts::from(cipher));
        record.hbone_authority = Some(authority);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A task that was dropped midway (the worker stops) still closes its books.
        self.close_books(CloseCause::Drained);
        self.node.registry.remove(&self.shared.pod, self.key);
        self.node.worker.memory().give_back(CONNECTION_BYTES);
        self.node.metrics.lower(Gauge::sockets(reporter(&self.node, self.shared.direction)));
    }
}

/// A record of nothing yet.
fn blank(direction: Direction) -> Record {
    Record {
        stage: Stage::Ended,
        direction,
        source: Party::default(),
        destination: Party::default(),
        hbone_authority: None,
        service: None,
        tls: None,
        worker: 0,
        bytes_sent: 0,
        bytes_received: 0,
        duration: Duration::ZERO,
        cause: CloseCause::Finished,
        http: None,
        telemetry: None,
    }
}

/// What an end is put down to. Once a drain's time is up, `cutting`, a reset is the drain's work: the other end of a
/// connection may be on another worker of this node, which cuts the same and may be the first to do so.
fn attributed(cause: CloseCause, cutting: bool) -> CloseCause {
    match cause {
        CloseCause::ClientReset | CloseCause::ServerReset if cutting => CloseCause::Drained,
        other => other,
    }
}

/// What the end of a relay through a tunnel is called in the books.
fn stream_cause(end: &StreamRelayEnd, flow: Flow) -> CloseCause {
    match (end, flow) {
        (StreamRelayEnd::Complete, _) => CloseCause::Finished,
        // Memory is short, here or at the other end.
        (StreamRelayEnd::Stream(StreamEnd::Reset(ErrorCode::ENHANCE_YOUR_CALM)), _) => {
            CloseCause::LimitReached
        }
        (StreamRelayEnd::Stream(StreamEnd::Link(end)), _) if end.cause == TlsCertificateRevoked => {
            CloseCause::CertificateRevoked
        }
        (StreamRelayEnd::Stream(_), Flow::Downstream) | (StreamRelayEnd::Application(_), Flow::Upstream) => {
            CloseCause::ServerReset
        }
        (StreamRelayEnd::Stream(_), Flow::Upstream) | (StreamRelayEnd::Application(_), Flow::Downstream) => {
            CloseCause::ClientReset
        }
    }
}

/// What is told of the traffic of a pod of this node.
fn of_party<'t>(table: &'t TelemetryTable, party: &Party) -> Option<&'t Telemetry> {
    table.of_workload(party.workload.as_deref()?)
}

fn subject(party: &Party) -> SubjectRef<'_> {
    SubjectRef { workload: party.workload.as_ref(), identity: party.identity.as_ref() }
}

/// As Istio's proxies say it: whoever takes a request knows whether it came in the clear.
fn request_security(reporter: Reporter, record: &Record) -> ConnectionSecurity {
    match (record.tls, reporter) {
        (Some(_), _) => ConnectionSecurity::MutualTls,
        (None, Reporter::Source) => ConnectionSecurity::Unknown,
        (None, Reporter::Destination | Reporter::Waypoint) => ConnectionSecurity::None,
    }
}

fn reporter(node: &Node, direction: Direction) -> Reporter {
    match (direction, node.options.role) {
        (Direction::Inbound, Role::NodeProxy) => Reporter::Destination,
        (Direction::Inbound, Role::Waypoint) => Reporter::Waypoint,
        (Direction::Outbound, _) => Reporter::Source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reset_at_the_end_of_a_drain_is_put_down_to_it() {
        for reset in [CloseCause::ClientReset, CloseCause::ServerReset] {
            assert_eq!(attributed(reset, true), CloseCause::Drained);
            assert_eq!(attributed(reset, false), reset);
        }
        for other in [CloseCause::Finished, CloseCause::PolicyDenied, CloseCause::ConnectFailed] {
            assert_eq!(attributed(other, true), other);
        }
    }
}
