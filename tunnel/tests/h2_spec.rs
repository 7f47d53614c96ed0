//! h2spec, all of it, against a small HTTP server made of nothing but the engine and blocking sockets.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // test code outside of test functions

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tunnel::h2::{Config, Connection, Event, Headers, StreamId};

/// Cases of h2spec 2.2.1: generic, http2 and hpack.
const CASES: usize = 145;
/// The same with `--strict`.
const CASES_STRICT: usize = 146;
/// Connections after which the server stops accepting; a run needs about one a case.
const CONNECTIONS_MAX: usize = 1_000;
/// How long a closed connection is drained, so that the peer sees FIN and not RST.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

const INSTALL: &str = "go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";

/// Finds the program in PATH or where `go install` puts it.
fn h2spec() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    if let Some(home) = std::env::var_os("HOME") {
        folders.push(Path::new(&home).join("go/bin"));
    }
    if let Ok(output) = Command::new("go").args(["env", "GOPATH"]).output() {
        folders.push(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("bin"));
    }
    folders.into_iter().map(|folder| folder.join("h2spec")).find(|file| file.is_file())
}

/// One connection: answers each complete request with 200 and a short body.
struct Server {
    connection: Connection,
    out: Vec<u8>,
    bodies: HashMap<StreamId, &'static [u8]>,
}

impl Server {
    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Headers { stream, end_stream: true, .. } | Event::Trailers { stream, .. } => {
                self.answer(stream);
            }
            Event::Data { stream, bytes, end_stream } => {
                self.connection.release(stream, bytes.len(), &mut self.out);
                if end_stream {
                    self.answer(stream);
                }
            }
            Event::Writable { stream } => self.send(stream),
            Event::Reset { stream, .. } => drop(self.bodies.remove(&stream)),
            _ => {}
        }
    }

    fn answer(&mut self, stream: StreamId) {
        let headers = Headers::response(200).expect("a valid status");
        if self.connection.respond(stream, &headers, false, &mut self.out).is_ok() {
            self.bodies.insert(stream, b"hello, h2spec");
            self.send(stream);
        }
    }

    fn send(&mut self, stream: StreamId) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        match self.connection.send_data(stream, body, true, &mut self.out) {
            Ok(accepted) if accepted < body.len() => *body = &body[accepted..],
            _ => drop(self.bodies.remove(&stream)),
        }
    }
}

fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let mut out = Vec::new();
    let mut config = Config::http_server();
    config.max_concurrent_streams = 100;
    let connection = Connection::new(config, Instant::now(), &mut out);
    let mut server = Server { connection, out, bodies: HashMap::new() };
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        socket.write_all(&server.out)?;
        server.out.clear();
        let len = socket.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        let mut input = &buffer[..len];
        loop {
            match server.connection.next_event(&mut input, Instant::now(), &mut server.out) {
                Ok(Some(event)) => server.on_event(event),
                Ok(None) => break,
                Err(_) => {
                    socket.write_all(&server.out)?;
                    socket.shutdown(Shutdown::Write)?;
                    socket.set_read_timeout(Some(DRAIN_TIMEOUT))?;
                    while socket.read(&mut buffer)? > 0 {}
                    return Ok(());
                }
            }
        }
    }
}

/// Serves on loopback until the process ends; gives the port.
fn start_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let port = listener.local_addr().expect("a bound socket").port();
    thread::spawn(move || {
        for socket in listener.incoming().take(CONNECTIONS_MAX).flatten() {
            // Peers of these tests cut connections at will; what they see is what is judged.
            thread::spawn(move || drop(serve(socket)));
        }
    });
    port
}

/// Runs h2spec and gives its output and its last line's count of passed cases.
fn run(program: &Path, port: u16, strict: bool) -> (String, usize) {
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--timeout", "2"]);
    if strict {
        command.arg("--strict");
    }
    let output = command.output().expect("h2spec runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "145 tests, 145 passed, 0 skipped, 0 failed"
    let summary = text.lines().rev().find(|line| line.contains(" passed, ")).unwrap_or_default();
    let passed = summary.split(", ").find_map(|part| part.strip_suffix(" passed"));
    let passed = passed.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    (text, passed)
}

#[test]
fn all_cases_of_h2spec_pass() {
    let program = h2spec().unwrap_or_else(|| panic!("h2spec is not installed; install it with: {INSTALL}"));
    let port = start_server();
    let (text, passed) = run(&program, port, false);
    assert_eq!(passed, CASES, "h2spec failed:\n{text}");
}

#[test]
fn all_cases_of_h2spec_pass_strictly() {
    let program = h2spec().unwrap_or_else(|| panic!("h2spec is not installed; install it with: {INSTALL}"));
    let port = start_server();
    let (text, passed) = run(&program, port, true);
    assert_eq!(passed, CASES_STRICT, "h2spec --strict failed:\n{text}");
}
