//! Links without TLS: HTTP/2 in the clear, with prior knowledge (RFC 9113 section 3.3), between an application and us.
//!
//! Their peer is nobody in particular: what is at the other end is known from what carries the link. Requests wait in a
//! queue for [`Link::next_request`] and are messages: interim responses and trailers are delivered, see
//! [`super::message`]. Everything else is as with tunnels.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tunnel::h2::{Config, ErrorCode, Headers, OpenError, StreamId};
use tunnel::session::Session;

use super::LinkEnd;
use super::carrier::{Bytes, Carrier};
use super::connection::{Link, Role};
use super::stream::{Stream, TunnelStream};
use crate::net::Socket;
use crate::worker::{Signal, Worker};

/// What carries a link without TLS.
#[derive(Debug)]
pub enum Transport {
    /// A connected socket, and who is at its other end.
    Socket(Socket, SocketAddr),
    /// A stream of another link.
    Stream(TunnelStream),
    /// Anything else, with the addresses at our end and at the other of what is beneath.
    Bytes(Box<dyn Bytes>, (SocketAddr, SocketAddr)),
}

/// A request that has arrived on a link without TLS.
#[derive(Debug)]
pub struct ClearRequest {
    /// Not answered yet. Dropped, it is reset.
    pub stream: TunnelStream,
    pub headers: Headers,
}

/// Requests that nobody has taken yet. The engine's bounds on streams and resets bound their number.
#[derive(Default)]
pub(super) struct Arrivals {
    waiting: RefCell<VecDeque<ClearRequest>>,
    arrived: Signal,
}

impl Arrivals {
    pub(super) fn push(&self, request: ClearRequest) {
        self.waiting.borrow_mut().push_back(request);
        self.arrived.raise();
    }

    /// Its peer has reset it; whoever takes it sees that and needs no more of it.
    fn forget(&self, stream: &Rc<Stream>) {
        let mut waiting = self.waiting.borrow_mut();
        if let Some(request) = waiting.iter_mut().rfind(|it| Rc::ptr_eq(&it.stream.stream, stream)) {
            request.headers = Headers::default();
        }
    }

    /// The link is over: whoever waits for the next request must see it.
    pub(super) fn close(&self) {
        let unseen = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(unseen);
        self.arrived.raise();
    }
}

impl Link {
    /// The end that asks.
    pub fn clear_client(worker: &Worker, transport: Transport) -> io::Result<Rc<Self>> {
        let session = Session::clear(Config::proxy_client(), &[], Instant::now());
        Self::start_clear(worker, transport, session, Role::Client)
    }

    /// The end that answers. `received` is what has been read from the transport before.
    pub fn clear_server(worker: &Worker, transport: Transport, received: &[u8]) -> io::Result<Rc<Self>> {
        let session = Session::clear(Config::proxy_server(), received, Instant::now());
        Self::start_clear(worker, transport, session, Role::Queue(Arrivals::default()))
    }

    fn start_clear(
        worker: &Worker,
        transport: Transport,
        session: Session,
        role: Role,
    ) -> io::Result<Rc<Self>> {
        match transport {
            Transport::Socket(socket, remote) => Self::start(worker, socket, remote, session, role),
            Transport::Stream(outer) => Ok(Self::start_within(outer, session, role)),
            Transport::Bytes(bytes, addresses) => {
                Ok(Self::start_on(worker, Carrier::Bytes(bytes), addresses, session, role))
            }
        }
    }

    /// The next request, in the order of their arrival; the link's end if there is none left.
    pub async fn next_request(&self) -> Result<ClearRequest, LinkEnd> {
        loop {
            let Role::Queue(arrivals) = self.role() else {
                return Err(LinkEnd { cause: super::CloseCause::Internal, detail: String::new() });
            };
            let next = arrivals.waiting.borrow_mut().pop_front();
            match (next, self.end()) {
                (Some(request), _) => return Ok(request),
                (None, Some(end)) => return Err(end.clone()),
                (None, None) => arrivals.arrived.wait().await,
            }
        }
    }

    /// Opens a stream with a request and returns at once.
    pub fn ask(self: &Rc<Self>, headers: &Headers, end_stream: bool) -> Result<TunnelStream, OpenError> {
        if !self.takes_streams() {
            return Err(OpenError::GoingAway);
        }
        let id = self.write(|session| session.open(headers, end_stream))?;
        let stream = Stream::new(self, id);
        if end_stream {
            stream.mark_sent_end();
        }
        self.streams.borrow_mut().insert(id, stream.clone());
        Ok(TunnelStream { stream, permit: None })
    }

    /// Waits until the peer has said what it takes, or the link is over.
    pub async fn introduced(&self) {
        self.introduced.wait().await;
    }

    /// Whether the peer takes extended CONNECT requests (RFC 8441), as far as it has said.
    pub fn peer_takes_connect_protocol(&self) -> bool {
        self.session.borrow().peer_takes_connect_protocol()
    }

    /// A stream has been reset: if its request still waits, its head is not held any longer.
    pub(super) fn forget_arrival(&self, stream: &Rc<Stream>) {
        if let Role::Queue(arrivals) = self.role() {
            arrivals.forget(stream);
        }
    }

    /// A request has arrived on a link without TLS.
    pub(super) fn queue(
        self: &Rc<Self>,
        id: StreamId,
        headers: Headers,
        end_stream: bool,
        session: &mut Session,
    ) {
        let Role::Queue(arrivals) = self.role() else {
            return session.reset(id, ErrorCode::REFUSED_STREAM);
        };
        let stream = Stream::new(self, id);
        if end_stream {
            stream.receive_end(session);
        }
        self.streams.borrow_mut().insert(id, stream.clone());
        arrivals.push(ClearRequest { stream: TunnelStream { stream, permit: None }, headers });
    }
}
