//! `perf`: measures Corelane and its rivals on the same work, side by side, and reports what it saw.

#![allow(clippy::cast_precision_loss)] // counts become ratios for people to read

mod certificates;
mod compare;
mod confine;
mod instructions;
mod load;
mod machine;
mod peers;
mod process;
mod report;
mod runtimes;
mod scale;
mod sockets;
mod statistics;
mod tls;
mod tunnel;
mod wire;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Corelane and its rivals on the same work.
#[derive(Debug, Parser)]
#[command(name = "perf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The tunnel alone against tokio + rustls + the h2 crate: requests, new streams, bulk, idle memory.
    Tunnel(tunnel::Args),
    /// Corelane beside Envoy, HAProxy and nginx on the same work.
    Compare(compare::Args),
    /// The same echo and relay on monoio, tokio and glommio.
    Runtimes(runtimes::Args),
    /// A large mesh: first snapshot, single deltas, memory a workload, and data traffic meanwhile.
    Scale(scale::Args),
    Report(report::Args),
    /// The pure cores by instruction count, against a record: no clock.
    Instructions(instructions::Args),
    /// One of the pure cores, so many steps; what `instructions` counts.
    #[command(hide = true)]
    Steps(instructions::StepsArgs),
    /// Loads an address with framed requests, closed loop or at a fixed rate, and prints latency percentiles.
    Load(load::Args),
    /// Answers framed requests: the backend that `load` talks to.
    Backend(work::backend::Args),
    /// Runs one rival; what the comparisons start.
    #[command(subcommand)]
    Peer(peers::Command),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Tunnel(args) => tunnel::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Runtimes(args) => runtimes::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Instructions(args) => instructions::run(&args),
        Command::Steps(args) => instructions::steps(&args),
        Command::Load(args) => load::run(&args),
        Command::Backend(args) => work::backend::run(&args),
        Command::Peer(command) => peers::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What goes wrong in a measurement ends it; the text is for the person who ran it.
pub(crate) type Failure = Box<dyn std::error::Error>;
