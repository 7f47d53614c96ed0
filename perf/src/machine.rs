//! Facts of the machine that belong to every figure, and pinning.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::Failure;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    kernel: String,
    default_congestion_control: String,
    io_uring_disabled: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field(&file("/proc/meminfo"), "MemTotal");
        Self {
            cpu: field(&file("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: file("/proc/sys/kernel/osrelease"),
            default_congestion_control: file("/proc/sys/net/ipv4/tcp_congestion_control"),
            io_uring_disabled: file("/proc/sys/kernel/io_uring_disabled"),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} CPUs of {}, {} MiB, Linux {}, default congestion control {}",
            self.cpus, self.cpu, self.memory_mib, self.kernel, self.default_congestion_control
        )
    }
}

/// The CPU for what is measured and the CPU for load and backend. They must differ: otherwise one takes the other's
/// time and nothing is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) measured: usize,
    pub(crate) load: usize,
}

impl Cores {
    pub(crate) fn pick() -> Result<Self, Failure> {
        match core_affinity::get_core_ids().unwrap_or_default().as_slice() {
            [first, second, ..] => Ok(Self { measured: first.id, load: second.id }),
            _ => Err("two CPUs are needed: one for what is measured, one for its load".into()),
        }
    }
}

/// Binds the calling thread, and with it all children and threads that it starts.
pub(crate) fn pin(core: usize) -> Result<(), Failure> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(format!("CPU {core} is not in this process's set").into())
    }
}

/// Idle connections take two descriptors in the load and two in each proxy; children inherit the limit.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without the privilege the soft limit still rises to the hard one; a lack shows when connections are opened.
    let wanted = Rlimit { current: Some(1_048_576), maximum: Some(1_048_576) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Descriptors that a child may have at most.
pub(crate) fn descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).maximum.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu_time() -> std::time::Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    std::time::Duration::from_nanos(nanoseconds)
}
