//! The tunnel alone: `corelane tunnel` (both drivers) against tokio + rustls + the h2 crate, on the same work, in
//! interleaved rounds. Client and server role of a pair are two processes pinned to one CPU; load and backend run on
//! another. Every response is checked byte by byte.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::Failure;
use crate::certificates::{Certificates, identity};
use crate::machine::{self, Cores, Machine, pin};
use crate::process::{Process, Program};
use crate::runtimes::free_address;
use crate::sockets;
use crate::statistics::{Spread, paired_ratio};
use crate::work::backend;
use crate::work::client::{self, Direction, Done, Shape, Target};

const CONNECTIONS: usize = 64;
const NEW_CONNECTION_LOOPS: usize = 16;
/// Bytes of memory that each of the measured processes may have, ours and theirs.
const MEMORY_MAX: u64 = 256 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each request measurement.
    #[arg(long, default_value_t = 3)]
    duration: u64,
    /// Megabytes that each bulk measurement moves.
    #[arg(long, default_value_t = 2048)]
    bulk: u32,
    /// Idle connections held open; 0 leaves this part out.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Congestion control that every socket of every peer sets.
    #[arg(long, default_value = "reno")]
    congestion: String,
    /// What to measure; by default all.
    #[arg(long = "peer", value_name = "NAME")]
    peers: Vec<Peer>,
    /// The corelane binary; by default the one beside this program.
    #[arg(long)]
    corelane: Option<PathBuf>,
    /// Writes figures and machine facts here.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    Corelane,
    CorelaneEpoll,
    TokioH2,
}

const PEERS: [Peer; 3] = [Peer::Corelane, Peer::CorelaneEpoll, Peer::TokioH2];

impl Peer {
    fn label(self) -> &'static str {
        match self {
            Self::Corelane => "corelane",
            Self::CorelaneEpoll => "corelane, epoll",
            Self::TokioH2 => "tokio + rustls + h2",
        }
    }
}

/// One kind of work and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Work {
    Request64,
    Request64Response1024,
    NewStream,
    BulkDown1,
    BulkDown8,
    BulkUp1,
    IdleBytesPerConnectionAndSide,
}

const WORKS: [Work; 7] = [
    Work::Request64,
    Work::Request64Response1024,
    Work::NewStream,
    Work::BulkDown1,
    Work::BulkDown8,
    Work::BulkUp1,
    Work::IdleBytesPerConnectionAndSide,
];

impl Work {
    fn label(self) -> &'static str {
        match self {
            Self::Request64 => "64 B x 64 connections, CPU us/request",
            Self::Request64Response1024 => "64 B in, 1 KiB out, CPU us/request",
            Self::NewStream => "new connection per request, CPU us",
            Self::BulkDown1 => "bulk down, 1 stream, CPU s/GB",
            Self::BulkDown8 => "bulk down, 8 streams, CPU s/GB",
            Self::BulkUp1 => "bulk up, 1 stream, CPU s/GB",
            Self::IdleBytesPerConnectionAndSide => "idle, private bytes per connection and side",
        }
    }
}

/// Samples of one work over the rounds, one vector a peer, in the order of [`PEERS`].
#[derive(Debug, Clone, Serialize)]
struct Row {
    work: Work,
    samples: Vec<Vec<f64>>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let cores = Cores::pick()?;
    let machine = Machine::read();
    println!("{machine}");
    println!("congestion control of every socket: {}; both roles on CPU {}", args.congestion, cores.measured);
    machine::raise_descriptor_limit();
    pin(cores.load)?;
    let bench = Bench { args, cores, certificates: Certificates::generate()?, corelane: corelane(args)? };
    let mut rows: Vec<Row> =
        WORKS.iter().map(|&work| Row { work, samples: vec![Vec::new(); PEERS.len()] }).collect();
    for round in 1..=args.rounds {
        for (index, &peer) in PEERS.iter().enumerate() {
            if !args.peers.is_empty() && !args.peers.contains(&peer) {
                continue;
            }
            eprintln!("round {round}/{}: {}", args.rounds, peer.label());
            for (work, figure) in bench.measure(peer, round == 1)? {
                for row in rows.iter_mut().filter(|row| row.work == work) {
                    row.samples[index].push(figure);
                }
            }
        }
    }
    print_table(&rows);
    if let Some(path) = &args.json {
        let report = serde_json::json!({
            "machine": machine, "congestion": args.congestion, "rounds": args.rounds, "peers": PEERS, "rows": rows,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

fn print_table(rows: &[Row]) {
    let mut table = Table::new();
    let mut header = vec!["work (min/median/max of rounds)".to_owned()];
    header.extend(PEERS.iter().map(|peer| peer.label().to_owned()));
    header.push("corelane / tokio + rustls + h2 (paired)".to_owned());
    table.set_header(header);
    for row in rows {
        let mut cells = vec![row.work.label().to_owned()];
        cells.extend(
            row.samples.iter().map(|samples| {
                Spread::of(samples).map_or_else(|| "-".to_owned(), |spread| spread.to_string())
            }),
        );
        let ratio = match row.samples.as_slice() {
            [ours, _, theirs] => paired_ratio(ours, theirs),
            _ => None,
        };
        cells.push(ratio.map_or_else(|| "-".to_owned(), |ratio| ratio.to_string()));
        table.add_row(cells);
    }
    println!("{table}");
}

fn corelane(args: &Args) -> Result<PathBuf, Failure> {
    let path = match &args.corelane {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("corelane"),
    };
    if path.exists() || args.peers == [Peer::TokioH2] {
        Ok(path)
    } else {
        Err(format!(
            "{} is missing; build it with the same profile: cargo build -p dataplane",
            path.display()
        )
        .into())
    }
}

struct Bench<'a> {
    args: &'a Args,
    cores: Cores,
    certificates: Certificates,
    corelane: PathBuf,
}

/// A running client and server role.
struct Pair {
    client: Process,
    server: Process,
    entry: SocketAddr,
}

impl Pair {
    fn cpu_time(&self) -> Duration {
        self.client.cpu_time() + self.server.cpu_time()
    }

    fn private_bytes(&self) -> u64 {
        self.client.private_bytes() + self.server.private_bytes()
    }
}

impl Bench<'_> {
    /// All works on one fresh pair. Idle memory varies little, so it is taken in the first round only.
    fn measure(&self, peer: Peer, with_idle: bool) -> Result<Vec<(Work, f64)>, Failure> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let congestion = Some(Rc::from(self.args.congestion.as_str()));
        let backend = free_address()?;
        let listener = tokio.block_on(async { sockets::listen(backend, congestion.as_deref()) })?;
        local.spawn_local(async move { backend::serve(listener).await.map_err(|error| error.to_string()) });
        let pair = self.start(peer, backend)?;
        let entry = Target { address: pair.entry, congestion };
        let duration = Duration::from_secs(self.args.duration);
        let bytes = self.args.bulk.saturating_mul(1_000_000) / 8;
        let small = Shape { request: 64, response: 64 };
        let larger = Shape { request: 64, response: 1024 };

        let mut figures = Vec::new();
        let mut take = |work: Work, scale: f64, done: Result<Done, Failure>, before: Duration| {
            let done = done.map_err(|error| format!("{}: {}: {error}", peer.label(), work.label()))?;
            let cpu = pair.cpu_time().saturating_sub(before).as_secs_f64();
            eprintln!(
                "  {}: {:.0}/s, pair at {:.0} % of its CPU",
                work.label(),
                done.count as f64 / done.elapsed.as_secs_f64(),
                100.0 * cpu / done.elapsed.as_secs_f64()
            );
            figures.push((work, cpu * scale / done.count as f64));
            Ok::<(), Failure>(())
        };
        let before = pair.cpu_time();
        let done = local.block_on(&tokio, client::closed_loop(entry.clone(), CONNECTIONS, small, duration));
        take(Work::Request64, 1e6, done, before)?;
        let before = pair.cpu_time();
        let done = local.block_on(&tokio, client::closed_loop(entry.clone(), CONNECTIONS, larger, duration));
        take(Work::Request64Response1024, 1e6, done, before)?;
        let before = pair.cpu_time();
        let done = local
            .block_on(&tokio, client::new_connections(entry.clone(), NEW_CONNECTION_LOOPS, small, duration));
        take(Work::NewStream, 1e6, done, before)?;
        let before = pair.cpu_time();
        let done = local.block_on(&tokio, bulk(entry.clone(), 1, bytes, Direction::Down));
        take(Work::BulkDown1, 1e9, done, before)?;
        let before = pair.cpu_time();
        let done = local.block_on(&tokio, bulk(entry.clone(), 8, bytes, Direction::Down));
        take(Work::BulkDown8, 1e9, done, before)?;
        let before = pair.cpu_time();
        let done = local.block_on(&tokio, bulk(entry, 1, bytes, Direction::Up));
        take(Work::BulkUp1, 1e9, done, before)?;

        drop(pair);
        if with_idle && self.args.idle > 0 {
            figures.push((Work::IdleBytesPerConnectionAndSide, self.idle(peer, &tokio, small)?));
        }
        Ok(figures)
    }

    /// Private memory of a fresh pair for each of many idle connections: what other work left in allocators is not the
    /// price of a connection. The backend is a process of its own, so that none needs two descriptors a connection.
    fn idle(&self, peer: Peer, tokio: &tokio::runtime::Runtime, shape: Shape) -> Result<f64, Failure> {
        let address = free_address()?;
        let arguments = ["backend", "--listen", &address.to_string()];
        let program = Program::new(std::env::current_exe()?, arguments);
        let mut backend = Process::start(&program, self.cores.load, self.cores.load)?;
        backend.wait_listening(address)?;
        let pair = self.start(peer, address)?;
        let entry = Target { address: pair.entry, congestion: Some(Rc::from(self.args.congestion.as_str())) };
        let local = LocalSet::new();
        let warm = local.block_on(tokio, client::open_idle(entry.clone(), 1, shape))?;
        let before = pair.private_bytes();
        let held = local.block_on(tokio, client::open_idle(entry, self.args.idle, shape))?;
        let per_side = (pair.private_bytes() - before) as f64 / self.args.idle as f64 / 2.0;
        eprintln!("  {} idle connections: {per_side:.0} bytes per connection and side", held.len());
        drop((warm, held));
        Ok(per_side)
    }

    fn start(&self, peer: Peer, backend: SocketAddr) -> Result<Pair, Failure> {
        let (entry, tunnel) = (free_address()?, free_address()?);
        let mut server = self.launch(peer, "server", &["--listen".into(), tunnel.to_string()])?;
        server.wait_listening(tunnel)?;
        let mut arguments = vec!["--listen".into(), entry.to_string(), "--peer".into(), tunnel.to_string()];
        arguments.extend(["--authority".into(), backend.to_string()]);
        if peer != Peer::TokioH2 {
            arguments.extend(["--peer-identity".into(), identity("server")]);
        }
        let mut client = self.launch(peer, "client", &arguments)?;
        client.wait_listening(entry)?;
        Ok(Pair { client, server, entry })
    }

    fn launch(&self, peer: Peer, role: &str, arguments: &[String]) -> Result<Process, Failure> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (program, mut all) = match peer {
            Peer::Corelane => (self.corelane.clone(), tunnel_arguments(role, "io_uring")),
            Peer::CorelaneEpoll => (self.corelane.clone(), tunnel_arguments(role, "epoll")),
            Peer::TokioH2 => (std::env::current_exe()?, vec!["peer".into(), format!("tokio-h2-{role}")]),
        };
        all.extend_from_slice(arguments);
        all.extend(["--congestion".into(), self.args.congestion.clone()]);
        all.extend(["--cert".into(), text(&self.certificates.certificate(role))]);
        all.extend(["--key".into(), text(&self.certificates.key(role))]);
        all.extend(["--ca".into(), text(&self.certificates.root())]);
        let mut program = Program::new(program, all);
        program.memory_max = Some(MEMORY_MAX);
        Process::start(&program, self.cores.measured, self.cores.load)
    }
}

fn tunnel_arguments(role: &str, driver: &str) -> Vec<String> {
    ["tunnel", role, "--workers", "1", "--driver", driver].map(str::to_owned).to_vec()
}

/// Moves about eight times `bytes` in all, however many streams there are.
async fn bulk(entry: Target, streams: usize, bytes: u32, direction: Direction) -> Result<Done, Failure> {
    let per_stream = if streams == 1 { bytes.saturating_mul(4) } else { bytes };
    client::bulk(entry, streams, per_stream, direction).await
}
