//! A waypoint or an east-west gateway without a node proxy around it: takes HBONE, and passes each stream on to one place.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use dataplane::link::{CloseCause, Flow, Handler, IncomingRequest, Link, ServerOptions, serve};
use dataplane::net::{ConnectOptions, ListenOptions, Listener, NetworkNamespace, connect, wildcard};
use dataplane::worker::{DriverChoice, Supervisor, Worker, WorkerOptions};
use model::Identity;
use tunnel::h2::Headers;
use tunnel::tls::{Credentials, CryptoPolicy, ServerContext};

use super::PATIENCE;

/// What one request asked for.
#[derive(Debug)]
pub struct Asked {
    pub authority: String,
    pub client: Identity,
    pub headers: Headers,
    /// Tunnels that had been made to the hop by then.
    pub tunnels: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| std::str::from_utf8(value).unwrap())
    }
}

/// How a hop treats its requests.
#[derive(Clone)]
pub enum Treatment {
    PassOn(SocketAddr),
    Refuse(u16),
}

pub struct Hop {
    supervisor: Option<Supervisor>,
    asked: mpsc::Receiver<Asked>,
}

impl Hop {
    /// Listens on a port of a pod.
    pub fn start(at: &NetworkNamespace, port: u16, credentials: &Credentials, treatment: Treatment) -> Self {
        let (tell, asked) = mpsc::channel();
        let context = ServerContext::new(credentials, CryptoPolicy::default()).unwrap();
        let job = Mutex::new(Some((at.clone(), context, treatment, tell)));
        let (listening, listens) = mpsc::channel();
        let start = move |worker: &Worker| {
            let (at, context, treatment, tell) = job.lock().unwrap().take().unwrap();
            let options = ListenOptions { namespace: Some(at.clone()), ..ListenOptions::default() };
            let listener = Listener::bind(wildcard(port, true), &options)?;
            let handler =
                Rc::new(Passing { worker: worker.clone(), at, treatment, tell, links: RefCell::default() });
            let worker_here = worker.clone();
            worker.spawn(async move {
                while let Some(Ok((socket, from))) = worker_here.unless_draining(listener.accept()).await {
                    let options = ServerOptions::default();
                    let link = serve(&worker_here, socket, from, &context, &options, handler.clone());
                    handler.links.borrow_mut().push(link.unwrap());
                }
                // A process that ends would close its sockets.
                for link in handler.links.take() {
                    link.close(CloseCause::LocalClose, "the hop is gone");
                }
            });
            listening.send(()).unwrap();
            Ok(())
        };
        let workers = WorkerOptions { workers: Some(1), driver: DriverChoice::Epoll };
        let supervisor = Supervisor::start(&workers, start).unwrap();
        listens.recv_timeout(PATIENCE).unwrap();
        Self { supervisor: Some(supervisor), asked }
    }

    /// The next request that arrived.
    pub fn asked(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).unwrap()
    }

    /// One that has arrived already.
    pub fn try_asked(&self) -> Option<Asked> {
        self.asked.try_recv().ok()
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.drain(Instant::now() + PATIENCE);
            supervisor.join();
        }
    }
}

struct Passing {
    worker: Worker,
    at: NetworkNamespace,
    treatment: Treatment,
    tell: mpsc::Sender<Asked>,
    links: RefCell<Vec<Rc<Link>>>,
}

impl Handler for Passing {
    fn request(&self, request: IncomingRequest) {
        let asked = Asked {
            authority: String::from_utf8(request.headers().authority().unwrap().to_vec()).unwrap(),
            client: request.peer().identity.clone(),
            headers: request.headers().clone(),
            tunnels: self.links.borrow().len(),
        };
        // The test may have seen enough.
        let _ = self.tell.send(asked);
        let to = match self.treatment {
            Treatment::Refuse(status) => return request.refuse(status),
            Treatment::PassOn(to) => to,
        };
        let options = ConnectOptions { namespace: Some(self.at.clone()), ..ConnectOptions::default() };
        self.worker.spawn(async move {
            let Ok(socket) = connect(to, &options).await else { return request.refuse(503) };
            if let Ok(stream) = request.accept(&Headers::response(200).unwrap()) {
                stream.relay(socket, Flow::Upstream, &Rc::default()).await;
            }
        });
    }
}

/// The identities of what is behind `names`, accounts of the namespace `app`.
pub fn identities(names: &[&str]) -> Vec<Identity> {
    names.iter().map(|name| Identity::new("cluster.local", "app", name).unwrap()).collect()
}

/// A shared name.
pub fn name(text: &str) -> Arc<str> {
    Arc::from(text)
}
