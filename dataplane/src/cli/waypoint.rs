//! `corelane waypoint`: a waypoint in the place of Istio's.

use std::io;
use std::path::Path;

use clap::Args;

use super::proxy::with_host;
use crate::config::{Config, Environment, LABELS_FILE};
use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(after_help = "\
Takes its configuration from the environment of an Istio waypoint's pod: POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT,
INSTANCE_IP, PROXY_CONFIG, CA_ADDR, ISTIO_META_*, the labels in ./etc/istio/pod/labels; and from the variables of
`corelane proxy`. docs/waypoint.md has the table.

Ports: 15008 (HBONE), http://localhost:15000 (admin), :15020/stats/prometheus, :15021/healthz/ready. SIGTERM, SIGINT and
POST /quitquitquit drain; a second signal ends at once.

Exit status: 0 asked to end, 1 the configuration cannot be used.")]
pub(super) struct WaypointArguments {
    #[command(flatten)]
    pilot: PilotArguments,
}

/// What Istio's manifests give to their own program; none of it changes what we do.
#[derive(Debug, Args)]
pub(super) struct PilotArguments {
    #[arg(long, hide = true)]
    domain: Option<String>,
    #[arg(long = "serviceCluster", hide = true)]
    service_cluster: Option<String>,
    #[arg(long = "proxyLogLevel", hide = true)]
    proxy_log_level: Option<String>,
    #[arg(long = "proxyComponentLogLevel", hide = true)]
    proxy_component_log_level: Option<String>,
    #[arg(long = "log_output_level", hide = true)]
    log_output_level: Option<String>,
}

/// Reads the configuration: its log settings are needed before anything runs.
pub(super) fn configure() -> Result<Config, BoxError> {
    let labels = match std::fs::read_to_string(Path::new(LABELS_FILE)) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{LABELS_FILE} cannot be read: {error}").into()),
    };
    with_host(|host| Ok(Config::read_waypoint(&Environment::of_process(), host, labels.as_deref())?))
}
