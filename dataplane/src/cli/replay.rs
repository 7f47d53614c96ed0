//! `corelane replay`: a captured stream of a control plane through the real client and store.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xds::replay::replay;

use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(after_help = "One line a response, then the state in the shape of /config_dump.\n\
    Exit status: 0 every response was accepted and every request was the captured one, 1 otherwise.")]
pub(super) struct ReplayArguments {
    /// Folder of one client: NNN-STEP-(req|resp)-TYPE[-ack].pb files.
    #[arg(value_name = "SCENARIO/CLIENT")]
    folder: PathBuf,

    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

impl ReplayArguments {
    pub(super) fn run(&self) -> Result<ExitCode, BoxError> {
        let replay = replay(&self.folder)?;
        let mut out = io::stdout().lock();
        for line in replay.lines() {
            if self.json {
                writeln!(out, "{line}")?;
                continue;
            }
            match (line["file"].as_str(), line["result"].as_str()) {
                (Some(file), Some(result)) => {
                    writeln!(out, "{result:4}  {file}  {}", line["reason"].as_str().unwrap_or_default())?;
                }
                _ => writeln!(out, "{line:#}")?,
            }
        }
        for difference in &replay.differences {
            writeln!(io::stderr(), "differs from the captured request: {difference}")?;
        }
        Ok(if replay.is_faithful() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
