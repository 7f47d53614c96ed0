//! Corelane beside Envoy, HAProxy, nginx and plain relays: the same HTTP load through each, in interleaved rounds.
//!
//! - [`http`] and [`grpc`]: load generators and backends.
//! - [`handshake`], [`flood`] and [`churn`]: other loads; [`hardship`]: what a neighbour notices of them.
//! - [`overload`]: more clients than can be served; [`slow`]: clients that say next to nothing.
//! - [`site`]: the networks, which belong to the run alone; [`mesh`] and [`agent`]: what whole node proxies need.
//! - [`peers`]: the topologies and their configurations.
//! - [`work`]: what is done with each, and what is read off; [`plan`]: what of it the full form does with which.
//! - [`result`]: the report; [`verdict`] and [`targets`]: what follows from its rows; [`text`]: tables.

mod agent;
mod churn;
mod flood;
pub(crate) mod grpc;
mod handshake;
mod hardship;
pub(crate) mod http;
mod mesh;
mod overload;
mod peers;
mod plan;
mod programs;
pub(crate) mod result;
mod run;
mod site;
mod slow;
mod syscalls;
mod targets;
mod text;
mod verdict;
mod work;

use std::path::PathBuf;

use dataplane::mesh::sandbox;

use crate::Failure;
use plan::Plan;
use result::Report;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything runs in network namespaces of its own, as root or with user namespaces. The proxies share one CPU; load generator
and backend share another. scripts/setup-peers brings Envoy, HAProxy and nginx. Exit status 1 if a check failed.")]
pub(crate) struct Args {
    /// Run this topology only; may be given several times. `--list` names them.
    #[arg(long = "peer", value_name = "NAME")]
    peers: Vec<String>,
    /// Do this work only; may be given several times. `--list` names them.
    #[arg(long = "work", value_name = "NAME")]
    works: Vec<String>,
    /// Also the proxies of this file: YAML with names and command lines.
    #[arg(long, value_name = "FILE")]
    peer_file: Option<PathBuf>,
    /// Short measurements of the main topologies, one round: shows that everything works. The default.
    #[arg(long, conflicts_with = "full")]
    short: bool,
    /// Measurements whose figures are worth something: what the targets and the comparisons need, in about twenty minutes.
    #[arg(long)]
    full: bool,
    /// Interleaved rounds [default: 1, with --full 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Minutes that the run may take: measurements are as long as that allows.
    #[arg(long, value_name = "MINUTES", conflicts_with = "seconds")]
    budget: Option<f64>,
    /// Prints what would be done and how long it takes, and does nothing.
    #[arg(long)]
    plan: bool,
    /// Seconds of each measurement of requests [default: 0.3, with --full 1.2].
    #[arg(long)]
    seconds: Option<f64>,
    /// Idle connections [default: 200, with --full 10000].
    #[arg(long)]
    idle: Option<usize>,
    /// Congestion control of all sockets that set none, on loopback as in namespaces [default: the host's on loopback;
    /// cubic in namespaces].
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Writes the report here, after every round.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The corelane binary; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    corelane: Option<PathBuf>,
    /// Where envoy, haproxy and nginx are.
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    peers_in: PathBuf,
    /// Keeps configurations and logs here.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Lists topologies and works, and does nothing.
    #[arg(long)]
    list: bool,
    /// Prints the tables of an earlier run's JSON file, and does nothing.
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.show {
        let report = Report::parse(&std::fs::read(path)?)?;
        println!("{}", text::Shown(&report));
        return Ok(());
    }
    if args.list {
        return list(args);
    }
    if args.plan {
        print!("{}", Plan::of(args)?);
        return Ok(());
    }
    if !sandbox::is_inside() {
        return Err(sandbox::reexecute().into());
    }
    let report = run::Run::prepare(args)?.carry_out()?;
    println!("{}", text::Shown(&report));
    match report.checks.iter().find(|check| !check.passed) {
        Some(check) => Err(format!("a check failed: {}: {}", check.name, check.text).into()),
        None => Ok(()),
    }
}

fn list(args: &Args) -> Result<(), Failure> {
    for spec in plan::specs(args)? {
        println!("{:28} {}", spec.name, spec.description);
    }
    println!();
    for kind in work::ALL {
        println!("{:28} {}", kind.name(), kind.facts(&plan::scale(args)).description);
    }
    Ok(())
}
