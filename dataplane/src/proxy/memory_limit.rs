//! How much memory the control group of this process may have, its parents' bounds included.

use std::fs;
use std::path::Path;

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// The least bound, in bytes; `None` where there is none that can be read.
pub(crate) fn memory_limit() -> Option<u64> {
    least_bound(Path::new(MOUNTED), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// `groups` is as in /proc/self/cgroup: a line `0::/path` of version 2, or `4:memory:/path` of version 1.
fn least_bound(mounted: &Path, groups: &str) -> Option<u64> {
    let bounds = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = if controllers.is_empty() {
            (mounted.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (mounted.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path may be the host's, which is not there; the mount itself is then the group.
        let folders = Path::new(path.trim_start_matches('/')).ancestors();
        let read = |folder: &Path| -> Option<u64> {
            // Version 2 says `max` where there is no bound, which is no number.
            fs::read_to_string(root.join(folder).join(file)).ok()?.trim().parse().ok()
        };
        folders.filter_map(read).min()
    });
    // Version 1 says so by what no machine has.
    bounds.min().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    #[test]
    fn the_least_bound_of_a_group_and_its_parents_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let root = mounted.path();
        write(&root.join("pods/pod/one"), "memory.max", "max\n");
        write(&root.join("pods/pod"), "memory.max", "268435456\n");
        write(&root.join("pods"), "memory.max", "1073741824\n");
        assert_eq!(least_bound(root, "0::/pods/pod/one\n"), Some(256 << 20));
        assert_eq!(least_bound(root, "0::/pods\n"), Some(1 << 30));
        assert_eq!(least_bound(root, "0::/\n"), None);
    }

    #[test]
    fn the_mount_of_a_container_is_its_group() {
        let mounted = tempfile::tempdir().unwrap();
        write(&mounted.path().join("memory"), "memory.limit_in_bytes", "268435456\n");
        let groups = "9:name=systemd:/a\n4:cpu,memory:/kubepods/burstable/pod1/2\n0::/a\n";
        assert_eq!(least_bound(mounted.path(), groups), Some(256 << 20));
    }

    #[test]
    fn no_bound_is_none() {
        let mounted = tempfile::tempdir().unwrap();
        write(&mounted.path().join("memory"), "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(least_bound(mounted.path(), "4:memory:/\n"), None);
        assert_eq!(least_bound(mounted.path(), "0::/nowhere\nnonsense\n"), None);
    }
}
