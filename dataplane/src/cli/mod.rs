//! The command line: one module per subcommand. Parses, starts logging, runs, and turns errors into an exit code.

mod check;
mod conformance;
mod mesh;
mod replay;
mod shutdown;
mod tunnel;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::admin::logging;
use crate::worker::BoxError;

/// Exit code when a command fails after its arguments were understood.
const FAILED: u8 = 1;

const EXAMPLES: &str = "Examples:
  corelane mesh examples/hello-world      a whole mesh on this machine, with a report
  corelane check examples/hello-world     what is wrong with a folder of YAML
  corelane tunnel client --help           HBONE alone, with certificates from files";

/// The node proxy for ambient service meshes.
#[derive(Debug, Parser)]
#[command(name = "corelane", version, about, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = EXAMPLES)]
struct CommandLine {
    /// What to log, as in RUST_LOG: a level, or `target=level` pairs. Usually `info`; `warn` while a plan is carried
    /// out.
    #[arg(long, global = true, env = "CORELANE_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// Write log lines as JSON.
    #[arg(long, global = true, env = "CORELANE_LOG_JSON")]
    log_json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry TCP connections through an HBONE tunnel, with certificates from files and no control plane.
    #[command(subcommand)]
    Tunnel(tunnel::Tunnel),
    /// Run the whole mesh on this machine: control plane, node proxies, pods and their traffic.
    Mesh(mesh::MeshArguments),
    /// Find everything that is wrong with a folder of YAML: file, line, field and the mend.
    Check(check::CheckArguments),
    /// Feed a captured control-plane stream to the real client and store, and print the state.
    Replay(replay::ReplayArguments),
    /// Run case files against the very engine that serves.
    Conformance(conformance::ConformanceArguments),
}

impl Command {
    /// What is logged if nobody says otherwise.
    fn log_filter(&self) -> &'static str {
        match self {
            // The report is what is wanted to be read.
            Self::Mesh(mesh) if mesh.has_plan() => "warn",
            _ => "info",
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    spare_memory();
    let line = CommandLine::parse();
    let filter = line.log.as_deref().unwrap_or_else(|| line.command.log_filter());
    if let Err(error) = start_logging(filter, line.log_json) {
        return fail(&error);
    }
    let result = match line.command {
        Command::Tunnel(tunnel) => tunnel.run().map(|()| ExitCode::SUCCESS),
        Command::Mesh(mesh) => mesh.run(),
        Command::Check(check) => check.run(),
        Command::Replay(replay) => replay.run(),
        Command::Conformance(conformance) => conformance.run(),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// Keeps the kernel from backing the heap with huge pages, which the allocator asks for: they double the private
/// memory of an idle process and add half to that of each idle connection, and make nothing measurably faster.
fn spare_memory() {
    // A kernel that does not know the call gives what it gives.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Prints the error with what caused it.
#[allow(clippy::print_stderr)] // the log filter must not be able to hide why the program ended
fn fail(error: &BoxError) -> ExitCode {
    eprintln!("corelane: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Most errors quote their source already.
        if !error.to_string().contains(&text) {
            eprintln!("  because: {text}");
        }
        cause = inner.source();
    }
    ExitCode::from(FAILED)
}

fn start_logging(filter: &str, json: bool) -> Result<(), BoxError> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?}: {error}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // The admin page may change the filter while the program runs.
    if json {
        let lines = lines.json().with_filter_reloading();
        let handle = lines.reload_handle();
        logging::install(filter, move |new| handle.reload(new).map_err(|error| error.to_string()));
        lines.try_init()
    } else {
        let colours = std::io::stderr().is_terminal();
        let lines = lines.with_target(false).with_ansi(colours).with_filter_reloading();
        let handle = lines.reload_handle();
        logging::install(filter, move |new| handle.reload(new).map_err(|error| error.to_string()));
        lines.try_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
