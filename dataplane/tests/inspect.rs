//! The commands that ask a running proxy, as a user types them: against a saved dump, against a real admin server, and
//! where there is none.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

use dataplane::admin::{AdminSite, Binding, Inspect, logging, serve};
use serde_json::{Value, json};

const DUMP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/dump.json");

fn corelane(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_corelane"))
        .args(arguments)
        .env_remove("CORELANE_ADMIN")
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_saved_dump_is_shown_also_one_of_ztunnel() {
    let table = out(&corelane(&["workloads", "--file", DUMP]));
    let agreed = include_str!("../testdata/workloads.txt");
    assert!(agreed.starts_with(&table), "{table}");
    let theirs = concat!(env!("CARGO_MANIFEST_DIR"), "/../xds/testdata/ztunnel-config_dump.json");
    let json = out(&corelane(&["workloads", "-f", theirs, "-o", "json", "--node", "a"]));
    let workloads: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(workloads.as_array().unwrap().len(), 1);
    assert_eq!(workloads[0]["name"], "zt");
    assert!(out(&corelane(&["certs", "-f", theirs])).contains("spiffe://cluster.local/ns/default/sa/zt"));
    assert_eq!(out(&corelane(&["connections", "-f", theirs])).lines().count(), 1);
}

#[test]
fn errors_say_what_to_do() {
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nobody = complaint(&corelane(&["workloads", "--admin", &free]));
    assert!(
        nobody.contains(&free) && nobody.contains("is the proxy running") && nobody.contains("--admin"),
        "{nobody}"
    );
    let missing = complaint(&corelane(&["services", "--file", "/nowhere/dump.json"]));
    assert!(missing.contains("/nowhere/dump.json cannot be read"), "{missing}");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    assert!(complaint(&corelane(&["services", "-f", manifest])).contains("is no JSON"));
    assert!(complaint(&corelane(&["workers", "-f", DUMP])).contains("ask a running proxy"));
    let usage = corelane(&["log", "--admin", "nonsense"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("HOST:PORT or unix:PATH"));
}

/// A proxy that shows the saved dump.
#[derive(Default)]
struct Shown {
    quit: Cell<bool>,
    drained: RefCell<Vec<Duration>>,
}

impl Inspect for Shown {
    async fn config_dump(&self) -> Value {
        serde_json::from_str(include_str!("../testdata/dump.json")).unwrap()
    }

    async fn workers(&self) -> Value {
        json!([{ "worker": 0, "answers": true, "connections": 4 }])
    }

    async fn connections(&self) -> Value {
        json!([{ "workload": "c1//Pod/app/gate", "direction": "inbound", "src": "10.244.1.1:9", "bytesSent": 77 }])
    }

    fn limits(&self) -> Value {
        json!([])
    }

    fn drain(&self, grace: Duration) {
        self.drained.borrow_mut().push(grace);
    }

    fn quit(&self) {
        self.quit.set(true);
    }
}

/// Runs the commands beside an admin server on TCP and on a socket file, whose addresses they are given.
fn beside_a_server(commands: impl FnOnce(&str, &str) + Send + 'static) -> Rc<Shown> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let shown = Rc::new(Shown::default());
        let site = Rc::new(AdminSite::new(Rc::clone(&shown)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let local = Binding::Tcp("127.0.0.1:0".parse().unwrap());
        let (address, _tcp) = serve(&local, Rc::clone(&site)).await.unwrap();
        let (_, _unix) = serve(&Binding::Unix(path.clone()), site).await.unwrap();
        let (tcp, unix) = (address.unwrap().to_string(), format!("unix:{}", path.display()));
        tokio::task::spawn_blocking(move || commands(&tcp, &unix)).await.unwrap();
        shown
    })
}

#[test]
fn a_running_proxy_is_asked_over_tcp_and_over_a_socket_file() {
    logging::install("info", |_| Ok(()));
    let shown = beside_a_server(|tcp, unix| {
        for address in [tcp, unix] {
            let table = out(&corelane(&["workloads", "--admin", address]));
            assert_eq!(table, out(&corelane(&["workloads", "--file", DUMP])));
            assert!(out(&corelane(&["workers", "--admin", address])).contains("Serving"));
            let connections = out(&corelane(&["connections", "-o", "wide", "--admin", address]));
            assert!(connections.contains("gate.app") && connections.contains("77"), "{connections}");
        }
        let level = |arguments: &[&str]| out(&corelane(&[&["log", "--admin", tcp], arguments].concat()));
        assert_eq!(level(&[]), "current log level is info\n");
        assert_eq!(level(&["info,a::b=trace"]), "current log level is info,a::b=trace\n");
        assert_eq!(level(&["--reset"]), "current log level is info\n");
        assert!(complaint(&corelane(&["log", "--admin", tcp, "loud"])).contains("not a level"));
        assert_eq!(out(&corelane(&["drain", "--admin", unix])), "draining\n");
        assert!(out(&corelane(&["drain", "--grace", "7", "--admin", tcp])).contains("after 7 s"));
    });
    assert!(shown.quit.get());
    assert_eq!(*shown.drained.borrow(), [Duration::from_secs(7)]);
}
