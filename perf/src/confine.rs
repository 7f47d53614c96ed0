//! A bound on the memory of a measured process, kept by the kernel.
//!
//! A control group where they may be made (version 2 or 1), which ends the process at the bound: user memory, page cache
//! and what the kernel counts for it. Elsewhere a bound on address space, which only stops what runs away, since address
//! space is not memory; what was resident at most is judged in either case by who measures.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::Failure;

/// Address space beside the memory that is bounded: arenas of the allocator, rings, stacks.
const ADDRESS_SPACE_BESIDE: u64 = 8 << 30;

/// Where groups are made, and the file that holds the bound.
const HIERARCHIES: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];

/// A control group of one process; goes when it is dropped, after its process.
#[derive(Debug)]
pub(crate) struct Group {
    folder: PathBuf,
}

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        HIERARCHIES.iter().find_map(|(root, bound)| {
            let folder = Path::new(root).join(format!("corelane-perf-{}-{number}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self { folder };
            // Without the memory controller the file is not there.
            let bound = group.folder.join(bound);
            if !bound.exists() {
                return None;
            }
            fs::write(bound, bytes.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty group that stays harms nobody.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Whether the bound is one on memory itself here.
pub(crate) fn has_groups() -> bool {
    Group::new(1 << 30).is_some()
}

/// Bounds the process. What it has taken before counts for it on no hierarchy, so this comes right after its start.
pub(crate) fn confine(process: u32, bytes: u64) -> Result<Option<Group>, Failure> {
    if let Some(group) = Group::new(bytes) {
        fs::write(group.folder.join("cgroup.procs"), process.to_string())?;
        return Ok(Some(group));
    }
    let id = Pid::from_raw(i32::try_from(process)?).ok_or("a process without a number")?;
    let bound = Some(bytes + ADDRESS_SPACE_BESIDE);
    prlimit(Some(id), Resource::As, Rlimit { current: bound, maximum: bound })?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Whether a shell that holds so much of text, once it is bounded, lives to compare it.
    fn lives(mebibytes: u64, bound: u64) -> bool {
        let bytes = mebibytes << 20;
        let script = format!("read go; x=$(head -c {bytes} /dev/zero | tr '\\0' x); test ${{#x}} = {bytes}");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let group = confine(child.id(), bound).unwrap();
        assert_eq!(group.is_some(), has_groups());
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child.wait().unwrap().success()
    }

    #[test]
    fn a_process_lives_within_its_bound_and_not_beyond() {
        assert!(lives(1, 64 << 20));
        if has_groups() {
            assert!(!lives(64, 32 << 20));
        }
    }

    #[test]
    fn a_group_goes_with_its_guard() {
        let Some(group) = Group::new(1 << 30) else { return };
        let folder = group.folder.clone();
        assert!(folder.exists());
        drop(group);
        assert!(!folder.exists());
    }
}
