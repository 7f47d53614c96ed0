//! Pipes for splice(2), pooled per worker: a relay borrows one only while bytes are in it.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// What a pipe is asked to hold; the kernel may grant less (`/proc/sys/fs/pipe-max-size`, 1 MiB by default).
const PIPE_BYTES: usize = 512 * 1024;

/// Pipes that a worker keeps for later.
const PIPES_KEPT_MAX: usize = 64;

/// Both ends of an empty, non-blocking pipe.
#[derive(Debug)]
pub struct Pipe {
    pub reader: OwnedFd,
    pub writer: OwnedFd,
    /// How much it holds.
    pub capacity: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user at the limit of pipe pages keeps the default of 64 KiB: slower, and still right.
        let capacity =
            fcntl_setpipe_size(&writer, PIPE_BYTES).or_else(|_| rustix::pipe::fcntl_getpipe_size(&writer))?;
        Ok(Self { reader, writer, capacity })
    }
}

/// Empty pipes of a worker.
#[derive(Debug, Default)]
pub struct PipePool {
    empty: RefCell<Vec<Pipe>>,
}

impl PipePool {
    /// Pipes that wait for a relay.
    pub fn kept(&self) -> usize {
        self.empty.borrow().len()
    }

    /// Takes an empty pipe, a kept one if there is one.
    pub fn take(&self) -> io::Result<Pipe> {
        let kept = self.empty.borrow_mut().pop();
        kept.map_or_else(Pipe::new, Ok)
    }

    /// Gives back a pipe that is empty. One with bytes in it must be dropped instead: they are another
    /// connection's secret.
    pub fn give_back(&self, pipe: Pipe) {
        let mut empty = self.empty.borrow_mut();
        if empty.len() < PIPES_KEPT_MAX {
            empty.push(pipe);
        }
    }
}
