//! `corelane mesh` with waypoints: made for their Gateways, used by namespace, Service and pod, and left again.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

use std::path::Path;
use std::process::Command;

#[test]
fn gateways_get_waypoints_that_route_and_enforce_for_services_and_pods() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(["--log", "info", "mesh"]).arg(examples.join("waypoint"));
    command.arg("--run").arg(examples.join("waypoint.plan.yaml")).args(["--workers", "1"]);
    command.env_remove("CORELANE_LOG");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("all 5 steps held"), "{text}");
}
