//! `corelane tunnel` against foreign HBONE peers: OpenSSL with Python's `h2`, and Envoy with BoringSSL and nghttp2 or
//! oghttp2. `scripts/setup-peers` installs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // helpers of tests

mod tunnel_support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tunnel_support::*;

const HINT: &str = "run scripts/setup-peers, or set CORELANE_TEST_ENVOY and CORELANE_TEST_PYTHON";

/// A program that `scripts/setup-peers` installs, or that the environment names.
fn peer(variable: &str, installed: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers").join(installed),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: {HINT}", path.display());
    path
}

fn python(role: &str, files: &Files, arguments: &[&str]) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/hbone_peer.py");
    let mut command = Command::new(peer("CORELANE_TEST_PYTHON", "venv/bin/python"));
    command.arg(script).arg(role).arg("--cert").arg(&files.cert).arg("--key").arg(&files.key);
    command.arg("--ca").arg(&files.ca).args(arguments);
    Process::start("python", &mut command)
}

fn client(pki: &Pki, peer: SocketAddr, authority: &str) -> (Process, SocketAddr) {
    let at = address();
    let (listen, peer) = (at.to_string(), peer.to_string());
    // One worker, so that there is one pool and one tunnel.
    let mut arguments = vec!["--listen", &listen, "--peer", &peer, "--authority", authority];
    arguments.extend(["--peer-identity", SERVER, "--workers", "1"]);
    (start("client", &pki.issue("client", CLIENT), &arguments), at)
}

fn server(pki: &Pki) -> (Process, SocketAddr) {
    let at = address();
    (start("server", &pki.issue("server", SERVER), &["--listen", &at.to_string(), "--allow", CLIENT]), at)
}

/// Sends a bulk and ends; what comes back must be the same.
fn assert_echoes(at: SocketAddr, length: usize) {
    let mut stream = dial(at);
    let mut writing = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let bytes = pattern(11, length);
        writing.write_all(&bytes).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
        Sha256::digest(&bytes)
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), length);
    assert_eq!(Sha256::digest(&answer), writer.join().unwrap());
}

#[test]
fn our_client_with_a_python_server() {
    let pki = Pki::new();
    let at = address();
    let mut peer = python("serve", &pki.issue("peer", SERVER), &["--listen", &at.to_string()]);
    peer.wait_for("listening");
    let (_client, listen) = client(&pki, at, "10.9.8.7:80");
    assert_echoes(listen, 3_000_000);
    let tunnel = peer.wait_for("\"tunnel\"");
    for expected in ["TLSv1.3", "TLS_AES_256_GCM_SHA384", "\"h2\"", CLIENT] {
        assert!(tunnel.contains(expected), "{expected} is missing in {tunnel}");
    }
    let request: Value = serde_json::from_str(&peer.wait_for("\"request\"")).unwrap();
    assert_eq!(request["headers"], json!({":method": "CONNECT", ":authority": "10.9.8.7:80"}));
    // All connections share the tunnel.
    assert_echoes(listen, 10);
    let again: Value = serde_json::from_str(&peer.wait_for("\"stream\": 3")).unwrap();
    assert_eq!(again["event"], "request");
}

#[test]
fn our_client_drops_the_connection_on_any_status_but_200() {
    let pki = Pki::new();
    for status in ["401", "503", "204"] {
        let at = address();
        let files = pki.issue("peer", SERVER);
        let mut peer = python("serve", &files, &["--listen", &at.to_string(), "--status", status]);
        peer.wait_for("listening");
        let (mut client, listen) = client(&pki, at, "10.9.8.7:80");
        let mut stream = dial(listen);
        let end = read_some(&mut stream, &mut [0; 1]);
        assert!(end.is_err() || end.unwrap() == 0);
        assert!(client.wait_for("no stream").contains(status));
    }
}

#[test]
fn our_server_with_a_python_client() {
    let pki = Pki::new();
    let (_server, at) = server(&pki);
    let files = pki.issue("asker", CLIENT);
    let (connect, echo) = (at.to_string(), echo().to_string());
    let mut asker =
        python("ask", &files, &["--connect", &connect, "--authority", &echo, "--send", "through the mesh"]);
    let settings: Value = serde_json::from_str(&asker.wait_for("\"settings\"")).unwrap();
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE and MAX_HEADER_LIST_SIZE of an HBONE server.
    for (id, value) in [("3", 200), ("4", 4 << 20), ("5", 1 << 20), ("6", 64 << 10)] {
        assert_eq!(settings["values"][id], value, "setting {id}");
    }
    assert!(asker.wait_for("\"response\"").contains("200"));
    let end: Value = serde_json::from_str(&asker.wait_for("\"end\"")).unwrap();
    assert_eq!(end, json!({"event": "end", "reset": false, "received": "through the mesh"}));
    assert_eq!(asker.wait(), Some(0));
}

#[test]
fn our_server_refuses_with_the_statuses_of_hbone() {
    let pki = Pki::new();
    let (_server, at) = server(&pki);
    let (files, denied) =
        (pki.issue("asker", CLIENT), pki.issue("denied", "spiffe://cluster.local/ns/app/sa/x"));
    let connect = at.to_string();
    let cases = [
        (&files, "127.0.0.1:1", "CONNECT", "503"),
        (&files, "name.without.control.plane:80", "CONNECT", "503"),
        (&files, "127.0.0.1", "CONNECT", "400"),
        (&files, "127.0.0.1:80", "GET", "400"),
        (&denied, "127.0.0.1:80", "CONNECT", "401"),
    ];
    for (files, authority, method, status) in cases {
        let mut asker =
            python("ask", files, &["--connect", &connect, "--authority", authority, "--method", method]);
        assert!(asker.wait_for("\"response\"").contains(status), "{method} {authority}");
        asker.wait_for("\"end\"");
    }
}

#[test]
fn our_server_refuses_a_python_client_of_another_trust_domain() {
    let pki = Pki::new();
    let (mut server, at) = server(&pki);
    let files = pki.issue("foreign", "spiffe://elsewhere.example/ns/app/sa/client");
    let mut asker = python("ask", &files, &["--connect", &at.to_string(), "--authority", "127.0.0.1:1"]);
    // With TLS 1.3 a client learns of it only after its own handshake.
    assert_ne!(asker.wait(), Some(0));
    server.wait_for("tls_trust_domain");
}

// === Envoy ===

const TYPES: &str = "type.googleapis.com/envoy.extensions";

fn tls_context(direction: &str, files: &Files, peer: &str) -> Value {
    let mut context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.{direction}TlsContext"),
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": files.cert}, "private_key": {"filename": files.key}
            }],
            "validation_context": {
                "trusted_ca": {"filename": files.ca},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]
            }
        }
    });
    if direction == "Downstream" {
        context["require_client_certificate"] = json!(true);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn socket_address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn cluster(name: &str, at: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket_address(at)}}
        ]}]}
    })
}

fn envoy(pki: &Pki, name: &str, listener: &Value, cluster: &Value) -> Process {
    let config = pki.path().join(format!("{name}.json"));
    let text = json!({"static_resources": {"listeners": [listener], "clusters": [cluster]}}).to_string();
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(peer("CORELANE_TEST_ENVOY", "envoy"));
    command.args(["--concurrency", "1", "--log-level", "info", "--disable-hot-restart", "-c"]).arg(&config);
    let mut process = Process::start("envoy", &mut command);
    process.wait_for("starting main dispatch loop");
    process
}

#[test]
fn our_client_with_envoy_as_server() {
    let pki = Pki::new();
    let at = address();
    let route = json!({
        "match": {"connect_matcher": {}},
        "route": {"cluster": "application", "timeout": "0s", "upgrade_configs": [
            {"upgrade_type": "CONNECT", "connect_config": {}}
        ]}
    });
    let manager = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "hbone",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPES}.filters.http.router.v3.Router")
        }}]
    });
    let listener = json!({
        "name": "hbone", "address": socket_address(at),
        "filter_chains": [{
            "transport_socket": tls_context("Downstream", &pki.issue("envoy", SERVER), CLIENT),
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }]
    });
    let _envoy = envoy(&pki, "server", &listener, &cluster("application", echo()));
    let (_client, listen) = client(&pki, at, "10.9.8.7:80");
    for length in [0, 1, 70_000, 8_000_000] {
        assert_echoes(listen, length);
    }
}

#[test]
fn our_server_with_envoy_as_client() {
    let pki = Pki::new();
    let (_server, server_at) = server(&pki);
    let at = address();
    let proxy = json!({
        "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "hbone", "cluster": "peer",
        "tunneling_config": {"hostname": echo().to_string()}
    });
    let listener = json!({
        "name": "plain", "address": socket_address(at),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}]
    });
    let mut peer = cluster("peer", server_at);
    peer["transport_socket"] = tls_context("Upstream", &pki.issue("envoy", CLIENT), SERVER);
    peer["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}}
        }
    });
    let _envoy = envoy(&pki, "client", &listener, &peer);
    for length in [0, 1, 70_000, 8_000_000] {
        assert_echoes(at, length);
    }
}
