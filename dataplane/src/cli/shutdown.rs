//! Running workers until the process is told to stop.

use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::worker::{BoxError, Supervisor};

/// Waits for SIGTERM or SIGINT, then drains: no new work, tunnels end politely, and what is left after `grace` is cut. A
/// second signal cuts at once.
pub(super) fn run_until_signal(supervisor: Supervisor, grace: Duration) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(grace = ?grace, "draining");
        supervisor.drain(Instant::now() + grace);
        let handles = supervisor.handles().to_vec();
        let (done, mut ended) = tokio::sync::oneshot::channel();
        thread::Builder::new().name("drain".into()).spawn(move || {
            supervisor.join();
            // The receiver goes away only with this whole function.
            let _ = done.send(());
        })?;
        loop {
            tokio::select! {
                _ = &mut ended => break,
                _ = terminate.recv() => cut(&handles),
                _ = interrupt.recv() => cut(&handles),
            }
        }
        tracing::info!("ended");
        Ok(())
    })
}

fn cut(handles: &[crate::worker::WorkerHandle]) {
    tracing::info!("cutting what is left");
    for handle in handles {
        // A worker that has ended already has nothing to cut.
        let _ = handle.drain(Instant::now());
    }
}
