//! System calls of processes, counted by the kernel's own tracepoint through `perf stat`, where that may be used.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A count under way.
#[derive(Debug)]
pub(super) struct Counter {
    child: Child,
    seconds: f64,
}

impl Counter {
    /// Counts for half of `duration`; `None` where there is no `perf`.
    pub(super) fn start(processes: &[u32], duration: Duration) -> Option<Self> {
        if processes.is_empty() {
            return None;
        }
        let seconds = duration.as_secs_f64() / 2.0;
        let ids: Vec<String> = processes.iter().map(u32::to_string).collect();
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &ids.join(",")])
            .args(["sleep", &format!("{seconds:.3}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Some(Self { child: child.ok()?, seconds })
    }

    /// Calls a second; `None` where this user may not count.
    pub(super) fn finish(self) -> Option<f64> {
        let output = self.child.wait_with_output().ok()?;
        let count = parse(&String::from_utf8_lossy(&output.stderr))?;
        Some(count / self.seconds)
    }
}

/// `perf stat -x ,` prints the count first.
fn parse(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_and_a_refusal_is_none() {
        let count = parse("5000,,raw_syscalls:sys_enter,250000000,100.00,,\n").unwrap();
        assert!((count - 5_000.0).abs() < 1e-6);
        assert!(parse("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n").is_none());
        assert!(parse("perf: no permission\n").is_none());
    }
}
