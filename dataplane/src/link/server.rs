//! The server role: an accepted socket becomes a link whose requests arrive at a handler.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tunnel::h2::{Config, ErrorCode, Headers};
use tunnel::session::{Session, SessionError};
use tunnel::tls::ServerContext;

use super::LinkEnd;
use super::connection::{Link, Peer, Role};
use super::stream::{Stream, StreamError, TunnelStream};
use crate::net::Socket;
use crate::worker::Worker;

/// What a request gets if its handler drops it unanswered.
const STATUS_UNANSWERED: u16 = 503;

/// What is told of requests and links. Its methods run on the worker, between reads: they must not block, and what takes
/// time is spawned.
pub trait Handler {
    /// A request has arrived. It is answered now or later, by [`IncomingRequest::accept`] or
    /// [`IncomingRequest::refuse`].
    fn request(&self, request: IncomingRequest);

    /// The peer of a link has proved itself. Comes at most once, before its requests.
    fn established(&self, link: &Rc<Link>) {
        let _ = link;
    }

    /// A link is over. Its streams have been told already.
    fn ended(&self, link: &Rc<Link>, end: &LinkEnd) {
        let _ = (link, end);
    }
}

/// How to be a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub http: Config,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { http: Config::hbone_server() }
    }
}

/// Why an accepted socket did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the accepted socket cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// Makes an accepted socket a link and returns at once. The handshake must be over within 10 s; until then the link has
/// no peer and takes no request. The context is read now: a renewed certificate counts from the next call.
pub fn serve(
    worker: &Worker,
    socket: Socket,
    remote: SocketAddr,
    context: &ServerContext,
    options: &ServerOptions,
    handler: Rc<dyn Handler>,
) -> Result<Rc<Link>, ServeError> {
    let session = Session::server(context, options.http, Instant::now())?;
    Ok(Link::start(worker, socket, remote, session, Role::Server(handler))?)
}

/// A request that waits for its answer.
pub struct IncomingRequest {
    stream: Option<Rc<Stream>>,
    headers: Headers,
    peer: Peer,
}

impl IncomingRequest {
    pub(super) fn new(stream: Rc<Stream>, headers: Headers, peer: Peer) -> Self {
        Self { stream: Some(stream), headers, peer }
    }

    pub(super) fn is_on(&self, stream: &Rc<Stream>) -> bool {
        self.stream.as_ref().is_some_and(|own| Rc::ptr_eq(own, stream))
    }

    /// The peer has taken the request back, and nobody will read it.
    pub(super) fn forget_headers(&mut self) {
        self.headers = Headers::default();
    }

    /// Whether its stream has ended before anybody has looked at it.
    pub(super) fn is_taken_back(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.has_ended())
    }

    /// The request's header block.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Who asks, as proved by the handshake of the link.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The connection that carries it; `None` never while the request is unanswered.
    pub fn link(&self) -> Option<&Rc<Link>> {
        self.stream.as_deref().map(Stream::link)
    }

    /// Answers with `headers` and opens the stream for payload.
    pub fn accept(mut self, headers: &Headers) -> Result<TunnelStream, StreamError> {
        let Some(stream) = self.stream.take() else {
            return Err(StreamError::Send(tunnel::h2::SendError::NoSuchStream));
        };
        // From here on the handle resets the stream if it is dropped too early.
        let handle = TunnelStream { stream, permit: None };
        handle.stream.respond(headers, false)?;
        Ok(handle)
    }

    /// Answers with a bare status and ends the stream.
    pub fn refuse(mut self, status: u16) {
        self.answer_with(status);
    }

    fn answer_with(&mut self, status: u16) {
        let Some(stream) = self.stream.take() else { return };
        let answered = Headers::response(status).is_ok_and(|headers| stream.respond(&headers, true).is_ok());
        // Nothing more is wanted from the client (RFC 9113 section 8.1), and without an answer it must learn of it.
        let code = if answered { ErrorCode::NO_ERROR } else { ErrorCode::REFUSED_STREAM };
        stream.reset(code);
    }
}

impl Drop for IncomingRequest {
    fn drop(&mut self) {
        self.answer_with(STATUS_UNANSWERED);
    }
}

impl fmt::Debug for IncomingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingRequest")
            .field("headers", &self.headers)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
