//! The private folder of a run: sockets, tokens, the working copy of the configuration.
//!
//! It goes with the run. What a run that was killed has left behind, the next one removes: a folder belongs to a live
//! run exactly as long as that run holds the lock of the file `lock` in it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PREFIX: &str = "corelane-mesh-";
const LOCK: &str = "lock";
/// Folders looked at when the next run tidies up.
const FOLDERS_MAX: usize = 1_024;

/// Removed when dropped.
#[derive(Debug)]
pub struct StateFolder {
    folder: TempDir,
    /// Held as long as the run lives.
    _lock: File,
}

impl StateFolder {
    /// Makes a folder in the system's place for temporary files and removes abandoned ones there.
    pub fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    fn within(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Renamed once it is held, so that no one finds it free.
        let unheld = folder.path().join("lock.new");
        let lock = File::create(&unheld)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(unheld, folder.path().join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders whose run is gone. Those of other users, and those that cannot be removed, stay.
fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in ours.take(FOLDERS_MAX) {
        let abandoned = File::open(entry.path().join(LOCK))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
        if abandoned && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::debug!(folder = %entry.path().display(), %error, "an abandoned folder stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_folder_stays_and_an_abandoned_one_goes() {
        let parent = tempfile::tempdir().unwrap();
        let live = StateFolder::within(parent.path()).unwrap();
        let StateFolder { folder, _lock: lock } = StateFolder::within(parent.path()).unwrap();
        let abandoned = folder.keep();
        let unfinished = parent.path().join(format!("{PREFIX}unfinished"));
        fs::create_dir(&unfinished).unwrap();
        drop(lock);
        let next = StateFolder::within(parent.path()).unwrap();
        assert!(live.path().exists() && unfinished.exists());
        assert!(!abandoned.exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
