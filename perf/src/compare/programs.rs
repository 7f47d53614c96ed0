//! Where the programs of the comparison are, and what they say of themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::result::ProgramFacts;
use crate::Failure;

/// Paths of all programs; whether each is there shows when it is needed.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) corelane: PathBuf,
    pub(super) perf: PathBuf,
    pub(super) envoy: PathBuf,
    pub(super) haproxy: PathBuf,
    pub(super) nginx: PathBuf,
}

impl Programs {
    /// `peers` is the folder that `scripts/setup-peers` fills.
    pub(super) fn find(corelane: Option<&Path>, peers: &Path) -> Result<Self, Failure> {
        let perf = std::env::current_exe()?;
        let corelane = match corelane {
            Some(path) => std::path::absolute(path)?,
            None => perf.with_file_name("corelane"),
        };
        let peers = std::path::absolute(peers)?;
        let peer = |name: &str| peers.join(name);
        Ok(Self { corelane, perf, envoy: peer("envoy"), haproxy: peer("haproxy"), nginx: peer("nginx") })
    }
}

/// Fails with what to do if the program is not there.
pub(super) fn require(path: &Path, remedy: &str) -> Result<(), Failure> {
    if path.exists() { Ok(()) } else { Err(format!("{} is missing: {remedy}", path.display()).into()) }
}

/// The first line that the program prints when it is asked for its version.
pub(super) fn facts(name: &str, path: &Path, argument: &str) -> ProgramFacts {
    let output = Command::new(path).arg(argument).stdin(Stdio::null()).output();
    let version = output.map_or_else(
        |error| format!("unknown: {error}"),
        |output| {
            // nginx tells it on its standard error.
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            line.replace(&path.display().to_string(), name)
        },
    );
    // As it is seen from here: where this machine keeps it is of no interest to others.
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(here).unwrap_or(path).display().to_string();
    ProgramFacts { name: name.to_owned(), path, version }
}
