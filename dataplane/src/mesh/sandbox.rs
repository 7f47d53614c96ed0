//! The process's own network namespace and, without root, its own user namespace.
//!
//! The program executes itself again: namespaces are entered between fork and exec (or just before exec), when the
//! process has one thread, which is what unshare(2) of a user namespace demands.

#![allow(unsafe_code)] // unshare(2) and `pre_exec`: both change what the process may touch.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::net::{NamespaceError, NetworkNamespace};

/// Set in the environment of the process inside; its value is of no matter.
const INSIDE: &str = "CORELANE_SANDBOX";

/// Why there is no sandbox to be had.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("this user may not make namespaces ({source}). {}. Or run it as root", restriction())]
    Refused { source: io::Error },
    #[error("the program cannot execute itself: {0}")]
    Execute(#[source] io::Error),
    #[error("a network namespace cannot be made: {0}")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Enter(#[from] NamespaceError),
}

/// Whether this process runs inside.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Executes this program again inside, with the same arguments. Returns only if that failed.
pub fn reexecute() -> SandboxError {
    explain(command().args(std::env::args_os().skip(1)).exec())
}

/// What a failure to start a [`command`] means.
pub fn explain(error: io::Error) -> SandboxError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::NOSPC | Errno::INVAL | Errno::ACCESS) => {
            SandboxError::Refused { source: error }
        }
        _ => SandboxError::Execute(error),
    }
}

/// A command that runs this program in a new network namespace, as root of it.
pub fn command() -> Command {
    // The link leads to the program even where the path to it is closed to this user, or has another file by now.
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command.env(INSIDE, "1");
    // SAFETY: between fork and exec only system calls on memory of the stack are made: no allocation, no lock.
    unsafe { command.pre_exec(|| Ok(enter()?)) };
    command
}

/// Makes a network namespace that lives as long as the handle.
pub fn new_network_namespace() -> Result<NetworkNamespace, SandboxError> {
    // On a thread of its own, which ends: no other code ever runs with this thread's namespace.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: CLONE_NEWNET detaches no memory and no descriptors, only the thread's view of the network.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| SandboxError::Namespace(errno.into()))?;
            Ok(NetworkNamespace::current()?)
        });
        made.join().unwrap_or_else(|_| Err(SandboxError::Namespace(io::Error::other("the thread panicked"))))
    })
}

/// With the right to, only a network namespace is made; without it, a user namespace that owns it.
fn enter() -> Result<(), Errno> {
    // SAFETY: called when the process has one thread and is about to execute another program image.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Err(Errno::PERM) => {}
        done => return done,
    }
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)? };
    // user_namespaces(7): without privilege the group map may be written only once setgroups(2) is forbidden.
    write(c"/proc/self/setgroups", b"deny")?;
    write_map(c"/proc/self/uid_map", user)?;
    write_map(c"/proc/self/gid_map", group)
}

/// Maps one outer id to root inside, and no other.
fn write_map(path: &CStr, outer: u32) -> Result<(), Errno> {
    // The longest line is `0 4294967295 1`.
    let mut line = [0; 16];
    let mut free = line.as_mut_slice();
    write!(free, "0 {outer} 1").map_err(|_| Errno::NOBUFS)?;
    let unused = free.len();
    write(path, line.get(..line.len() - unused).unwrap_or_default())
}

fn write(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file.as_fd(), text).map(|_| ())
}

/// Which setting of this machine stands in the way.
fn restriction() -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let cause = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "Allow it with: sysctl -w kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "Allow it with: sysctl -w user.max_user_namespaces=10000"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "Allow it with: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "A container runtime's seccomp profile forbids it: allow unshare(2) there (docker run --security-opt seccomp=unconfined)"
    };
    cause.to_owned()
}
