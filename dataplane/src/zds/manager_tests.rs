//! The manager over a node that notes what it is asked and fails on demand.

use std::cell::{Cell, RefCell};

use super::super::protocol::PodName;
use super::*;

#[derive(Default)]
struct Noting {
    asked: RefCell<Vec<String>>,
    failing: RefCell<BTreeSet<&'static str>>,
    gauges: Cell<(usize, usize)>,
    started_stopped: Cell<(u64, u64)>,
}

impl Pods for Noting {
    async fn add(&self, pod: LocalPod) -> Result<(), PodError> {
        self.asked.borrow_mut().push(format!("add {} {}", pod.uid, pod.service_account));
        if self.failing.borrow().contains(&*pod.uid) {
            return Err(PodError::Listeners { uid: pod.uid, worker: 1, reason: "in use".to_owned() });
        }
        Ok(())
    }

    async fn remove(&self, uid: &Arc<str>) -> Result<(), PodError> {
        self.asked.borrow_mut().push(format!("remove {uid}"));
        Ok(())
    }

    fn count(&self, counter: ControlCounter) {
        let (started, stopped) = self.started_stopped.get();
        match counter {
            ControlCounter::Pods { active, pending } => self.gauges.set((active, pending)),
            ControlCounter::PodStarted => self.started_stopped.set((started + 1, stopped)),
            ControlCounter::PodStopped => self.started_stopped.set((started, stopped + 1)),
            other => panic!("{other:?}"),
        }
    }
}

impl Noting {
    fn asked(&self) -> Vec<String> {
        self.asked.take()
    }
}

/// Stands for a network namespace: what counts is the file's identity.
fn network() -> NetworkNamespace {
    NetworkNamespace::from_descriptor(tempfile::tempfile().unwrap().into())
}

fn start(uid: &str, account: &str, network: &NetworkNamespace) -> Order<NetworkNamespace> {
    let pod = PodName {
        uid: uid.into(),
        name: uid.into(),
        namespace: "app".into(),
        service_account: account.into(),
    };
    Order::Start { pod, network: network.clone() }
}

fn all_but(uids: &[&str]) -> Order<NetworkNamespace> {
    Order::StopAllBut(uids.iter().map(|uid| Arc::from(*uid)).collect())
}

#[tokio::test(flavor = "current_thread")]
async fn it_is_ready_when_the_snapshot_is_carried_out_and_not_after_a_disconnect() {
    let (node, readiness, net) = (Noting::default(), Readiness::default(), network());
    let mut manager = Manager::new(&node, readiness.clone());
    assert_eq!(readiness.tasks(), ["workload proxy manager"]);
    manager.carry_out(start("a", "sa", &net)).await.unwrap();
    assert!(!readiness.is_ready());
    manager.carry_out(all_but(&["a"])).await.unwrap();
    assert!(readiness.is_ready());
    manager.disconnected();
    assert!(!readiness.is_ready());
    // The agent describes everything anew.
    manager.carry_out(start("a", "sa", &net)).await.unwrap();
    manager.carry_out(all_but(&["a"])).await.unwrap();
    assert!(readiness.is_ready());
    assert_eq!(node.asked(), ["add a sa"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_is_added_again_is_left_alone_unless_it_is_another() {
    let node = Noting::default();
    let mut manager = Manager::new(&node, Readiness::default());
    let (net, other) = (network(), network());
    for order in [start("a", "sa", &net), start("a", "sa", &net)] {
        manager.carry_out(order).await.unwrap();
    }
    assert_eq!(node.asked(), ["add a sa"]);
    manager.carry_out(start("a", "sa", &other)).await.unwrap();
    assert_eq!(node.asked(), ["remove a", "add a sa"]);
    manager.carry_out(start("a", "other", &other)).await.unwrap();
    assert_eq!(node.asked(), ["remove a", "add a other"]);
    assert_eq!(node.started_stopped.get(), (3, 2));
    assert_eq!(node.gauges.get(), (1, 0));
}

#[tokio::test(flavor = "current_thread")]
async fn the_snapshot_stops_what_it_does_not_name() {
    let (node, net) = (Noting::default(), network());
    let mut manager = Manager::new(&node, Readiness::default());
    for uid in ["a", "b", "c"] {
        manager.carry_out(start(uid, "sa", &net)).await.unwrap();
    }
    node.asked();
    manager.carry_out(Order::Keep { uid: "a".into() }).await.unwrap();
    manager.carry_out(all_but(&["a"])).await.unwrap();
    assert_eq!(node.asked(), ["remove b", "remove c"]);
    assert_eq!(node.gauges.get(), (1, 0));
    manager.carry_out(Order::Stop { uid: "a".into() }).await.unwrap();
    manager.carry_out(Order::Stop { uid: "unknown".into() }).await.unwrap();
    assert_eq!(node.asked(), ["remove a"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_fails_is_told_tried_again_and_holds_up_readiness() {
    let (node, readiness, net) = (Noting::default(), Readiness::default(), network());
    let mut manager = Manager::new(&node, readiness.clone());
    node.failing.borrow_mut().insert("a");
    let before = Instant::now();
    let error = manager.carry_out(start("a", "sa", &net)).await.unwrap_err();
    assert!(error.contains("pod a") && error.contains("in use"), "{error}");
    assert!(manager.retry_at.unwrap() >= before + RETRY_AFTER);
    manager.carry_out(all_but(&["a"])).await.unwrap();
    assert!(!readiness.is_ready());
    assert_eq!(node.gauges.get(), (0, 1));
    manager.retry().await;
    assert!(manager.retry_at.is_some() && !readiness.is_ready());
    node.failing.borrow_mut().clear();
    manager.retry().await;
    assert!(manager.retry_at.is_none() && readiness.is_ready());
    assert_eq!(node.gauges.get(), (1, 0));
    // It was never let go in between.
    assert_eq!(node.asked(), ["add a sa"; 3]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_pod_that_is_deleted_is_not_tried_again() {
    let (node, readiness, net) = (Noting::default(), Readiness::default(), network());
    let mut manager = Manager::new(&node, readiness.clone());
    node.failing.borrow_mut().insert("a");
    manager.carry_out(start("a", "sa", &net)).await.unwrap_err();
    manager.carry_out(all_but(&["a"])).await.unwrap();
    manager.carry_out(Order::Stop { uid: "a".into() }).await.unwrap();
    assert!(readiness.is_ready() && manager.retry_at.is_none());
    assert_eq!(node.asked(), ["add a sa", "remove a"]);
    assert_eq!(node.started_stopped.get(), (0, 0));
}
