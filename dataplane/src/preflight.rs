//! Whether io_uring can be used here, and if not, why and what mends it.
//!
//! The probe builds the very ring that a worker will run on (same flags), proves by behaviour that
//! `DEFER_TASKRUN` is in force, and asks for each opcode that the I/O shell submits. It must run on the
//! thread that will own the ring, for `SINGLE_ISSUER` ties a ring to one thread.
//!
//! Container runtimes deny io_uring with EPERM (Docker 25, containerd 2) or ENOSYS (others); both mean
//! "seccomp" as often as they mean "sysctl" or "old kernel", so the message is made from the errno
//! together with the sysctl, the seccomp mode of this process and the kernel release.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

/// Submission entries of the ring that only probes.
const PROBE_ENTRIES: u32 = 8;

/// The opcodes that a worker submits: waiting for readiness, taking a wait back, closing.
const OPCODES: [(u8, &str); 3] = [
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
    (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
    (opcode::Close::CODE, "IORING_OP_CLOSE"),
];

/// Why io_uring cannot be used. `Display` is a message of at most three lines: what failed, why, the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IoUringUnavailable {
    #[error("{}", explain(.0, .1))]
    Setup(Denial, Surroundings),
    #[error(
        "io_uring lacks {0}.\nThe kernel is too old, or this process's rings are restricted.\n\
         Use Linux 6.1 or later, or run with --driver epoll."
    )]
    Opcode(&'static str),
    #[error(
        "io_uring accepts DEFER_TASKRUN but does not defer: completions arrive before they are asked for.\n\
         Such a ring costs three times the CPU of epoll.\nRun with --driver epoll."
    )]
    NotDeferred,
}

/// What the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The system call that failed.
    pub call: &'static str,
    pub errno: i32,
}

/// What else is known about the process and the kernel, for naming the cause.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `kernel.io_uring_disabled`: 0 allowed, 1 only with CAP_SYS_ADMIN or in the group, 2 forbidden.
    pub sysctl: Option<u32>,
    /// A seccomp filter is in force on this process.
    pub seccomp: bool,
    /// Kernel release as `uname -r` prints it.
    pub kernel: String,
}

impl Surroundings {
    /// Reads procfs; what cannot be read stays unknown.
    pub fn read() -> Self {
        let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let seccomp = std::fs::read_to_string("/proc/self/status")
            .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])));
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { sysctl, seccomp, kernel }
    }
}

/// The settings of every ring of this program, the probe's included.
pub fn ring_builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder
}

/// Proves that a worker of the calling thread can run on io_uring.
pub fn probe_io_uring() -> Result<(), IoUringUnavailable> {
    let mut ring = ring_builder().build(PROBE_ENTRIES).map_err(|error| denied("io_uring_setup", &error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| denied("io_uring_register", &error))?;
    for (code, name) in OPCODES {
        if !probe.is_supported(code) {
            return Err(IoUringUnavailable::Opcode(name));
        }
    }
    check_deferred(&mut ring)
}

/// A completion of a `DEFER_TASKRUN` ring shows up only when the owner enters the kernel asking for events;
/// on any other ring it is posted on the return from the next system call.
#[allow(unsafe_code)]
fn check_deferred(ring: &mut IoUring) -> Result<(), IoUringUnavailable> {
    let enter = |error: io::Error| denied("io_uring_enter", &error);
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| denied("eventfd", &errno.into()))?;
    let readable = u32::try_from(libc::POLLIN).unwrap_or_default();
    let entry = {
        use std::os::fd::AsRawFd;
        opcode::PollAdd::new(types::Fd(event.as_raw_fd()), readable).build()
    };
    // SAFETY: the entry names no memory, only `event`, which outlives the ring's use of it: this function
    // waits for the completion before it returns, and on an error the caller drops the ring at once.
    if unsafe { ring.submission().push(&entry) }.is_err() {
        return Err(denied("io_uring_enter", &io::Error::from_raw_os_error(libc::EBUSY)));
    }
    ring.submit().map_err(enter)?;
    rustix::io::write(&event, &1u64.to_ne_bytes()).map_err(|errno| denied("eventfd", &errno.into()))?;
    let deferred = ring.completion().is_empty();
    ring.submit_and_wait(1).map_err(enter)?;
    let completed = ring.completion().count() == 1;
    if deferred && completed { Ok(()) } else { Err(IoUringUnavailable::NotDeferred) }
}

fn denied(call: &'static str, error: &io::Error) -> IoUringUnavailable {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    IoUringUnavailable::Setup(Denial { call, errno }, Surroundings::read())
}

/// At most three lines: what failed, the likely cause, the mend.
fn explain(denial: &Denial, around: &Surroundings) -> String {
    let error = io::Error::from_raw_os_error(denial.errno);
    let (cause, mend) = cause_and_mend(denial, around);
    format!(
        "io_uring cannot be used: {}: {error}.\n{cause}.\n{mend}, or run with --driver epoll.",
        denial.call
    )
}

const ALLOW_IN_SECCOMP: &str = "Allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
     (Kubernetes: seccompProfile Localhost; Docker: --security-opt seccomp=PROFILE)";

fn cause_and_mend(denial: &Denial, around: &Surroundings) -> (String, String) {
    let kernel = &around.kernel;
    match (denial.errno, around.sysctl) {
        (libc::EPERM | libc::EACCES, Some(2)) => (
            "The sysctl kernel.io_uring_disabled is 2: io_uring is off for everyone".into(),
            "Run `sysctl -w kernel.io_uring_disabled=0` on the host".into(),
        ),
        (libc::EPERM | libc::EACCES, Some(1)) => (
            "The sysctl kernel.io_uring_disabled is 1: only CAP_SYS_ADMIN or kernel.io_uring_group may use it"
                .into(),
            "Run `sysctl -w kernel.io_uring_disabled=0` on the host or add the process to that group".into(),
        ),
        (libc::EPERM | libc::EACCES, _) => {
            ("A seccomp filter (container runtime or systemd) denies io_uring".into(), ALLOW_IN_SECCOMP.into())
        }
        (libc::ENOSYS, _) if around.seccomp => (
            format!("A seccomp filter denies io_uring, or kernel {kernel} is built without it"),
            ALLOW_IN_SECCOMP.into(),
        ),
        (libc::ENOSYS, _) => {
            (format!("Kernel {kernel} has no io_uring"), "Use Linux 6.1 or later with CONFIG_IO_URING".into())
        }
        (libc::EINVAL, _) => (
            format!("Kernel {kernel} does not know SINGLE_ISSUER and DEFER_TASKRUN (both since 6.1)"),
            "Use Linux 6.1 or later".into(),
        ),
        (libc::ENOMEM, _) => (
            "The limit of locked memory (RLIMIT_MEMLOCK) or of the memory cgroup leaves no room for a ring".into(),
            "Raise it (`ulimit -l`, systemd LimitMEMLOCK=, the container's memory limit)".into(),
        ),
        (libc::EMFILE | libc::ENFILE, _) => {
            ("There is no free file descriptor".into(), "Raise the limit (`ulimit -n`, LimitNOFILE=)".into())
        }
        _ => (format!("Kernel {kernel} refused without a known reason"), "Look into the kernel log".into()),
    }
}

impl fmt::Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sysctl = self.sysctl.map_or("absent".into(), |value| value.to_string());
        write!(
            f,
            "kernel {}, kernel.io_uring_disabled {sysctl}, seccomp filter {}",
            self.kernel,
            if self.seccomp { "on" } else { "off" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(errno: i32, sysctl: Option<u32>, seccomp: bool) -> String {
        let around = Surroundings { sysctl, seccomp, kernel: "6.6.1".into() };
        IoUringUnavailable::Setup(Denial { call: "io_uring_setup", errno }, around).to_string()
    }

    #[test]
    fn every_message_names_cause_and_mend_in_three_lines() {
        let table = [
            (libc::EPERM, Some(2), false, "io_uring_disabled is 2", "sysctl -w"),
            (libc::EPERM, Some(1), false, "io_uring_disabled is 1", "sysctl -w"),
            (libc::EPERM, Some(0), true, "seccomp filter", "seccompProfile"),
            (libc::EACCES, None, false, "seccomp filter", "seccompProfile"),
            (libc::ENOSYS, None, true, "seccomp filter", "seccompProfile"),
            (libc::ENOSYS, None, false, "has no io_uring", "CONFIG_IO_URING"),
            (libc::EINVAL, Some(0), false, "DEFER_TASKRUN", "6.1"),
            (libc::ENOMEM, Some(0), false, "RLIMIT_MEMLOCK", "ulimit -l"),
            (libc::EMFILE, Some(0), false, "file descriptor", "ulimit -n"),
            (libc::EIO, Some(0), false, "without a known reason", "kernel log"),
        ];
        for (errno, sysctl, seccomp, cause, mend) in table {
            let text = message(errno, sysctl, seccomp);
            assert!(text.lines().count() <= 3, "{text}");
            assert!(text.contains(cause), "{cause:?} is missing in: {text}");
            assert!(text.contains(mend), "{mend:?} is missing in: {text}");
            assert!(text.contains("--driver epoll"), "{text}");
        }
        for other in [IoUringUnavailable::Opcode("IORING_OP_POLL_ADD"), IoUringUnavailable::NotDeferred] {
            assert!(other.to_string().lines().count() <= 3);
        }
    }

    #[test]
    fn a_ring_without_deferral_is_told_from_one_with_it() {
        let Ok(mut plain) = IoUring::new(PROBE_ENTRIES) else {
            // The machine denies io_uring: then the probe must say so too.
            assert!(matches!(probe_io_uring(), Err(IoUringUnavailable::Setup(..))));
            return;
        };
        assert_eq!(check_deferred(&mut plain), Err(IoUringUnavailable::NotDeferred));
        assert_eq!(probe_io_uring(), Ok(()));
    }
}
