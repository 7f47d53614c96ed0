//! The command line: one module per subcommand. Parses, starts logging, runs, and turns errors into an exit code.

mod check;
mod conformance;
mod explain;
mod inspect;
mod log_line;
mod mesh;
mod proxy;
mod replay;
mod shutdown;
mod tunnel;
mod waypoint;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Format;

use self::log_line::LogForm;
use crate::admin::logging;
use crate::worker::BoxError;

/// Exit code when a command fails after its arguments were understood.
const FAILED: u8 = 1;

const EXAMPLES: &str = "Examples:
  corelane mesh examples/hello-world      a whole mesh on this machine, with a report
  corelane check examples/hello-world     what is wrong with a folder of YAML
  corelane tunnel client --help           HBONE alone, with certificates from files
  corelane workloads --namespace app      what the proxy of this node knows of a namespace";

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
    /// Be the proxy of this node, in ztunnel's place: configured by ztunnel's environment variables.
    Proxy(proxy::ProxyArguments),
    /// Be a waypoint, in the place of Istio's: configured by the environment of its pod.
    Waypoint(waypoint::WaypointArguments),
    /// Print the version.
    Version,
    /// Find everything that is wrong with a folder of YAML: file, line, field and the mend.
    Check(check::CheckArguments),
    /// Say what becomes of a request, and why: route, backend, endpoints, policy, with file and line.
    Explain(explain::ExplainArguments),
    /// Feed a captured control-plane stream to the real client and store, and print the state.
    Replay(replay::ReplayArguments),
    /// Run case files against the very engine that serves.
    Conformance(conformance::ConformanceArguments),
    #[command(flatten)]
    Inspect(inspect::Inspect),
}

impl Command {
    /// What is logged if nobody says otherwise.
    fn log_filter(&self) -> &'static str {
        match self {
            // The report is what is wanted to be read.
            Self::Mesh(mesh) if mesh.has_plan() => "warn",
            Self::Inspect(_) | Self::Explain(_) => "warn",
            _ => "info",
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    spare_memory();
    let line = CommandLine::of_process();
    line.run().unwrap_or_else(|error| fail(&error))
}

impl CommandLine {
    /// As given; but without any argument, under ztunnel's name, it is ztunnel's `proxy`.
    fn of_process() -> Self {
        let mut arguments: Vec<_> = std::env::args_os().collect();
        let is_named_ztunnel =
            |program: &OsString| Path::new(program).file_name() == Some(OsStr::new("ztunnel"));
        if arguments.len() == 1 && arguments.first().is_some_and(is_named_ztunnel) {
            arguments.push("proxy".into());
        }
        Self::parse_from(arguments)
    }

    fn run(self) -> Result<ExitCode, BoxError> {
        let Self { log, log_json, command } = self;
        let filter = |default: &str| log.as_deref().unwrap_or(default).to_owned();
        let configured = match &command {
            // Its configuration says what is logged.
            Command::Proxy(arguments) => Some(proxy::configure(arguments)?),
            Command::Waypoint(_) => Some(waypoint::configure()?),
            _ => None,
        };
        if let Some(config) = configured {
            let json = log_json || config.log.json;
            start_logging(&filter(&config.log.filter), if json { LogForm::Json } else { LogForm::Plain })?;
            return proxy::run(config);
        }
        let human = LogForm::Human(Format::default().with_target(false));
        start_logging(&filter(command.log_filter()), if log_json { LogForm::Json } else { human })?;
        match command {
            Command::Tunnel(tunnel) => tunnel.run().map(|()| ExitCode::SUCCESS),
            Command::Mesh(mesh) => mesh.run(),
            Command::Check(check) => check.run(),
            Command::Explain(explain) => explain.run(),
            Command::Replay(replay) => replay.run(),
            Command::Conformance(conformance) => conformance.run(),
            Command::Inspect(inspect) => inspect.run().map(|()| ExitCode::SUCCESS),
            // Those that are configured by their environment run already.
            Command::Version | Command::Proxy(_) | Command::Waypoint(_) => Ok(version()),
        }
    }
}

#[allow(clippy::print_stdout)] // what was asked for
fn version() -> ExitCode {
    println!("corelane {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
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

fn start_logging(filter: &str, form: LogForm) -> Result<(), BoxError> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?}: {error}"))?;
    let colours = matches!(form, LogForm::Human(_)) && std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_ansi(colours).event_format(form).with_writer(std::io::stderr);
    let lines = lines.with_env_filter(parsed).with_filter_reloading();
    // The admin page may change the filter while the program runs.
    let handle = lines.reload_handle();
    logging::install(filter, move |new| handle.reload(new).map_err(|error| error.to_string()));
    lines.try_init()
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
