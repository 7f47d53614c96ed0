//! `corelane check`: everything that is wrong with a folder of configuration.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use xds::kube::{MeshSettings, check, problem};

use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 no errors (there may be warnings), 3 errors found.")]
pub(super) struct CheckArguments {
    /// Folder of Kubernetes, Gateway API and Istio YAML.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,

    /// Namespace whose policies apply to the whole mesh.
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,

    /// Print the problems as a JSON array.
    #[arg(long)]
    json: bool,
}

impl CheckArguments {
    pub(super) fn run(&self) -> Result<ExitCode, BoxError> {
        let mesh = MeshSettings {
            trust_domain: Arc::from(self.trust_domain.as_str()),
            root_namespace: Arc::from(self.root_namespace.as_str()),
            ..MeshSettings::default()
        };
        let problems = check(&self.folder, &mesh);
        let text = if self.json { problem::to_json(&problems) } else { problem::render(&problems) };
        writeln!(io::stdout().lock(), "{}", text.trim_end())?;
        Ok(ExitCode::from(check::exit_status(&problems)))
    }
}
