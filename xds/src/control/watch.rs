//! Notices changes of the configuration folder.
//!
//! The kernel's notifications make it quick; a fingerprint of the folder, taken at intervals, makes it certain:
//! notifications are lost on some file systems, when the folder itself is replaced, and when a queue overflows.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

/// A stream of changes never puts a reload off for longer than this.
const DEBOUNCE_MAX: Duration = Duration::from_millis(400);
/// Entries that a fingerprint looks at; the loader has its own, stricter bounds.
const FINGERPRINT_ENTRIES_MAX: usize = 200_000;
const FINGERPRINT_DEPTH_MAX: usize = 16;

/// Waits for changes of one folder.
pub(super) struct FolderWatcher {
    directory: PathBuf,
    debounce: Duration,
    poll_interval: Duration,
    changed: Arc<Notify>,
    watcher: Option<notify::RecommendedWatcher>,
    fingerprint: u64,
}

impl FolderWatcher {
    /// Begins to watch. Take this before the first read, so that no change falls in between.
    pub(super) fn new(directory: &Path, debounce: Duration, poll_interval: Duration) -> Self {
        let mut watcher = Self {
            directory: directory.to_owned(),
            debounce,
            poll_interval,
            changed: Arc::new(Notify::new()),
            watcher: None,
            fingerprint: fingerprint(directory),
        };
        watcher.arm();
        watcher
    }

    /// Returns once something may have changed and then stayed quiet for the debounce time.
    pub(super) async fn changed(&mut self) {
        let mut next_poll = Instant::now() + self.poll_interval;
        loop {
            if timeout_at(next_poll, self.changed.notified()).await.is_ok() {
                self.quiet().await;
                self.fingerprint = fingerprint(&self.directory);
                return;
            }
            let found = fingerprint(&self.directory);
            if found != self.fingerprint {
                // The notifications missed it: the watch may stand on a folder that is gone.
                self.arm();
                self.quiet().await;
                self.fingerprint = fingerprint(&self.directory);
                return;
            }
            next_poll += self.poll_interval;
        }
    }

    /// Waits until no change has come for the debounce time: editors write in several steps.
    async fn quiet(&self) {
        let latest = Instant::now() + DEBOUNCE_MAX.max(self.debounce);
        loop {
            let until = (Instant::now() + self.debounce).min(latest);
            if timeout_at(until, self.changed.notified()).await.is_err() {
                return;
            }
            if Instant::now() >= latest {
                sleep_until(latest).await;
                return;
            }
        }
    }

    fn arm(&mut self) {
        self.watcher = None;
        let changed = Arc::clone(&self.changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, is_change) {
                changed.notify_one();
            }
        });
        let armed = watcher.and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        match armed {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => warn!(
                directory = %self.directory.display(),
                interval_ms = self.poll_interval.as_millis(),
                "no notifications for the configuration folder, it is polled: {error}"
            ),
        }
    }
}

/// Reading is no change: our own reload would trigger the next one for ever.
fn is_change(event: &notify::Event) -> bool {
    !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

/// A number that differs whenever a file was added, removed, replaced or written.
fn fingerprint(directory: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut budget = FINGERPRINT_ENTRIES_MAX;
    visit(directory, 0, &mut budget, &mut hasher);
    hasher.finish()
}

fn visit(directory: &Path, depth: usize, budget: &mut usize, hasher: &mut DefaultHasher) {
    let Ok(entries) = fs::read_dir(directory) else {
        hasher.write_u8(0);
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if *budget == 0 {
            return;
        }
        *budget -= 1;
        path.hash(hasher);
        // Links are followed, as the loader does: a mounted ConfigMap changes by swapping one.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            if depth < FINGERPRINT_DEPTH_MAX {
                visit(&path, depth + 1, budget, hasher);
            }
        } else {
            (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()).hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any reload should take on a loaded machine; a failing test ends by it.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn reports(watcher: &mut FolderWatcher) {
        tokio::time::timeout(PATIENCE, watcher.changed()).await.expect("the change was noticed");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_way_to_change_a_folder_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("yaml");
        fs::create_dir(&root).unwrap();
        let mut watcher = FolderWatcher::new(&root, Duration::from_millis(5), Duration::from_millis(20));
        fs::write(root.join("a.yaml"), "one").unwrap();
        reports(&mut watcher).await;
        fs::create_dir(root.join("sub")).unwrap();
        reports(&mut watcher).await;
        fs::write(root.join("sub/b.yaml"), "two").unwrap();
        reports(&mut watcher).await;
        fs::rename(root.join("sub/b.yaml"), root.join("a.yaml")).unwrap();
        reports(&mut watcher).await;
        fs::remove_file(root.join("a.yaml")).unwrap();
        reports(&mut watcher).await;
        // The folder itself is replaced: the watch on the old one sees nothing of the new one.
        fs::rename(&root, directory.path().join("old")).unwrap();
        reports(&mut watcher).await;
        fs::create_dir(&root).unwrap();
        fs::write(root.join("c.yaml"), "three").unwrap();
        reports(&mut watcher).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn polling_alone_notices_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher =
            FolderWatcher::new(directory.path(), Duration::from_millis(5), Duration::from_millis(20));
        watcher.watcher = None;
        fs::write(directory.path().join("a.yaml"), "one").unwrap();
        reports(&mut watcher).await;
    }

    #[test]
    fn reading_is_no_change() {
        let event = |kind| notify::Event::new(kind);
        assert!(!is_change(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Close(AccessMode::Read)))));
        assert!(is_change(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)))));
        assert!(is_change(&event(EventKind::Any)));
    }
}
