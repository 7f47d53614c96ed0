//! Configuration and pods that change while requests are under way: a route and an endpoint, ten times a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::mesh;
use super::peers::changed_files;
use crate::Failure;

/// Between two changes.
pub(super) const EVERY: Duration = Duration::from_millis(100);

/// How a topology is told of changes.
#[derive(Debug, Clone)]
pub(super) enum Changes {
    /// By the control plane, which reads YAML from this folder.
    Mesh(PathBuf),
    /// By Envoy's discovery files in this folder.
    Files(PathBuf),
}

impl Changes {
    /// Puts the change of this number in the place of the one before.
    pub(super) fn make(&self, number: usize) -> Result<(), Failure> {
        match self {
            Self::Mesh(folder) => replace(&folder.join("churn.yaml"), &mesh::changed(number)),
            Self::Files(folder) => {
                for (name, text) in changed_files(number) {
                    replace(&folder.join(name), &text)?;
                }
                Ok(())
            }
        }
    }

    /// A path under which the change of this number shows, and the status that it gives.
    pub(super) fn proof(&self, number: usize) -> (String, u16) {
        let status = match self {
            // The route leads to the server, whose policy does not allow it; without the route there is none.
            Self::Mesh(_) => 403,
            Self::Files(_) => 410,
        };
        (format!("/churn/{number}/"), status)
    }
}

/// In one step: nobody reads half a file, and Envoy looks only when a name gets another file.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let half = path.with_extension("part");
    fs::write(&half, text)?;
    Ok(fs::rename(&half, path)?)
}

/// Changes one after the other until it is stopped.
#[derive(Debug)]
pub(super) struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize, String>>,
}

impl Churn {
    pub(super) fn start(changes: Changes) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                number += 1;
                changes.make(number).map_err(|error| error.to_string())?;
            }
            Ok(number)
        });
        Self { stop, thread }
    }

    /// The number of the last change, which is how many there were.
    pub(super) fn stop(self) -> Result<usize, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the churn panicked")??)
    }
}
