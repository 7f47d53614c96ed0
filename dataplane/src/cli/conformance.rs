//! `corelane conformance`: case files against the engine that serves.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::conformance;
use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 no case failed (skipped ones are listed with their reason), 1 otherwise.\n\
    Example: corelane conformance l7/cases"
)]
pub(super) struct ConformanceArguments {
    /// Case files, or folders of them.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Print one JSON object a case: id, pass, got, want, skipped.
    #[arg(long)]
    json: bool,
}

impl ConformanceArguments {
    pub(super) fn run(&self) -> Result<ExitCode, BoxError> {
        let report = conformance::run(&self.paths)?;
        let mut out = io::stdout().lock();
        if self.json {
            report.write_json(&mut out)?;
        } else {
            report.write_table(&mut out)?;
        }
        Ok(if report.failures().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
