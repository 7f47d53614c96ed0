//! Programs of others as clients and servers: curl, wrk, h2load, nginx, a WebSocket stack. Their requests are routed at
//! the client's proxy and authorized at the server's. `scripts/setup-tests` brings them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod client_support;
mod session_support;
mod tunnel_support;

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use client_support::{python, tool};
use session_support::{Bed, checksum, inside, pattern, pods, policy};
use tunnel_support::Process;

/// Through the client's proxy, which routes, and the server's, which authorizes.
const ROUTED: &str = "10.96.1.1:8080";
/// The same, to a port of HTTP/2.
const ROUTED2: &str = "10.96.1.1:8081";

/// A service with a route, and a policy that looks at paths.
fn yaml() -> String {
    let service = |name: &str, ip: u8, selected: &str, third: &str| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {selected} }}, ports: [{{ port: 8080, name: a }}, {{ port: 8081, name: b }}, {{ port: 8082, name: {third} }}] }}
"
        )
    };
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8080 }]
  rules: [{ backendRefs: [{ name: real, port: 8080 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web2, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8081 }]
  rules: [{ backendRefs: [{ name: real2, port: 8081 }] }]
---
apiVersion: v1
kind: Service
metadata: { name: real2, namespace: app }
spec: { clusterIP: 10.96.1.3, selector: { app: server }, ports: [{ port: 8081, appProtocol: kubernetes.io/h2c }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web3, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8082 }]
  rules: [{ backendRefs: [{ name: real, port: 8082 }] }]
";
    let rules = "[{ to: [{ operation: { paths: ['/*'], notPaths: ['/secret*'] } }] }]";
    [
        pods(),
        service("web", 1, "none", "http2-c"),
        service("real", 2, "server", "grpc-c"),
        route.to_owned(),
        policy("all", "ALLOW", rules),
    ]
    .concat()
}

/// nginx in the server's pod with two files: of ten octets, and of five megabytes.
fn nginx(bed: &Bed, folder: &Path) -> Process {
    std::fs::write(folder.join("small"), "0123456789").unwrap();
    std::fs::write(folder.join("large"), pattern(5_000_003)).unwrap();
    let place = folder.display();
    let text = format!(
        "daemon off;
worker_processes 1;
user root root;
pid {place}/pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    if_modified_since before;
    default_type text/plain;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    client_max_body_size 0;
    server {{
        listen 8080;
        listen [::]:8080;
        listen 8081 http2;
        root {place};
        location /moved {{ return 302 /small; }}
        location /chunks {{ gzip on; gzip_types *; gzip_min_length 1; rewrite ^ /large break; }}
    }}
}}
"
    );
    let config = folder.join("nginx.conf");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(tool("nginx"));
    // Its first words go where no one could write without rights.
    command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(&config);
    let process = bed.start("server", "nginx", command);
    listens(bed, 8080);
    process
}

/// Waits until somebody listens in the server's pod.
fn listens(bed: &Bed, port: u16) {
    let deadline = std::time::Instant::now() + session_support::PATIENCE;
    while bed.network("server").within(|| std::net::TcpStream::connect(("127.0.0.1", port))).unwrap().is_err()
    {
        assert!(std::time::Instant::now() < deadline, "nobody listens on {port}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn curl() -> Command {
    let mut command = Command::new(tool("curl"));
    command.args(["--silent", "--show-error", "--max-time", "30"]);
    command
}

#[test]
fn curl_speaks_with_nginx() {
    inside("curl_speaks_with_nginx", || {
        let bed = Bed::new(&yaml());
        let folder = tempfile::tempdir().unwrap();
        let _nginx = nginx(&bed, folder.path());
        let curl = |arguments: &[&str]| bed.run("client", curl().args(arguments));
        let url = |path: &str| format!("http://{ROUTED}{path}");
        assert_eq!(curl(&[&url("/small")]), "0123456789");
        let got = folder.path().join("got");
        for path in ["/large", "/chunks"] {
            curl(&["--compressed", "--output", got.to_str().unwrap(), &url(path)]);
            assert!(std::fs::read(&got).unwrap() == pattern(5_000_003), "{path}");
        }
        assert_eq!(curl(&["--range", "2-4", &url("/small")]), "234");
        assert_eq!(curl(&["--location", &url("/moved")]), "0123456789");
        let status = ["--output", "/dev/null", "--write-out", "%{http_code} %{num_connects}\n"];
        let with = |more: &[&str]| curl(&[&status[..], more].concat());
        assert_eq!(with(&["--head", &url("/large")]), "200 1\n");
        assert_eq!(with(&[&url("/gone")]), "404 1\n");
        assert_eq!(with(&[&url("/secret")]), "403 1\n");
        assert_eq!(with(&["--http1.0", &url("/small")]), "200 1\n");
        assert_eq!(with(&["--header", "Connection: close", &url("/small")]), "200 1\n");
        // Past a conditional request without a body, and on the same connection.
        let again = ["--header", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", &url("/small")]
            .map(str::to_owned);
        assert_eq!(
            with(&[&again[0], &again[1], &again[2], "--output", "/dev/null", &again[2]]),
            "304 1\n304 0\n"
        );
    });
}

#[test]
fn curl_uploads_with_a_length_in_chunks_and_after_asking() {
    inside("curl_uploads_with_a_length_in_chunks_and_after_asking", || {
        let bed = Bed::new(&yaml());
        bed.serve_http("server", 8080, channel().0);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bytes");
        std::fs::write(&file, pattern(3_000_001)).unwrap();
        let (file, url) = (file.to_str().unwrap(), format!("http://{ROUTED}/upload"));
        for more in
            [&[][..], &["--header", "Transfer-Encoding: chunked"], &["--header", "Expect: 100-continue"]]
        {
            let said = bed.run("client", curl().args(more).args(["--upload-file", file, &url]));
            assert!(said.contains(&checksum(&pattern(3_000_001))), "{more:?}: {said}");
        }
        let form = format!("file=@{file}");
        assert!(bed.run("client", curl().args(["--form", &form, &url])).starts_with("server POST /upload "));
    });
}

#[test]
fn wrk_and_h2load_find_no_fault_with_nginx() {
    inside("wrk_and_h2load_find_no_fault_with_nginx", || {
        let bed = Bed::new(&yaml());
        let folder = tempfile::tempdir().unwrap();
        let _nginx = nginx(&bed, folder.path());
        let url = format!("http://{ROUTED}/small");
        let said = bed.run("client", Command::new(tool("wrk")).args(["-t1", "-c16", "-d2s", &url]));
        let requests = said.lines().find_map(|line| line.trim().split_once(" requests in "));
        let count: u64 = requests.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap();
        assert!(count > 0 && !said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
        // Pipelined, and on many connections.
        for more in [["-m1", "-c16"], ["-m8", "-c2"]] {
            let said =
                bed.run("client", Command::new(tool("h2load")).args(["--h1", "-n2000", &url]).args(more));
            assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
            assert!(said.contains("2000 2xx"), "{said}");
        }
        let large = format!("http://{ROUTED}/large");
        let said = bed.run("client", Command::new(tool("h2load")).args(["--h1", "-n20", "-c4", &large]));
        assert!(said.contains("20 succeeded, 0 failed, 0 errored") && said.contains("20 2xx"), "{said}");
        bed.until_idle();
    });
}

#[test]
fn a_websocket_carries_messages_of_all_sizes_and_its_end() {
    inside("a_websocket_carries_messages_of_all_sizes_and_its_end", || {
        let bed = Bed::new(&yaml());
        let mut command = python("websocket_peer.py");
        command.args(["serve", "--listen", "10.244.1.2:8080"]);
        let mut server = bed.start("server", "websocket", command);
        server.wait_for("listening");
        let ask = |path: &str| {
            bed.try_run(
                "client",
                python("websocket_peer.py").args(["ask", "--connect", ROUTED, "--path", path]),
            )
        };
        let (good, said) = ask("/chat");
        assert!(good && said.ends_with("good\n"), "{said}");
        let (good, said) = ask("/secret");
        assert!(!good && said.contains("HTTP 403"), "{said}");
        bed.until_idle();
    });
}

#[test]
fn curl_and_h2load_speak_http2_with_nginx() {
    inside("curl_and_h2load_speak_http2_with_nginx", || {
        let bed = Bed::new(&yaml());
        let folder = tempfile::tempdir().unwrap();
        let _nginx = nginx(&bed, folder.path());
        let got = folder.path().join("got");
        // HTTP/2 to a server of HTTP/2, and HTTP/1.1 to the same.
        for (version, name) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1")] {
            let curl = |arguments: &[&str]| bed.run("client", curl().arg(version).args(arguments));
            let url = |path: &str| format!("http://{ROUTED2}{path}");
            assert_eq!(curl(&[&url("/small")]), "0123456789");
            curl(&["--output", got.to_str().unwrap(), &url("/large")]);
            assert!(std::fs::read(&got).unwrap() == pattern(5_000_003), "HTTP/{name}");
            let status = ["--output", "/dev/null", "--write-out", "%{http_code} %{http_version}"];
            for (path, code) in [("/small", 200), ("/gone", 404), ("/secret", 403), ("/moved", 302)] {
                assert_eq!(curl(&[&status[..], &[&*url(path)]].concat()), format!("{code} {name}"));
            }
            assert!(curl(&["--head", &url("/large")]).contains("5000003"));
        }
        for more in [["-m1", "-c16"], ["-m32", "-c2"]] {
            let url = format!("http://{ROUTED2}/small");
            let said = bed.run("client", Command::new(tool("h2load")).args(["-n2000", &url]).args(more));
            assert!(
                said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout") && said.contains("2000 2xx"),
                "{said}"
            );
        }
        let large = format!("http://{ROUTED2}/large");
        let said = bed.run("client", Command::new(tool("h2load")).args(["-n20", "-c2", "-m4", &large]));
        assert!(said.contains("20 succeeded, 0 failed, 0 errored") && said.contains("20 2xx"), "{said}");
        bed.until_idle();
    });
}

/// The cases of gRPC's interoperability tests that need no credentials.
const GRPC_CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
];

#[test]
fn grpcs_interop_client_and_server_find_no_fault() {
    inside("grpcs_interop_client_and_server_find_no_fault", || {
        let bed = Bed::new(&yaml());
        let mut command = Command::new(tool("grpc-interop-server"));
        command.args(["--port", "8081"]);
        let _server = bed.start("server", "grpc", command);
        listens(&bed, 8081);
        let mut failures = Vec::new();
        // Routed and authorized; authorized alone.
        for host in ["10.96.1.1", "10.244.1.2"] {
            for case in GRPC_CASES {
                let mut command = Command::new(tool("grpc-interop-client"));
                command.args(["--server_host", host, "--server_port", "8081", "--test_case", case]);
                let (good, said) = bed.try_run("client", &mut command);
                if !good {
                    failures.push(format!("{case} by {host}: {said}"));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        bed.until_idle();
    });
}

#[test]
fn h2spec_finds_no_fault_where_requests_are_read() {
    inside("h2spec_finds_no_fault_where_requests_are_read", || {
        let bed = Bed::new(&yaml());
        // The client's proxy, which routes; the server's, which authorizes.
        for (pod, host) in [("client", "10.96.1.1"), ("plain", "10.244.1.2")] {
            for (port, is_declared) in [(8080, false), (8082, true)] {
                if pod == "client" {
                    bed.serve_http2("server", port, channel().0);
                }
                let mut command = Command::new(tool("h2spec"));
                command.args(["--host", host, "--port", &port.to_string(), "--timeout", "5"]);
                let (_, said) = bed.try_run(pod, &mut command);
                let failures = said.split_once("Failures:").map_or(&*said, |(_, failures)| failures);
                // Where nothing says that a port speaks HTTP/2, what is no preface is answered as a bad request of HTTP/1.1.
                let as_meant = failures.matches(" × ").count() == 1
                    && failures.contains("Sends invalid connection preface");
                let (meant, count) = if is_declared {
                    (true, "145 tests, 145 passed, 0 skipped, 0 failed")
                } else {
                    (as_meant, "145 tests, 144 passed, 0 skipped, 1 failed")
                };
                assert!(meant && said.contains(count), "{host}:{port}: {failures}");
            }
        }
        // A client of HTTP/1.1 is served there as well.
        let mut client = bed.client("client", "10.96.1.1:8082".parse().unwrap());
        assert_eq!(client.get("/x").status, 200);
    });
}
