//! `corelane workloads`, `services`, `policies`, `connections`, `certs`, `workers`, `log`, `drain`: what a running proxy
//! knows and does, asked over its admin page, or read from a dump that was saved from there.
//!
//! The tables have the columns of `istioctl ztunnel-config`. A dump of ztunnel is read as well.

mod address;
mod certs;
mod client;
mod connections;
mod control;
mod filter;
mod policies;
mod services;
mod table;
mod workers;
mod workloads;

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::worker::BoxError;
use address::AdminAddress;
use client::Client;
pub(super) use control::{DrainArguments, LogArguments};
use filter::Filter;
use table::Table;

/// Where the admin page of a node proxy is.
const DEFAULT_ADMIN: &str = "localhost:15000";

const EXAMPLES: &str = "Examples:
  corelane workloads --namespace app                what the proxy of this node knows of a namespace
  corelane connections -o wide                      open connections with identities and bytes
  corelane certs --admin unix:/run/a/admin.sock     of a proxy whose admin page is a socket file
  corelane services -f dump.json                    from a dump that was saved before";

/// What is asked of a running proxy.
#[derive(Debug, Subcommand)]
pub(super) enum Inspect {
    /// List the workloads that the proxy knows.
    #[command(after_help = EXAMPLES)]
    Workloads(InspectArguments),
    /// List the services that the proxy knows.
    #[command(after_help = EXAMPLES)]
    Services(InspectArguments),
    /// List the authorization policies that the proxy knows.
    #[command(after_help = EXAMPLES)]
    Policies(InspectArguments),
    /// List the open connections of the pods on this node.
    #[command(after_help = EXAMPLES)]
    Connections(InspectArguments),
    /// List the certificates that the proxy holds, with their chains and roots.
    #[command(after_help = EXAMPLES)]
    Certs(InspectArguments),
    /// List the proxy's workers, what they carry and how they are.
    #[command(after_help = EXAMPLES)]
    Workers(InspectArguments),
    /// Show or change what the proxy logs, while it runs.
    Log(LogArguments),
    /// Have the proxy end in order.
    Drain(DrainArguments),
}

impl Inspect {
    pub(super) fn run(&self) -> Result<(), BoxError> {
        match self {
            Self::Workloads(arguments) => arguments.run(Subject::Workloads),
            Self::Services(arguments) => arguments.run(Subject::Services),
            Self::Policies(arguments) => arguments.run(Subject::Policies),
            Self::Connections(arguments) => arguments.run(Subject::Connections),
            Self::Certs(arguments) => arguments.run(Subject::Certificates),
            Self::Workers(arguments) => arguments.run(Subject::Workers),
            Self::Log(arguments) => arguments.run(),
            Self::Drain(arguments) => arguments.run(),
        }
    }
}

/// Which proxy to ask.
#[derive(Debug, Args)]
struct AdminArguments {
    /// The admin page of the proxy: HOST:PORT, or unix:PATH.
    #[arg(long, value_name = "ADDRESS", env = "CORELANE_ADMIN", default_value = DEFAULT_ADMIN)]
    admin: AdminAddress,
}

/// Where to read from, and how to show it.
#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    #[command(flatten)]
    admin: AdminArguments,

    /// Read a saved /config_dump instead of asking a proxy; `-` is the standard input.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// What to write.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,

    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    /// The table with more columns.
    Wide,
    /// The entries as the proxy shows them.
    Json,
}

/// What to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Workloads,
    Services,
    Policies,
    Connections,
    Certificates,
    Workers,
}

/// What was asked for, in both forms.
#[derive(Debug)]
struct Shown {
    table: Table,
    json: Value,
}

impl InspectArguments {
    fn run(&self, subject: Subject) -> Result<(), BoxError> {
        let now = time::OffsetDateTime::now_utc();
        let shown = match (&self.file, subject) {
            (Some(_), Subject::Workers) => {
                return Err("workers are not in a dump: ask a running proxy (--admin)".into());
            }
            (Some(path), _) => show(subject, &read(path)?, None, &self.filter, now),
            (None, Subject::Workers) => workers::show(&Client::new(&self.admin.admin).json("/workers")?),
            (None, Subject::Connections) => {
                let client = Client::new(&self.admin.admin);
                let dump = client.json("/config_dump")?;
                // A ztunnel has no such page; its dump says as much as it knows.
                let live = client.json("/connections").ok();
                show(subject, &dump, live.as_ref(), &self.filter, now)
            }
            (None, _) => {
                let dump = Client::new(&self.admin.admin).json("/config_dump")?;
                show(subject, &dump, None, &self.filter, now)
            }
        };
        print(&shown.written(self.output)?)
    }
}

fn show(
    subject: Subject,
    dump: &Value,
    live: Option<&Value>,
    filter: &Filter,
    now: time::OffsetDateTime,
) -> Shown {
    match subject {
        Subject::Workloads => workloads::show(dump, filter),
        Subject::Services => services::show(dump, filter),
        Subject::Policies => policies::show(dump, filter),
        Subject::Connections => connections::show(dump, live, filter),
        Subject::Certificates => certs::show(dump, filter, now),
        Subject::Workers => workers::show(dump),
    }
}

impl Shown {
    fn written(&self, output: Output) -> Result<String, BoxError> {
        Ok(match output {
            Output::Table => self.table.text(false),
            Output::Wide => self.table.text(true),
            Output::Json => serde_json::to_string_pretty(&self.json)? + "\n",
        })
    }
}

/// A saved dump.
fn read(path: &Path) -> Result<Value, BoxError> {
    let name = path.display();
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| format!("{name} cannot be read: {error}"))?;
    let dump: Value = serde_json::from_str(&text).map_err(|error| format!("{name} is no JSON: {error}"))?;
    if dump.get("workloads").is_none() {
        return Err(format!(
            "{name} is no dump of a proxy: it has no `workloads`; save one with \
                            `curl localhost:15000/config_dump`"
        )
        .into());
    }
    Ok(dump)
}

/// Writes to the standard output. A reader that has gone, as `head` does, is no error.
fn print(text: &str) -> Result<(), BoxError> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The entries of a list in a dump; none where it is missing.
fn list<'a>(dump: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    dump.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// A text field; empty where it is missing or none.
fn text<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}
