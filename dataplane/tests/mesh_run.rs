//! `corelane mesh` as a program: a plan that holds, one that fails, two runs at once, the end by a signal.
//!
//! Needs no rights: without root the program makes a user namespace of its own. As root both ways are tried.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `nobody` and `nogroup`.
const UNPRIVILEGED: u32 = 65534;

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: { name: app, labels: { istio.io/dataplane-mode: ambient } }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: app }
spec: { serviceAccountName: client, containers: [{ name: c, image: c }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: app, labels: { app: web } }
spec: { serviceAccountName: web, containers: [{ name: c, image: c, ports: [{ containerPort: 8080 }] }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080, appProtocol: http }] }
";

const PLAN: &str = r"
steps:
- title: a request
  actions:
  - request: { from: app/client, to: 'web.app:80', path: /hello, expect: { status: 200, pod: web, mutualTls: true } }
- title: bytes
  actions:
  - download: { from: app/client, to: 'web.app:80', bytes: 1000000 }
  - upload: { from: app/client, to: 'web.app:80', bytes: 1000000 }
  - load: { from: app/client, to: 'web.app:80', requests: 200, connections: 4, bytes: 10 }
";

/// A folder that other users may read, with the program in it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(plan: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).unwrap();
        fs::create_dir(folder.path().join("mesh")).unwrap();
        fs::write(folder.path().join("mesh/pods.yaml"), PODS).unwrap();
        fs::write(folder.path().join("plan.yaml"), plan).unwrap();
        // The folder of the build may be closed to others.
        let program = folder.path().join("corelane");
        if fs::hard_link(env!("CARGO_BIN_EXE_corelane"), &program).is_err() {
            fs::copy(env!("CARGO_BIN_EXE_corelane"), &program).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `corelane mesh`, with temporary files of its own in `scratch`.
    fn command(&self, scratch: &Path, user: Option<u32>) -> Command {
        let mut command = Command::new(self.path("corelane"));
        command.args(["mesh", "mesh", "--json", "--workers", "1"]).current_dir(self.folder.path());
        command.env("TMPDIR", scratch);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command
    }
}

/// A folder for temporary files of anybody.
fn scratch() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

/// Ourselves, and nobody where we may become nobody.
fn users() -> Vec<Option<u32>> {
    let root = rustix::process::geteuid().is_root();
    if root { vec![None, Some(UNPRIVILEGED)] } else { vec![None] }
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn left_over(scratch: &Path) -> usize {
    fs::read_dir(scratch).unwrap().count()
}

#[test]
fn a_plan_that_holds_ends_with_0_and_its_rows_tell_all() {
    let place = Place::new(PLAN);
    for user in users() {
        let scratch = scratch();
        let output = place.command(scratch.path(), user).args(["--run", "plan.yaml"]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "as {user:?}: {}\n{errors}",
            String::from_utf8_lossy(&output.stdout)
        );
        let lines = lines(&output);
        let row = &lines.first().unwrap()["row"];
        assert_eq!(
            (&row["from"], &row["to"], &row["status"]),
            (&"app/client".into(), &"web.app:80".into(), &200.into())
        );
        assert_eq!(row["sourceIdentity"], "spiffe://cluster.local/ns/app/sa/client");
        assert_eq!(row["destinationIdentity"], "spiffe://cluster.local/ns/app/sa/web");
        assert_eq!((&row["tlsVersion"], &row["outboundWorker"]), (&"TLSv1.3".into(), &0.into()));
        assert_eq!(lines.iter().filter(|line| line["verdict"]["ok"] == true).count(), 2);
        assert_eq!(
            (&lines.last().unwrap()["steps"], &lines.last().unwrap()["failed"]),
            (&2.into(), &0.into())
        );
        assert_eq!(left_over(scratch.path()), 0);
    }
}

#[test]
fn a_step_that_does_not_hold_is_named_and_ends_with_1() {
    let place = Place::new(&PLAN.replace("status: 200", "status: 418"));
    let scratch = scratch();
    let output = place.command(scratch.path(), None).args(["--run", "plan.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    let failed = lines.iter().find(|line| line["verdict"]["ok"] == false).unwrap();
    assert_eq!(failed["verdict"]["step"], "a request");
    assert!(failed["verdict"]["detail"].as_str().unwrap().contains("status 200 instead of 418"), "{failed}");
    assert_eq!(lines.last().unwrap()["failed"], 1);
}

#[test]
fn a_plan_that_cannot_be_read_changes_nothing_and_says_why() {
    let place = Place::new("steps: [{ title: a, actions: [{ jump: {} }] }]");
    let scratch = scratch();
    let output = place.command(scratch.path(), None).args(["--run", "plan.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("plan.yaml is not valid") && errors.contains("jump"), "{errors}");
}

#[test]
fn two_meshes_at_once_do_not_meet_and_a_signal_ends_each_in_order() {
    let place = Place::new(PLAN);
    let scratch = scratch();
    let mut running: Vec<_> = users()
        .into_iter()
        .cycle()
        .take(2)
        .map(|user| {
            let mut command = place.command(scratch.path(), user);
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for child in &mut running {
        // Once both pods are shown, the mesh is up; both meshes have the very same addresses.
        let mut shown = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        for name in ["app/client", "app/web"] {
            let line: Value = serde_json::from_str(&shown.next().unwrap().unwrap()).unwrap();
            assert_eq!(line["pod"]["name"], name);
        }
    }
    for (child, signal) in running.iter_mut().zip([Signal::INT, Signal::TERM]) {
        kill_process(Pid::from_child(child), signal).unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(left_over(scratch.path()), 0);
}
