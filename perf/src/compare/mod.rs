//! Corelane beside Envoy, HAProxy, nginx and plain relays: the same work through each, in interleaved rounds.

pub(crate) mod result;
mod text;

use std::path::PathBuf;

use crate::Failure;
use result::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Prints the tables of an earlier run's JSON file.
    #[arg(long, value_name = "FILE")]
    show: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let report = Report::parse(&std::fs::read(&args.show)?)?;
    println!("{}", text::Shown(&report));
    Ok(())
}
