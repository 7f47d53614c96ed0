//! Child processes under measurement: started pinned, watched through /proc, ended by their id.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dataplane::net::NetworkNamespace;

use crate::Failure;
use crate::confine::{Group, confine};
use crate::machine;

/// Sets what happens to a process when its parent ends, and becomes the program it is given.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A program, its arguments, and where it runs.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Set beside what this process has.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The network that it starts out in; `None` is this thread's.
    pub(crate) network: Option<NetworkNamespace>,
    /// Where its output goes; `None` is this process's.
    pub(crate) log: Option<PathBuf>,
    /// Bytes of memory that it may have.
    pub(crate) memory_max: Option<u64>,
}

impl Program {
    pub(crate) fn new<A: Into<OsString>>(
        path: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            path: path.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            network: None,
            log: None,
            memory_max: None,
        }
    }

    /// Where util-linux is there, the child ends with this process, however that ends.
    fn command(&self) -> Command {
        if !Path::new(SETPRIV).exists() {
            return Command::new(&self.path);
        }
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.path);
        command
    }

    fn spawn(&self) -> Result<Child, Failure> {
        let mut command = self.command();
        command.args(&self.arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        if let Some(path) = &self.log {
            let log = fs::File::options().append(true).create(true).open(path)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        let child = match &self.network {
            Some(network) => network.within(|| command.spawn())?,
            None => command.spawn(),
        };
        child.map_err(|error| format!("cannot start {}: {error}", self.path.display()).into())
    }
}

/// A running child; killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Whose bounds the child runs in; removed once the child has been reaped.
    group: Option<Group>,
}

impl Process {
    /// Starts `program` on every CPU of this process.
    pub(crate) fn start_anywhere(program: &Program) -> Result<Self, Failure> {
        let mut this = Self { child: program.spawn()?, group: None };
        if let Some(bytes) = program.memory_max {
            this.group = confine(this.child.id(), bytes)?;
        }
        Ok(this)
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
            if self.is_listening(address) {
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

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How often its threads were switched away from, by their own wish or not.
    pub(crate) fn context_switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let counts = tasks.into_iter().flatten().flatten().map(|task| {
            let text = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
            lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
        });
        counts.sum()
    }

    /// Memory that belongs to this process alone, in bytes.
    pub(crate) fn private_bytes(&self) -> u64 {
        self.memory("Private_")
    }

    /// Memory that is resident, shared or not, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.memory("Rss:")
    }

    /// Most that was resident since [`Process::forget_peak`], or ever.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Only the root of the machine, or the owner of the process, may.
    pub(crate) fn forget_peak(&self) -> Result<(), Failure> {
        const PEAK: &str = "5";
        Ok(fs::write(format!("/proc/{}/clear_refs", self.child.id()), PEAK)?)
    }

    /// Sum of the lines of its memory map that begin so.
    fn memory(&self, prefix: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap_or_default();
        let kib = text
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.split_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok()));
        kib.sum::<u64>() * 1024
    }

    /// The exit status, if it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Looks the port up in the kernel's table of its network: a probe by connecting would count as traffic.
    fn is_listening(&self, address: SocketAddr) -> bool {
        const LISTEN: &str = "0A";
        let port = format!(":{:04X}", address.port());
        ["tcp", "tcp6"].iter().any(|table| {
            let table = fs::read_to_string(format!("/proc/{}/net/{table}", self.child.id()));
            table.unwrap_or_default().lines().skip(1).any(|line| {
                let mut columns = line.split_whitespace().skip(1);
                let local = columns.next().unwrap_or_default();
                local.ends_with(&port) && columns.nth(1) == Some(LISTEN)
            })
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.group.take());
    }
}
