//! A node agent that tells one node proxy of one pod, over the protocol of Istio's CNI agent (ZDS): a packet each way,
//! and the pod's network namespace as a descriptor beside it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::net::NetworkNamespace;
use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};
use xds::proto::zds::workload_request::Payload;
use xds::proto::zds::workload_response;
use xds::proto::zds::{AddWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, WorkloadResponse};

use crate::Failure;

const PATIENCE: Duration = Duration::from_secs(20);

/// A pod as the agent knows it; its namespace is `perf`, its service account has its name.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) network: NetworkNamespace,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Agent {
    path: PathBuf,
    listener: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(super) fn start(path: &Path, pod: Option<Pod>) -> Result<Self, Failure> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&listener, 4)?;
        let accepting = listener.try_clone()?;
        let thread = std::thread::spawn(move || {
            // The proxies that have come; each stays connected for as long as it lives.
            let mut proxies = Vec::new();
            while let Ok(proxy) = rustix::net::accept_with(&accepting, SocketFlags::CLOEXEC) {
                match welcome(&proxy, pod.as_ref()) {
                    Ok(()) => proxies.push(proxy),
                    Err(error) => eprintln!("perf: a node proxy does not take its pod: {error}"),
                }
            }
        });
        Ok(Self { path: path.to_owned(), listener, thread: Some(thread) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // This ends the accept of the thread; if it has ended already, nothing is left to do.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Hello, the pod, the end of the snapshot; each is answered.
fn welcome(proxy: &OwnedFd, pod: Option<&Pod>) -> Result<(), Failure> {
    sockopt::set_socket_timeout(proxy, sockopt::Timeout::Recv, Some(PATIENCE))?;
    receive(proxy)?;
    if let Some(Pod { name, network }) = pod {
        let info =
            WorkloadInfo { name: name.clone(), namespace: "perf".to_owned(), service_account: name.clone() };
        let add = AddWorkload { uid: format!("uid-{name}"), workload_info: Some(info) };
        tell(proxy, Payload::Add(add), Some(network))?;
    }
    tell(proxy, Payload::SnapshotSent(SnapshotSent {}), None)
}

fn tell(proxy: &OwnedFd, payload: Payload, network: Option<&NetworkNamespace>) -> Result<(), Failure> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    let descriptors: Vec<_> = network.iter().map(|network| network.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err("there is no room for a descriptor".into());
    }
    rustix::net::sendmsg(proxy, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    let answer = receive(proxy)?;
    match WorkloadResponse::decode(answer.as_slice())?.payload {
        Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(()),
        Some(workload_response::Payload::Ack(ack)) => Err(ack.error.into()),
        None => Err("an answer is empty".into()),
    }
}

fn receive(proxy: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let mut buffer = [0; 4096];
    let (length, _) = rustix::net::recv(proxy, &mut buffer[..], RecvFlags::empty())?;
    match buffer.get(..length) {
        Some(bytes) if !bytes.is_empty() => Ok(bytes.to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}
