//! Traffic in the background: new connections and long-lived ones, every failure noted.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use dataplane::net::NetworkNamespace;

use super::traffic::{connect, ping};
use super::{Bed, PATIENCE};

/// Pings on each long-lived connection before it is renewed.
const PINGS: usize = 200;

/// Runs until it is stopped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    exchanges: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// From a pod to servers of [`Bed::pieces`]: for each of them one thread that opens a connection for each exchange, and
    /// one that keeps its connection.
    pub fn start(bed: &Bed, from: &str, to: impl IntoIterator<Item = SocketAddr>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for to in to {
            for exchanges in [1, PINGS] {
                let (shared, network) = (shared.clone(), bed.network(from).clone());
                threads.push(std::thread::spawn(move || shared.run(&network, to, exchanges)));
            }
        }
        Self { shared, threads }
    }

    /// Exchanges so far.
    pub fn exchanges(&self) -> usize {
        self.shared.exchanges.load(Ordering::Relaxed)
    }

    /// Waits for `count` more exchanges.
    pub fn more(&self, count: usize) {
        let (target, deadline) = (self.exchanges() + count, Instant::now() + PATIENCE);
        while self.exchanges() < target {
            assert!(Instant::now() < deadline, "the load stands still: {:?}", self.failures());
            std::thread::yield_now();
        }
    }

    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it; how many exchanges there were. Each must have succeeded.
    pub fn stop(mut self) -> usize {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let failures = self.failures();
        assert!(failures.is_empty(), "{} of {} failed: {failures:#?}", failures.len(), self.exchanges());
        self.exchanges()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn run(&self, network: &NetworkNamespace, to: SocketAddr, exchanges: usize) {
        while !self.stopping.load(Ordering::Relaxed) {
            if let Err(error) = self.converse(connect(network, to), exchanges) {
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push(format!("{to}: {error}"));
            }
        }
    }

    fn converse(&self, socket: std::io::Result<TcpStream>, exchanges: usize) -> std::io::Result<()> {
        let socket = socket?;
        for _ in 0..exchanges {
            ping(&socket)?;
            self.exchanges.fetch_add(1, Ordering::Relaxed);
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }
}
