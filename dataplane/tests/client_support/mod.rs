//! Foreign programs in pods: servers that run until they are dropped, clients that run to their end.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::session_support::{Bed, PATIENCE};
use crate::tunnel_support::Process;

/// A program that `scripts/setup-tests` brings.
pub fn tool(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let own = ["peers", "tools/bin", "tools/usr/bin"].map(|folder| target.join(folder));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = own.into_iter().chain(std::env::split_paths(&path)).chain(["/usr/sbin".into()]);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| panic!("{name} is missing: run scripts/setup-tests"))
}

/// The Python that `scripts/setup-peers` installs, with one of the scripts in `peers`.
pub fn python(script: &str) -> Command {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/venv/bin/python");
    let program = std::env::var_os("CORELANE_TEST_PYTHON").map_or(installed, PathBuf::from);
    assert!(program.exists(), "{} is missing: run scripts/setup-peers", program.display());
    let mut command = Command::new(program);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(script));
    command
}

impl Bed {
    /// Starts a server in a pod.
    pub fn start(&self, pod: &str, name: &str, mut command: Command) -> Process {
        self.network(pod).within(|| Process::start(name, &mut command)).unwrap()
    }

    /// Runs a client in a pod to its end, which must be a good one; what it said on both outputs.
    pub fn run(&self, pod: &str, command: &mut Command) -> String {
        let (good, said) = self.try_run(pod, command);
        assert!(good, "{command:?}: {said}");
        said
    }

    /// Whether its end was a good one, and what it said.
    pub fn try_run(&self, pod: &str, command: &mut Command) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut child = self.network(pod).within(|| command.spawn()).unwrap().unwrap();
        let deadline = Instant::now() + 3 * PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let said = std::fs::read(folder.path().join("said")).unwrap();
        (status.is_some_and(|status| status.success()), String::from_utf8_lossy(&said).into_owned())
    }
}
