//! The running control plane: loads, watches, serves.
//!
//! Runs on the tokio runtime it is started in (the control thread's); reading and converting the folder happens on a
//! blocking thread, so that streams and certificates never wait for a large folder. A configuration takes effect as a
//! whole: the resources and the view are built from one catalog and published together.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use tracing::{error, info, warn};

use super::auth::{TokenError, TokenFile, Tokens};
use super::ca::{AuthorityError, CertificateAuthority, LeafLifetimes, ROOT_CERTIFICATE_FILE};
use super::config::{ControlConfig, ListenAddress, RootSource};
use super::files::{self, FileError};
use super::index::Indexer;
use super::last_good::InForce;
use super::listener::{Connection, ListenError, Listener};
use super::server::{Certificates, Discovery, NodeRejection, Published};
use super::token_keys;
use super::view::ClusterView;
use super::watch::FolderWatcher;
use crate::issuer::{Fetcher, Keys, Wanted};
use crate::kube::{MeshSettings, Problem, check_references, load_dir};
use crate::transport::{Credentials, Roots, Server, ServerAddress, Token};

/// The name that clients expect in the server's certificate.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
const SERVER_NAMES: [&str; 2] = [SERVER_NAME, "localhost"];
/// Connections that wait for the server to take them.
const CONNECTIONS_QUEUED_MAX: usize = 64;
/// Streams and requests of one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that open requests have to end when the control plane stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{} is no folder; name the folder that holds the YAML files", .0.display())]
    NoDirectory(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the configuration could not be read: {0}")]
    Load(#[from] tokio::task::JoinError),
}

/// A running control plane. Dropping it stops everything at once; [`ControlPlane::shutdown`] lets requests end.
#[derive(Debug)]
pub struct ControlPlane {
    address: ListenAddress,
    root_pem: String,
    root_path: PathBuf,
    cluster_id: Arc<str>,
    token_files: Vec<TokenFile>,
    view: watch::Receiver<Arc<ClusterView>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    rejections: watch::Receiver<VecDeque<NodeRejection>>,
    stop: watch::Sender<bool>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Tasks {
    server: JoinHandle<()>,
    reloader: JoinHandle<()>,
    issuers: JoinHandle<()>,
    listener: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.reloader.abort();
        self.issuers.abort();
        self.listener.abort();
        self.server.abort();
    }
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Reads the folder, then serves it. Problems in the folder do not prevent the start: they are reported.
    pub async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        if !config.directory.is_dir() {
            return Err(ControlError::NoDirectory(config.directory));
        }
        files::private_directory(&config.state_directory)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authority = Arc::new(authority(&config, &provider)?);
        let root_path = config.state_directory.join(ROOT_CERTIFICATE_FILE);
        files::write_public(&root_path, authority.root_pem().as_bytes())?;
        let token_directory = config.state_directory.join("tokens");
        let (tokens, token_files) = Tokens::issue(&config.nodes, &token_directory, provider.secure_random)?;
        let tokens = Arc::new(tokens);
        let tls = server_tls(&authority, provider)?;

        let listener = Listener::bind(&config.listen).await?;
        let address = listener.address()?;
        let watcher = FolderWatcher::new(&config.directory, config.debounce, config.poll_interval);
        let (want, wanted) = watch::channel(Arc::default());
        let (fetched, keys) = watch::channel(Arc::default());
        let fetcher = Fetcher::new(wanted, fetched, config.issuer_roots.clone());
        let (mut reloader, receivers) = Reloader::new(&config, watcher, Issuers { want, keys });
        reloader.reload().await?;

        let (stop, stopped) = watch::channel(false);
        let (rejections_out, rejections) = watch::channel(VecDeque::new());
        let (connections, incoming) = mpsc::channel(CONNECTIONS_QUEUED_MAX);
        let discovery =
            Discovery::service(receivers.states.clone(), Arc::new(rejections_out), Arc::clone(&tokens));
        let certificates = Certificates::service(Arc::clone(&authority), receivers.states, tokens);
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .add_service(discovery)
            .add_service(certificates);
        let tasks = Tasks {
            server: tokio::spawn(serve(router, incoming, stopped.clone())),
            listener: tokio::spawn(listener.run(tls, connections)),
            reloader: tokio::spawn(reloader.run(stopped)),
            issuers: tokio::spawn(fetcher.run()),
        };
        info!(address = ?address, directory = %config.directory.display(), "control plane serves");
        Ok(Self {
            address,
            root_pem: authority.root_pem().to_owned(),
            root_path,
            cluster_id: config.cluster_id,
            token_files,
            view: receivers.view,
            problems: receivers.problems,
            rejections,
            stop,
            tasks,
        })
    }

    /// Where clients connect; a TCP port is the one that was really taken. The certificate says [`SERVER_NAME`].
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The root certificate of the mesh, of the server and of every workload.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A file with the root certificate.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// The file with the bearer token of a node.
    pub fn token_path(&self, node: &str) -> Option<&Path> {
        self.token_files.iter().find(|file| *file.node == *node).map(|file| file.path.as_path())
    }

    /// How our own clients reach it.
    pub fn server(&self) -> Server {
        Server {
            address: match &self.address {
                ListenAddress::Unix(path) => ServerAddress::Unix(path.clone()),
                ListenAddress::Tcp(address) => {
                    ServerAddress::Tcp { host: address.ip().to_string(), port: address.port() }
                }
            },
            server_name: SERVER_NAME.to_owned(),
            roots: Roots::File(self.root_path.clone()),
        }
    }

    /// What proves a node's clients; `None` for a node without token.
    pub fn credentials(&self, node: &str) -> Option<Credentials> {
        let token = Token::File(self.token_path(node)?.to_owned());
        Some(Credentials { token, cluster_id: self.cluster_id.to_string(), headers: Vec::new() })
    }

    /// The cluster in force, with every change of it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// What is wrong with the folder as it is now; empty when all is well.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }

    /// The latest responses that node proxies refused.
    pub fn rejections(&self) -> watch::Receiver<VecDeque<NodeRejection>> {
        self.rejections.clone()
    }

    /// Ends all streams, lets running requests finish and removes the socket.
    pub async fn shutdown(mut self) {
        // No receiver means that the tasks ended by themselves.
        let _ = self.stop.send(true);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut self.tasks.server).await.is_err() {
            warn!("clients of the control plane did not let go in time; their connections are cut");
        }
        self.tasks.server.abort();
        self.tasks.listener.abort();
        // Aborting only asks; the socket file goes with the listener's task.
        let _ = (&mut self.tasks.listener).await;
    }
}

fn authority(
    config: &ControlConfig,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<CertificateAuthority, AuthorityError> {
    let lifetimes = LeafLifetimes { usual: config.leaf_lifetime, longest: config.leaf_lifetime_max };
    let organization = &config.mesh.trust_domain;
    let (random, now) = (provider.secure_random, SystemTime::now());
    match &config.root {
        RootSource::Generated => CertificateAuthority::generate(organization, lifetimes, random, now),
        RootSource::Directory(directory) => {
            CertificateAuthority::load_or_generate(directory, organization, lifetimes, random, now)
        }
    }
}

fn server_tls(
    authority: &CertificateAuthority,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<ServerConfig>, ControlError> {
    let (chain, key) = authority.server_certificate(&SERVER_NAMES, SystemTime::now())?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}

async fn serve(
    router: tonic::transport::server::Router,
    incoming: mpsc::Receiver<std::io::Result<Connection>>,
    mut stopped: watch::Receiver<bool>,
) {
    let stop = async move {
        // An error means that the handle is gone, which is as good as a request to stop.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    if let Err(error) = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop).await {
        error!("the control plane's server failed: {error}");
    }
}

// === Reloading ===

/// Owns the configuration in force and publishes what follows from it.
struct Reloader {
    directory: PathBuf,
    mesh: MeshSettings,
    watcher: FolderWatcher,
    issuers: Issuers,
    /// `None` only while a blocking thread works with it.
    work: Option<Work>,
    generation: u64,
    states: watch::Sender<Arc<Published>>,
    view: watch::Sender<Arc<ClusterView>>,
    problems: watch::Sender<Arc<Vec<Problem>>>,
}

/// The issuers whose keys are fetched elsewhere.
struct Issuers {
    want: watch::Sender<Arc<Wanted>>,
    keys: watch::Receiver<Arc<Keys>>,
}

/// What reading and converting needs; travels to the blocking thread and back.
struct Work {
    in_force: InForce,
    indexer: Indexer,
}

struct Receivers {
    states: watch::Receiver<Arc<Published>>,
    view: watch::Receiver<Arc<ClusterView>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
}

impl Reloader {
    fn new(config: &ControlConfig, watcher: FolderWatcher, issuers: Issuers) -> (Self, Receivers) {
        let (states, states_out) = watch::channel(Arc::default());
        let (view, view_out) = watch::channel(Arc::default());
        let (problems, problems_out) = watch::channel(Arc::default());
        let work = Work { in_force: InForce::default(), indexer: Indexer::new(config) };
        let reloader = Self {
            directory: config.directory.clone(),
            mesh: config.mesh.clone(),
            watcher,
            issuers,
            work: Some(work),
            generation: 0,
            states,
            view,
            problems,
        };
        (reloader, Receivers { states: states_out, view: view_out, problems: problems_out })
    }

    /// Until told to stop; then the streams end, because nobody publishes any more.
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = self.watcher.changed() => {}
                // The fetcher lives as long as this loop, which holds what it listens to.
                Ok(()) = self.issuers.keys.changed() => {}
            }
            if let Err(error) = self.reload().await {
                // The blocking thread died, and the state it worked on with it: the last published state stays.
                error!("the configuration could not be reloaded, restart the control plane: {error}");
                let _ = stopped.wait_for(|stop| *stop).await;
                return;
            }
        }
    }

    async fn reload(&mut self) -> Result<(), tokio::task::JoinError> {
        let Some(mut work) = self.work.take() else { return Ok(()) };
        let (directory, mesh) = (self.directory.clone(), self.mesh.clone());
        let generation = self.generation + 1;
        let keys = self.issuers.keys.borrow_and_update().clone();
        let (work, indexed, problems, sources) = tokio::task::spawn_blocking(move || {
            let mut problems = work.in_force.update(load_dir(&directory), &directory);
            let catalog = work.in_force.catalog();
            let sources = token_keys::sources(catalog);
            let (completed, mut unfetched) = token_keys::completed(catalog, &keys);
            let catalog = completed.as_ref().unwrap_or(catalog);
            problems.append(&mut unfetched);
            let mut indexed = work.indexer.build(catalog, generation);
            problems.extend(check_references(catalog, &mesh.with(catalog)));
            problems.append(&mut indexed.problems);
            problems.sort_by(|left, right| {
                (&left.file, left.line, left.column).cmp(&(&right.file, right.line, right.column))
            });
            (work, indexed, problems, sources)
        })
        .await?;
        self.work = Some(work);
        self.issuers.want.send_if_modified(|wanted| {
            let changed = **wanted != sources;
            if changed {
                *wanted = Arc::new(sources);
            }
            changed
        });
        self.report(problems);
        let current = self.states.borrow().clone();
        let same_view = |new: &ClusterView, old: &ClusterView| {
            ClusterView { generation: old.generation, ..new.clone() } == *old
        };
        if self.generation > 0
            && current.indexed.desired == indexed.desired
            && same_view(&indexed.view, &current.indexed.view)
        {
            return Ok(());
        }
        self.generation = generation;
        info!(generation, "configuration in force");
        self.view.send_replace(Arc::new(indexed.view.clone()));
        self.states.send_replace(Arc::new(Published { generation, indexed }));
        Ok(())
    }

    fn report(&self, problems: Vec<Problem>) {
        if **self.problems.borrow() == problems {
            return;
        }
        for problem in &problems {
            if problem.is_error() {
                error!("{problem}");
            } else {
                warn!("{problem}");
            }
        }
        self.problems.send_replace(Arc::new(problems));
    }
}
