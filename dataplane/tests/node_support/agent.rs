//! A node agent: tells one node proxy over ZDS which pods there are, as Istio's CNI agent does.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use dataplane::net::NetworkNamespace;
use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};
use xds::proto::zds::workload_request::Payload;
use xds::proto::zds::workload_response;
use xds::proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, WorkloadResponse,
};

use super::PATIENCE;

/// A pod as the agent knows it.
#[derive(Clone)]
pub struct AgentPod {
    pub uid: String,
    pub info: WorkloadInfo,
    /// `None`: its namespace cannot be opened just now, so the proxy is asked to keep it.
    pub network: Option<NetworkNamespace>,
}

/// The agent, listening or not.
pub struct Agent {
    pub path: PathBuf,
    shared: Arc<Shared>,
    listening: Option<(OwnedFd, JoinHandle<()>)>,
}

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    /// A connection came or went, or its snapshot was sent.
    turned: Condvar,
}

#[derive(Default)]
struct Book {
    pods: BTreeMap<String, AgentPod>,
    /// The proxies that have come, the newest last: during an upgrade there are two, and the newest is told of changes.
    proxies: Vec<OwnedFd>,
    connections: u64,
    /// What the proxy has refused.
    errors: Vec<String>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Listens at `path`.
    pub fn start(path: &Path) -> Self {
        let mut agent = Self { path: path.to_owned(), shared: Arc::default(), listening: None };
        agent.resume();
        agent
    }

    /// Listens again after [`Agent::halt`], with the pods that it knows.
    pub fn resume(&mut self) {
        if self.listening.is_some() {
            return;
        }
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let listener = socket.unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&self.path).unwrap()).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let (shared, accepting) = (self.shared.clone(), listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            while let Ok(proxy) = rustix::net::accept_with(&accepting, SocketFlags::CLOEXEC) {
                shared.welcome(proxy);
            }
        });
        self.listening = Some((listener, thread));
    }

    /// Ends the connection and stops listening; the pods stay known.
    pub fn halt(&mut self) {
        let Some((listener, thread)) = self.listening.take() else { return };
        rustix::net::shutdown(&listener, Shutdown::Both).unwrap();
        thread.join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
        self.shared.book().proxies.clear();
    }

    /// Ends the connection only: the proxy may come back at once.
    pub fn hang_up(&self) {
        self.shared.book().proxies.clear();
    }

    /// Waits until the proxy has been told of every pod on a connection after the first `connections`.
    pub fn until_connected(&self, connections: u64) {
        let book = self.shared.book();
        let waits = |book: &mut Book| book.proxies.is_empty() || book.connections <= connections;
        let (book, waited) = self.shared.turned.wait_timeout_while(book, PATIENCE, waits).unwrap();
        assert!(!waited.timed_out(), "the proxy has not come: {} connections", book.connections);
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.book().connections
    }

    /// What the proxy has refused, each told once.
    pub fn errors(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.book().errors)
    }

    /// Adds a pod, now if the proxy is there, else when it comes; the proxy's complaint.
    pub fn add(&self, pod: AgentPod) -> Result<(), String> {
        let mut book = self.shared.book();
        book.pods.insert(pod.uid.clone(), pod.clone());
        book.tell(&add_of(&pod), pod.network.as_ref())
    }

    /// Deletes a pod.
    pub fn delete(&self, uid: &str) -> Result<(), String> {
        let mut book = self.shared.book();
        book.pods.remove(uid);
        book.tell(&Payload::Del(DelWorkload { uid: uid.to_owned() }), None)
    }

    /// Changes what is known without telling the proxy: it hears of it with the next snapshot.
    pub fn forget(&self, uid: &str) {
        self.shared.book().pods.remove(uid).unwrap();
    }

    /// As [`Agent::forget`]: the next snapshot asks the proxy to keep the pod.
    pub fn lose_network(&self, uid: &str) {
        self.shared.book().pods.get_mut(uid).unwrap().network = None;
    }

    /// Sends a packet as it is; the answer as it is, empty at the end of the connection.
    pub fn send_raw(&self, bytes: &[u8]) -> Vec<u8> {
        let book = self.shared.book();
        let proxy = book.proxies.last().unwrap();
        rustix::net::send(proxy, bytes, SendFlags::NOSIGNAL).unwrap();
        receive(proxy).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    /// Takes a new connection in: hello, every pod, the end of the snapshot.
    fn welcome(&self, proxy: OwnedFd) {
        sockopt::set_socket_timeout(&proxy, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        if receive(&proxy).ok().as_deref() != Some(&[0x08, 0x01]) {
            return;
        }
        let mut book = self.book();
        book.proxies.push(proxy);
        for pod in book.pods.clone().into_values() {
            let told = match &pod.network {
                Some(network) => book.tell(&add_of(&pod), Some(network)),
                None => book.tell(&Payload::Keep(KeepWorkload { uid: pod.uid.clone() }), None),
            };
            book.errors.extend(told.err());
        }
        let told = book.tell(&Payload::SnapshotSent(SnapshotSent {}), None);
        book.errors.extend(told.err());
        book.connections += 1;
        self.turned.notify_all();
    }
}

impl Book {
    /// Sends a request and takes its answer. A connection that breaks is forgotten, for the proxy comes again.
    fn tell(&mut self, payload: &Payload, network: Option<&NetworkNamespace>) -> Result<(), String> {
        let Some(proxy) = self.proxies.last() else { return Ok(()) };
        let bytes = WorkloadRequest { payload: Some(payload.clone()) }.encode_to_vec();
        let answer = send(proxy, &bytes, network).and_then(|()| receive(proxy));
        match answer.as_deref() {
            Ok([]) | Err(_) => {
                self.proxies.pop();
                Ok(())
            }
            Ok(answer) => match WorkloadResponse::decode(answer).unwrap().payload.unwrap() {
                workload_response::Payload::Ack(ack) if ack.error.is_empty() => Ok(()),
                workload_response::Payload::Ack(ack) => Err(ack.error),
            },
        }
    }
}

fn add_of(pod: &AgentPod) -> Payload {
    Payload::Add(AddWorkload { uid: pod.uid.clone(), workload_info: Some(pod.info.clone()) })
}

fn send(proxy: &OwnedFd, bytes: &[u8], network: Option<&NetworkNamespace>) -> io::Result<()> {
    let descriptors: Vec<_> = network.iter().map(|network| network.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    rustix::net::sendmsg(proxy, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(proxy: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 4096];
    let (length, _) = rustix::net::recv(proxy, &mut buffer[..], RecvFlags::empty())?;
    Ok(buffer[..length].to_vec())
}
