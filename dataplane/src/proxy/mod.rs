//! One node proxy as a process, in ztunnel's place: started from a [`Config`], serving its pages, following the node
//! agent or serving its one workload, until it is asked to end.
//!
//! Runs on the control thread, inside a tokio `LocalSet`.

mod memory_limit;
mod options;
mod own_pod;
mod pages;
mod shown;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use xds::transport::Token;

use crate::access_log::{LogFormat, LogWriter, queue};
use crate::admin::Pending;
use crate::config::{Config, Mode, WorkloadName};
use crate::control::{LogPump, NodeError, NodeProxy};
use crate::net::{NamespaceError, NetworkNamespace};
use crate::resident;
use crate::session::LocalPod;
use crate::trace::{Exporter, ExporterError};
use crate::zds::{self, AgentError};

pub use options::{LocalStateError, node_config};
pub use pages::PageError;

/// How long a pod of our own that could not be served waits for the next attempt.
const RETRY: Duration = Duration::from_secs(5);

/// How long the end waits for the collector to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Why the proxy does not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Local(#[from] LocalStateError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    #[error("signals cannot be received: {0}")]
    Signal(#[source] io::Error),
}

/// Serves until it is asked to end, then drains.
pub async fn run(mut config: Config) -> Result<(), ProxyError> {
    options::adapt(&mut config);
    warn_of(&config);
    raise_descriptor_limit();
    let mut signals = Signals::new().map_err(ProxyError::Signal)?;
    let (recorder, records) = queue();
    let mut node_config = node_config(&config);
    node_config.sources.local = options::local_state(&config)?;
    let node = NodeProxy::start(node_config, recorder.following_the_filter())?;
    let format = if config.log.json { LogFormat::Json } else { LogFormat::Text };
    let writer =
        LogWriter::new(format, Box::new(io::stdout()) as Box<dyn Write + Send>).following_the_filter();
    let (exporter, sending) = exporter(&config)?;
    let pump = LogPump::new(records).write_to(writer).counted_in(node.metrics()).exporting_to(exporter);
    let pump = tokio::task::spawn_local(pump.run());
    let pages = pages::open(&config, &node).await?;
    let readiness = node.readiness();
    let settling = tokio::task::spawn_local(async move {
        readiness.reached().await;
        resident::let_go_of_the_start();
    });
    tracing::info!(
        node = %config.node_name,
        workers = config.workers,
        driver = %node.driver(),
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );
    let mut quit = node.quit();
    let ended = tokio::select! {
        error = serve(&config, &node) => Err(error),
        () = signals.first() => Ok(()),
        // A proxy that is gone asks for nothing, and it is not gone yet.
        _ = quit.wait_for(|quit| *quit) => Ok(()),
    };
    if let Err(error) = &ended {
        tracing::error!(%error, "the proxy ends");
    }
    let grace = config.termination_deadline;
    tracing::info!(?grace, "draining");
    tokio::select! {
        () = node.drain(Instant::now() + grace) => tracing::info!("ended"),
        () = signals.first() => tracing::warn!("asked again: what is left is cut"),
    }
    pump.abort();
    // The pump writes what it still holds when it is dropped; the abort only asks for that.
    drop(pump.await);
    if let Some(sending) = sending {
        // The exporter has gone with the pump, so this ends when what waits is sent.
        drop(tokio::time::timeout(LAST_SPANS, sending).await);
    }
    settling.abort();
    drop(pages);
    ended
}

/// What takes spans, and the task that sends them, where a collector is named.
fn exporter(config: &Config) -> Result<(Option<Exporter>, Option<JoinHandle<()>>), ExporterError> {
    let Some(tracing) = &config.own.tracing else { return Ok((None, None)) };
    let (exporter, sending) = Exporter::new(&tracing.collector)?;
    tracing::info!(collector = tracing.collector, "spans of requests are sent");
    Ok((Some(exporter), Some(tokio::task::spawn_local(sending.run()))))
}

/// What the proxy is there for. Ends with an error only.
async fn serve(config: &Config, node: &NodeProxy) -> ProxyError {
    let readiness = node.readiness();
    let proxy = readiness.pending("proxy");
    // Until the agent's client has said so itself.
    let manager = (config.mode == Mode::Shared).then(|| readiness.pending("workload proxy manager"));
    node.synced().await;
    match &config.mode {
        Mode::Shared => {
            drop(proxy);
            let following = zds::run(&config.agent_socket, node, readiness);
            drop(manager);
            tokio::select! {
                error = following => error.into(),
                error = own_pod::serve(config, node) => error,
            }
        }
        Mode::Dedicated(workload) | Mode::Waypoint(workload) => {
            match dedicated(workload, node, proxy).await {
                Ok(never) => match never {},
                Err(error) => error,
            }
        }
    }
}

/// Serves the one workload, in the namespace that the process runs in.
async fn dedicated(
    workload: &WorkloadName,
    node: &NodeProxy,
    pending: Pending,
) -> Result<std::convert::Infallible, ProxyError> {
    let pod = local_pod(workload)?;
    insist(node, pod).await;
    drop(pending);
    std::future::pending().await
}

/// A workload of the namespace that the process runs in.
fn local_pod(workload: &WorkloadName) -> Result<LocalPod, NamespaceError> {
    let WorkloadName { name, namespace, service_account } = workload;
    Ok(LocalPod {
        uid: own_uid(workload),
        name: Arc::from(name.as_str()),
        namespace: Arc::from(namespace.as_str()),
        service_account: Arc::from(service_account.as_str()),
        network: NetworkNamespace::home()?,
    })
}

/// No node agent gave this pod a name; none that it gives has a slash.
fn own_uid(workload: &WorkloadName) -> Arc<str> {
    Arc::from(format!("{}/{}", workload.namespace, workload.name))
}

/// Has a pod served, and tries again until it is.
async fn insist(node: &NodeProxy, pod: LocalPod) {
    while let Err(error) = node.add_pod(pod.clone()).await {
        tracing::error!(%error, "tried again after {RETRY:?}");
        tokio::time::sleep(RETRY).await;
    }
}

/// Says what will not be as somebody might think.
fn warn_of(config: &Config) {
    for (what, upstream) in
        [("xDS", config.control_plane.discovery.as_ref()), ("CA", Some(&config.control_plane.authority))]
    {
        if let Some(upstream) = upstream
            && matches!(upstream.credentials.token, Token::None)
        {
            tracing::warn!(
                address = upstream.address,
                "there is no token for the {what} server; set AUTH_TOKEN"
            );
        }
    }
    if config.node_name.is_empty() && config.mode == Mode::Shared {
        tracing::warn!("NODE_NAME is not set: certificates are asked for only when a pod has come");
    }
}

/// As many descriptors as we may have: each connection takes one or two.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let wanted = Rlimit { current: maximum, maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, ?current, ?maximum, "the limit of open descriptors cannot be raised");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
