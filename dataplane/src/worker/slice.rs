//! How soon a worker that wakes gets its core back from what else runs there: applications, and our own control thread.
//!
//! Since Linux 6.12 a thread may ask for a time slice of its own (`sched_setattr(2)`, `sched_runtime`). One that wakes takes
//! the core from another with a longer slice at once, where it would else wait until that one's slice is over, 3 ms as a
//! rule. It gets no more of the core's time than before. Older kernels take the request and do nothing.
#![allow(unsafe_code)]

use std::io;

/// A worker is at work for some ten microseconds at a time, so it seldom is at the end of its slice.
const SLICE_NANOSECONDS: u64 = 500_000;

/// Asks for a short slice for the calling thread.
pub(super) fn shorten() -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of_val(&attributes)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `size` bytes to `attributes`, which are there and not looked at meanwhile.
    checked(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    attributes.sched_runtime = SLICE_NANOSECONDS;
    // SAFETY: the kernel reads as many bytes as `attributes.size` says, which it has just filled in for this very type.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn checked(returned: libc::c_long) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
