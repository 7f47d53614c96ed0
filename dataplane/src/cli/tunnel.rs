//! `corelane tunnel`: HBONE with certificates from files and no control plane, a mesh-grade stunnel.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::FutureExt;
use model::Identity;
use tunnel::h2::{Config, Headers};
use tunnel::hbone::{Authority, ConnectHead, ConnectRequest, accept};
use tunnel::pool::PoolConfig;
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy, ServerContext};

use super::shutdown::run_until_signal;
use crate::link::{
    DialOptions, Flow, Handler, IncomingRequest, Link, LinkEnd, Pool, PoolError, ServerOptions,
    StreamRelayEnd, TunnelStream, serve,
};
use crate::net::{
    Congestion, ConnectOptions, KEEPALIVE, ListenOptions, Listener, Socket, SocketOptions, connect,
};
use crate::resident;
use crate::worker::{BoxError, DriverChoice, Supervisor, Worker, WorkerOptions};

const STATUS_DENIED: u16 = 401;
const STATUS_BAD_REQUEST: u16 = 400;
const STATUS_UNREACHABLE: u16 = 503;

#[derive(Debug, Subcommand)]
pub(super) enum Tunnel {
    /// Take plain TCP connections and carry each as one CONNECT stream to an HBONE peer.
    #[command(after_help = "Example, to reach a web server at 10.0.0.7:80 behind its node's proxy:\n  \
        corelane tunnel client --listen 127.0.0.1:8080 --peer 10.0.0.7:15008 --authority 10.0.0.7:80 \\\n    \
        --cert client.pem --key client.key --ca ca.pem --peer-identity spiffe://cluster.local/ns/app/sa/web")]
    Client(ClientArguments),
    /// Take HBONE tunnels and connect each stream to the destination that it names.
    #[command(after_help = "Example, for one local application:\n  \
        corelane tunnel server --listen 0.0.0.0:15008 --cert server.pem --key server.key --ca ca.pem \\\n    \
        --allow spiffe://cluster.local/ns/app/sa/web --forward-to 127.0.0.1:8080")]
    Server(ServerArguments),
}

#[derive(Debug, Args)]
pub(super) struct ClientArguments {
    /// Where to take plain connections.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,

    /// The HBONE peer; its port is usually 15008.
    #[arg(long, value_name = "IP:PORT")]
    peer: SocketAddr,

    /// Where the peer shall connect: the :authority of each CONNECT.
    #[arg(long, value_name = "HOST:PORT")]
    authority: Authority,

    /// Identity that the peer may have; may be given several times. Without it, the peer must have our own.
    #[arg(long, value_name = "SPIFFE")]
    peer_identity: Vec<Identity>,

    #[command(flatten)]
    common: CommonArguments,
}

#[derive(Debug, Args)]
pub(super) struct ServerArguments {
    /// Where to take tunnels.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,

    /// Identity that may connect; may be given several times. Without it, any of our trust domain may.
    #[arg(long, value_name = "SPIFFE")]
    allow: Vec<Identity>,

    /// Connect every stream here, whatever its :authority says. Without it, streams go where their peers say.
    #[arg(long, value_name = "IP:PORT")]
    forward_to: Option<SocketAddr>,

    #[command(flatten)]
    common: CommonArguments,
}

#[derive(Debug, Args)]
struct CommonArguments {
    /// Our certificate, PEM, followed by its intermediates. It must hold exactly one SPIFFE URI.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,

    /// The key of the certificate, PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// The roots that the peer's certificate must chain to, PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,

    /// Number of workers, each pinned to a CPU [default: one for each CPU of the process's set].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// What workers wait with.
    #[arg(long, value_enum, default_value_t)]
    driver: DriverChoice,

    /// Congestion control of all our sockets [default: the host's]. Between processes of one machine, reno or cubic
    /// spare up to half of the CPU that bbr costs.
    #[arg(long, value_name = "NAME")]
    congestion: Option<Congestion>,

    /// How long connections may go on after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
}

impl Tunnel {
    pub(super) fn run(self) -> Result<(), BoxError> {
        match self {
            Self::Client(arguments) => arguments.run(),
            Self::Server(arguments) => arguments.run(),
        }
    }
}

impl CommonArguments {
    fn credentials(&self) -> Result<Credentials, BoxError> {
        let credentials = Credentials::from_pem(&read(&self.cert)?, &read(&self.key)?, &read(&self.ca)?)
            .map_err(|error| {
                format!(
                    "--cert {}, --key {}, --ca {}: {error}",
                    self.cert.display(),
                    self.key.display(),
                    self.ca.display()
                )
            })?;
        Ok(credentials)
    }

    fn socket_options(&self) -> Result<SocketOptions, BoxError> {
        if let Some(congestion) = &self.congestion {
            congestion.check().map_err(|error| {
                format!(
                    "--congestion {congestion}: {error}; see /proc/sys/net/ipv4/tcp_available_congestion_control \
                     and tcp_allowed_congestion_control"
                )
            })?;
        }
        Ok(SocketOptions { congestion: self.congestion.clone(), ..SocketOptions::default() })
    }

    /// Starts the workers, says where they listen, and runs until told to stop.
    fn run<S>(
        &self,
        role: &'static str,
        identity: &Identity,
        listen: SocketAddr,
        setup: S,
    ) -> Result<(), BoxError>
    where
        S: Fn(&Worker) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let options = WorkerOptions { workers: self.workers, driver: self.driver };
        let supervisor = Supervisor::start(&options, setup)?;
        let congestion = self.congestion.clone().or_else(Congestion::of_host);
        tracing::info!(
            role,
            %listen,
            %identity,
            workers = supervisor.handles().len(),
            driver = %supervisor.driver(),
            congestion = congestion.map_or_else(|| "unknown".into(), |name| name.to_string()),
            "listening"
        );
        resident::let_go_of_the_start();
        run_until_signal(supervisor, Duration::from_secs(self.grace))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BoxError> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()).into())
}

/// Takes connections on this worker until it drains.
fn accept_on<F>(worker: &Worker, listen: SocketAddr, socket: SocketOptions, take: F) -> Result<(), BoxError>
where
    F: Fn(Socket, SocketAddr) + 'static,
{
    let options = ListenOptions { socket, ..ListenOptions::default() };
    let listener = Listener::bind(listen, &options)
        .map_err(|error| format!("--listen {listen}: {error}; is another process there?"))?;
    let accepting = worker.clone();
    worker.spawn(async move {
        while let Some(accepted) = accepting.unless_draining(listener.accept()).await {
            match accepted {
                Ok((socket, from)) => take(socket, from),
                Err(error) => {
                    return tracing::error!(%error, "the listener is broken: nothing is accepted any more");
                }
            }
        }
    });
    Ok(())
}

// === Client ===

impl ClientArguments {
    fn run(self) -> Result<(), BoxError> {
        let credentials = self.common.credentials()?;
        let sockets = self.common.socket_options()?;
        let context = Arc::new(ClientContext::new(&credentials, CryptoPolicy::default())?);
        let own = credentials.identity().clone();
        let expected: Arc<[Identity]> =
            if self.peer_identity.is_empty() { Arc::from([own.clone()]) } else { self.peer_identity.into() };
        let head = ConnectHead {
            authority: &self.authority,
            baggage: "",
            forwarded: None,
            trace: None,
            network: None,
        };
        let headers = Arc::new(head.encode()?);
        let connect = ConnectOptions { socket: sockets.clone(), ..ConnectOptions::default() };
        let dial = DialOptions {
            to: self.peer,
            connect,
            context,
            expected,
            workload: None,
            http: Config::hbone_client(),
        };
        let plain = SocketOptions { keepalive: Some(KEEPALIVE), ..sockets };
        let listen = self.listen;
        self.common.run("client", &own, listen, move |worker| {
            let client = Rc::new(Client {
                worker: worker.clone(),
                pool: Pool::new(worker, PoolConfig::DEFAULT),
                dial: dial.clone(),
                headers: headers.clone(),
            });
            accept_on(worker, listen, plain.clone(), move |socket, from| client.carry(socket, from))
        })
    }
}

/// The client role on one worker.
struct Client {
    worker: Worker,
    pool: Pool,
    dial: DialOptions,
    headers: Arc<Headers>,
}

impl Client {
    /// Carries one downstream connection to its end.
    ///
    /// The opening is a task of its own: the relay's, which stays for the life of the connection, holds nothing of it.
    fn carry(self: &Rc<Self>, downstream: Socket, from: SocketAddr) {
        let live = self.worker.hold();
        let client = self.clone();
        self.worker.spawn(async move {
            match client.pool.open(&client.dial, &client.headers).await {
                Ok((stream, _answer)) => {
                    let relay = stream.relay(downstream, Flow::Downstream, &Rc::default());
                    client.worker.spawn(relay.map(move |end| {
                        log_end(from, &end);
                        drop(live);
                    }));
                }
                Err(error) => {
                    log_refused(from, &error);
                    downstream.reset_on_close();
                }
            }
        });
    }
}

fn log_refused(from: SocketAddr, error: &PoolError) {
    let close_cause = error.close_cause().map(tunnel::tls::CloseCause::label);
    tracing::warn!(downstream = %from, close_cause, %error, "no stream");
}

fn log_end(peer: SocketAddr, end: &StreamRelayEnd) {
    match end {
        StreamRelayEnd::Complete => tracing::debug!(%peer, "connection ended"),
        cut => tracing::info!(%peer, end = %cut, "connection cut"),
    }
}

// === Server ===

impl ServerArguments {
    fn run(self) -> Result<(), BoxError> {
        let credentials = self.common.credentials()?;
        let sockets = self.common.socket_options()?;
        let context = ServerContext::new(&credentials, CryptoPolicy::default())?;
        let allow: Arc<[Identity]> = self.allow.into();
        let (listen, forward_to) = (self.listen, self.forward_to);
        if forward_to.is_none() && allow.is_empty() {
            tracing::warn!(
                "without --forward-to and --allow, every peer of our trust domain reaches whatever this host reaches"
            );
        }
        self.common.run("server", credentials.identity(), listen, move |worker| {
            let connect = ConnectOptions { socket: sockets.clone(), ..ConnectOptions::default() };
            let server = Rc::new(Server {
                worker: worker.clone(),
                allow: allow.clone(),
                forward_to,
                connect: Rc::new(connect),
            });
            let (worker_here, context) = (worker.clone(), context.clone());
            let options = ServerOptions::default();
            accept_on(worker, listen, sockets.clone(), move |socket, from| {
                if let Err(error) = serve(&worker_here, socket, from, &context, &options, server.clone()) {
                    tracing::warn!(peer = %from, %error, "tunnel refused");
                }
            })
        })
    }
}

/// The server role on one worker.
struct Server {
    worker: Worker,
    allow: Arc<[Identity]>,
    forward_to: Option<SocketAddr>,
    connect: Rc<ConnectOptions>,
}

impl Server {
    /// Where the request may go, or the status that refuses it.
    fn decide(&self, request: &IncomingRequest) -> Result<SocketAddr, u16> {
        let connect = ConnectRequest::parse(request.headers()).map_err(|_| STATUS_BAD_REQUEST)?;
        let identity = &request.peer().identity;
        if !self.allow.is_empty() && !self.allow.contains(identity) {
            tracing::warn!(%identity, "not in --allow");
            return Err(STATUS_DENIED);
        }
        // Without a control plane there is nobody who knows hostnames.
        self.forward_to.or_else(|| connect.authority().ip()).ok_or(STATUS_UNREACHABLE)
    }
}

impl Handler for Server {
    fn request(&self, request: IncomingRequest) {
        let to = match self.decide(&request) {
            Ok(to) => to,
            Err(status) => return request.refuse(status),
        };
        // A task of its own: the relay's, which stays for the life of the connection, holds nothing of it.
        let (worker, connect) = (self.worker.clone(), self.connect.clone());
        self.worker.spawn(async move {
            if let Some((stream, upstream)) = answer(request, to, connect).await {
                let relay = stream.relay(upstream, Flow::Upstream, &Rc::default());
                worker.spawn(relay.map(move |end| log_end(to, &end)));
            }
        });
    }

    fn ended(&self, link: &Rc<Link>, end: &LinkEnd) {
        let peer = link.remote_address();
        let identity = link.peer().map(|peer| peer.identity.to_string());
        if link.peer().is_some() {
            tracing::debug!(%peer, identity, close_cause = end.cause.label(), detail = end.detail, "tunnel ended");
        } else {
            tracing::warn!(%peer, close_cause = end.cause.label(), detail = end.detail, "no tunnel");
        }
    }
}

/// Connects one request to its upstream. The 200 is sent only when the upstream has accepted.
async fn answer(
    request: IncomingRequest,
    to: SocketAddr,
    options: Rc<ConnectOptions>,
) -> Option<(TunnelStream, Socket)> {
    let upstream = match connect(to, &options).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::warn!(upstream = %to, %error, "upstream unreachable");
            request.refuse(STATUS_UNREACHABLE);
            return None;
        }
    };
    let Ok(headers) = accept("") else {
        request.refuse(STATUS_UNREACHABLE);
        return None;
    };
    match request.accept(&headers) {
        Ok(stream) => Some((stream, upstream)),
        Err(error) => {
            tracing::debug!(upstream = %to, %error, "the stream was gone before its answer");
            None
        }
    }
}
