//! Drives a [`Cache`]: writes off the thread that serves, one write at a time.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{Cache, CacheError};

#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) cache: Cache,
    writing: Option<JoinHandle<(Result<(), CacheError>, Duration)>>,
    /// The last write failed, and that was told.
    failing: bool,
}

impl Keeper {
    pub(crate) fn new(cache: Cache) -> Self {
        Self { cache, writing: None, failing: false }
    }

    /// Writes what is due as long as it is polled; nothing while the state is not `complete`. Ends only to tell of a
    /// failure, once for all those in a row. May be dropped at any time and called again.
    pub(crate) async fn work(&mut self, complete: bool) -> CacheError {
        loop {
            if let Some(writing) = &mut self.writing {
                let ended = writing.await;
                self.writing = None;
                let now = Instant::now();
                match ended {
                    Ok((Ok(()), took)) => {
                        self.cache.written(true, took, now);
                        self.failing = false;
                    }
                    Ok((Err(error), took)) => {
                        self.cache.written(false, took, now);
                        if !std::mem::replace(&mut self.failing, true) {
                            return error;
                        }
                    }
                    // It panicked or the program ends.
                    Err(_) => self.cache.written(false, Duration::ZERO, now),
                }
            }
            match self.cache.due().filter(|_| complete) {
                None => pending().await,
                Some(due) => tokio::time::sleep_until(due.into()).await,
            }
            let job = self.cache.job();
            self.writing = Some(spawn_blocking(move || {
                let start = Instant::now();
                (job.run(), start.elapsed())
            }));
        }
    }
}
