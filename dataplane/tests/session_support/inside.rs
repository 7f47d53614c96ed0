//! A process and a network namespace for each test.

use dataplane::mesh::sandbox;

/// Runs `body` in a process and a network namespace of its own; `test` is the name of the calling test.
pub fn inside(test: &str, body: impl FnOnce()) {
    if sandbox::is_inside() {
        return body();
    }
    let mut command = sandbox::command();
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("RUST_BACKTRACE", "1");
    let output = command.output().map_err(sandbox::explain).unwrap_or_else(|error| panic!("{error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    // Shown with `--nocapture`: figures of a run.
    print!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}\n{complaint}", output.status);
}
