//! What the tests of `corelane tunnel` share: certificates, processes, applications behind the tunnel.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // the support of tests only

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

/// How long anything may take before a test gives up. Only a failure waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";
pub const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";

/// A certificate authority and the files that it has made.
pub struct Pki {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of one certificate.
#[derive(Clone)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Pki {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // OpenSSL takes a certificate whose subject is its issuer for self-signed.
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), root.pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn ca(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    /// A certificate that names `identity`; the file names come from `name`.
    pub fn issue(&self, name: &str, identity: &str) -> Files {
        self.issue_valid(name, identity, (2020, 2090))
    }

    pub fn issue_valid(&self, name: &str, identity: &str, years: (i32, i32)) -> Files {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            cert: self.path().join(format!("{name}.pem")),
            key: self.path().join(format!("{name}.key")),
            ca: self.ca(),
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// An address of this machine that nothing else uses: each call gives another one of 127.0.0.0/8.
pub fn address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut seed = [0; 2];
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    seed.copy_from_slice(&pid.to_be_bytes()[2..]);
    let [_, _, high, low] = (next / 200 % 200).to_be_bytes();
    let ip = Ipv4Addr::new(127, 16_u8.saturating_add(low).saturating_add(high), seed[0], seed[1]);
    SocketAddr::new(ip.into(), 15_000 + u16::try_from(next % 200).unwrap())
}

/// A process of ours; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts a program whose log goes to stderr or stdout.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let (send, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stderr.take().unwrap()), Box::new(child.stdout.take().unwrap())];
        for stream in streams {
            let (send, name) = (send.clone(), name.to_owned());
            thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    eprintln!("[{name}] {line}");
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { name: name.to_owned(), child, lines, seen: Vec::new() }
    }

    /// Waits for a log line that contains `text`, those before included.
    pub fn wait_for(&mut self, text: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("{} never said {text:?}; it said {:#?}", self.name, self.seen));
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the process to end in order.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `corelane tunnel ROLE ARGUMENTS`, without waiting for it to listen.
pub fn spawn(role: &str, files: &Files, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(["--log", "debug", "tunnel", role, "--cert"]).arg(&files.cert);
    command.arg("--key").arg(&files.key).arg("--ca").arg(&files.ca).args(arguments);
    command.env("NO_COLOR", "1");
    Process::start(role, &mut command)
}

/// The same, and waits until it listens.
pub fn start(role: &str, files: &Files, arguments: &[&str]) -> Process {
    let mut process = spawn(role, files, arguments);
    process.wait_for("listening");
    process
}

/// A client and a server, and an application behind them.
pub struct Pair {
    pub client: Process,
    pub server: Process,
    /// Where the client takes connections.
    pub at: SocketAddr,
    pub server_at: SocketAddr,
    pub pki: Pki,
}

impl Pair {
    pub fn new(application: SocketAddr, extra: &[&str]) -> Self {
        let pki = Pki::new();
        let (client_files, server_files) = (pki.issue("client", CLIENT), pki.issue("server", SERVER));
        let (at, server_at) = (address(), address());
        let (listen, peer) = (at.to_string(), server_at.to_string());
        let mut arguments = vec!["--listen", &peer];
        arguments.extend(extra);
        let server = start("server", &server_files, &arguments);
        let authority = application.to_string();
        let mut arguments =
            vec!["--listen", &listen, "--peer", &peer, "--authority", &authority, "--peer-identity", SERVER];
        arguments.extend(extra);
        let client = start("client", &client_files, &arguments);
        Self { client, server, at, server_at, pki }
    }

    pub fn connect(&self) -> TcpStream {
        dial(self.at)
    }
}

pub fn dial(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads what is there, again when a signal cut the call short.
pub fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Serves each connection on a thread of its own.
pub fn application<S>(serve: S) -> SocketAddr
where
    S: Fn(TcpStream) + Send + Sync + Clone + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    at
}

/// Sends back what it gets, until the end, and then ends.
pub fn echo() -> SocketAddr {
    application(|mut stream| {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        drop(stream.shutdown(Shutdown::Write));
    })
}

/// Bytes that are wrong in any other place: a generator with a seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
