//! The same small echo and relay on three runtimes, as a newcomer to each would write them: what the choice of the
//! runtime alone is worth.

mod on_glommio;
mod on_monoio;
mod on_tokio;

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::Failure;
use crate::machine::{Cores, Machine, pin};
use crate::process::{Process, Program};
use crate::statistics::Spread;
use crate::work::backend;
use crate::work::client::{self, Direction, Shape, Target};

/// Read buffer of a connection.
const BUFFER_BYTES: usize = 16 * 1024;
const CONNECTIONS: usize = 64;
const ECHO_BYTES: usize = 64;
const BULK_BYTES: u32 = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Runtime {
    Monoio,
    MonoioEpoll,
    Tokio,
    Glommio,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EchoArgs {
    #[arg(long)]
    runtime: Runtime,
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    #[arg(long)]
    runtime: Runtime,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    duration: u64,
    /// Writes the figures here as JSON.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

pub(crate) fn echo(args: &EchoArgs) -> Result<(), Failure> {
    match args.runtime {
        Runtime::Monoio => on_monoio::uring(on_monoio::echo(args.listen)),
        Runtime::MonoioEpoll => on_monoio::epoll(on_monoio::echo(args.listen)),
        Runtime::Tokio => on_tokio::run(on_tokio::echo(args.listen)),
        Runtime::Glommio => on_glommio::run(on_glommio::echo(args.listen)),
    }
}

pub(crate) fn relay(args: &RelayArgs) -> Result<(), Failure> {
    match args.runtime {
        Runtime::Monoio => on_monoio::uring(on_monoio::relay(args.listen, args.to)),
        Runtime::MonoioEpoll => on_monoio::epoll(on_monoio::relay(args.listen, args.to)),
        Runtime::Tokio => on_tokio::run(on_tokio::relay(args.listen, args.to)),
        Runtime::Glommio => on_glommio::run(on_glommio::relay(args.listen, args.to)),
    }
}

/// Figures of one runtime, CPU of the process under measurement.
#[derive(Debug, Clone, Default, Serialize)]
struct Figures {
    echo_us: Vec<f64>,
    connection_us: Vec<f64>,
    relay_request_us: Vec<f64>,
    relay_bulk_s_per_gb: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let cores = Cores::pick()?;
    let machine = Machine::read();
    println!("{machine}");
    pin(cores.load)?;
    let runtimes = Runtime::value_variants();
    let mut figures = vec![Figures::default(); runtimes.len()];
    for round in 1..=args.rounds {
        for (runtime, figures) in runtimes.iter().zip(&mut figures) {
            eprintln!("round {round}/{}: {runtime:?}", args.rounds);
            measure(*runtime, cores, Duration::from_secs(args.duration), figures)?;
        }
    }
    print_table(runtimes, &figures);
    if let Some(path) = &args.json {
        let rows: Vec<_> = runtimes.iter().zip(&figures).collect();
        std::fs::write(
            path,
            serde_json::to_vec_pretty(&serde_json::json!({"machine": machine, "figures": rows}))?,
        )?;
    }
    Ok(())
}

fn print_table(runtimes: &[Runtime], figures: &[Figures]) {
    let mut table = Table::new();
    table.set_header(["runtime", "echo us", "new connection us", "relay request us", "relay bulk CPU s/GB"]);
    for (runtime, figures) in runtimes.iter().zip(figures) {
        let cell =
            |samples: &[f64]| Spread::of(samples).map_or_else(|| "-".to_owned(), |spread| spread.to_string());
        table.add_row([
            format!("{runtime:?}"),
            cell(&figures.echo_us),
            cell(&figures.connection_us),
            cell(&figures.relay_request_us),
            cell(&figures.relay_bulk_s_per_gb),
        ]);
    }
    println!(
        "CPU of the server under measurement, min/median/max; {CONNECTIONS} connections, {ECHO_BYTES} bytes"
    );
    println!("{table}");
}

fn measure(runtime: Runtime, cores: Cores, duration: Duration, figures: &mut Figures) -> Result<(), Failure> {
    let name = runtime.to_possible_value().ok_or("unnamed runtime")?.get_name().to_owned();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (echo_address, relay_address) = (free_address()?, free_address()?);

    let mut echo = start(&name, cores, "echo", &["--listen", &echo_address.to_string()])?;
    echo.wait_listening(echo_address)?;
    let before = echo.cpu_time();
    let work = client::echo_loop(host_default(echo_address), CONNECTIONS, ECHO_BYTES, duration);
    let done = LocalSet::new().block_on(&tokio, work)?;
    figures.echo_us.push(echo.cpu_time().saturating_sub(before).as_secs_f64() * 1e6 / done.count as f64);
    drop(echo);

    let local = LocalSet::new();
    let listener = tokio.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let backend_address = listener.local_addr()?;
    local.spawn_local(async move { backend::serve(listener).await.map_err(|error| error.to_string()) });
    let arguments = ["--listen", &relay_address.to_string(), "--to", &backend_address.to_string()];
    let mut relay = start(&name, cores, "relay", &arguments)?;
    relay.wait_listening(relay_address)?;
    let shape = Shape { request: 64, response: 64 };
    let watched = |future: &mut dyn FnMut(&LocalSet) -> Result<client::Done, Failure>| {
        let before = relay.cpu_time();
        let done = future(&local)?;
        Ok::<_, Failure>((done.count as f64, relay.cpu_time().saturating_sub(before).as_secs_f64()))
    };
    let (count, cpu) = watched(&mut |local| {
        local.block_on(&tokio, client::closed_loop(host_default(relay_address), CONNECTIONS, shape, duration))
    })?;
    figures.relay_request_us.push(cpu * 1e6 / count);
    let (count, cpu) = watched(&mut |local| {
        local.block_on(&tokio, client::new_connections(host_default(relay_address), 16, shape, duration))
    })?;
    figures.connection_us.push(cpu * 1e6 / count);
    let (count, cpu) = watched(&mut |local| {
        local.block_on(&tokio, client::bulk(host_default(relay_address), 1, BULK_BYTES, Direction::Down))
    })?;
    figures.relay_bulk_s_per_gb.push(cpu * 1e9 / count);
    Ok(())
}

/// These programs are written as a newcomer would: they leave the congestion control alone, and so does their load.
fn host_default(address: SocketAddr) -> Target {
    Target { address, congestion: None }
}

fn start(runtime: &str, cores: Cores, role: &str, arguments: &[&str]) -> Result<Process, Failure> {
    let all = ["peer", role, "--runtime", runtime].into_iter().chain(arguments.iter().copied());
    Process::start(&Program::new(std::env::current_exe()?, all), cores.measured, cores.load)
}

/// An address of this machine that nothing listens on at the moment.
pub(crate) fn free_address() -> Result<SocketAddr, Failure> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Kept here so that the three programs agree on it.
fn buffer() -> Vec<u8> {
    vec![0; BUFFER_BYTES]
}

/// Pins a runtime that insists on doing so itself to the CPU that this process was started on.
fn own_core() -> Result<usize, Failure> {
    match core_affinity::get_core_ids().unwrap_or_default().as_slice() {
        [only] => Ok(only.id),
        [first, ..] => {
            pin(first.id)?;
            Ok(first.id)
        }
        [] => Err("no CPU in this process's set".into()),
    }
}
