//! The whole way of configuration with the real parts on both sides: the hello-world example, the embedded control
//! plane, the delta client, the store, and the decisions that a worker makes from the snapshot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use l7::authz::Verdict;
use l7::ir::{ConnectionAttributes, RequestHead};
use l7::router::RouteMatch;
use model::{Identity, NamespacedHostname, TunnelProtocol};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use xds::ca::{CaConfig, client::create_certificate};
use xds::control::{ControlConfig, ControlPlane, NodeCredential};
use xds::delta::Subscription;
use xds::kube::{ObjectName, load_dir};
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE};
use xds::snapshot::Snapshot;
use xds::transport::discovery::{self, DiscoveryConfig, Event, NodeIdentity};

const PATIENCE: Duration = Duration::from_secs(30);

/// Control plane and client over a copy of the example.
struct Mesh {
    directory: TempDir,
    plane: ControlPlane,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    rejected: watch::Receiver<Vec<String>>,
    client: JoinHandle<std::convert::Infallible>,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.client.abort();
    }
}

impl Mesh {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let yaml = directory.path().join("yaml");
        fs::create_dir(&yaml).unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello-world");
        for entry in fs::read_dir(example).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, yaml.join(path.file_name().unwrap())).unwrap();
        }
        let nodes: Vec<NodeCredential> = load_dir(&yaml)
            .catalog
            .nodes
            .keys()
            .map(|node| NodeCredential { node: node.name.clone(), token: None })
            .collect();
        let mut config = ControlConfig::new(yaml, directory.path().join("state"), "node1");
        config.nodes.extend(nodes);
        let plane = ControlPlane::start(config).await.unwrap();
        let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, AUTHORIZATION_POLICY_TYPE];
        let config = DiscoveryConfig {
            server: plane.server(),
            credentials: plane.credentials("node1").unwrap(),
            node: NodeIdentity { node_name: String::from("node1"), ..Default::default() }.node(),
            local_node: "node1".into(),
            subscriptions: types.into_iter().map(Subscription::wildcard).collect(),
            sources: discovery::StateSources::default(),
        };
        let (snapshots_in, snapshots) = watch::channel(None);
        let (rejected_in, rejected) = watch::channel(Vec::new());
        let (_, demands) = mpsc::channel(1);
        let client = tokio::spawn(discovery::run(config, demands, move |event| match event {
            Event::Snapshot { snapshot, ready: true } => {
                snapshots_in.send_replace(Some(snapshot));
            }
            Event::Rejected { reason, .. } => rejected_in.send_modify(|all: &mut Vec<_>| all.push(reason)),
            _ => {}
        }));
        Self { directory, plane, snapshots, rejected, client }
    }

    /// The first snapshot from now on for which `holds` is true.
    async fn until(&mut self, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let ready = |snapshot: &Option<Arc<Snapshot>>| snapshot.as_deref().is_some_and(&holds);
        let waiting = tokio::time::timeout(PATIENCE, self.snapshots.wait_for(ready));
        waiting.await.expect("the state arrives").unwrap().clone().unwrap()
    }

    /// Rewrites one file of the folder.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.directory.path().join("yaml").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} holds {from:?}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }
}

fn account(namespace: &str, name: &str) -> Identity {
    Identity::new("cluster.local", namespace, name).unwrap()
}

/// What the server's node proxy decides about a request to version 1 or 2.
fn allows(snapshot: &Snapshot, pod: &str, source: Option<&Identity>, method: &str, path: &str) -> bool {
    let workload = snapshot.workload_by_name("hello", pod, None).unwrap();
    let connection = ConnectionAttributes {
        source,
        source_ip: IpAddr::from([10, 244, 9, 9]),
        destination_ip: workload.addresses[0],
        destination_port: 8080,
        sni: None,
    };
    let request =
        RequestHead { method, authority: "hello-world:5000", path, query: None, headers: &[], token: None };
    let policies = snapshot.policies_for(workload);
    matches!(policies.evaluate(&connection, Some(&request)), Verdict::Allow(_))
}

/// The Service that the client's node proxy routes a path to.
fn backend(snapshot: &Snapshot, path: &str) -> Option<String> {
    let service = NamespacedHostname::new("hello", "hello-world.hello.svc.cluster.local");
    let router = snapshot.routes_for(&service, 5000, "hello")?;
    let head = RequestHead {
        method: "GET",
        authority: "hello-world:5000",
        path,
        query: None,
        headers: &[],
        token: None,
    };
    match router.route(&head) {
        RouteMatch::Matched(matched) => Some(format!("{:?}", matched.rule.backends[0].target)),
        RouteMatch::NotFound => None,
    }
}

#[tokio::test(flavor = "current_thread")]
async fn example_decides_as_its_comments_say() {
    let mut mesh = Mesh::start().await;
    let snapshot = mesh.until(|snapshot| snapshot.workloads().count() == 5).await;
    let client = account("hello", "client");
    for (source, pod, path, want) in [
        (Some(&client), "hello-world-v1", "/v1/hello", true),
        (Some(&client), "hello-world-v2", "/v2/users", true),
        (Some(&client), "hello-world-v1", "/v1/admin", false),
        (Some(&client), "hello-world-v2", "/v2/other", false),
        (Some(&account("outside", "visitor")), "hello-world-v1", "/v1/hello", true),
        (Some(&account("outside", "visitor")), "hello-world-v1", "/v1/users", false),
        (Some(&account("outside", "stranger")), "hello-world-v1", "/v1/hello", false),
        (None, "hello-world-v1", "/v1/hello", false),
    ] {
        assert_eq!(allows(&snapshot, pod, source, "GET", path), want, "{source:?} {path}");
    }
    assert!(backend(&snapshot, "/v1/hello").unwrap().contains("hello-world-v1.hello"));
    assert!(backend(&snapshot, "/v2").unwrap().contains("hello-world-v2.hello"));
    assert_eq!(backend(&snapshot, "/v3"), None);
    assert!(mesh.rejected.borrow().is_empty(), "{:?}", mesh.rejected.borrow());
}

#[tokio::test(flavor = "current_thread")]
async fn edits_reach_the_snapshot_live() {
    let mut mesh = Mesh::start().await;
    let first = mesh.until(|snapshot| snapshot.workloads().count() == 5).await;
    let tunnel = |snapshot: &Snapshot, namespace: &str, name: &str| {
        snapshot.workload_by_name(namespace, name, None).unwrap().tunnel_protocol
    };
    assert_eq!(tunnel(&first, "outside", "visitor"), TunnelProtocol::None);

    mesh.edit(
        "50-outside.yaml",
        "    app: visitor",
        "    app: visitor\n    istio.io/dataplane-mode: ambient",
    );
    mesh.until(|snapshot| tunnel(snapshot, "outside", "visitor") == TunnelProtocol::Hbone).await;
    mesh.edit("10-client.yaml", "    app: client", "    app: client\n    istio.io/dataplane-mode: none");
    mesh.until(|snapshot| tunnel(snapshot, "hello", "client") == TunnelProtocol::None).await;

    let client = account("hello", "client");
    mesh.edit("40-policies.yaml", "/v1/*", "/v9/*");
    mesh.until(|snapshot| !allows(snapshot, "hello-world-v1", Some(&client), "GET", "/v1/hello")).await;
    mesh.edit("30-hello-world.yaml", "value: /v2", "value: /v3");
    mesh.until(|snapshot| backend(snapshot, "/v3").is_some() && backend(snapshot, "/v2").is_none()).await;

    // Broken: the route of before stays.
    let mut problems = mesh.plane.problems();
    mesh.edit("30-hello-world.yaml", "value: /v3", "value: v4");
    let seen = tokio::time::timeout(PATIENCE, problems.wait_for(|problems| !problems.is_empty())).await;
    assert!(seen.unwrap().unwrap().iter().any(|problem| &*problem.file == "30-hello-world.yaml"));
    let now = mesh.snapshots.borrow().clone().unwrap();
    assert!(backend(&now, "/v3").is_some());
    assert!(mesh.rejected.borrow().is_empty(), "{:?}", mesh.rejected.borrow());
}

#[tokio::test(flavor = "current_thread")]
async fn certificates_come_over_the_same_way() {
    let mesh = Mesh::start().await;
    let view = mesh.plane.view().borrow().clone();
    let node = &view.pods[&ObjectName::new("hello", "client")].node;
    let config = |node: &str| CaConfig {
        server: mesh.plane.server(),
        credentials: mesh.plane.credentials(node).unwrap(),
        validity: Duration::from_hours(1),
        impersonate: true,
    };
    let client = account("hello", "client");
    let bundle = create_certificate(&config(node), &client).await.unwrap();
    assert_eq!(bundle.identity, client);
    let stranger = create_certificate(&config(node), &account("hello", "nobody")).await.unwrap_err();
    assert!(stranger.to_string().contains("nobody"), "{stranger}");
}
