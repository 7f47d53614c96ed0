//! TLS 1.2 over loopback against OpenSSL, in both roles: an implementation that shares nothing with ours.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

use super::*;

/// OpenSSL's names of the suites, the key that each needs, and ours.
const SUITES: [(&str, bool, CipherSuite); 4] = [
    ("ECDHE-ECDSA-AES256-GCM-SHA384", false, CipherSuite::EcdheEcdsaAes256GcmSha384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", false, CipherSuite::EcdheEcdsaAes128GcmSha256),
    ("ECDHE-RSA-AES256-GCM-SHA384", true, CipherSuite::EcdheRsaAes256GcmSha384),
    ("ECDHE-RSA-AES128-GCM-SHA256", true, CipherSuite::EcdheRsaAes128GcmSha256),
];
const PATIENCE: Duration = Duration::from_mins(1);

fn leaf(identity: &str, rsa: bool) -> Leaf {
    let key = if rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
    Leaf { key, ..Leaf::of(identity) }
}

/// The peer's process; its files go with it.
struct Peer {
    process: Child,
    lines: BufReader<ChildStdout>,
    files: PathBuf,
}

impl Peer {
    fn start(role: &str, port: u16, authority: &Authority, leaf: &Leaf, options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("corelane-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let files = std::env::temp_dir().join(unique);
        std::fs::create_dir(&files).unwrap();
        let (certificate, key) = authority.certificate(leaf);
        let write = |name: &str, tag: &str, der: &[u8]| {
            let path = files.join(name);
            std::fs::write(&path, pem(tag, der)).unwrap();
            path
        };
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/tls_peer.py"));
        command.args([role, &port.to_string()]);
        command.arg(write("cert.pem", "CERTIFICATE", &certificate));
        command.arg(write("key.pem", "PRIVATE KEY", key.secret_der()));
        command.arg(write("ca.pem", "CERTIFICATE", authority.root()));
        let mut process =
            command.args(options).stdout(Stdio::piped()).spawn().expect("python3 with its ssl module");
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines, files }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn port(&mut self) -> u16 {
        self.line().chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
    }

    fn assert_session(&mut self, suite: &str, identity: &str) {
        let line = self.line();
        for expected in ["\"TLSv1.2\"", suite, "\"h2\"", identity] {
            assert!(line.contains(expected), "{expected} is missing in {line}");
        }
    }

    fn assert_ended_in_order(&mut self) {
        assert_eq!(self.line(), "{\"end\": \"close_notify\"}\n");
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _over = self.process.kill();
        let _gone = self.process.wait();
        let _removed = std::fs::remove_dir_all(&self.files);
    }
}

/// Our side on a socket.
struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    fn new(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, buffer: Vec::new() }
    }

    /// The next whole record; none at the end.
    fn record(&mut self) -> Option<Vec<u8>> {
        loop {
            match record_length(&self.buffer).unwrap() {
                Some(length) if length <= self.buffer.len() => {
                    return Some(self.buffer.drain(..length).collect());
                }
                _ => {}
            }
            let mut more = vec![0; 40_000];
            let count = self.socket.read(&mut more).unwrap();
            if count == 0 {
                return None;
            }
            self.buffer.extend_from_slice(&more[..count]);
        }
    }

    fn shake(&mut self, mut ours: Handshake, mut output: Vec<u8>) -> Outcome {
        loop {
            self.socket.write_all(&output).unwrap();
            output.clear();
            let record = self.record().expect("the peer went away");
            let outcome = ours.feed(&record, &mut output);
            if !matches!(outcome, Ok(Progress::NeedMore)) {
                self.socket.write_all(&output).unwrap();
            }
            match outcome {
                Ok(Progress::NeedMore) => {}
                Ok(Progress::Established(established)) => return Ok(established),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next payload; none when the peer has sent close_notify.
    fn payload(&mut self, records: &mut Records) -> Option<Vec<u8>> {
        loop {
            let mut record = self.record().expect("the end without close_notify");
            match records.open(&mut record).unwrap() {
                Opened::Data(bytes) => return Some(bytes.to_vec()),
                Opened::Nothing => {}
                Opened::Closed => return None,
            }
        }
    }

    fn close(&mut self, records: &mut Records) {
        let mut output = Output::default();
        records.alert(&mut output, AlertCode::CLOSE_NOTIFY).unwrap();
        self.socket.write_all(output.ready()).unwrap();
    }
}

fn assert_established(outcome: Outcome, cipher: CipherSuite, peer: &str) -> Records {
    let Established { peer: proven, cipher: agreed, secrets, schedule } = *outcome.unwrap();
    assert_eq!((agreed, proven.identity().uri()), (cipher, peer));
    Records::new(secrets, schedule).unwrap()
}

#[test]
fn our_client_speaks_tls12_with_openssl() {
    for (suite, rsa, cipher) in SUITES {
        let authority = Authority::new();
        let mut peer = Peer::start("serve", 0, &authority, &leaf(SERVER, rsa), &[suite]);
        let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", peer.port())).unwrap());
        let context =
            ClientContext::new(&authority.issue(&leaf(CLIENT, rsa)), CryptoPolicy::StandardAndTls12).unwrap();
        let mut hello = Vec::new();
        let ours = Handshake::client(&context, &expecting(&[SERVER]), &mut hello).unwrap();
        let mut records = assert_established(wire.shake(ours, hello), cipher, SERVER);
        peer.assert_session(suite, CLIENT);
        for round in 0..60_usize {
            let bytes: Vec<u8> = (0..=round * 997 % 50_000).map(|n| (n ^ round).to_le_bytes()[0]).collect();
            wire.socket.write_all(&written(&mut records, &bytes)).unwrap();
            let mut echoed = Vec::new();
            while echoed.len() < bytes.len() {
                echoed.extend(wire.payload(&mut records).unwrap());
            }
            assert_eq!(echoed, bytes);
        }
        wire.close(&mut records);
        assert_eq!(wire.payload(&mut records), None);
        peer.assert_ended_in_order();
    }
}

#[test]
fn our_server_speaks_tls12_with_openssl() {
    for (suite, rsa, cipher) in SUITES {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut peer = Peer::start("ask", port, &authority, &leaf(CLIENT, rsa), &[suite]);
        let mut wire = Wire::new(listener.accept().unwrap().0);
        let context =
            ServerContext::new(&authority.issue(&leaf(SERVER, rsa)), CryptoPolicy::StandardAndTls12).unwrap();
        let ours = Handshake::server(&context).unwrap();
        let mut records = assert_established(wire.shake(ours, Vec::new()), cipher, CLIENT);
        peer.assert_session(suite, SERVER);
        while let Some(bytes) = wire.payload(&mut records) {
            wire.socket.write_all(&written(&mut records, &bytes)).unwrap();
        }
        wire.close(&mut records);
        peer.assert_ended_in_order();
    }
}

/// What our server answers to OpenSSL, and what OpenSSL makes of it.
fn refused_by_our_server(policy: CryptoPolicy, options: &[&str]) -> (CloseCause, String) {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut peer = Peer::start("ask", port, &authority, &Leaf::of(CLIENT), options);
    let mut wire = Wire::new(listener.accept().unwrap().0);
    let context = ServerContext::new(&authority.identity(SERVER), policy).unwrap();
    let error = wire.shake(Handshake::server(&context).unwrap(), Vec::new()).unwrap_err();
    (error.close_cause(), peer.line())
}

#[test]
fn openssl_is_refused_where_it_is_not_switched_on_and_told_why() {
    let (cause, told) = refused_by_our_server(CryptoPolicy::Standard, &[SUITES[0].0]);
    assert_eq!(cause, CloseCause::TlsNegotiation);
    assert_eq!(told, "{\"refused\": \"TLSV1_ALERT_PROTOCOL_VERSION\"}\n");
}

#[test]
fn openssl_without_the_extended_master_secret_is_refused_in_both_roles() {
    let (cause, told) = refused_by_our_server(CryptoPolicy::StandardAndTls12, &[SUITES[0].0, "no-ems"]);
    assert_eq!(cause, CloseCause::TlsNegotiation);
    assert!(told.contains("HANDSHAKE_FAILURE"), "{told}");

    let authority = Authority::new();
    let mut peer = Peer::start("serve", 0, &authority, &Leaf::of(SERVER), &[SUITES[0].0, "no-ems"]);
    let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", peer.port())).unwrap());
    let context = ClientContext::new(&authority.identity(CLIENT), CryptoPolicy::StandardAndTls12).unwrap();
    let mut hello = Vec::new();
    let ours = Handshake::client(&context, &expecting(&[SERVER]), &mut hello).unwrap();
    let error = wire.shake(ours, hello).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsNegotiation);
    assert!(peer.line().contains("HANDSHAKE_FAILURE"));
}

#[test]
fn openssl_with_suites_of_older_kinds_only_is_refused() {
    for suite in ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "AES128-GCM-SHA256"] {
        let (cause, told) = refused_by_our_server(CryptoPolicy::StandardAndTls12, &[suite]);
        assert_eq!(cause, CloseCause::TlsNegotiation, "{suite}");
        assert!(told.contains("HANDSHAKE_FAILURE"), "{told}");
    }
}
