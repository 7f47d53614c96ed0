//! Child processes under measurement: started pinned, watched through /proc, ended by their id.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::machine;

/// A program and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl Program {
    pub(crate) fn new<A: Into<OsString>>(
        path: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self { path: path.into(), arguments: arguments.into_iter().map(Into::into).collect() }
    }
}

/// A running child; killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program` on every CPU of this process.
    pub(crate) fn start_anywhere(program: &Program) -> Result<Self, Failure> {
        let child = Command::new(&program.path).args(&program.arguments).stdin(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("cannot start {}: {error}", program.path.display()))?;
        Ok(Self { child })
    }

    /// Starts `program` on `core` and leaves the calling thread on `back_to`.
    pub(crate) fn start(program: &Program, core: usize, back_to: usize) -> Result<Self, Failure> {
        machine::pin(core)?;
        let started = Self::start_anywhere(program);
        machine::pin(back_to)?;
        started
    }

    /// Waits until `address` accepts connections, at most ten seconds.
    pub(crate) fn wait_listening(&mut self, address: SocketAddr) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the process ended at start: {status}").into());
            }
            if is_listening(address) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("nothing listens on {address} after 10 s").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// CPU time of all its threads, kernel workers of its rings included.
    pub(crate) fn cpu_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanoseconds = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Memory that belongs to this process alone, in bytes.
    pub(crate) fn private_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap_or_default();
        let kib = text
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok()));
        kib.sum::<u64>() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks the port up in the kernel's table: a probe by connecting would count as traffic.
fn is_listening(address: SocketAddr) -> bool {
    const LISTEN: &str = "0A";
    let port = format!(":{:04X}", address.port());
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        fs::read_to_string(table).unwrap_or_default().lines().skip(1).any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().unwrap_or_default();
            local.ends_with(&port) && columns.nth(1) == Some(LISTEN)
        })
    })
}
