//! The two drivers that a worker can run on, and how one is chosen.

use std::fmt;
use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

use crate::preflight::{self, IoUringUnavailable};

/// Submission queue entries of a worker's ring; a fuller batch is submitted in pieces.
const RING_ENTRIES: u32 = 1024;

/// What the operator asks for with `--driver`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverChoice {
    /// io_uring where it works, else epoll with a warning that names the cause.
    #[default]
    Auto,
    /// io_uring, or an error that names the cause.
    #[value(name = "io_uring")]
    IoUring,
    /// epoll.
    Epoll,
}

/// What a worker runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

impl DriverChoice {
    /// Settles the choice by probing on the calling thread. The second value is why `Auto` fell back.
    pub fn resolve(self) -> Result<(Driver, Option<IoUringUnavailable>), IoUringUnavailable> {
        match self {
            Self::Epoll => Ok((Driver::Epoll, None)),
            Self::IoUring => preflight::probe_io_uring().map(|()| (Driver::IoUring, None)),
            Self::Auto => Ok(match preflight::probe_io_uring() {
                Ok(()) => (Driver::IoUring, None),
                Err(reason) => (Driver::Epoll, Some(reason)),
            }),
        }
    }
}

/// A current-thread runtime on either driver, with timers.
pub(super) enum WorkerRuntime {
    IoUring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl WorkerRuntime {
    /// Builds the runtime of the calling thread. The ring has the flags that [`preflight`] has proved.
    pub(super) fn build(driver: Driver) -> io::Result<Self> {
        Ok(match driver {
            Driver::IoUring => Self::IoUring(
                RuntimeBuilder::<IoUringDriver>::new()
                    .with_entries(RING_ENTRIES)
                    .uring_builder(preflight::ring_builder())
                    .enable_timer()
                    .build()?,
            ),
            Driver::Epoll => Self::Epoll(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?),
        })
    }

    pub(super) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}
