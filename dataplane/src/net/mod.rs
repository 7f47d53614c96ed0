//! Sockets of a worker: listening, connecting, where a captured connection meant to go, moving bytes.
//!
//! Bytes move by direct recv(2) and send(2) on non-blocking sockets; the runtime is asked only to wait
//! ([`Descriptor::readable`], [`Descriptor::writable`]). So an idle socket holds no buffer, and a write that the
//! kernel takes at once costs one system call. No function here blocks the thread but
//! [`NetworkNamespace::within`], for the few microseconds of two setns(2) calls.

mod connect;
mod datagram;
mod descriptor;
mod exhaustion;
mod listen;
mod namespace;
mod options;
mod original;
mod pipe;
mod splice;

pub use connect::{CONNECT_TIMEOUT, ConnectError, ConnectOptions, connect};
pub use datagram::{Datagram, DatagramOptions};
pub use descriptor::{Descriptor, Socket};
pub use exhaustion::{EXHAUSTED_PAUSE, take_exhaustions};
pub use listen::{LISTEN_BACKLOG, ListenOptions, Listener, Transparent, wildcard};
pub use namespace::{NamespaceError, NetworkNamespace};
pub use options::{Congestion, CongestionError, KEEPALIVE, SocketOptions};
pub use original::original_destination;
pub use pipe::{Pipe, PipePool};
pub use splice::{ByteCounters, RelayEnd, relay};

use std::net::SocketAddr;

/// The address with an IPv4-mapped IPv6 address written as IPv4, as a dual-stack listener sees it.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Runs a test body on a worker of each driver.

    use std::future::Future;
    use std::sync::Arc;
    use std::time::Instant;

    use crate::worker::{DriverChoice, Supervisor, Worker, WorkerOptions};

    /// Runs `body` on a fresh worker of every driver that works here, to its end.
    pub(crate) fn on_each_driver<B, F>(body: B)
    where
        B: Fn(Worker) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + 'static,
    {
        let body = Arc::new(body);
        for driver in [DriverChoice::Auto, DriverChoice::Epoll] {
            let (done, finished) = std::sync::mpsc::channel();
            let body = body.clone();
            let options = WorkerOptions { workers: Some(1), driver };
            let supervisor = Supervisor::start(&options, move |worker| {
                let (worker_here, body, done) = (worker.clone(), body.clone(), done.clone());
                worker.spawn(async move {
                    body(worker_here).await;
                    done.send(()).unwrap();
                });
                Ok(())
            })
            .unwrap();
            finished.recv().unwrap();
            supervisor.drain(Instant::now());
            supervisor.join();
        }
    }
}
