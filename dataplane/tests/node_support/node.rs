//! One node: a network namespace with a `corelane proxy` process in it, and its node agent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dataplane::net::NetworkNamespace;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Agent;
use super::traffic;

const ADMIN_PORT: u16 = 15000;
const METRICS_PORT: u16 = 15020;
const READINESS_PORT: u16 = 15021;

/// What a process uses.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub descriptors: usize,
    pub resident_kib: usize,
}

/// The node and its proxy, running or not.
pub struct Node {
    pub name: String,
    pub agent: Agent,
    pub network: NetworkNamespace,
    pub ips: Vec<IpAddr>,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    /// The subcommand that it runs.
    pub role: &'static str,
    /// What the proxy sees as `/etc/resolv.conf`; `None` is the machine's own.
    resolv_conf: Option<PathBuf>,
    process: Option<Child>,
}

impl Node {
    /// A node whose proxy has not been started.
    pub fn new(
        name: &str,
        network: NetworkNamespace,
        ips: &[IpAddr],
        folder: &Path,
        control_plane: Vec<(String, String)>,
    ) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let agent = Agent::start(&folder.join("agent.sock"));
        let mut environment: BTreeMap<_, _> = control_plane.into_iter().collect();
        for (variable, value) in [
            ("NODE_NAME", name.to_owned()),
            ("POD_NAME", format!("proxy-{name}")),
            ("POD_NAMESPACE", "istio-system".to_owned()),
            ("INSTANCE_IP", ips[0].to_string()),
            ("INPOD_UDS", agent.path.display().to_string()),
            ("ZTUNNEL_WORKER_THREADS", "2".to_owned()),
            ("RUST_LOG", "info".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ] {
            environment.insert(variable.to_owned(), value);
        }
        let (ips, name) = (ips.to_vec(), name.to_owned());
        let (role, resolv_conf, process) = ("proxy", None, None);
        Self { name, agent, network, ips, folder, environment, role, resolv_conf, process }
    }

    /// Sets a variable of the proxy's environment, for its next start.
    pub fn set(&mut self, variable: &str, value: impl ToString) {
        self.environment.insert(variable.to_owned(), value.to_string());
    }

    /// Puts a file into the proxy's working directory, in the place of one of this name if there is one.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        let new = path.with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }

    /// A file of the proxy's working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether a control plane describes the mesh to the proxy.
    pub fn has_control_plane(&self) -> bool {
        self.environment.get("XDS_ADDRESS").is_some_and(|address| !address.is_empty())
    }

    /// Gives the proxy an `/etc/resolv.conf` of its own, from its next start.
    pub fn set_resolv_conf(&mut self, text: &str) {
        self.resolv_conf = Some(self.write("resolv.conf", text));
    }

    /// The program that becomes the proxy.
    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_corelane");
        let Some(path) = &self.resolv_conf else {
            let mut command = Command::new(program);
            command.arg(self.role);
            return command;
        };
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" proxy";
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(path).arg(program);
        command
    }

    /// Starts the proxy.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = File::options().append(true).create(true).open(self.log_path()).unwrap();
        let mut command = self.command();
        command.current_dir(&self.folder).env_clear().envs(&self.environment);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // A child starts out in the namespace of the thread that forks it.
        self.process = Some(self.network.within(|| command.spawn()).unwrap().unwrap());
    }

    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the proxy runs").id()
    }

    /// Asks the proxy to end in order.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills the proxy, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.until_ended();
    }

    fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(i32::try_from(self.process_id()).unwrap()).unwrap();
        kill_process(process, signal).unwrap();
    }

    /// Waits until the proxy has ended.
    pub fn until_ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut process = self.process.take().expect("the proxy runs");
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the proxy has neither ended nor been stopped.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("proxy.log")
    }

    /// What the proxy has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until the log holds a line with all of `words`.
    pub fn until_logged(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{words:?} is not in the log of {}:\n{log}", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks one of the proxy's own pages; status and body.
    pub fn ask(&self, method: &str, port: u16, path: &str) -> io::Result<(u16, String)> {
        let mut socket: TcpStream =
            traffic::connect(&self.network, SocketAddr::from(([127, 0, 0, 1], port)))?;
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status =
            head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    }

    /// Whether the readiness page says so.
    pub fn is_ready(&self) -> bool {
        matches!(self.ask("GET", READINESS_PORT, "/healthz/ready"), Ok((200, _)))
    }

    /// Waits until the readiness page answers so.
    pub fn until_ready(&mut self, ready: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.is_ready() != ready {
            assert!(
                Instant::now() < deadline && self.is_running(),
                "{} ready is not {ready}: {:?}\n{}",
                self.name,
                self.ask("GET", READINESS_PORT, "/healthz/ready"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn config_dump(&self) -> Value {
        let (status, body) = self.ask("GET", ADMIN_PORT, "/config_dump").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn metrics(&self) -> String {
        self.ask("GET", METRICS_PORT, "/metrics").unwrap().1
    }

    /// What the proxy's process uses.
    pub fn usage(&self) -> Usage {
        let process = self.process_id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Usage {
            descriptors: std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    /// The sum of the samples of a metric whose labels contain all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics();
        let lines = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            process.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}
