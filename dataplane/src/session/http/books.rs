//! The books of one request. Those of requests that run at the same time on one connection are apart.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use l7::filter::{Chain, OwnField};
use l7::grpc::Messages;
use l7::ir::{Authorizer, RequestHead};
use tunnel::h2::Headers;

use super::Protocol;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{HttpFacts, Record, kept};
use crate::metrics::{GrpcStatus, RequestProtocol};
use crate::session::connection::Connection;
use crate::trace::{Sampling, request_id};

/// What the log line of one request will say. Closed by [`Books::close`]; dropped before, the request was cut with its
/// connection, and the line says so.
#[derive(Debug)]
pub(in crate::session) struct Books<'c> {
    connection: &'c Connection,
    /// A copy of the connection's, to be filled in with what is true of this request alone.
    pub(in crate::session) record: Box<Record>,
    pub(in crate::session) facts: Box<HttpFacts>,
    protocol: Protocol,
    /// The external authorizers that have let the request pass.
    pub(in crate::session) approved_by: Vec<Arc<Authorizer>>,
    began: Instant,
    /// Client to server.
    sent: Cell<u64>,
    /// Server to client.
    received: Cell<u64>,
    /// Of gRPC: how the call ended, and the messages of the client and of the server.
    grpc_status: Cell<Option<GrpcStatus>>,
    messages: [Cell<Messages>; 2],
    closed: bool,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    ToServer,
    ToClient,
}

/// Enters in the books what is passed on one way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter<'a, 'c> {
    books: &'a Books<'c>,
    flow: Flow,
}

impl Meter<'_, '_> {
    /// Bytes that were passed on.
    pub(super) fn bytes(self, count: usize) {
        match self.flow {
            Flow::ToServer => self.books.count_sent(count),
            Flow::ToClient => self.books.count_received(count),
        }
    }

    /// Content that is passed on without its framing.
    pub(super) fn content(self, content: &[u8]) {
        if self.books.facts.protocol == RequestProtocol::Grpc {
            let [of_client, of_server] = &self.books.messages;
            let counted = if self.flow == Flow::ToServer { of_client } else { of_server };
            let mut messages = counted.get();
            messages.feed(content);
            counted.set(messages);
        }
    }

    /// Trailers, or the head of a message that has nothing else.
    pub(super) fn last_fields(self, headers: &Headers) {
        if self.flow == Flow::ToClient {
            self.books.note_grpc_status(headers.get("grpc-status"));
        }
    }
}

impl<'c> Books<'c> {
    /// Opens them: the head of the request is complete.
    pub(super) fn open(connection: &'c Connection, protocol: Protocol) -> Self {
        Self {
            connection,
            record: Box::new(connection.record.borrow().clone()),
            facts: Box::default(),
            protocol,
            approved_by: Vec::new(),
            began: Instant::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
            grpc_status: Cell::new(None),
            messages: Default::default(),
            closed: false,
        }
    }

    pub(super) fn meter(&self, flow: Flow) -> Meter<'_, 'c> {
        Meter { books: self, flow }
    }

    /// Notes how a call of gRPC ended; means nothing to other requests.
    pub(super) fn note_grpc_status(&self, field: Option<&[u8]>) {
        if let Some(field) = field.filter(|_| self.facts.protocol == RequestProtocol::Grpc) {
            self.grpc_status.set(Some(GrpcStatus::of_field(field)));
        }
    }

    pub(in crate::session) fn connection(&self) -> &'c Connection {
        self.connection
    }

    /// What the downstream speaks.
    pub(in crate::session) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Notes what the head says.
    pub(super) fn note_request(&mut self, request: &RequestHead<'_>) {
        let wanted = self.record.telemetry.as_ref().map_or(&[][..], |telemetry| telemetry.headers());
        self.facts.note_request(request, wanted);
    }

    /// Gives the request an id where it has none, and a span where it is sampled, and has the request tell the upstream
    /// its id and our span.
    pub(super) fn sign(&mut self, chain: &mut Chain) {
        let node = &self.connection.node;
        let mut own = Vec::new();
        let mut add =
            |name, value: &dyn ToString| own.push(OwnField { name, value: value.to_string().into() });
        if self.facts.request_id.is_empty() {
            let id = request_id::random(node.random(), node.random());
            self.facts.request_id = kept(&id);
            add("x-request-id", &id);
        }
        if let Some(sampling) = self.sampling() {
            self.facts.span = sampling.begin(self.facts.caller, SystemTime::now(), || node.random());
        }
        if let Some(span) = &self.facts.span {
            add("traceparent", &span.context());
        }
        chain.put_own(own);
    }

    /// Of the proxy, where telemetry says nothing else; `None`: no spans are made.
    fn sampling(&self) -> Option<Sampling> {
        let configured = self.connection.node.options.traces?;
        let Some(telemetry) = &self.record.telemetry else { return Some(configured) };
        let rule = &telemetry.rules().tracing;
        (!rule.disabled).then(|| rule.sampling.map_or(configured, Sampling::of_millionths))
    }

    /// Counts bytes that went to the upstream.
    pub(super) fn count_sent(&self, bytes: usize) {
        count(&self.sent, &self.connection.shared.counters.sent, bytes);
    }

    /// Counts bytes that went to the downstream.
    pub(super) fn count_received(&self, bytes: usize) {
        count(&self.received, &self.connection.shared.counters.received, bytes);
    }

    /// Writes the line. `status` is what the client was answered, 0 if it was not.
    pub(super) fn close(mut self, status: u16, cause: CloseCause) {
        self.facts.status = status;
        self.write(cause);
    }

    fn write(&mut self, cause: CloseCause) {
        self.closed = true;
        self.facts.grpc_status = self.grpc_status.get();
        self.facts.messages = self.messages.each_ref().map(|messages| messages.get().count());
        self.record.http = Some(std::mem::take(&mut self.facts));
        let bytes = (self.sent.get(), self.received.get());
        self.connection.log_request(&mut self.record, cause, self.began, bytes);
    }
}

impl Drop for Books<'_> {
    fn drop(&mut self) {
        if !self.closed {
            self.write(self.connection.cut_cause());
        }
    }
}

fn count(of_request: &Cell<u64>, of_connection: &Cell<u64>, bytes: usize) {
    of_request.set(of_request.get() + bytes as u64);
    of_connection.set(of_connection.get() + bytes as u64);
}
