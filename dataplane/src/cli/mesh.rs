//! `corelane mesh`: control plane, node proxies, pods and traffic on this machine.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::access_log::{LogFormat, LogWriter, queue};
use crate::capture;
use crate::control::LogPump;
use crate::mesh::observer::Observer;
use crate::mesh::plan::Plan;
use crate::mesh::report::{Row, Verdict, table, verdict_line};
use crate::mesh::runner::Runner;
use crate::mesh::sandbox;
use crate::mesh::state_folder::StateFolder;
use crate::mesh::world::{World, WorldConfig};
use crate::worker::{BoxError, DriverChoice};

/// Exit code when a step of the plan did not hold.
const STEP_FAILED: u8 = 1;
/// Longest wait until the node proxies serve.
const START_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// Columns of the table where the output is no terminal.
const WIDTH: u16 = 150;
/// Narrower than this the table is unreadable, so lines are left to wrap.
const WIDTH_MIN: u16 = 110;
/// Folders inside one another in a configuration that is copied.
const DEPTH_MAX: usize = 16;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  corelane mesh examples/hello-world                      run the mesh until Ctrl-C; edit the YAML meanwhile
  corelane mesh examples/hello-world --run PLAN           carry out a plan of requests and changes, then end
  corelane mesh examples/hello-world --run PLAN --keep    the same, but leave the mesh running

Needs the commands `ip` and `nft`. Runs as root or, where user namespaces are allowed, as anybody; this machine's own
network is not touched.

Exit status: 0 every step held, 1 one did not.")]
pub(super) struct MeshArguments {
    /// Folder of Kubernetes, Gateway API and Istio YAML.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Carry out this plan. Its changes are made to a copy of DIR.
    #[arg(long, value_name = "PLAN")]
    run: Option<PathBuf>,

    /// Leave the mesh running after the plan, until Ctrl-C.
    #[arg(long)]
    keep: bool,

    /// Workers of each node proxy; one per CPU if left out.
    #[arg(long, value_name = "NUMBER")]
    workers: Option<usize>,

    /// What the workers wait with.
    #[arg(long, value_enum, default_value_t)]
    driver: DriverChoice,

    /// Print rows and verdicts as JSON, one line each.
    #[arg(long)]
    json: bool,

    /// Append the node proxies' access log to this file; `-` is the standard error.
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,

    /// Write access log lines as JSON.
    #[arg(long)]
    access_log_json: bool,
}

impl MeshArguments {
    pub(super) fn has_plan(&self) -> bool {
        self.run.is_some()
    }

    pub(super) fn run(&self) -> Result<ExitCode, BoxError> {
        let plan = self.run.as_deref().map(Plan::read).transpose()?;
        if !self.folder.is_dir() {
            return Err(format!("{} is no folder", self.folder.display()).into());
        }
        if !sandbox::is_inside() {
            capture::check_tools()?;
            return Err(sandbox::reexecute().into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.serve(plan.as_ref()))
    }

    async fn serve(&self, plan: Option<&Plan>) -> Result<ExitCode, BoxError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let state = StateFolder::new()?;
        let folder = match plan {
            Some(_) => copy_of(&self.folder, state.path())?,
            None => self.folder.clone(),
        };
        let (recorder, records) = queue();
        let observer = Observer::default();
        let config = WorldConfig {
            directory: folder.clone(),
            state_directory: state.path().to_owned(),
            workers: self.workers,
            driver: self.driver,
            on_demand: false,
        };
        let world = World::start(config, &recorder).await?;
        let pump = tokio::task::spawn_local(self.log_pump(LogPump::new(records), &world, &observer)?.run());
        let outcome = tokio::select! {
            outcome = self.work(plan, &world, observer, &folder, state.path()) => Some(outcome),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        world.stop().await;
        pump.abort();
        // The pump writes what it still holds when it is dropped; the abort only asks for that.
        drop(pump.await);
        let held = outcome.transpose()?.unwrap_or(plan.is_none());
        Ok(if held { ExitCode::SUCCESS } else { ExitCode::from(STEP_FAILED) })
    }

    /// Whether every step held. Without a plan it goes on until somebody asks for the end.
    async fn work(
        &self,
        plan: Option<&Plan>,
        world: &World,
        observer: Observer,
        folder: &Path,
        state: &Path,
    ) -> Result<bool, BoxError> {
        wait_until_ready(world).await?;
        let mut held = true;
        if let Some(plan) = plan {
            held = self
                .carry_out(plan, Runner::new(world.directory(), observer, folder.to_owned()), world)
                .await;
        }
        if plan.is_none() || self.keep {
            self.show_running(world, folder, state);
            world.quit().await;
        }
        Ok(held)
    }

    async fn carry_out(&self, plan: &Plan, mut runner: Runner, world: &World) -> bool {
        let (mut all_rows, mut count, mut failed) = (Vec::new(), 0, 0);
        let held = runner
            .run(plan, |verdict: &Verdict, rows: &[Row]| {
                count += 1;
                failed += usize::from(!verdict.ok);
                if self.json {
                    for row in rows {
                        print(&json!({ "row": row }).to_string());
                    }
                    print(&json!({ "verdict": verdict }).to_string());
                } else {
                    print(&verdict_line(verdict));
                    all_rows.extend_from_slice(rows);
                }
            })
            .await;
        if self.json {
            print(
                &json!({ "steps": count, "failed": failed, "driver": world.driver().to_string() })
                    .to_string(),
            );
        } else {
            print(
                "\nWhat the node proxies noted (worker: of the client's proxy > of the server's; identities without their",
            );
            print("trust domain):");
            print(&table(&all_rows, width()));
            let driver = world.driver();
            print(&match failed {
                0 => format!("all {count} steps held ({driver})"),
                _ => format!("{failed} of {count} steps FAILED ({driver})"),
            });
        }
        held
    }

    fn log_pump(&self, pump: LogPump, world: &World, observer: &Observer) -> Result<LogPump, BoxError> {
        let mut pump = world.metrics().iter().cloned().fold(pump, LogPump::counted_in);
        if let Some(path) = &self.access_log {
            let sink: Box<dyn Write + Send> = if path.as_os_str() == "-" {
                Box::new(io::stderr())
            } else {
                let file = fs::OpenOptions::new().append(true).create(true).open(path);
                Box::new(file.map_err(|error| format!("--access-log {}: {error}", path.display()))?)
            };
            let format = if self.access_log_json { LogFormat::Json } else { LogFormat::Text };
            pump = pump.write_to(LogWriter::new(format, sink));
        }
        let observer = observer.clone();
        Ok(pump.watched_by(move |record| observer.note(record)))
    }

    /// How to reach what runs.
    fn show_running(&self, world: &World, folder: &Path, state: &Path) {
        let process = std::process::id();
        let user = if rustix::process::geteuid().is_root() && !in_user_namespace() {
            String::new()
        } else {
            format!(" --user=/proc/{process}/ns/user --preserve-credentials")
        };
        let directory = world.directory().borrow().clone();
        if self.json {
            for (name, place) in &directory.pods {
                let network = format!("/proc/{process}/fd/{}", place.network.as_fd().as_raw_fd());
                let pod = json!({ "name": name, "ips": place.ips, "node": &*place.node, "network": network });
                print(&json!({ "pod": pod, "state": state }).to_string());
            }
            return;
        }
        print(&format!(
            "\nThe mesh runs until Ctrl-C. Edit the files of {} and see it change.",
            folder.display()
        ));
        print(&format!(
            "Admin page:  curl --unix-socket {}/NODE/admin.sock http://x/config_dump",
            state.display()
        ));
        print(&format!(
            "Metrics:     curl --unix-socket {}/NODE/metrics.sock http://x/metrics",
            state.display()
        ));
        for service in directory.view.services.values() {
            let ports: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
            let ips: Vec<_> = service.ips.iter().map(ToString::to_string).collect();
            let (name, ips, ports) = (&service.hostname, ips.join(", "), ports.join(", "));
            print(&format!("Service:     {name} at {ips}, port {ports}"));
        }
        print("Inside a pod:");
        for (name, place) in &directory.pods {
            let ips: Vec<_> = place.ips.iter().map(ToString::to_string).collect();
            let descriptor = place.network.as_fd().as_raw_fd();
            let mesh = if place.enrolled { "in the mesh" } else { "outside" };
            print(&format!(
                "  {name} ({}, node {}, {mesh}): nsenter{user} --net=/proc/{process}/fd/{descriptor} COMMAND",
                ips.join(", "),
                place.node
            ));
        }
    }
}

async fn wait_until_ready(world: &World) -> Result<(), BoxError> {
    let ready = async {
        while !world.pending().is_empty() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(START_PATIENCE, ready)
        .await
        .map_err(|_| format!("not ready after {START_PATIENCE:?}: {}", world.pending().join(", ")).into())
}

/// A copy of the folder, for the plan to change.
fn copy_of(folder: &Path, state: &Path) -> io::Result<PathBuf> {
    let copy = state.join("configuration");
    copy_folder(folder, &copy, 0)?;
    Ok(copy)
}

fn copy_folder(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("{} lies too deep", from.display())));
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &target, depth + 1)?;
        } else {
            // The contents only: a read-only original must not make a copy that cannot be changed.
            fs::write(target, fs::read(path)?)?;
        }
    }
    Ok(())
}

/// Whether user 0 here is somebody else outside.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(1) != Some("0")
}

fn width() -> u16 {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 { WIDTH } else { columns.max(WIDTH_MIN) }
}

/// A line on the standard output. A reader that has gone away is no reason to stop.
fn print(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_every_file_and_can_be_changed() {
        let state = tempfile::tempdir().unwrap();
        let original = tempfile::tempdir().unwrap();
        fs::create_dir(original.path().join("sub")).unwrap();
        let file = original.path().join("sub/a.yaml");
        fs::write(&file, "a").unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let copy = copy_of(original.path(), state.path()).unwrap();
        fs::write(copy.join("sub/a.yaml"), "b").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "a");
    }
}
