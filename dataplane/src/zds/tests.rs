//! Over a real socket, with an agent that follows a script.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use xds::proto::zds::workload_request::Payload;
use xds::proto::zds::{AddWorkload, DelWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest};

use super::*;
use crate::control::PodError;
use crate::metrics::ControlCounter;
use crate::session::LocalPod;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node that takes every pod but those whose name says otherwise.
#[derive(Default)]
struct Willing {
    pods: RefCell<Vec<LocalPod>>,
}

impl Pods for Willing {
    async fn add(&self, pod: LocalPod) -> Result<(), PodError> {
        if pod.name.contains("fails") {
            return Err(PodError::TimedOut { uid: pod.uid });
        }
        self.pods.borrow_mut().push(pod);
        Ok(())
    }

    async fn remove(&self, uid: &Arc<str>) -> Result<(), PodError> {
        self.pods.borrow_mut().retain(|pod| pod.uid != *uid);
        Ok(())
    }

    fn count(&self, _: ControlCounter) {}
}

impl Willing {
    fn uids(&self) -> Vec<String> {
        self.pods.borrow().iter().map(|pod| pod.uid.to_string()).collect()
    }
}

/// A socket that listens, or one connection.
struct Agent(UnixDatagram);

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl Agent {
    fn listen(path: &Path) -> Self {
        let socket = socket();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 4).unwrap();
        Self(UnixDatagram::from_std(socket.into()).unwrap())
    }

    /// The next connection, after its hello.
    async fn accept(&self) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = || Ok(rustix::net::accept_with(&self.0, flags)?);
        let accepted = self.0.async_io(Interest::READABLE, accept).await.unwrap();
        let connection = Self(UnixDatagram::from_std(accepted.into()).unwrap());
        assert_eq!(connection.receive().await, [0x08, 0x01]);
        connection
    }

    /// The next packet; empty at the end.
    async fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let receive = || Ok(rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?.0);
        let length = self.0.async_io(Interest::READABLE, receive).await.unwrap();
        buffer[..length].to_vec()
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// Sends a request and takes its answer: the error, empty if there is none.
    async fn ask(&self, payload: Payload, descriptors: &[BorrowedFd<'_>]) -> String {
        self.send(&WorkloadRequest { payload: Some(payload) }.encode_to_vec(), descriptors);
        error_of(&self.receive().await)
    }
}

fn error_of(answer: &[u8]) -> String {
    use xds::proto::zds::{WorkloadResponse, workload_response};
    match WorkloadResponse::decode(answer).unwrap().payload.unwrap() {
        workload_response::Payload::Ack(ack) => ack.error,
    }
}

fn add(uid: &str, name: &str) -> Payload {
    let info = WorkloadInfo { name: name.into(), namespace: "app".into(), service_account: "default".into() };
    Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(info) })
}

fn snapshot_sent() -> Payload {
    Payload::SnapshotSent(SnapshotSent {})
}

/// Runs the client over `node` until `agent` has played its part; how the client ended, if it did.
async fn play<F: Future<Output = ()>>(
    node: &Willing,
    readiness: &Readiness,
    agent: impl FnOnce(PathBuf) -> F,
) -> Option<AgentError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let client = run(&path, node, readiness.clone());
    let agent = agent(path.clone());
    tokio::pin!(client, agent);
    let mut ended = None;
    let both = async {
        loop {
            tokio::select! {
                error = &mut client, if ended.is_none() => ended = Some(error),
                () = &mut agent => return,
            }
        }
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap();
    ended
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn pods_come_by_packet_with_their_network_and_outlive_the_agent() {
    let (node, readiness) = (Willing::default(), Readiness::default());
    let ended = play(&node, &readiness, async |path| {
        // The client dials in vain until there is an agent.
        let file: File = tempfile::tempfile().unwrap();
        tokio::time::sleep(BACKOFF_FIRST).await;
        let agent = Agent::listen(&path);
        let connection = agent.accept().await;
        assert_eq!(connection.ask(add("u1", "web"), &[file.as_fd()]).await, "");
        assert_eq!(connection.ask(add("u2", "db"), &[file.as_fd()]).await, "");
        assert!(!readiness.is_ready());
        assert_eq!(connection.ask(snapshot_sent(), &[]).await, "");
        assert!(readiness.is_ready());
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(node.pods.borrow()[0].network.as_fd()), inode(file.as_fd()));
        // The agent goes away for a while; the pods do not.
        std::fs::remove_file(&path).unwrap();
        drop((connection, agent));
        until(|| !readiness.is_ready()).await;
        assert_eq!(node.uids(), ["u1", "u2"]);
        let agent = Agent::listen(&path);
        let connection = agent.accept().await;
        assert_eq!(connection.ask(add("u2", "db"), &[file.as_fd()]).await, "");
        assert_eq!(node.uids(), ["u1", "u2"]);
        assert_eq!(connection.ask(snapshot_sent(), &[]).await, "");
        assert_eq!(node.uids(), ["u2"]);
        assert!(readiness.is_ready());
        let del = Payload::Del(DelWorkload { uid: "u2".into() });
        assert_eq!(connection.ask(del, &[]).await, "");
        assert!(node.uids().is_empty());
    })
    .await;
    assert!(ended.is_none(), "{ended:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_cannot_be_served_is_an_error_and_the_connection_stays() {
    let (node, readiness) = (Willing::default(), Readiness::default());
    let ended = play(&node, &readiness, async |path| {
        let file: File = tempfile::tempfile().unwrap();
        let connection = Agent::listen(&path).accept().await;
        let error = connection.ask(add("u1", "fails"), &[file.as_fd()]).await;
        assert!(error.contains("u1"), "{error}");
        assert_eq!(connection.ask(snapshot_sent(), &[]).await, "");
        assert!(!readiness.is_ready());
    })
    .await;
    assert!(ended.is_none(), "{ended:?}");
}

/// What is sent against the rules is answered with the error, and is the end.
async fn is_the_end(bytes: &[u8], descriptors: usize, expected: &str) {
    let (node, readiness) = (Willing::default(), Readiness::default());
    let ended = play(&node, &readiness, async |path| {
        let file: File = tempfile::tempfile().unwrap();
        let connection = Agent::listen(&path).accept().await;
        connection.send(bytes, &vec![file.as_fd(); descriptors]);
        let error = error_of(&connection.receive().await);
        assert!(error.contains(expected), "{error}");
        assert!(connection.receive().await.is_empty());
    })
    .await;
    let text = ended.unwrap().to_string();
    assert!(text.contains(expected) && text.contains("agent.sock"), "{text}");
    assert!(node.uids().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_broken_rule_is_answered_and_ends_the_client() {
    let request = |payload| WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    is_the_end(&request(add("u1", "web")), 0, "carries 0 descriptors").await;
    is_the_end(&request(add("u1", "web")), 2, "carries 2 descriptors").await;
    is_the_end(&request(add("u1", "web")), 8, "carries more than").await;
    is_the_end(&request(snapshot_sent()), 1, "snapshot_sent carries a descriptor").await;
    is_the_end(&request(add("u1", &"w".repeat(1024))), 1, "longer than 1024 bytes").await;
    is_the_end(&[0xff; 20], 0, "no WorkloadRequest").await;
}

#[tokio::test(flavor = "current_thread")]
async fn descriptors_that_are_not_wanted_are_closed() {
    let request = WorkloadRequest { payload: Some(snapshot_sent()) }.encode_to_vec();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let agent = Agent::listen(&path);
    let connection = Connection::open(&path).unwrap();
    connection.send(&hello()).await.unwrap();
    let peer = agent.accept().await;
    for count in 0..8 {
        let (mut read, write) = io::pipe().unwrap();
        peer.send(&request, &vec![write.as_fd(); count]);
        drop(write);
        let mut buffer = Buffer::default();
        let packet = connection.receive(&mut buffer).await.unwrap().unwrap();
        assert!(packet.has_more_descriptors || packet.descriptors.len() == count);
        assert!(packet.descriptors.len() >= count.min(2));
        drop(packet);
        // Nobody holds the other end any more.
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_agent_that_accepts_and_leaves_is_not_dialled_in_a_tight_loop() {
    let (node, readiness) = (Willing::default(), Readiness::default());
    play(&node, &readiness, async |path| {
        let agent = Agent::listen(&path);
        let first = std::time::Instant::now();
        for _ in 0..6 {
            drop(agent.accept().await);
        }
        // 10 + 20 + 40 + 80 + 160 ms of waits lie in between.
        assert!(first.elapsed() >= Duration::from_millis(310));
        let connection = agent.accept().await;
        assert_eq!(connection.ask(snapshot_sent(), &[]).await, "");
    })
    .await;
}
