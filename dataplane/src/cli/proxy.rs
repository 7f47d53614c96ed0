//! `corelane proxy`: a node proxy in ztunnel's place.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use tokio::task::LocalSet;

use super::waypoint::{self, PilotArguments};
use crate::config::{Config, Environment, Host, MESH_CONFIG_FILE};
use crate::proxy;
use crate::worker::BoxError;

const WAYPOINT: &str = "waypoint";

#[derive(Debug, Args)]
#[command(after_help = "\
Takes its configuration from the environment: the variables of ztunnel, with the same defaults, and some of its own that
begin with CORELANE_. docs/ztunnel.md has the table.

Pages: http://localhost:15000 (admin), :15020/metrics, :15021/healthz/ready. SIGTERM, SIGINT and POST /quitquitquit drain;
a second signal ends at once.

Exit status: 0 asked to end, 1 the configuration cannot be used or the node agent breaks its protocol.")]
pub(super) struct ProxyArguments {
    /// The role that manifests name: that of ztunnel's, or of Istio's waypoints.
    #[arg(hide = true, value_parser = ["ztunnel", WAYPOINT])]
    role: Option<String>,

    #[command(flatten)]
    pilot: PilotArguments,
}

/// Reads the configuration: its log settings are needed before anything runs.
pub(super) fn configure(arguments: &ProxyArguments) -> Result<Config, BoxError> {
    if arguments.role.as_deref() == Some(WAYPOINT) {
        return waypoint::configure();
    }
    with_host(|host| Ok(Config::read(&Environment::of_process(), host)?))
}

/// Reads a configuration with what is known of this machine.
pub(super) fn with_host(
    read: impl FnOnce(&Host<'_>) -> Result<Config, BoxError>,
) -> Result<Config, BoxError> {
    let mesh_config = match std::fs::read_to_string(MESH_CONFIG_FILE) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{MESH_CONFIG_FILE} cannot be read: {error}").into()),
    };
    let host = Host {
        cpus: core_affinity::get_core_ids().map_or(1, |cores| cores.len().max(1)),
        mesh_config: mesh_config.as_deref(),
        has_file: Path::exists,
    };
    read(&host)
}

pub(super) fn run(config: Config) -> Result<ExitCode, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = LocalSet::new().block_on(&runtime, proxy::run(config));
    // A worker that is still busy must not hold up the end that was asked for twice.
    runtime.shutdown_background();
    ended?;
    Ok(ExitCode::SUCCESS)
}
