//! Cases of the Gateway API that need sockets: the case files' own objects, through a node proxy, to servers in pods.
//!
//! A Service stands in for each gateway; the client dials it from a pod of the mesh.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use session_support::http::{Client, Response};
use session_support::{Bed, PATIENCE, inside};

const NAMESPACE: &str = "gateway-conformance-infra";
const PLAIN_PORT: u16 = 3000;
const TLS_PORT: u16 = 8443;
/// For shares: as many as the suite sends, and as often.
const REQUESTS: u32 = 500;
const ATTEMPTS: u32 = 10;

/// Requests that servers got: the pod, and the name of the case in `x-case`.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

type Issuer = CertifiedIssuer<'static, KeyPair>;

struct Cases {
    bed: Bed,
    seen: Seen,
    list: Vec<Value>,
    /// The address that stands for the gateway whose routes the file has.
    gateways: BTreeMap<String, SocketAddr>,
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn issuer() -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What the suite's backend shows.
fn server_config(issuer: &Issuer) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.subject_alt_names = vec![
        SanType::DnsName("abc.example.com".try_into().unwrap()),
        SanType::DnsName("other.example.com".try_into().unwrap()),
        SanType::URI("spiffe://abc.example.com/test-identity".try_into().unwrap()),
    ];
    let certificate = params.signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

// === Servers ===

/// The value of a parameter or a duration in it.
fn parameter(target: &str, name: &str) -> Option<String> {
    let query = target.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(number) => Duration::from_millis(number.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    }
}

fn field(head: &str, name: &str) -> String {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name));
    found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// Serves requests as the suite's echo server does; each answer is the pod, the server name of TLS and the head.
fn answer(pod: &str, sni: &str, seen: &Seen, stream: &mut (impl Read + Write)) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let case = field(&head, "x-case");
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push((pod.to_owned(), case.clone()));
            seen.iter().filter(|(_, own)| *own == case).count()
        };
        if let Some(delay) = parameter(&target, "delay") {
            std::thread::sleep(duration(&delay));
        }
        let fails = parameter(&target, "succeedAfter").is_some_and(|count| number <= count.parse().unwrap());
        if fails && let Some(delay) = parameter(&target, "delayRetry") {
            std::thread::sleep(duration(&delay));
        }
        let status = match parameter(&target, "responseCode") {
            Some(status) if fails => status,
            // The connection ends without a response.
            None if fails => return None,
            _ => String::from("200"),
        };
        let body = format!("{pod}\n{sni}\n{head}");
        let reply = format!("HTTP/1.1 {status} S\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        reader.get_mut().write_all(reply.as_bytes()).ok()?;
        reader.get_mut().flush().ok()?;
    }
}

fn serve(bed: &Bed, pod: &str, seen: &Seen, tls: &Arc<ServerConfig>) {
    let (name, own) = (pod.to_owned(), seen.clone());
    bed.serve(pod, PLAIN_PORT, move |mut socket, _| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        answer(&name, "", &own, &mut socket);
    });
    let (name, own, tls) = (pod.to_owned(), seen.clone(), tls.clone());
    bed.serve(pod, TLS_PORT, move |socket, _| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(tls.clone()).unwrap(), socket);
        // The client may refuse the certificate.
        if stream.conn.complete_io(&mut stream.sock).is_ok() {
            let sni = stream.conn.server_name().unwrap_or_default().to_owned();
            answer(&name, &sni, &own, &mut stream);
        }
    });
}

// === Objects ===

/// The objects of a file, as the mesh takes them, and the addresses of its gateways.
fn translate(file: &Value, issuer: &Issuer) -> (String, BTreeSet<String>, BTreeMap<String, SocketAddr>) {
    let mut documents: Vec<Value> = vec![json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { "istio.io/dataplane-mode": "ambient" } },
    })];
    let mut apps = BTreeSet::from([String::from("client")]);
    let mut gateways = BTreeMap::new();
    let mut slices = Vec::new();
    for object in list(file, "/base_objects").chain(list(file, "/objects")) {
        let mut object = object.clone();
        let number = documents.len();
        match text(&object, "/kind") {
            "Gateway" => {
                let name = text(&object, "/metadata/name").to_owned();
                let address = format!("10.96.1.{number}");
                gateways.insert(name.clone(), SocketAddr::new(address.parse().unwrap(), 80));
                object = json!({
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": { "name": format!("gateway-{name}"), "namespace": NAMESPACE },
                    "spec": { "clusterIP": address, "selector": { "app": "none" }, "ports": [{ "port": 80 }] },
                });
            }
            "Service" => {
                apps.extend(object.pointer("/spec/selector/app").map(|app| app.as_str().unwrap().to_owned()));
                let spec = object.get_mut("spec").unwrap().as_object_mut().unwrap();
                spec.entry("clusterIP").or_insert_with(|| json!(format!("10.96.1.{number}")));
            }
            "EndpointSlice" => {
                slices.push(object);
                continue;
            }
            "HTTPRoute" => {
                for parent in object.pointer_mut("/spec/parentRefs").unwrap().as_array_mut().unwrap() {
                    let name = format!("gateway-{}", text(parent, "/name"));
                    *parent = json!({ "group": "", "kind": "Service", "name": name });
                }
            }
            _ => {}
        }
        documents.push(object);
    }
    for (name, authority) in
        [("tls-checks-ca-certificate", issuer.pem()), ("mismatch-ca-certificate", self::issuer().pem())]
    {
        documents.push(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": NAMESPACE },
            "data": { "ca.crt": authority },
        }));
    }
    for (number, app) in apps.iter().enumerate() {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": app, "namespace": NAMESPACE, "labels": { "app": app } },
            "spec": { "nodeName": "node", "serviceAccountName": app, "containers": [{ "name": "c", "image": "c" }] },
            "status": { "podIPs": [{ "ip": format!("10.244.1.{}", number + 1) }] },
        }));
    }
    // The suite fills them in by hand, with the addresses of these pods.
    for mut slice in slices {
        let number = apps.iter().position(|app| app == "infra-backend-v1").unwrap() + 1;
        let endpoint =
            json!({ "addresses": [format!("10.244.1.{number}")], "conditions": { "ready": true } });
        let is_ip4 = text(&slice, "/addressType") == "IPv4";
        slice["endpoints"] = if is_ip4 { json!([endpoint]) } else { json!([]) };
        documents.push(slice);
    }
    let mut yaml = String::new();
    for document in documents {
        writeln!(yaml, "---\n{document}").unwrap();
    }
    (yaml, apps, gateways)
}

impl Cases {
    fn of(file: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../l7/cases/gateway-api").join(file);
        let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let issuer = issuer();
        let (yaml, apps, gateways) = translate(&file, &issuer);
        let bed = Bed::new(&yaml);
        let (seen, tls) = (Seen::default(), server_config(&issuer));
        for app in apps.iter().filter(|app| *app != "client") {
            serve(&bed, app, &seen, &tls);
        }
        let cases: Vec<Value> = list(&file, "/cases").cloned().collect();
        assert!(!cases.is_empty());
        Self { bed, seen, list: cases, gateways }
    }

    /// Sends the request of a case.
    fn send(&self, case: &Value) -> Response {
        let request = &case["request"];
        assert_eq!(text(request, "/protocol"), "http");
        let host = text(request, "/authority").replace("{GATEWAY_ADDRESS}", "gateway.test");
        let gateway = self.gateways.iter().find(|(name, _)| {
            // Of several, the one whose listener the case names in TLS, which is not ours to end here.
            self.gateways.len() == 1 || name.contains("https") == (host == "https-listener.org")
        });
        let query: Vec<_> = request["query"].as_object().map_or_else(Vec::new, |query| {
            query.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect()
        });
        let path = text(request, "/path");
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        let mut head = format!(
            "{} {target} HTTP/1.1\r\nHost: {host}\r\nx-case: {}\r\n",
            text(request, "/method"),
            text(case, "/id")
        );
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            write!(head, "{name}: {}\r\n", value.as_str().unwrap()).unwrap();
        }
        let socket = self.bed.connect("client", *gateway.unwrap().1).unwrap();
        let mut client = Client::new(socket);
        client.send(format!("{head}\r\n")).unwrap();
        client.response().unwrap()
    }

    fn seen_by(&self, pod: &str, case: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(own, id)| own.starts_with(pod) && id == case).count()
    }

    /// Runs every case of the file.
    fn run(&self) {
        for case in &self.list {
            match case.pointer("/expect/distribution") {
                Some(distribution) => self.distribute(case, distribution),
                None => self.judge(case),
            }
        }
    }

    fn judge(&self, case: &Value) {
        let (id, expect) = (text(case, "/id"), &case["expect"]);
        let response = self.send(case);
        let shown = format!("{id}: {response:?}");
        let is_one = |path: &str| list(expect, path).any(|status| *status == u64::from(response.status));
        assert!(expect.get("status").is_none() || is_one("/status"), "{shown}");
        assert!(!is_one("/status_not"), "{shown}");
        if response.status == 200 {
            let mut lines = response.text().splitn(3, '\n');
            let (pod, sni, head) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
            assert!(pod.starts_with(text(expect, "/backend")), "{shown}");
            let wanted = &expect["backend_request"];
            let target = head.split(' ').nth(1).unwrap();
            if let Some(path) = wanted["path"].as_str() {
                assert_eq!(target.split('?').next().unwrap(), path.split('?').next().unwrap(), "{shown}");
            }
            for (name, value) in wanted["headers"].as_object().into_iter().flatten() {
                assert_eq!(field(head, name), value.as_str().unwrap(), "{shown}");
            }
            for name in list(wanted, "/absent_headers") {
                assert_eq!(field(head, name.as_str().unwrap()), "", "{shown}");
            }
            assert!(wanted.get("sni").is_none_or(|wanted| *wanted == *sni), "{shown}");
        }
        for mirrored in list(expect, "/mirrored_to") {
            self.count_copies(case, mirrored);
        }
    }

    /// Waits until a mirror has got its copies; of a share, among many requests.
    fn count_copies(&self, case: &Value, mirrored: &Value) {
        let (id, name) = (text(case, "/id"), text(mirrored, "/name"));
        let Some(percent) = mirrored["percent"].as_f64() else {
            let deadline = Instant::now() + PATIENCE;
            while self.seen_by(name, id) == 0 {
                assert!(Instant::now() < deadline, "{id}: no copy for {name}");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(self.seen_by(name, id), 1, "{id}");
            return;
        };
        for _ in 1..REQUESTS {
            assert_eq!(self.send(case).status, 200, "{id}");
        }
        // Copies may still be on their way: nothing tells their end but that no more come.
        let mut count = self.seen_by(name, id);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            match self.seen_by(name, id) {
                now if now == count => break,
                now => count = now,
            }
        }
        // Five standard deviations of the binomial distribution.
        let (expected, share) = (f64::from(REQUESTS) * percent / 100.0, percent / 100.0);
        let tolerance = 5.0 * (expected * (1.0 - share)).sqrt();
        let count = f64::from(u32::try_from(count).unwrap());
        assert!((count - expected).abs() <= tolerance, "{id}: {count} copies, not {expected} +- {tolerance}");
    }

    fn distribute(&self, case: &Value, distribution: &Value) {
        let tolerance = distribution["tolerance_abs"].as_f64().unwrap();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..ATTEMPTS {
            counts.clear();
            for _ in 0..REQUESTS {
                let response = self.send(case);
                let name = match response.status {
                    200 => response.text().split('\n').next().unwrap().to_owned(),
                    status => status.to_string(),
                };
                *counts.entry(name).or_default() += 1;
            }
            let share = |name: &str| f64::from(counts.get(name).copied().unwrap_or(0)) / f64::from(REQUESTS);
            let weights = distribution["weights"].as_object().unwrap();
            if weights
                .iter()
                .all(|(name, weight)| (share(name) - weight.as_f64().unwrap()).abs() <= tolerance)
            {
                return;
            }
        }
        panic!("{}: {counts:?}, not {distribution}", text(case, "/id"));
    }
}

macro_rules! cases {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $name() {
                inside(stringify!($name), || Cases::of($file).run());
            }
        )*
    };
}

cases! {
    tls_to_backends: "gw-backendtls-policy.yaml",
    tls_to_backends_with_other_names: "gw-backendtls-policysan-validation.yaml",
    tls_to_backends_of_several_policies: "gw-backendtls-policy-conflict-resolution.yaml",
    kinds_of_services: "gw-service-types.yaml",
    weights: "gw-weight.yaml",
    timeouts_of_requests: "gw-timeout-request.yaml",
    timeouts_of_tries: "gw-timeout-backend-request.yaml",
    retries: "gw-retry.yaml",
    retries_within_timeouts: "gw-retry-with-timeouts.yaml",
    retries_of_broken_connections: "gw-retry-connection-error.yaml",
    one_mirror: "gw-request-mirror.yaml",
    several_mirrors: "gw-request-multiple-mirrors.yaml",
    a_share_of_copies: "gw-request-percentage-mirror.yaml",
}
