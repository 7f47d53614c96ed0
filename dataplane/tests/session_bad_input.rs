//! Configuration and requests that are wrong: each is named or answered as documented, and none opens a door.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::Duration;

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, inside, pods};
use xds::control::last_good::InForce;

/// What is written, what is complained about, and what requests get.
struct Row {
    name: &'static str,
    yaml: &'static str,
    /// Each must stand in one of the complaints; without any there are none.
    complaints: &'static [&'static str],
    /// Field lines, path and status.
    requests: &'static [(&'static str, &'static str, u16)],
}

const fn row(
    name: &'static str,
    yaml: &'static str,
    complaints: &'static [&'static str],
    requests: &'static [(&'static str, &'static str, u16)],
) -> Row {
    Row { name, yaml, complaints, requests }
}

const TOKEN: &str = "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJpIiwic3ViIjoicyJ9.c2ln\r\n";

/// `spec:` of an AuthorizationPolicy for the server.
const POLICIES: &[Row] = &[
    row(
        "a field that nobody knows in an operation",
        "{ action: ALLOW, rules: [{ to: [{ operation: { pathz: [/a] } }] }] }",
        &["pathz"],
        &[("", "/a", 403), ("", "/", 403)],
    ),
    row(
        "a field that nobody knows beside one that is known",
        "{ action: ALLOW, rules: [{ to: [{ operation: { methods: [GET], pathz: [/a] } }] }] }",
        &["pathz"],
        &[("", "/a", 403), ("", "/", 403)],
    ),
    row(
        "the same in a rule that denies",
        "{ action: DENY, rules: [{ to: [{ operation: { methods: [GET], pathz: [/a] } }] }] }",
        &["pathz"],
        &[("", "/a", 403), ("", "/", 403)],
    ),
    row(
        "a field that nobody knows in the policy",
        "{ action: ALLOW, rulez: [{}] }",
        &["rulez"],
        &[("", "/a", 403)],
    ),
    row(
        "a template that is none",
        "{ action: ALLOW, rules: [{ to: [{ operation: { paths: ['/a/{name}'] } }] }] }",
        &["/a/{name}"],
        &[("", "/a/b", 403)],
    ),
    row(
        "a template that is none, among those who are denied",
        "{ action: DENY, rules: [{ to: [{ operation: { paths: ['/b', '/a/{**}/{*}'] } }] }] }",
        &["/a/{**}/{*}"],
        &[("", "/b", 403)],
    ),
    row(
        "a condition on what does not exist",
        "{ action: ALLOW, rules: [{ when: [{ key: 'request.cookies[a]', values: [b] }] }] }",
        &["request.cookies"],
        &[("Cookie: a=b\r\n", "/", 403)],
    ),
    row(
        "a port beyond all ports",
        "{ action: ALLOW, rules: [{ to: [{ operation: { ports: ['65536'] } }] }] }",
        &["65536"],
        &[("", "/", 403)],
    ),
    row(
        "an address block that is none",
        "{ action: ALLOW, rules: [{ from: [{ source: { ipBlocks: ['10.244.1.0/33'] } }] }] }",
        &["10.244.1.0/33"],
        &[("", "/", 403)],
    ),
    row("no rule at all", "{ action: ALLOW }", &[], &[("", "/", 403)]),
    row("an empty rule in a list", "{ action: ALLOW, rules: [{ from: [] }] }", &["from"], &[("", "/", 403)]),
];

#[test]
fn a_faulty_policy_is_named_and_opens_nothing() {
    inside("a_faulty_policy_is_named_and_opens_nothing", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_http("server", 8080, channel().0);
        let mut failures = Vec::new();
        for row in POLICIES {
            let policy = format!(
                "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: faulty, namespace: app }}
spec: {}
",
                row.yaml.replacen('{', "{ selector: { matchLabels: { app: server } },", 1)
            );
            check(&mut bed, row, &(pods() + &policy), server, &mut failures);
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

/// Applies a row where nothing was in force before, and asks.
fn check(bed: &mut Bed, row: &Row, yaml: &str, to: SocketAddr, failures: &mut Vec<String>) {
    let complaints = bed.apply_faulty(yaml, &mut InForce::default());
    let all = complaints.join("\n");
    let are_told = row.complaints.iter().all(|wanted| all.contains(wanted));
    if !are_told || complaints.is_empty() != row.complaints.is_empty() {
        failures.push(format!("{}: complaints {complaints:?}", row.name));
    }
    for (fields, path, wanted) in row.requests {
        // Without anything to decide on but the connection it is cut, which is as good as a refusal.
        let got = ask(bed, to, fields, path).unwrap_or(403);
        if got != *wanted {
            failures.push(format!("{}: {fields:?} {path} is answered {got} and not {wanted}", row.name));
        }
    }
}

fn ask(bed: &Bed, to: SocketAddr, fields: &str, path: &str) -> Option<u16> {
    let mut client = session_support::http::Client::new(bed.connect("client", to).ok()?);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n{fields}\r\n")).ok()?;
    Some(client.response().ok()?.status)
}

#[test]
fn a_good_policy_stays_in_force_while_the_next_is_faulty() {
    inside("a_good_policy_stays_in_force_while_the_next_is_faulty", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_http("server", 8080, channel().0);
        let mut in_force = InForce::default();
        let policy = |rules: &str| pods() + &session_support::policy("p", "ALLOW", rules);
        assert!(
            bed.apply_faulty(&policy("[{ to: [{ operation: { paths: [/a] } }] }]"), &mut in_force).is_empty()
        );
        assert_eq!((ask(&bed, server, "", "/a"), ask(&bed, server, "", "/b")), (Some(200), Some(403)));
        for faulty in ["[{ to: [{ operation: { paths: [/b], unknown: [x] } }] }]", "[{ to: 7 }]", "{ to: }}"]
        {
            let complaints = bed.apply_faulty(&policy(faulty), &mut in_force);
            assert!(!complaints.is_empty(), "{faulty}");
            assert_eq!(
                (ask(&bed, server, "", "/a"), ask(&bed, server, "", "/b")),
                (Some(200), Some(403)),
                "{faulty}"
            );
        }
    });
}

/// `spec:` of a RequestAuthentication for the server, beside a policy that asks for a token at `/staff`.
const TOKENS: &[Row] = &[
    row(
        "keys that are no JSON",
        "{ jwtRules: [{ issuer: i, jwks: 'not a key set' }] }",
        &["jwks"],
        &[("", "/", 200), ("", "/staff", 403), (TOKEN, "/", 401), (TOKEN, "/staff", 401)],
    ),
    row(
        "keys of a kind that nobody knows",
        r#"{ jwtRules: [{ issuer: i, jwks: '{"keys":[{"kty":"XYZ"}]}' }] }"#,
        &[],
        &[("", "/", 200), ("", "/staff", 403), (TOKEN, "/staff", 401)],
    ),
    row(
        "no key",
        r#"{ jwtRules: [{ issuer: i, jwks: '{"keys":[]}' }] }"#,
        &[],
        &[("", "/", 200), ("", "/staff", 403), (TOKEN, "/staff", 401)],
    ),
];

#[test]
fn keys_that_do_not_load_let_nobody_in() {
    inside("keys_that_do_not_load_let_nobody_in", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_http("server", 8080, channel().0);
        let mut failures = Vec::new();
        let staff = "[{ to: [{ operation: { notPaths: [/staff] } }] }, { from: [{ source: { requestPrincipals: ['*'] } }] }]";
        for row in TOKENS {
            let spec = row.yaml.replacen('{', "{ selector: { matchLabels: { app: server } },", 1);
            let tokens = format!(
                "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: app }}
spec: {spec}
"
            );
            let yaml = pods() + &session_support::policy("staff", "ALLOW", staff) + &tokens;
            check(&mut bed, row, &yaml, server, &mut failures);
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

/// `rules:` of an HTTPRoute of the service `web`, which selects the server itself. A route that is refused as a whole
/// is none: requests go to the service.
const ROUTES: &[Row] = &[
    row(
        "a backend that does not exist",
        "[{ backendRefs: [{ name: gone, port: 8080 }] }]",
        &["gone"],
        &[("", "/", 500)],
    ),
    row(
        "a backend of another namespace that allows nobody",
        "[{ backendRefs: [{ name: web, namespace: other, port: 8080 }] }]",
        &["other"],
        &[("", "/", 500)],
    ),
    row(
        "a backend of a kind that nobody knows",
        "[{ backendRefs: [{ group: example.com, kind: Bucket, name: web, port: 8080 }] }]",
        &["Bucket"],
        &[("", "/", 500)],
    ),
    row("no backend", "[{ matches: [{ path: { value: /a } }] }]", &[], &[("", "/a", 500), ("", "/b", 404)]),
    row(
        "an expression that explodes",
        "[{ matches: [{ path: { type: RegularExpression, value: '/(a{100}){100}' } }], backendRefs: [{ name: web, port: 8080 }] }]",
        &["/(a{100}){100}"],
        &[("", "/", 200)],
    ),
    row(
        "an expression that is none",
        "[{ matches: [{ headers: [{ type: RegularExpression, name: a, value: '(' }] }], backendRefs: [{ name: web, port: 8080 }] }]",
        &["value"],
        &[("", "/", 200)],
    ),
    row(
        "a kind of match that nobody knows",
        "[{ matches: [{ path: { type: Glob, value: '/a*' } }], backendRefs: [{ name: web, port: 8080 }] }]",
        &["Glob"],
        &[("", "/", 200)],
    ),
    row(
        "a filter that nobody knows",
        "[{ filters: [{ type: Teleport }], backendRefs: [{ name: web, port: 8080 }] }]",
        &["Teleport"],
        &[("", "/", 200)],
    ),
];

#[test]
fn a_faulty_route_is_named_and_answered_as_documented() {
    inside("a_faulty_route_is_named_and_answered_as_documented", || {
        let mut bed = Bed::new(&pods());
        bed.serve_http("server", 8080, channel().0);
        let service = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.1, selector: { app: server }, ports: [{ port: 8080 }] }
";
        let mut failures = Vec::new();
        for row in ROUTES {
            let route = format!(
                "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: web, namespace: app }}
spec: {{ parentRefs: [{{ group: '', kind: Service, name: web, port: 8080 }}], rules: {} }}
",
                row.yaml
            );
            let yaml = [&*pods(), service, &*route].concat();
            check(&mut bed, row, &yaml, "10.96.1.1:8080".parse().unwrap(), &mut failures);
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

#[test]
fn requests_beyond_all_measure_are_answered_and_nobody_else_suffers() {
    inside("requests_beyond_all_measure_are_answered_and_nobody_else_suffers", || {
        let rules = "[{ to: [{ operation: { paths: ['/*'] } }] }]";
        let mut bed = Bed::new(&(pods() + &session_support::policy("all", "ALLOW", rules)));
        let server = bed.serve_http("server", 8080, channel().0);
        let mut neighbour = bed.client("client", server);
        let field = |name: &str, length: usize| format!("{name}: {}\r\n", "y".repeat(length));
        let many: String = (0..200).map(|number| field(&format!("x-{number}"), 10)).collect();
        for (head, status) in [
            (many, 431),
            (field("x", 70_000), 431),
            (field("x", 30_000).repeat(3), 431),
            (field(&"x".repeat(66_000), 1), 431),
            (field("cookie", 20_000).repeat(4), 431),
        ] {
            let mut client = bed.client("client", server);
            // It may be refused before all is sent.
            let _ = client.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{head}\r\n"));
            let answer = client.response().unwrap();
            assert_eq!((answer.status, answer.closes()), (status, true), "{} bytes", head.len());
            assert_eq!(neighbour.get("/").status, 200);
        }
        for (line, status) in [
            (format!("GET /{} HTTP/1.1", "a".repeat(33_000)), 414),
            (format!("{} / HTTP/1.1", "G".repeat(33)), 400),
            (String::from("GET /%00 HTTP/1.1"), 400),
        ] {
            let mut client = bed.client("client", server);
            client.send(format!("{line}\r\nHost: web\r\n\r\n")).unwrap();
            assert_eq!(client.response().unwrap().status, status, "{}", &line[..20.min(line.len())]);
        }
        bed.ended(Direction::Inbound, CloseCause::InvalidHttp);
    });
}

#[test]
fn clients_that_never_come_to_the_point_are_let_go() {
    inside("clients_that_never_come_to_the_point_are_let_go", || {
        let rules = "[{ to: [{ operation: { paths: ['/*'] } }] }]";
        let mut bed = Bed::new(&(pods() + &session_support::policy("all", "ALLOW", rules)));
        let server = bed.serve_http("server", 8080, channel().0);
        let tunnel = SocketAddr::new(bed.ip("server"), 15008);
        // The preface of HTTP/2 and SETTINGS; then their acknowledgement, and HEADERS without END_HEADERS.
        let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let unended =
            [&start[..], b"\0\0\0\x04\x01\0\0\0\0", b"\0\0\x06\x01\x01\0\0\0\x01\x82\x86\x84\x01\x01a"];
        let unended = unended.concat();
        let (settings_timeout, calm) = (4_u32.to_be_bytes(), 11_u32.to_be_bytes());
        let slow = [
            ("no handshake", tunnel, &b""[..], &b""[..]),
            ("half a handshake", tunnel, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
            ("half a head", server, b"GET / HTTP/1.1\r\nHost: web\r\nX: ", b"408 Request Timeout"),
            ("half a line", server, b"GET", b"408 Request Timeout"),
            ("half a preface", server, &start[..10], b"408 Request Timeout"),
            ("a preface without its SETTINGS", server, &start[..30], &settings_timeout),
            ("settings never acknowledged", server, &start[..], &settings_timeout),
            ("a header block without its end", server, &unended, &calm),
        ];
        let slow = slow.map(|(name, to, bytes, told)| {
            let mut client = bed.client("plain", to);
            // Each has 10 s, whatever it begins to speak, and not those of one reader after the other.
            client.reader.get_ref().set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            client.send(bytes).unwrap();
            (name, told.to_vec(), std::thread::spawn(move || client.rest()))
        });
        for (name, told, rest) in slow {
            let said = rest.join().unwrap().unwrap_or_else(|error| {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{name}");
                Vec::new()
            });
            let is_told = told.is_empty() || said.windows(told.len()).any(|part| part == told);
            assert!(is_told, "{name}: {:?}", String::from_utf8_lossy(&said));
        }
        bed.ended(Direction::Inbound, CloseCause::RequestTimeout);
        bed.until_idle();
    });
}
