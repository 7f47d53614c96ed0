//! Starts a topology: the processes of its proxies from the last to the first, its backend, its redirections.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::custom::Custom;
use super::{MEMORY_MAX, NodeMesh, Nodes, Rules, Running, Setup, Spec, Starter, envoy, haproxy};
use crate::Failure;
use crate::certificates::identity;
use crate::compare::churn::Changes;
use crate::compare::grpc;
use crate::compare::handshake::Tunnel;
use crate::compare::http::Ask;
use crate::compare::http::client::{self, Target};
use crate::compare::mesh::{self, Mesh};
use crate::compare::programs::require;
use crate::compare::result::Kind;
use crate::compare::site::Site;
use crate::process::{Process, Program};

/// How long a topology may take until it answers as it shall.
const PATIENCE: Duration = Duration::from_secs(20);

/// One start under way.
pub(super) struct Start<'a> {
    pub(super) spec: &'a Spec,
    pub(super) setup: &'a Setup,
    pub(super) site: &'a Site,
    pub(super) rules: Rules,
    pub(super) folder: PathBuf,
}

impl Start<'_> {
    pub(super) fn backend(&self) -> Result<Process, Failure> {
        let listen = self.site.backend().listen;
        let role = if self.rules == Rules::Grpc { "grpc-backend" } else { "http-backend" };
        let arguments = ["peer".to_owned(), role.to_owned(), "--listen".to_owned(), listen.to_string()];
        let mut program = Program::new(&self.setup.programs.perf, arguments);
        program.network = Some(self.site.server.clone());
        program.log = Some(self.folder.join("backend.log"));
        let mut backend = Process::start(&program, self.setup.cores.load, self.setup.cores.load)?;
        backend.wait_listening(listen)?;
        Ok(backend)
    }

    fn target(&self, address: SocketAddr) -> Target {
        let (path, fields) = match self.rules {
            Rules::One | Rules::Changing => ("/v1/blue/users/", ""),
            Rules::Grpc => ("/v1/perf.Echo/users/Echo", ""),
            Rules::Many => ("/svc/999/api/", "x-tenant: tenant-999\r\n"),
        };
        let (path, fields) = (path.to_owned(), fields.to_owned());
        Target { address, ask: Ask { host: "app.perf.svc.cluster.local".to_owned(), path, fields } }
    }

    pub(super) fn proxies(&self, backend: Process) -> Result<Running, Failure> {
        let starter = &self.spec.starter;
        let entry = match starter {
            Starter::Nothing => self.site.backend_afar(),
            _ => self.site.outbound().dial,
        };
        // A sidecar is redirected to; a tunnel has its own port, and one hop has no proxy at the server.
        let redirected = match starter {
            Starter::Nothing | Starter::Nodes(_) => None,
            Starter::Relays | Starter::Sidecars { .. } | Starter::EnvoyL4 | Starter::Haproxy(_) => {
                Some(self.site.redirect(true)?)
            }
            Starter::Custom(custom) => Some(self.site.redirect(custom.is_redirected_inbound())?),
            _ => Some(self.site.redirect(false)?),
        };
        let mut mesh = None;
        let processes = match starter {
            Starter::Nothing => Vec::new(),
            Starter::Relays => self.relays()?,
            Starter::Haproxy(_) => self.haproxies()?,
            Starter::HaproxyHop | Starter::NginxHop => self.hop()?,
            Starter::Tunnel { driver, workers, congestion } => self.tunnel(driver, *workers, *congestion)?,
            Starter::Nodes(nodes) => {
                let (running, processes) = self.nodes(nodes)?;
                mesh = Some(running);
                processes
            }
            Starter::Custom(custom) => self.custom(custom)?,
            _ => self.envoys()?,
        };
        let door = self.site.tunnel().dial;
        let tunnel = starter.takes_tunnels().then(|| Tunnel::new(door, &self.setup.certificates));
        let changes = (self.rules == Rules::Changing).then(|| match starter {
            Starter::Nodes(_) => Changes::Mesh(self.folder.join("mesh")),
            _ => Changes::Files(self.folder.clone()),
        });
        let target = self.target(entry);
        Ok(Running { processes, backend, target, tunnel, changes, _mesh: mesh, _redirected: redirected })
    }

    fn custom(&self, custom: &Custom) -> Result<Vec<Process>, Failure> {
        let commands = custom.commands(self.site, &self.setup.certificates)?.into_iter().map(|command| {
            let mut program = Program::new(command.program, command.arguments);
            program.environment = custom.environment();
            (program, command.listen)
        });
        self.launch_all(commands.collect())
    }

    /// Starts one of the measured processes, in the network of its place.
    fn launch(&self, index: usize, program: Program, listen: SocketAddr) -> Result<Process, Failure> {
        let network = match (index, self.spec.processes.len()) {
            (0, _) => &self.site.client,
            (1, 3) => &self.site.waypoint,
            _ => &self.site.server,
        };
        let memory_max = (self.spec.kind == Kind::Ours).then_some(MEMORY_MAX);
        let program =
            Program { network: Some(network.clone()), log: Some(self.log(index)), memory_max, ..program };
        let mut process = Process::start(&program, self.setup.cores.measured, self.setup.cores.load)?;
        process.wait_listening(listen).map_err(|error| self.explained(&error.to_string()))?;
        Ok(process)
    }

    /// The last process is started first, so that each finds the next one.
    fn launch_all(&self, programs: Vec<(Program, SocketAddr)>) -> Result<Vec<Process>, Failure> {
        let mut processes = Vec::new();
        for (index, (program, listen)) in programs.into_iter().enumerate().rev() {
            processes.push(self.launch(index, program, listen)?);
        }
        processes.reverse();
        Ok(processes)
    }

    fn relays(&self) -> Result<Vec<Process>, Failure> {
        let relay = |listen: SocketAddr, to: SocketAddr| {
            let arguments = ["peer", "relay", "--runtime", "tokio", "--listen"].map(str::to_owned);
            let addresses = [listen.to_string(), "--to".to_owned(), to.to_string()];
            (Program::new(&self.setup.programs.perf, arguments.into_iter().chain(addresses)), listen)
        };
        let (outbound, inbound) = (self.site.outbound(), self.site.inbound());
        let server = relay(inbound.listen, self.site.backend().dial);
        self.launch_all(vec![relay(outbound.listen, inbound.dial), server])
    }

    fn envoys(&self) -> Result<Vec<Process>, Failure> {
        let path = &self.setup.programs.envoy;
        require(path, "run scripts/setup-peers")?;
        let pair =
            envoy::Pair { site: self.site, certificates: &self.setup.certificates, folder: &self.folder };
        let (outbound, inbound) = (self.site.outbound().listen, self.site.inbound().listen);
        let tunnel = self.site.tunnel().listen;
        let (bootstraps, listens) = match self.spec.starter {
            Starter::Sidecars { http2, telemetry } => {
                (pair.sidecars(http2, telemetry, self.rules), vec![outbound, inbound])
            }
            Starter::EnvoyL4 => (pair.l4(), vec![outbound, inbound]),
            Starter::EnvoyHbone => (pair.hbone(), vec![outbound, tunnel]),
            Starter::EnvoyWaypoint => {
                (pair.waypoint(), vec![outbound, self.site.waypoint_door().listen, tunnel])
            }
            _ => (pair.hop(self.rules), vec![outbound]),
        };
        if self.rules == Rules::Changing {
            Changes::Files(self.folder.clone()).make(0)?;
        }
        let mut programs = Vec::new();
        for ((index, bootstrap), listen) in bootstraps.into_iter().enumerate().zip(listens) {
            let file = self.folder.join(format!("{index}.json"));
            fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
            let file = file.display().to_string();
            let (id, one) = (index.to_string(), "1".to_owned());
            let arguments = [
                "-c",
                &file,
                "--base-id",
                &id,
                "--concurrency",
                &one,
                "--log-level",
                "warn",
                "--disable-hot-restart",
            ];
            programs.push((Program::new(path, arguments.map(str::to_owned)), listen));
        }
        self.launch_all(programs)
    }

    fn haproxies(&self) -> Result<Vec<Process>, Failure> {
        let Starter::Haproxy(between) = self.spec.starter else { return Ok(Vec::new()) };
        let files = haproxy::pair(self.site, &self.setup.certificates, between, self.rules);
        let listens = [self.site.outbound().listen, self.site.inbound().listen];
        let mut programs = Vec::new();
        for ((index, text), listen) in files.into_iter().enumerate().zip(listens) {
            programs.push((self.haproxy(index, &text)?, listen));
        }
        self.launch_all(programs)
    }

    fn haproxy(&self, index: usize, text: &str) -> Result<Program, Failure> {
        let path = &self.setup.programs.haproxy;
        require(path, "run scripts/setup-peers")?;
        let file = self.folder.join(format!("{index}.cfg"));
        fs::write(&file, text)?;
        Ok(Program::new(path, ["-db", "-f", &file.display().to_string()].map(str::to_owned)))
    }

    fn hop(&self) -> Result<Vec<Process>, Failure> {
        let listen = self.site.outbound().listen;
        let program = if matches!(self.spec.starter, Starter::HaproxyHop) {
            self.haproxy(0, &haproxy::hop(self.site, self.rules))?
        } else {
            let path = &self.setup.programs.nginx;
            require(path, "run scripts/setup-peers")?;
            let folder = self.folder.display().to_string();
            let file = self.folder.join("nginx.conf");
            fs::write(&file, haproxy::nginx(listen, self.site.backend_afar(), &folder))?;
            let file = file.display().to_string();
            Program::new(path, ["-p", &folder, "-e", "stderr", "-c", &file].map(str::to_owned))
        };
        self.launch_all(vec![(program, listen)])
    }

    fn corelane(&self) -> Result<&Path, Failure> {
        let path = &self.setup.programs.corelane;
        require(path, "build it with the same profile: cargo build -p dataplane --bin corelane")?;
        Ok(path)
    }

    fn tunnel(
        &self,
        driver: &str,
        workers: usize,
        congestion: Option<&str>,
    ) -> Result<Vec<Process>, Failure> {
        let corelane = self.corelane()?;
        let certificates = &self.setup.certificates;
        let (outbound, door) = (self.site.outbound(), self.site.tunnel());
        let role = |role: &str, listen: SocketAddr, more: &[String]| {
            let mut arguments = vec!["tunnel".to_owned(), role.to_owned()];
            let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
            add("--listen", listen.to_string());
            add("--workers", workers.to_string());
            add("--driver", driver.to_owned());
            add("--cert", certificates.certificate(role).display().to_string());
            add("--key", certificates.key(role).display().to_string());
            add("--ca", certificates.root().display().to_string());
            if let Some(congestion) = congestion {
                add("--congestion", congestion.to_owned());
            }
            arguments.extend_from_slice(more);
            (Program::new(corelane, arguments), listen)
        };
        let authority = self.site.backend().dial.to_string();
        let peer = ["--peer".to_owned(), door.dial.to_string(), "--authority".to_owned(), authority];
        let peer = [peer.as_slice(), &["--peer-identity".to_owned(), identity("server")]].concat();
        let allowed = ["--allow".to_owned(), identity("client")];
        self.launch_all(vec![role("client", outbound.listen, &peer), role("server", door.listen, &allowed)])
    }

    fn nodes(&self, nodes: &Nodes) -> Result<(mesh::Running, Vec<Process>), Failure> {
        let path = match &nodes.program {
            Some(path) => path,
            None => self.corelane()?,
        };
        let mesh = match nodes.mesh {
            NodeMesh::L4 => Mesh::L4,
            NodeMesh::L7 => Mesh::L7(self.rules),
            NodeMesh::Hop => Mesh::Hop(self.rules),
            NodeMesh::Waypoint => Mesh::Waypoint(self.rules),
        };
        let running = mesh::Running::start(self.site, mesh, &self.folder)?;
        let mut processes = Vec::new();
        for (index, place) in running.places(self.site).into_iter().enumerate() {
            let mesh::Place { network, role, mut environment } = place;
            let mut start = Program::new(path, [role]);
            environment.push(("ZTUNNEL_WORKER_THREADS".to_owned(), nodes.workers.to_string()));
            environment.push(("RUST_LOG".to_owned(), nodes.log.to_owned()));
            if nodes.program.is_none() {
                environment.push(("CORELANE_DRIVER".to_owned(), nodes.driver.to_owned()));
                environment.push(("CORELANE_LAYER_7".to_owned(), "true".to_owned()));
            }
            start.environment =
                environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            start.memory_max = nodes.program.is_none().then_some(MEMORY_MAX);
            start.network = Some(network);
            start.log = Some(self.log(index));
            processes.push(Process::start(&start, self.setup.cores.measured, self.setup.cores.load)?);
        }
        Ok((running, processes))
    }

    /// A request is answered, and what no rule allows is refused.
    pub(super) fn prove(&self, running: &mut Running) -> Result<(), Failure> {
        let target = running.target.clone();
        let ask = |target: &Target| match self.rules {
            Rules::Grpc => grpc::client::status_of(target),
            _ => client::status_of(target),
        };
        self.site.client.within(|| match self.rules {
            Rules::Grpc => client::until_status(200, PATIENCE, || ask(&target)),
            _ => client::until_answered(&target, PATIENCE),
        })??;
        if let Some((path, status)) = self.spec.refusal.request(self.rules) {
            let mut denied = target;
            path.clone_into(&mut denied.ask.path);
            self.site.client.within(|| client::until_status(status, PATIENCE, || ask(&denied)))??;
        }
        match running.processes.iter_mut().enumerate().find_map(|(index, it)| Some((index, it.ended()?))) {
            Some((index, status)) => Err(format!("process {index} ended: {status}").into()),
            None => Ok(()),
        }
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index}.log"))
    }

    /// The error with the end of what the processes wrote.
    pub(super) fn explained(&self, error: &str) -> Failure {
        let mut text = format!("{}: {error}", self.spec.name);
        for index in 0..self.spec.processes.len() {
            let log = fs::read_to_string(self.log(index)).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(6).collect();
            for line in lines.into_iter().rev() {
                // Writing into a String cannot fail.
                let _ = write!(text, "\n    {}: {line}", self.spec.processes[index]);
            }
        }
        text.into()
    }
}
