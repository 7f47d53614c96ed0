//! What the kernel tells of this process and its threads.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Open file descriptors, those for looking included.
pub(super) fn open_descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| u64::try_from(entries.count()).unwrap_or(u64::MAX))
}

/// Most file descriptors that may be open; the largest number where there is no limit.
pub(super) fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How long a thread of this process has run on a CPU; `None` if it is gone or the kernel keeps no such books.
pub(super) fn thread_time(thread: u64) -> Option<Duration> {
    // proc(5): time on the CPU and time waiting for one, both in nanoseconds, and the number of slices.
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_descriptors_and_this_thread_has_run() {
        let held = fs::File::open("/proc/self/stat").unwrap();
        assert!(open_descriptors() > 3, "standard streams and {held:?}");
        assert!(descriptors_max() >= open_descriptors());
        let thread = u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        // The kernel keeps the books when a thread leaves the CPU.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while thread_time(thread).unwrap() == Duration::ZERO {
            assert!(std::time::Instant::now() < deadline, "it has never run");
            std::thread::yield_now();
        }
        assert_eq!(thread_time(0), None);
    }
}
