//! The whole mesh in one process: real pods, node proxies, control plane; what happens to live connections, to pods
//! that come and go, to IPv6, and what the admin pages say of it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

#[path = "session_support/names.rs"]
mod names;
mod sandbox_support;

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction, queue};
use dataplane::control::LogPump;
use dataplane::mesh::client::{ClientError, PodConnection};
use dataplane::mesh::observer::Observer;
use dataplane::mesh::workload::Echo;
use dataplane::mesh::world::{World, WorldConfig};
use dataplane::worker::DriverChoice;
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for anything that a change brings about.
const PATIENCE: Duration = Duration::from_secs(10);

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: app, labels: { istio.io/dataplane-mode: ambient } }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: app }
spec: { nodeName: a, serviceAccountName: client, containers: [{ name: c, image: c }] }
status: { podIPs: [{ ip: 10.244.7.1 }, { ip: "fd00::7:1" }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: app, labels: { app: web } }
spec: { nodeName: b, serviceAccountName: web, containers: [{ name: c, image: c, ports: [{ containerPort: 8080 }] }] }
status: { podIPs: [{ ip: 10.244.7.2 }, { ip: "fd00::7:2" }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec:
  selector: { app: web }
  clusterIPs: [10.96.7.1, "fd00:1::7"]
  ipFamilyPolicy: PreferDualStack
  ports: [{ port: 80, targetPort: 8080 }]
"#;

const DENY: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: deny, namespace: app }
spec:
  selector: { matchLabels: { app: web } }
  action: DENY
  rules: [{ from: [{ source: { principals: [cluster.local/ns/app/sa/client] } }] }]
";

struct Test {
    world: World,
    observer: Observer,
    folder: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Test {
    async fn start(on_demand: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pods.yaml"), PODS).unwrap();
        let state = tempfile::tempdir().unwrap();
        let (recorder, records) = queue();
        let config = WorldConfig {
            directory: folder.path().to_owned(),
            state_directory: state.path().to_owned(),
            workers: Some(1),
            driver: DriverChoice::Auto,
            on_demand,
        };
        let world = World::start(config, &recorder).await.unwrap();
        let observer = Observer::default();
        let noted = observer.clone();
        tokio::task::spawn_local(LogPump::new(records).watched_by(move |record| noted.note(record)).run());
        let test = Self { world, observer, folder, state };
        until("ready", || test.world.pending().is_empty()).await;
        test
    }

    /// Puts a file of the configuration in place at once.
    fn write(&self, name: &str, text: &str) {
        let temporary = self.folder.path().join(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.folder.path().join(name)).unwrap();
    }

    fn enrolled(&self, pod: &str) -> Option<bool> {
        self.world.directory().borrow().pod("app", pod).map(|place| place.enrolled)
    }

    async fn try_connect(&self, from: &str, to: &str) -> Result<PodConnection, ClientError> {
        let network = self.world.directory().borrow().pod("app", from).unwrap().network.clone();
        PodConnection::open(&network, to.parse().unwrap(), "web").await
    }

    async fn connect(&self, from: &str, to: &str) -> PodConnection {
        self.try_connect(from, to).await.unwrap()
    }

    async fn page(&self, node: &str, site: &str, path: &str) -> String {
        let socket = self.state.path().join(node).join(format!("{site}.sock"));
        get(&socket, path).await
    }

    fn noted(&self, direction: Direction, cause: CloseCause) -> bool {
        self.observer.records().iter().any(|record| record.direction == direction && record.cause == cause)
    }
}

async fn get(socket: &Path, path: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // A profile is no text, but holds some.
    String::from_utf8_lossy(&answer).split_once("\r\n\r\n").unwrap().1.to_owned()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn with_mesh(test: &str, body: impl AsyncFnOnce(Rc<Test>)) {
    with(test, false, body);
}

/// Runs `body` with a started mesh inside a sandbox, and ends the mesh in order.
fn with(test: &str, on_demand: bool, body: impl AsyncFnOnce(Rc<Test>)) {
    sandbox_support::inside(test, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let test = Rc::new(Test::start(on_demand).await);
            body(Rc::clone(&test)).await;
            let test = Rc::into_inner(test).unwrap();
            let sockets =
                [test.state.path().join("a/admin.sock"), test.state.path().join("control/control.sock")];
            test.world.stop().await;
            for socket in sockets {
                assert!(
                    tokio::net::UnixStream::connect(&socket).await.is_err(),
                    "{} still answers",
                    socket.display()
                );
            }
        });
    });
}

async fn ask(connection: &mut PodConnection) -> Echo {
    let answer = connection.request(Method::GET, "/", &[]).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    serde_json::from_slice(&answer.body).unwrap()
}

#[test]
fn both_families_go_through_the_tunnel_and_keep_the_clients_address() {
    with_mesh("both_families_go_through_the_tunnel_and_keep_the_clients_address", async |test| {
        let ways = [
            ("10.96.7.1:80", "10.244.7.1"),
            ("10.244.7.2:8080", "10.244.7.1"),
            ("[fd00:1::7]:80", "fd00::7:1"),
            ("[fd00::7:2]:8080", "fd00::7:1"),
        ];
        for (to, client) in ways {
            test.observer.clear();
            let mut connection = test.connect("client", to).await;
            let echo = ask(&mut connection).await;
            assert_eq!((&*echo.label.pod, echo.remote.ip().to_string().as_str()), ("web", client), "by {to}");
            drop(connection);
            until("both proxies' notes", || {
                let records = test.observer.records();
                let tunnelled = |direction| {
                    records.iter().any(|r| {
                        let identities = r.source.identity.is_some() && r.destination.identity.is_some();
                        r.direction == direction && r.tls.is_some() && identities
                    })
                };
                tunnelled(Direction::Outbound) && tunnelled(Direction::Inbound)
            })
            .await;
        }
    });
}

#[test]
fn pods_resolve_the_names_of_services() {
    with_mesh("pods_resolve_the_names_of_services", async |test| {
        let client = test.world.directory().borrow().pod("app", "client").unwrap().network.clone();
        // Nobody has the address of this server.
        let conf = "nameserver 10.96.0.10\nsearch app.svc.cluster.local svc.cluster.local cluster.local\n";
        for name in ["web", "web.app", "web.app.svc.cluster.local"] {
            let found = names::resolved(&names::getent(&client, conf, "ahosts", name));
            assert_eq!(found, ["10.96.7.1", "fd00:1::7"], "{name}");
        }
        // A name that comes with the configuration is there without a restart.
        let late = "apiVersion: v1\nkind: Service\nmetadata: { name: late, namespace: app }\nspec: { selector: { app: web }, clusterIP: 10.96.7.9, ports: [{ port: 80, targetPort: 8080 }] }\n";
        test.write("late.yaml", late);
        let began = Instant::now();
        loop {
            // The control plane runs on this thread, and the C library would hold it up.
            let client = client.clone();
            let name = "late.app.svc.cluster.local.";
            let asking = move || names::resolved(&names::getent(&client, conf, "ahostsv4", name));
            if tokio::task::spawn_blocking(asking).await.unwrap() == ["10.96.7.9"] {
                return;
            }
            assert!(began.elapsed() < 2 * PATIENCE, "the new name is not known");
        }
    });
}

#[test]
fn a_policy_that_comes_to_deny_cuts_the_live_connection() {
    with_mesh("a_policy_that_comes_to_deny_cuts_the_live_connection", async |test| {
        let mut connection = test.connect("client", "10.96.7.1:80").await;
        ask(&mut connection).await;
        test.observer.clear();
        test.write("deny.yaml", DENY);
        until("the cut", || test.noted(Direction::Inbound, CloseCause::PolicyChanged)).await;
        assert!(connection.request(Method::GET, "/", &[]).await.is_err());
        fs::remove_file(test.folder.path().join("deny.yaml")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answered = async {
                test.try_connect("client", "10.96.7.1:80").await?.request(Method::GET, "/", &[]).await
            };
            if answered.await.is_ok_and(|answer| answer.status == StatusCode::OK) {
                break;
            }
            assert!(Instant::now() < deadline, "the removed policy is still in force");
        }
    });
}

#[test]
fn pods_come_and_go_with_the_configuration() {
    with_mesh("pods_come_and_go_with_the_configuration", async |test| {
        let more = "\
apiVersion: v1
kind: Pod
metadata: { name: late, namespace: app }
spec: { nodeName: a, serviceAccountName: late, containers: [{ name: c, image: c, ports: [{ containerPort: 9090 }] }] }
status: { podIP: 10.244.7.3 }
";
        test.write("late.yaml", more);
        until("the new pod", || test.enrolled("late") == Some(true)).await;
        let mut connection = test.connect("client", "10.244.7.3:9090").await;
        assert_eq!(&*ask(&mut connection).await.label.pod, "late");
        fs::remove_file(test.folder.path().join("late.yaml")).unwrap();
        until("its end", || test.enrolled("late").is_none()).await;
        assert!(
            connection.request(Method::GET, "/", &[]).await.is_err(),
            "the pod's connections end with it"
        );
        // The others have not noticed.
        let mut connection = test.connect("client", "10.96.7.1:80").await;
        ask(&mut connection).await;
    });
}

#[test]
fn a_broken_file_changes_nothing() {
    with_mesh("a_broken_file_changes_nothing", async |test| {
        let mut connection = test.connect("client", "10.96.7.1:80").await;
        ask(&mut connection).await;
        test.write("pods.yaml", &PODS.replace("kind: Service", "kind: [Service"));
        // Something that does take effect shows that the broken file has been read.
        test.write("more.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: { name: more }\n");
        until("the new namespace", || test.world.directory().borrow().view.namespaces.contains_key("more"))
            .await;
        assert_eq!((test.enrolled("client"), test.enrolled("web")), (Some(true), Some(true)));
        ask(&mut connection).await;
        ask(&mut test.connect("client", "10.96.7.1:80").await).await;
    });
}

/// Whether `ours` has every key of `theirs`, each with a value of the same type; of lists the first entries count.
fn same_shape(path: &str, theirs: &serde_json::Value, ours: &serde_json::Value) {
    use serde_json::Value;
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            // The keys of a map are the mesh's own, not the form's.
            let is_map = [".ports", ".port", ".endpoints"].iter().any(|map| path.ends_with(map));
            for (key, value) in theirs {
                let path = format!("{path}.{key}");
                let own = if is_map { ours.values().next() } else { ours.get(key) };
                same_shape(&path, value, own.unwrap_or_else(|| panic!("{path} is missing")));
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            if let (Some(theirs), Some(ours)) = (theirs.last(), ours.last()) {
                same_shape(&format!("{path}[]"), theirs, ours);
            }
        }
        _ => assert_eq!(std::mem::discriminant(theirs), std::mem::discriminant(ours), "{path}: {ours}"),
    }
}

#[test]
fn traffic_goes_on_while_a_profile_interrupts_the_workers() {
    with_mesh("traffic_goes_on_while_a_profile_interrupts_the_workers", async |test| {
        let mut connection = test.connect("client", "10.96.7.1:80").await;
        let mut profile = Box::pin(test.page("a", "admin", "/debug/pprof/profile?seconds=1&frequency=1000"));
        let mut requests = 0;
        let profile = loop {
            tokio::select! {
                profile = &mut profile => break profile,
                _ = ask(&mut connection) => requests += 1,
            }
        };
        assert!(requests > 0);
        assert!(profile.contains("worker-0"), "no worker in {} bytes", profile.len());
        let mut again = test.connect("client", "10.96.7.1:80").await;
        ask(&mut again).await;
    });
}

#[test]
fn the_pages_show_what_happens() {
    with_mesh("the_pages_show_what_happens", async |test| {
        let mut connection = test.connect("client", "10.96.7.1:80").await;
        ask(&mut connection).await;
        assert_eq!(test.page("a", "ready", "/healthz/ready").await, "ready\n");
        let dump: serde_json::Value =
            serde_json::from_str(&test.page("a", "admin", "/config_dump").await).unwrap();
        assert_eq!(dump["workloads"].as_array().unwrap().len(), 2);
        assert_eq!(dump["certificates"][0]["identity"], "spiffe://cluster.local/ns/app/sa/client");
        assert_eq!(dump["certificates"][0]["state"], "Available");
        assert!(dump["certificates"][0]["certChain"][0]["serialNumber"].is_string());
        let state = dump["workloadState"].as_object().unwrap().values().next().unwrap();
        assert_eq!((&state["state"], &state["info"]["name"]), (&"Up".into(), &"client".into()));
        let open = &state["connections"]["outbound"][0];
        assert_eq!((&open["protocol"], &open["originalDst"]), (&"HBONE".into(), &"10.96.7.1:80".into()));
        assert!(open["actualDst"].as_str().unwrap().ends_with(":15008"), "{open}");
        let theirs = include_str!("../../xds/testdata/ztunnel-config_dump.json");
        let theirs: serde_json::Value = serde_json::from_str(theirs).unwrap();
        for list in ["certificates", "workloads", "services"] {
            same_shape(list, &theirs[list], &dump[list]);
        }
        let connections: serde_json::Value =
            serde_json::from_str(&test.page("a", "admin", "/connections").await).unwrap();
        assert_eq!(connections[0]["direction"], "outbound");
        assert_eq!(connections[0]["protocol"], "HBONE");
        assert_eq!(connections[0]["originalDst"], "10.96.7.1:80");
        assert_eq!(connections[0]["service"], "web.app.svc.cluster.local");
        let workers: serde_json::Value =
            serde_json::from_str(&test.page("b", "admin", "/workers").await).unwrap();
        assert_eq!((&workers[0]["worker"], &workers[0]["connections"]), (&0.into(), &1.into()));
        assert!(workers[0]["tunnelsAccepted"].as_u64().unwrap() >= 1, "{workers}");
        let limits: serde_json::Value =
            serde_json::from_str(&test.page("b", "admin", "/limits").await).unwrap();
        assert_eq!((&limits[0]["limit"], &limits[0]["hits"]), (&"connections".into(), &0.into()));
        drop(connection);
        until("the end of the connection", || test.noted(Direction::Outbound, CloseCause::Finished)).await;
        let metrics = test.page("a", "metrics", "/stats/prometheus").await;
        let opened = metrics.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total")).unwrap();
        for label in [
            "reporter=\"source\"",
            "source_workload=\"client\"",
            "destination_service_name=\"web\"",
            "destination_principal=\"spiffe://cluster.local/ns/app/sa/web\"",
            "connection_security_policy=\"mutual_tls\"",
        ] {
            assert!(opened.contains(label), "{label} not in {opened}");
        }
        assert!(opened.ends_with(" 1"), "{opened}");
        let messages = "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"}";
        assert!(metrics.contains(messages), "{metrics}");
        let generation = metrics.lines().find(|l| l.starts_with("corelane_snapshot_generation")).unwrap();
        assert!(!generation.ends_with(" 0"), "{generation}");
    });
}

#[test]
fn on_demand_a_connection_waits_until_it_is_known_whose_its_destination_is() {
    let name = "on_demand_a_connection_waits_until_it_is_known_whose_its_destination_is";
    with(name, true, async |test| {
        let held = async |node: &str| {
            let dump: serde_json::Value =
                serde_json::from_str(&test.page(node, "admin", "/config_dump").await).unwrap();
            let count = |kind: &str| dump[kind].as_array().unwrap().len();
            (count("workloads"), count("services"))
        };
        assert_eq!(held("a").await, (1, 0), "unasked come only the pods of the node");
        // By a service, by an endpoint that came with it, and in the other family.
        for to in ["10.96.7.1:80", "10.244.7.2:8080", "[fd00:1::7]:80"] {
            assert_eq!(&*ask(&mut test.connect("client", to).await).await.label.pod, "web", "by {to}");
        }
        assert_eq!(held("a").await, (2, 1));
        assert_eq!(held("b").await, (1, 0), "the other node was asked for nothing");
        until("the notes of three tunnels", || {
            let records = test.observer.records();
            records.iter().filter(|it| it.direction == Direction::Outbound && it.tls.is_some()).count() == 3
        })
        .await;
        // Nobody's address is passed through, once the control plane has said so.
        test.observer.clear();
        drop(test.try_connect("client", "10.96.99.9:80").await);
        until("the end of the passthrough", || !test.observer.records().is_empty()).await;
        let record = test.observer.records().remove(0);
        assert!(
            matches!(record.cause, CloseCause::ConnectFailed | CloseCause::ConnectTimedOut),
            "{:?}",
            record.cause
        );
        // What comes to be later is pushed, for it was asked for.
        let late = PODS.split("---").last().unwrap();
        let late = late.replace("name: web,", "name: late,").replace("10.96.7.1", "10.96.99.9");
        test.write("late.yaml", &late.replace("fd00:1::7", "fd00:1::99"));
        let deadline = Instant::now() + PATIENCE;
        while held("a").await != (2, 2) {
            assert!(Instant::now() < deadline, "the late service did not come");
        }
        ask(&mut test.connect("client", "10.96.99.9:80").await).await;
    });
}
