//! Our answers held against Envoy's: the same policies, the same requests, both over HTTP. `scripts/setup-peers` brings
//! the Envoy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod envoy_support;
mod session_support;
mod tunnel_support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_support::policy::{Policy, Request, policies};
use envoy_support::rbac::{Moved, rules};
use envoy_support::{Random, Wire, listener, router, start, typed};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use l7::path::{Normalization, normalize};
use serde_json::{Value, json};
use session_support::{Bed, inside, pods};

const REQUESTS_PER_SET: usize = 40;
const SERVER: &str = "10.244.1.2";
const JUDGE: &str = "10.244.1.50";
const KEY: &[u8] = b"the key that the issuer of this test signs with";

/// A client of another namespace, and the pod that Envoy stands in.
fn more_pods() -> String {
    let pod = |namespace: &str, name: &str, ip: &str, mode: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ istio.io/dataplane-mode: {mode} }} }}
spec: {{ nodeName: node, serviceAccountName: {name}, containers: [{{ name: c, image: c }}] }}
status: {{ podIPs: [{{ ip: {ip} }}] }}
"
        )
    };
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n";
    [namespace.to_owned(), pod("shop", "buyer", "10.244.1.4", "ambient"), pod("app", "judge", JUDGE, "none")]
        .concat()
}

fn jwks() -> String {
    json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(KEY) }] }).to_string()
}

fn authentication() -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: app }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules: [{{ issuer: 'https://i.example', jwks: '{}', forwardOriginalToken: true }}]
",
        jwks()
    )
}

fn tokens() -> Vec<String> {
    let claims = [
        json!({ "sub": "ann", "aud": "web", "azp": "web", "groups": ["admin", "x"], "scope": "admin staff" }),
        json!({ "sub": "bob", "aud": ["api", "y"], "groups": "staff", "realm": { "roles": ["admin"] } }),
        json!({ "sub": "eve", "groups": 7, "scope": ["staff"], "realm": { "roles": "staff" } }),
        json!({ "aud": "web", "azp": "api", "groups": [], "realm": "admin" }),
    ];
    let sign = |mut claims: Value| {
        claims["iss"] = json!("https://i.example");
        let header = Header::new(Algorithm::HS256);
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(KEY)).unwrap()
    };
    claims.into_iter().map(sign).collect()
}

// === Envoy's side ===

/// Each set of policies is asked where the request names it.
fn judge(sets: &[Vec<Policy>], certificates: &Files) -> Value {
    let moved = Moved { from: SERVER, to: JUDGE };
    let routes = sets.iter().enumerate().map(|(number, set)| {
        let mut filters = serde_json::Map::new();
        for action in ["DENY", "ALLOW"] {
            if let Some(rules) = rules(set, action, moved) {
                let own = json!({ "@type": typed("filters.http.rbac.v3.RBACPerRoute"), "rbac": { "rules": rules } });
                filters.insert(action.to_owned(), own);
            }
        }
        json!({
            "match": { "prefix": "/", "headers": [{ "name": "x-policy", "string_match": { "exact": number.to_string() } }] },
            "direct_response": { "status": 200 },
            "typed_per_filter_config": filters
        })
    });
    let filter =
        |name: &str| json!({ "name": name, "typed_config": { "@type": typed("filters.http.rbac.v3.RBAC") } });
    let tokens = json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": typed("filters.http.jwt_authn.v3.JwtAuthentication"),
        "providers": { "i": {
            "issuer": "https://i.example", "forward": true, "payload_in_metadata": "payload",
            "normalize_payload_in_metadata": { "space_delimited_claims": ["scope", "permission"] },
            "local_jwks": { "inline_string": jwks() }
        } },
        "rules": [{ "match": { "prefix": "/" }, "requires": { "requires_any": { "requirements": [
            { "provider_name": "i" }, { "allow_missing": {} }
        ] } } }]
    } });
    let manager = json!({
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes.collect::<Vec<_>>() }] },
        "http_filters": [tokens, filter("DENY"), filter("ALLOW"), router()]
    });
    let listeners = [8080, 8081].map(|port| {
        let mut listener = listener(port, manager.clone());
        // With a certificate or in the clear.
        let clear = listener["filter_chains"][0].clone();
        let mut within_tls = clear.clone();
        within_tls["filter_chain_match"] = json!({ "transport_protocol": "tls" });
        within_tls["transport_socket"] = certificates.transport_socket();
        listener["filter_chains"] = json!([within_tls, clear]);
        listener["listener_filters"] = json!([{ "name": "envoy.filters.listener.tls_inspector", "typed_config": {
            "@type": typed("filters.listener.tls_inspector.v3.TlsInspector")
        } }]);
        listener
    });
    json!({ "static_resources": { "listeners": listeners } })
}

/// What Envoy proves itself with, and whom it believes.
struct Files(tunnel_support::Files);

impl Files {
    fn transport_socket(&self) -> Value {
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": typed("transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [{
                    "certificate_chain": { "filename": self.0.cert }, "private_key": { "filename": self.0.key }
                }],
                "validation_context": { "trusted_ca": { "filename": self.0.ca } }
            }
        } })
    }
}

/// A client of Envoy that shows the certificate of `identity`.
fn client_config(pki: &tunnel_support::Pki, name: &str, identity: &str) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let files = pki.issue(name, identity);
    let leaf = (
        vec![CertificateDer::from_pem_file(&files.cert).unwrap()],
        PrivateKeyDer::from_pem_file(&files.key).unwrap(),
    );
    let mut config = session_support::Pki::client(leaf, &rustls::version::TLS13);
    config.alpn_protocols.clear();
    Arc::new(config)
}

// === Both sides ===

/// Connections that are kept from one request to the next.
struct Clients<'a> {
    bed: &'a Bed,
    kept: HashMap<(&'static str, u16, bool), Wire>,
    certificates: HashMap<&'static str, Arc<rustls::ClientConfig>>,
}

impl Clients<'_> {
    fn connect(&self, client: &'static str, port: u16, asks_envoy: bool) -> std::io::Result<Wire> {
        let to = SocketAddr::new(if asks_envoy { JUDGE } else { SERVER }.parse().unwrap(), port);
        let socket = self.bed.connect(client, to)?;
        Ok(match self.certificates.get(client) {
            Some(config) if asks_envoy => Wire::tls(socket, config.clone()),
            _ => Wire::plain(socket),
        })
    }

    /// 200 or 403. We cut a connection without an answer where nothing but the connection itself decides.
    fn ask(&mut self, request: &Request, asks_envoy: bool) -> u16 {
        let key = (request.client, request.port, asks_envoy);
        let ask = |mut wire: Wire| Some((wire.ask(&request.bytes).ok()?, wire));
        let answered = self.kept.remove(&key).and_then(ask);
        let answered = answered.or_else(|| ask(self.connect(key.0, key.1, key.2).ok()?));
        let Some((answer, wire)) = answered else {
            assert!(!asks_envoy, "Envoy answers");
            return 403;
        };
        if answer.field("connection") != Some("close") {
            self.kept.insert(key, wire);
        }
        answer.status
    }
}

#[test]
fn policies_decide_as_envoys_rbac_does() {
    inside("policies_decide_as_envoys_rbac_does", || {
        let pairs: usize = std::env::var("CORELANE_PAIRS").map_or(2_000, |pairs| pairs.parse().unwrap());
        let mut random = Random(3);
        let sets: Vec<_> = (0..pairs.div_ceil(REQUESTS_PER_SET)).map(|_| policies(&mut random)).collect();
        let base = pods() + &more_pods() + &authentication();
        let mut bed = Bed::new(&base);
        let pki = tunnel_support::Pki::new();
        let files = Files(pki.issue("judge", "spiffe://cluster.local/ns/app/sa/judge"));
        let _envoy = start(bed.network("judge"), pki.path(), &judge(&sets, &files));
        let (tell, told) = std::sync::mpsc::channel();
        for port in [8080, 8081] {
            bed.serve_http("server", port, tell.clone());
        }
        let certificates: HashMap<_, _> = ["client", "other", "buyer"]
            .map(|pod| (pod, client_config(&pki, pod, bed.identity(pod).uri())))
            .into();
        let tokens = tokens();
        let mut kept = HashMap::new();
        let (mut allowed, mut differences) = (0, Vec::new());
        for (number, set) in sets.iter().enumerate() {
            let documents = set.iter().enumerate().map(|(at, policy)| policy.document(&format!("p{at}")));
            bed.apply(&(base.clone() + &documents.collect::<String>()));
            let mut clients = Clients { bed: &bed, kept, certificates: certificates.clone() };
            for _ in 0..REQUESTS_PER_SET {
                let request = Request::draw(&mut random, number, &tokens);
                let (theirs, ours) = (clients.ask(&request, true), clients.ask(&request, false));
                assert!(matches!(theirs, 200 | 403), "{theirs}: {}", request.text());
                allowed += usize::from(theirs == 200);
                if theirs != ours {
                    differences.push(format!(
                        "{} from {}: Envoy {theirs}, ours {ours}\n{set:#?}",
                        request.text(),
                        request.client
                    ));
                }
            }
            kept = clients.kept;
            assert!(differences.len() < 10, "{}", differences.join("\n"));
            told.try_iter().for_each(drop);
        }
        let pairs = sets.len() * REQUESTS_PER_SET;
        println!(
            "{pairs} pairs: {allowed} allowed, {} denied, {} differences",
            pairs - allowed,
            differences.len()
        );
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        assert!(allowed > pairs / 5 && allowed < pairs * 4 / 5);
    });
}

// === Paths ===

const MODES: [(u16, Normalization); 4] = [
    (8001, Normalization::None),
    (8002, Normalization::Base),
    (8003, Normalization::MergeSlashes),
    (8004, Normalization::DecodeAndMergeSlashes),
];

/// Listeners that tell the path that they have understood, as Istio configures each mode.
fn normalizers() -> Value {
    let listeners = MODES.map(|(port, mode)| {
        let mut manager = json!({
            "normalize_path": mode != Normalization::None,
            "merge_slashes": matches!(mode, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes),
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "route_config": { "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "" }, "direct_response": { "status": 200 } }],
                "response_headers_to_add": [{ "header": { "key": "x-path", "value": "%REQ(:PATH)%" } }]
            }] },
            "http_filters": [router()]
        });
        if mode == Normalization::DecodeAndMergeSlashes {
            manager["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_FORWARD");
        }
        listener(port, manager)
    });
    let layer = json!({ "envoy.reloadable_features.http_reject_path_with_fragment": false });
    json!({
        "static_resources": { "listeners": listeners },
        "layered_runtime": { "layers": [{ "name": "static", "static_layer": layer }] }
    })
}

/// The paths of Istio's own test of normalisation, all 255 escapes, and random ones of the pieces that matter.
fn paths() -> Vec<String> {
    let mut paths: Vec<_> = ISTIO.iter().map(|path| (*path).to_owned()).collect();
    paths.extend((1..=255).map(|code| format!("/admin%{code:02x}")));
    paths.extend((1..=255).map(|code| format!("/a/%{code:02X}/../b")));
    const PIECES: &[&str] = &[
        "/", "/", "a", "b", ".", "..", "/../", "/./", "//", "\\", "%2e", "%2E", "%2f", "%2F", "%5c", "%41",
        "%61", ";", ";x=y", "%25", "%252e", "?", "#", "|", "\"", "<", "^", "`", "{", "[", "%zz", "%", "%7e",
        "~", "+", "*", "%3b", "\u{e9}", "%c3%a9",
    ];
    let mut random = Random(4);
    let random = std::iter::repeat_with(|| {
        let pieces = (0..=random.roll(8)).map(|_| random.pick(PIECES)).collect::<Vec<_>>();
        format!("/{}", pieces.concat())
    });
    paths.extend(random.take(2_000));
    paths
}

const ISTIO: &[&str] = &[
    "/",
    "/app#foo",
    "/app/",
    "/app/../admin",
    "/app",
    "/app//",
    "/app/%2f",
    "/app%2f/",
    "/xyz%30..//abc",
    "/app/%2E./admin",
    "/app\\admin",
    "/app/\\/\\/\\admin",
    "/%2Fapp%5cadmin%5Cabc",
    "/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc",
    "/app//../admin",
    "/app//../../admin",
    "/%c0%2e%c0%2e/admin",
    "/%c0%2fadmin",
    "/0x2e0x2e/admin",
    "/0x2e0x2e0x2fadmin",
    "/0x2e0x2e0x5cadmin",
    "/0x2f0x2fadmin",
    "/0x5c0x5cadmin",
    "/%25c0%25ae%25c1%259cadmin",
    "/%25c0%25ae%25c0%25ae/admin",
    "/%25c0%25afadmin",
    "/%25c1%259cadmin",
    "/%252e%252e/admin",
    "/%252e%252e%252fadmin",
    "/%c1%9cadmin",
    "/%c0%ae%c0%ae/admin",
    "/%c0%afadmin",
    "/.../admin",
    "/..../admin",
    "/..;/admin",
    "/;/admin",
    "/admin;a=b",
    "/admin;a=b/xyz",
    "/admin,a=b/xyz",
    "/Admin",
    "/ADMIN",
    "/admin%00",
];

#[test]
fn paths_mean_what_they_mean_to_envoy() {
    inside("paths_mean_what_they_mean_to_envoy", || {
        let bed = Bed::new(&(pods() + &more_pods()));
        let directory = tempfile::TempDir::new().unwrap();
        let _envoy = start(bed.network("judge"), directory.path(), &normalizers());
        let mut differences = Vec::new();
        let paths = paths();
        for (port, mode) in MODES {
            let to = SocketAddr::new(JUDGE.parse().unwrap(), port);
            let mut wire = Wire::plain(bed.connect("plain", to).unwrap());
            for path in &paths {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
                let answer = wire.ask(request.as_bytes()).unwrap();
                if answer.field("connection") == Some("close") {
                    wire = Wire::plain(bed.connect("plain", to).unwrap());
                }
                let theirs = (answer.status == 200).then(|| answer.field("x-path").unwrap().to_owned());
                let ours = understood(&request, mode);
                if ours != theirs && !is_argued(path, mode, theirs.as_deref(), ours.as_deref()) {
                    differences.push(format!(
                        "{mode:?} {path}: Envoy {theirs:?} ({}), ours {ours:?}",
                        answer.status
                    ));
                }
            }
        }
        println!("{} paths in 4 modes, {} differences", paths.len(), differences.len());
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    });
}

/// Path and query that a request line means to us; `None` if it is refused.
fn understood(request: &str, mode: Normalization) -> Option<String> {
    let mut storage = l7::http1::empty_headers();
    let request = l7::http1::parse_request(request.as_bytes(), &mut storage).ok()?;
    let target = normalize(request.target, mode).ok()?;
    Some(match target.query {
        Some(query) => format!("{}?{query}", target.path),
        None => target.path.into_owned(),
    })
}

/// Where we differ, and why that is no way around a policy: what is matched is what is forwarded in every case.
fn is_argued(path: &str, mode: Normalization, theirs: Option<&str>, ours: Option<&str>) -> bool {
    // No two servers agree on what follows a NUL; Istio refuses it where it normalises.
    let nul = ours.is_none() && mode == Normalization::None && path.contains("%00");
    // A parameter on a dot segment is seen also where the dots are escaped.
    let parameter = theirs.is_some_and(|it| it.contains(".;")) && path.to_ascii_lowercase().contains("%2e");
    // A stray percent sign never gets the digits of an escape that was not sent: a second proxy would decode it.
    let stray = path.contains("%%");
    // Runs of slashes become one also where nothing else is left of the path.
    let slashes = ours.zip(theirs).is_some_and(|(ours, theirs)| {
        mode != Normalization::Base
            && theirs.strip_prefix('/') == Some(ours)
            && ours.split('?').next() == Some("/")
    });
    nul || parameter || stray || slashes
}
