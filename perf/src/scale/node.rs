//! The measured process: the discovery client on its control thread, the publisher, and workers that follow it.
//!
//! Each worker writes a line of the generation and the time to its report socket when it has taken a state, and answers
//! framed requests on the echo port, so that what publishing does to data traffic shows.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use dataplane::worker::{BoxError, DriverChoice, Supervisor, Worker, WorkerOptions};
use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};
use tokio::sync::mpsc;
use xds::delta::Subscription;
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use xds::publish::{Mailbox, Publisher};
use xds::snapshot::Snapshot;
use xds::transport::discovery::{self, DiscoveryConfig, Event, NodeIdentity};
use xds::transport::{Credentials, Roots, Server};

use super::server::SERVER_NAME;
use crate::Failure;
use crate::wire::{HEAD_BYTES, RequestHead, block};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The control plane.
    #[arg(long)]
    server: SocketAddr,
    /// Its root certificate.
    #[arg(long)]
    root: PathBuf,
    /// Where the workers report.
    #[arg(long)]
    report: SocketAddr,
    /// Where the workers answer requests.
    #[arg(long)]
    echo: SocketAddr,
    #[arg(long)]
    workers: usize,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut publisher = Publisher::new();
    let mailboxes: Result<Vec<_>, _> = (0..args.workers).map(|_| publisher.subscribe().map(Some)).collect();
    let mailboxes = Mutex::new(mailboxes?);
    let (echo, report) = (args.echo, args.report);
    let options = WorkerOptions { workers: Some(args.workers), driver: DriverChoice::default() };
    let _workers = Supervisor::start(&options, move |worker| {
        let mailbox = mailboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(worker.index())
            .and_then(Option::take);
        let mailbox = mailbox.ok_or("a worker was started that nobody asked for")?;
        follow(worker, mailbox, TcpStream::connect(report)?)?;
        serve(worker, echo)
    })?;
    let config = DiscoveryConfig {
        server: Server::parse(
            &format!("https://{}", args.server),
            Some(SERVER_NAME),
            Roots::File(args.root.clone()),
        )?,
        credentials: Credentials::default(),
        node: NodeIdentity::default().node(),
        local_node: "".into(),
        subscriptions: [ADDRESS_TYPE, AUTHORIZATION_TYPE].map(Subscription::wildcard).to_vec(),
        sources: discovery::StateSources::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_demands, asked) = mpsc::channel(1);
    let told = |event| match event {
        Event::Snapshot { snapshot, .. } => publisher.publish(snapshot),
        Event::Rejected { reason, .. } | Event::Disconnected { reason, .. } => eprintln!("perf: {reason}"),
        _ => {}
    };
    runtime.block_on(async {
        discovery::run(config, asked, told).await;
    });
    Ok(())
}

fn follow(worker: &Worker, mailbox: Mailbox<Snapshot>, report: TcpStream) -> Result<(), BoxError> {
    let held = std::cell::RefCell::new(Arc::<Snapshot>::default());
    report.set_nodelay(true)?;
    worker.follow(mailbox, move |snapshot| {
        let (generation, now) = (snapshot.generation(), super::monotonic_ns());
        held.replace(snapshot);
        // The parent that reads has gone: the measurement is over, and so is this process in a moment.
        let _ = writeln!(&report, "{generation} {now}");
    })
}

fn serve(worker: &Worker, at: SocketAddr) -> Result<(), BoxError> {
    let options = monoio::net::ListenerOpts::new().reuse_addr(true).reuse_port(true);
    let listener = monoio::net::TcpListener::bind_with_config(at, &options)?;
    let block = Rc::new(block());
    let spawner = worker.clone();
    worker.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawner.spawn(answer(stream, block.clone()));
        }
    });
    Ok(())
}

/// Answers until the client goes.
async fn answer(mut stream: monoio::net::TcpStream, block: Rc<Vec<u8>>) {
    let mut bytes = BytesMut::zeroed(block.len());
    let _ = stream.set_nodelay(true);
    loop {
        let (result, head) = stream.read_exact(vec![0; HEAD_BYTES]).await;
        let head = <[u8; HEAD_BYTES]>::try_from(head).ok().and_then(RequestHead::decode);
        let (Ok(_), Some(head)) = (result, head) else { return };
        let body = monoio::buf::IoBufMut::slice_mut(bytes, ..head.request_body as usize);
        let (result, body) = stream.read_exact(body).await;
        bytes = body.into_inner();
        if result.is_err() {
            return;
        }
        let mut response = head.sequence.to_le_bytes().to_vec();
        response.extend_from_slice(block.get(..head.response_body as usize).unwrap_or_default());
        if stream.write_all(response).await.0.is_err() {
            return;
        }
    }
}
