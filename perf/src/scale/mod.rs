//! A large mesh: the first snapshot, single deltas from the wire to all workers, memory a workload, and what that does
//! to data traffic.
//!
//! The measured process is a child: the discovery client over gRPC and TLS, the store, the publisher and workers of the
//! data plane. This process is its control plane and its load. On a machine of few CPUs they take time from each other;
//! the figures have that in them.

mod mesh;
pub(crate) mod node;
mod server;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::mesh::Mesh;
use self::server::Server;
use crate::Failure;
use crate::load::{self, Report};
use crate::machine::Machine;
use crate::process::{Process, Program};
use crate::runtimes::free_address;
use crate::work::client::{Shape, Target};

/// For any one thing to happen.
const PATIENCE: Duration = Duration::from_mins(2);
/// The allocator gives back what a burst took within this.
const SETTLE: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 8;
/// Of the measured process: two and a half times what 100,000 workloads take, for the response that is being decoded.
const MEMORY_MAX: u64 = 512 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 100_000)]
    workloads: usize,
    #[arg(long, default_value_t = 5_000)]
    services: usize,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Single deltas, one after the other.
    #[arg(long, default_value_t = 1000)]
    deltas: usize,
    /// Deltas a second under data traffic.
    #[arg(long, default_value_t = 50)]
    churn: u32,
    /// Requests a second of data traffic.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds of each measurement of data traffic.
    #[arg(long, default_value_t = 5)]
    duration: u64,
    /// Writes figures and machine facts here.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

#[derive(Debug, Serialize)]
struct Figures {
    machine: Machine,
    workloads: usize,
    services: usize,
    workers: usize,
    first_snapshot_ms: f64,
    first_snapshot_cpu_ms: f64,
    bytes_per_workload: f64,
    delta_p50_us: f64,
    delta_p99_us: f64,
    delta_max_us: f64,
    delta_cpu_us: f64,
    quiet: Report,
    churning: Report,
}

/// A worker has this generation since this moment (monotonic, nanoseconds).
#[derive(Debug, Clone, Copy)]
struct Taken {
    worker: usize,
    generation: u64,
    at_ns: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut bench = Bench::start(args)?;
    let figures = bench.measure(args)?;
    println!("{}", figures.machine);
    println!("{} workloads, {} services, {} workers", args.workloads, args.services, args.workers);
    println!(
        "first snapshot, wire to all workers   {:9.0} ms ({:.0} ms of CPU)",
        figures.first_snapshot_ms, figures.first_snapshot_cpu_ms
    );
    println!("private memory                        {:9.0} bytes a workload", figures.bytes_per_workload);
    println!(
        "one delta, wire to all workers        {:9.0} us p50, {:.0} us p99, {:.0} us max ({:.0} us of CPU)",
        figures.delta_p50_us, figures.delta_p99_us, figures.delta_max_us, figures.delta_cpu_us
    );
    println!(
        "requests, p99                         {:9.0} us quiet, {:.0} us with {} deltas a second",
        figures.quiet.p99, figures.churning.p99, args.churn
    );
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

struct Bench {
    /// Before the server, so that it ends first.
    node: Process,
    server: Server,
    mesh: Mesh,
    taken: Receiver<Taken>,
    echo: SocketAddr,
    /// Newest generation of each worker.
    generations: Vec<u64>,
    _root: tempfile::NamedTempFile,
}

impl Bench {
    fn start(args: &Args) -> Result<Self, Failure> {
        let server = Server::start()?;
        let root = tempfile::NamedTempFile::new()?;
        fs::write(root.path(), &server.root_pem)?;
        let reports = TcpListener::bind("127.0.0.1:0")?;
        let echo = free_address()?;
        let arguments = [
            ("--server", server.address.to_string()),
            ("--root", root.path().display().to_string()),
            ("--report", reports.local_addr()?.to_string()),
            ("--echo", echo.to_string()),
            ("--workers", args.workers.to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let mut program = Program::new(
            std::env::current_exe()?,
            ["peer".to_owned(), "scale-node".to_owned()].into_iter().chain(arguments),
        );
        program.memory_max = Some(MEMORY_MAX);
        let mut node = Process::start_anywhere(&program)?;
        node.wait_listening(echo)?;
        let (told, taken) = channel();
        for worker in 0..args.workers {
            let (stream, _) = reports.accept()?;
            let told = told.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let Some((generation, at_ns)) = line.split_once(' ') else { return };
                    let (Ok(generation), Ok(at_ns)) = (generation.parse(), at_ns.parse()) else { return };
                    if told.send(Taken { worker, generation, at_ns }).is_err() {
                        return;
                    }
                }
            });
        }
        let mesh = Mesh { workloads: args.workloads, services: args.services };
        let generations = vec![0; args.workers];
        Ok(Self { server, mesh, node, taken, echo, generations, _root: root })
    }

    fn measure(&mut self, args: &Args) -> Result<Figures, Failure> {
        let whole = self.mesh.whole()?;
        std::thread::sleep(SETTLE);
        let memory = self.node.private_bytes();
        let cpu = self.node.cpu_time();
        let first = self.send_and_wait(whole)?;
        let first_cpu = self.node.cpu_time().saturating_sub(cpu);
        let cpu = self.node.cpu_time();
        let mut deltas = Vec::with_capacity(args.deltas);
        for number in 0..args.deltas {
            deltas.push(self.send_and_wait(self.mesh.delta(number + 1)?)?);
        }
        let delta_cpu = self.node.cpu_time().saturating_sub(cpu);
        std::thread::sleep(SETTLE);
        let grown = self.node.private_bytes().saturating_sub(memory);
        deltas.sort_unstable();
        let quantile = |percent: usize| {
            let index = (deltas.len() * percent / 100).min(deltas.len().saturating_sub(1));
            deltas.get(index).map_or(0.0, |it| *it as f64 / 1e3)
        };
        let duration = Duration::from_secs(args.duration);
        let quiet = self.load(args.rate, duration)?;
        let churning = self.load_with_churn(args, duration)?;
        Ok(Figures {
            machine: Machine::read(),
            workloads: args.workloads,
            services: args.services,
            workers: args.workers,
            first_snapshot_ms: first as f64 / 1e6,
            first_snapshot_cpu_ms: first_cpu.as_secs_f64() * 1e3,
            bytes_per_workload: grown as f64 / args.workloads as f64,
            delta_p50_us: quantile(50),
            delta_p99_us: quantile(99),
            delta_max_us: quantile(100),
            delta_cpu_us: delta_cpu.as_secs_f64() * 1e6 / args.deltas.max(1) as f64,
            quiet,
            churning,
        })
    }

    /// Nanoseconds from handing a response to the server's stream until every worker has a newer state.
    fn send_and_wait(
        &mut self,
        response: xds::proto::discovery::DeltaDiscoveryResponse,
    ) -> Result<u64, Failure> {
        let start = self.generations.clone();
        let began = monotonic_ns();
        self.server.send(response)?;
        let deadline = Instant::now() + PATIENCE;
        let mut last = began;
        while self.generations.iter().zip(&start).any(|(now, before)| now <= before) {
            let left = deadline.saturating_duration_since(Instant::now());
            let taken =
                self.taken.recv_timeout(left).map_err(|_| "a worker did not get the state in two minutes")?;
            // The state of the empty mesh may arrive first.
            if taken.at_ns > began
                && let Some(generation) = self.generations.get_mut(taken.worker)
            {
                *generation = taken.generation;
                last = last.max(taken.at_ns);
            }
        }
        Ok(last - began)
    }

    fn load(&self, rate: u32, duration: Duration) -> Result<Report, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let target = Target { address: self.echo, congestion: None };
        let shape = Shape { request: 64, response: 1024 };
        let work = load::generate(target, CONNECTIONS, Some(rate), shape, duration);
        tokio::task::LocalSet::new().block_on(&runtime, work)
    }

    fn load_with_churn(&self, args: &Args, duration: Duration) -> Result<Report, Failure> {
        let (server, mesh) = (&self.server, self.mesh);
        std::thread::scope(|scope| {
            let churn =
                scope.spawn(|| churn(server, mesh, args, duration).map_err(|error| error.to_string()));
            let report = self.load(args.rate, duration)?;
            churn.join().map_err(|_| "the churn panicked")??;
            Ok(report)
        })
    }
}

fn churn(server: &Server, mesh: Mesh, args: &Args, duration: Duration) -> Result<(), Failure> {
    let interval = Duration::from_secs_f64(1.0 / f64::from(args.churn.max(1)));
    let start = Instant::now();
    let mut number = args.deltas + 1;
    while start.elapsed() < duration {
        server.send(mesh.delta(number)?)?;
        number += 1;
        std::thread::sleep(interval);
    }
    Ok(())
}

/// The clock that all processes of a machine share.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
