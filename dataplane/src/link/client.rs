//! The client role: dialling a next hop, and asking it for streams.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use model::Identity;
use tunnel::h2::{Config, Headers, OpenError};
use tunnel::session::{Session, SessionError};
use tunnel::tls::{ClientContext, CloseCause};

use super::LinkEnd;
use super::connection::{Link, Role};
use super::stream::{Stream, StreamEnd, StreamError, TunnelStream};
use crate::net::{ConnectError, ConnectOptions, connect};
use crate::worker::Worker;

const STATUS_OK: u16 = 200;

/// How to dial a next hop.
#[derive(Clone)]
pub struct DialOptions {
    /// The next hop: a pod's or a gateway's HBONE port.
    pub to: SocketAddr,
    pub connect: ConnectOptions,
    /// Our certificate, and the roots that the peer's must chain to.
    pub context: Arc<ClientContext>,
    /// Only a peer of one of these identities is accepted.
    pub expected: Arc<[Identity]>,
    /// The workload that is meant, by its uid. One that comes with the address of another that has gone gets links of
    /// its own: those to the other are dead, and nobody has told them.
    pub workload: Option<Arc<str>>,
    pub http: Config,
}

impl fmt::Debug for DialOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialOptions")
            .field("to", &self.to)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

/// Why there is no link to a next hop.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no tunnel to {to}: {end}")]
    Link { to: SocketAddr, end: LinkEnd },
    #[error("no tunnel can be made here: {0}")]
    Session(#[from] SessionError),
}

impl DialError {
    /// The label of the closed set, where the attempt came as far as a connection.
    pub fn close_cause(&self) -> Option<CloseCause> {
        match self {
            Self::Connect(_) => None,
            Self::Link { end, .. } => Some(end.cause),
            Self::Session(error) => Some(error.close_cause()),
        }
    }
}

/// Why a request got no stream.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The link takes no more streams now: another link is needed, and nothing was sent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The peer answered with another status than 200.
    #[error("the peer refused the request with status {status}")]
    Refused { status: u16, headers: Box<Headers> },
    /// The stream or its link ended before the answer.
    #[error("no answer: {0}")]
    Ended(StreamEnd),
}

impl Link {
    /// Connects, and returns when the peer has proved that it is one of the expected. At most 10 s for the connection
    /// and 10 s for the handshake.
    pub async fn dial(worker: &Worker, options: &DialOptions) -> Result<Rc<Self>, DialError> {
        let to = options.to;
        let socket = connect(to, &options.connect).await?;
        let session = Session::client(&options.context, &options.expected, options.http, Instant::now())?;
        let broken =
            |detail: String| DialError::Link { to, end: LinkEnd { cause: CloseCause::Truncated, detail } };
        let link = Self::start(worker, socket, to, session, Role::Client)
            .map_err(|error| broken(error.to_string()))?;
        match link.settled().await {
            Ok(_peer) => Ok(link.clone()),
            Err(end) => Err(DialError::Link { to, end }),
        }
    }

    /// Makes a link within a stream of another one and returns when whoever answers there has proved that it is one of
    /// the expected. At most 10 s.
    pub async fn within(
        outer: TunnelStream,
        context: &ClientContext,
        expected: &Arc<[Identity]>,
    ) -> Result<InnerLink, DialError> {
        let to = outer.link().remote_address();
        let session = Session::client(context, expected, Config::hbone_client(), Instant::now())?;
        let inner = InnerLink { link: Self::start_within(outer, session, Role::Client), handed_over: false };
        match inner.link.settled().await {
            Ok(_peer) => Ok(inner),
            Err(end) => Err(DialError::Link { to, end }),
        }
    }

    /// Asks the peer for a stream and waits for the answer. Dropping the future takes the request back.
    pub async fn request(
        self: &Rc<Self>,
        headers: &Headers,
    ) -> Result<(TunnelStream, Headers), RequestError> {
        let handle = self.open(headers)?;
        let answer = handle.stream.wait_answer().await.map_err(|error| match error {
            StreamError::Ended(end) => RequestError::Ended(end),
            StreamError::Send(_) => RequestError::Open(OpenError::GoingAway),
        })?;
        match answer.status() {
            Some(STATUS_OK) => Ok((handle, answer)),
            status => Err(RequestError::Refused { status: status.unwrap_or(0), headers: Box::new(answer) }),
        }
    }

    /// Opens a stream without waiting for the answer; what is sent before it is at the sender's risk.
    fn open(self: &Rc<Self>, headers: &Headers) -> Result<TunnelStream, OpenError> {
        if !self.takes_streams() {
            return Err(OpenError::GoingAway);
        }
        let id = self.write(|session| session.open(headers, false))?;
        let stream = Stream::new(self, id);
        self.streams.borrow_mut().insert(id, stream.clone());
        Ok(TunnelStream { stream, permit: None })
    }
}

/// A link within a stream of another link: good for one stream, and closed with it or without it.
#[derive(Debug)]
pub struct InnerLink {
    link: Rc<Link>,
    handed_over: bool,
}

impl InnerLink {
    /// As [`Link::request`], once. The link, and the stream that carries it, end with the stream that this gives.
    pub async fn request(mut self, headers: &Headers) -> Result<(TunnelStream, Headers), RequestError> {
        let opened = self.link.request(headers).await?;
        self.link.single_use.set(true);
        self.handed_over = true;
        Ok(opened)
    }
}

impl Drop for InnerLink {
    fn drop(&mut self) {
        if !self.handed_over && self.link.end().is_none() {
            self.link.close(CloseCause::LocalClose, "given up before it was used");
        }
    }
}
