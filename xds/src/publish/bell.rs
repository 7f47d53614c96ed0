//! Wakes a worker: an eventfd, so that io_uring and epoll can both wait for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicPtr;

use rustix::event::{EventfdFlags, eventfd};

use super::slot::Exchange;

/// Something that can be rung by one thread and silenced by another. Ringing twice is ringing once.
pub trait Bell {
    /// The atomic pointer that goes with it.
    type Pointer<T>: Exchange<T>;

    fn ring(&self);
    fn silence(&self);
}

/// A bell whose sound is the readability of a file descriptor.
#[derive(Debug)]
pub struct EventBell {
    fd: OwnedFd,
}

impl EventBell {
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }
}

impl AsFd for EventBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Bell for EventBell {
    type Pointer<T> = AtomicPtr<T>;

    fn ring(&self) {
        // Fails only with EAGAIN when the counter is full, and then the bell rings already.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        // Fails only with EAGAIN when the counter is zero, and then the bell is silent already.
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }
}
