//! `corelane explain`: what becomes of a request, and why.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use xds::kube::MeshSettings;

use crate::explain::{Question, explain};
use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is sent: the folder is read and decided about as by `corelane mesh DIR`.

Example:
  corelane explain examples/hello-world --from hello/client --to hello-world:5000 --path /v1/admin

Exit status: 0 a decision, whichever; 1 an input that nothing can be said about.")]
pub(super) struct ExplainArguments {
    /// Folder of Kubernetes, Gateway API and Istio YAML.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The pod that asks: NAMESPACE/NAME, or a name that no other pod has.
    #[arg(long, value_name = "POD")]
    from: String,

    /// Where to: a name as the pod would write it, an address, or pod/NAMESPACE/NAME; with the port.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,

    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,

    /// Path, with its query if there is one.
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,

    /// A header of the request; `host` is what HOST:PORT is otherwise. May be given again.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,

    /// Have policies see this SPIFFE identity as the client's, in the place of the pod's.
    #[arg(long, value_name = "URI")]
    identity: Option<String>,

    /// Have policies and routes see this address as the client's, in the place of the pod's.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,

    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,

    /// Namespace whose policies apply to the whole mesh.
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl ExplainArguments {
    pub(super) fn run(self) -> Result<ExitCode, BoxError> {
        let question = Question {
            from: self.from,
            to: self.to,
            method: self.method,
            path: self.path,
            headers: self.headers,
            identity: self.identity,
            ip: self.ip,
            mesh: MeshSettings {
                trust_domain: Arc::from(self.trust_domain),
                root_namespace: Arc::from(self.root_namespace),
                ..MeshSettings::default()
            },
        };
        let explanation = explain(&self.folder, &question)?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&explanation)?)?;
        } else {
            write!(out, "{explanation}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
