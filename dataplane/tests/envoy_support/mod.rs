//! Envoy as the judge: a process in a pod's network, and a client that speaks to it and to us alike.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

pub mod policy;
pub mod rbac;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dataplane::net::NetworkNamespace;
use serde_json::{Value, json};

use super::tunnel_support::Process;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Full name of a configuration type.
pub fn typed(name: &str) -> String {
    format!("{TYPES}.{name}")
}

/// Starts the Envoy that `scripts/setup-peers` installs, or that the environment names.
pub fn start(network: &NetworkNamespace, directory: &Path, config: &Value) -> Process {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/envoy");
    let program = std::env::var_os("CORELANE_TEST_ENVOY").map_or(installed, PathBuf::from);
    assert!(program.exists(), "{} is missing: run scripts/setup-peers", program.display());
    let file = directory.join("envoy.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut process = network
        .within(|| {
            let mut command = Command::new(&program);
            command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
            command.args(["--component-log-level", "main:info", "-c"]).arg(&file);
            Process::start("envoy", &mut command)
        })
        .unwrap();
    process.wait_for("starting main dispatch loop");
    process
}

/// A listener of HTTP on all addresses of the pod that knows no backend: `manager` is merged into its connection manager.
pub fn listener(port: u16, manager: Value) -> Value {
    let mut all = json!({
        "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "judge",
        "use_remote_address": false,
    });
    all.as_object_mut().unwrap().extend(manager.as_object().unwrap().clone());
    json!({
        "name": format!("port-{port}"),
        "address": { "socket_address": { "address": "::", "ipv4_compat": true, "port_value": port } },
        "filter_chains": [{
            "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": all }]
        }]
    })
}

pub fn router() -> Value {
    json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": typed("filters.http.router.v3.Router") } })
}

/// A connection, in the clear or within TLS.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A client of HTTP/1.1 on one connection.
pub struct Wire {
    reader: BufReader<Box<dyn Stream>>,
}

/// Status and head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
}

impl Wire {
    pub fn plain(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(Box::new(socket)) }
    }

    pub fn tls(socket: TcpStream, config: Arc<rustls::ClientConfig>) -> Self {
        socket.set_nodelay(true).unwrap();
        let session = rustls::ClientConnection::new(config, "judge.invalid".try_into().unwrap()).unwrap();
        Self { reader: BufReader::new(Box::new(rustls::StreamOwned::new(session, socket))) }
    }

    /// Sends a request without a body and reads the whole response.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.reader.get_mut().write_all(request)?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("ends after {head:?}")));
            }
        }
        let status = head.get(9..12).and_then(|digits| digits.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no response: {head:?}")))?;
        let answer = Answer { status, head };
        let length = answer.field("content-length").map_or(0, |length| length.parse().unwrap());
        self.reader.read_exact(&mut vec![0; length])?;
        Ok(answer)
    }
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// SplitMix64: the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    pub fn pick<'a, T: ?Sized>(&mut self, words: &[&'a T]) -> &'a T {
        words[self.roll(words.len())]
    }

    /// One to `most` different words.
    pub fn words(&mut self, most: usize, words: &[&'static str]) -> Vec<&'static str> {
        let mut picked: Vec<_> = (0..=self.roll(most)).map(|_| self.pick(words)).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }
}
