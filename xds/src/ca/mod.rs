//! Certificates for the workloads of this node.
//!
//! [`manager`] decides when to ask for which (pure, on virtual time in its tests), [`client`] asks, [`run`] puts the
//! two together on the control thread.

pub mod bundle;
pub mod client;
pub mod manager;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use model::Identity;
use tokio::sync::mpsc;

use crate::transport::{Credentials, Server};

pub use bundle::{BundleError, CertificateBundle};
pub use client::CaError;
pub use manager::{Manager, Priority};

/// Validity asked for unless configured otherwise.
pub const VALIDITY: Duration = Duration::from_hours(24);

/// What to ask, and how.
#[derive(Debug, Clone)]
pub struct CaConfig {
    pub server: Server,
    pub credentials: Credentials,
    pub validity: Duration,
    /// Ask for the certificates of others (a proxy of a node), instead of the own one.
    pub impersonate: bool,
}

/// What the control thread wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Have a certificate of this identity and keep it fresh.
    Want(Identity, Priority),
    /// No local workload has this identity any more.
    Forget(Identity),
}

/// What the control thread hears.
#[derive(Debug)]
pub enum Event {
    Issued(Arc<CertificateBundle>),
    /// The certificate held before, if any, stays in use until it expires.
    Failed {
        identity: Identity,
        error: CaError,
    },
}

/// Serves commands for ever; ends when all their senders are gone.
pub async fn run(config: CaConfig, mut commands: mpsc::Receiver<Command>, mut tell: impl FnMut(Event)) {
    let mut manager = Manager::new();
    let mut running = FuturesUnordered::new();
    let mut jitter = Jitter::new();
    loop {
        while let Some(identity) = manager.next(Instant::now()) {
            running.push(issue(&config, identity));
        }
        let deadline = manager.deadline();
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Want(identity, priority)) => manager.want(identity, priority, Instant::now()),
                Some(Command::Forget(identity)) => manager.forget(&identity),
                None => return,
            },
            Some((identity, result)) = running.next() => match result {
                Ok(bundle) => {
                    let bundle = Arc::new(bundle);
                    if manager.issued(&identity, Arc::clone(&bundle), Instant::now(), SystemTime::now()) {
                        tell(Event::Issued(bundle));
                    }
                }
                Err(error) => {
                    manager.failed(&identity, Instant::now(), jitter.next());
                    tell(Event::Failed { identity, error });
                }
            },
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
        }
    }
}

async fn issue(config: &CaConfig, identity: Identity) -> (Identity, Result<CertificateBundle, CaError>) {
    let result = client::create_certificate(config, &identity).await;
    (identity, result)
}

/// Random numbers that differ from process to process; nothing secret hangs on them.
struct Jitter(u64);

impl Jitter {
    fn new() -> Self {
        Self(foldhash::fast::RandomState::default().hash_one(std::process::id()))
    }

    fn next(&mut self) -> u64 {
        self.0 = crate::snapshot::endpoint::Random::new(self.0).below(u64::MAX);
        self.0
    }
}
