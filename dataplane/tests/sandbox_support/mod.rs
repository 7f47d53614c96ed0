//! Runs a test's body inside a sandbox: as the user who runs the tests and, if that is root, also without root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use dataplane::mesh::sandbox;

/// `nobody` and `nogroup`.
const UNPRIVILEGED: u32 = 65534;

/// Runs `body` in a process of its own inside a sandbox; `test` is the name of the calling test.
pub(crate) fn inside(test: &str, body: impl FnOnce()) {
    if sandbox::is_inside() {
        return body();
    }
    run(test, sandbox::command());
    if rustix::process::geteuid().is_root() {
        // This process's own copy, which will come by here again without root.
        let mut command = Command::new("/proc/self/exe");
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        run(test, command);
    }
}

fn run(test: &str, mut command: Command) {
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("RUST_BACKTRACE", "1").current_dir("/");
    let output = command.output().map_err(sandbox::explain).unwrap_or_else(|error| panic!("{error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{command:?}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
