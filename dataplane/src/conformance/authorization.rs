//! Cases of authorization: requests at a proxy that sees them, connections at one that does not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use l7::authz::{DENIED_BODY, DENIED_STATUS, PolicySet, Verdict};
use l7::ir::{ConnectionAttributes, RequestHead};
use l7::jwt::Rejection;
use l7::path::Normalization;
use model::Identity;
use serde_json::Value;
use xds::kube::MeshSettings;

use super::Outcome;
use super::objects;
use super::request::{Headers, Sent};
use super::tokens::{self, Jwt};

#[derive(Debug, serde::Deserialize)]
pub(super) struct RequestFile {
    groups: Vec<RequestGroup>,
}

#[derive(Debug, serde::Deserialize)]
struct RequestGroup {
    environment: Environment,
    policies: Vec<Value>,
    #[serde(default)]
    request_authentication: Vec<Value>,
    cases: Vec<RequestCase>,
}

#[derive(Debug, serde::Deserialize)]
struct Environment {
    path_normalization: Mode,
    #[serde(default)]
    trust_domains: Vec<Arc<str>>,
    destination_ip: Option<IpAddr>,
}

/// As `meshConfig.pathNormalization` spells it.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

#[derive(Debug, serde::Deserialize)]
struct RequestCase {
    id: String,
    request: Request,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
struct Request {
    method: String,
    path: String,
    authority: String,
    source_principal: Option<String>,
    source_ip: IpAddr,
    destination_port: u16,
    headers: Option<Headers>,
    sni: Option<String>,
    jwt: Option<Jwt>,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    result: String,
    status: Option<u16>,
    grpc_status: Option<u32>,
    body: Option<String>,
    www_authenticate: Option<String>,
    shadow: Option<String>,
    upstream_path: Option<String>,
    also_ok_path: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct ConnectionFile {
    groups: Vec<ConnectionGroup>,
}

#[derive(Debug, serde::Deserialize)]
struct ConnectionGroup {
    policies: Vec<Value>,
    cases: Vec<ConnectionCase>,
}

#[derive(Debug, serde::Deserialize)]
struct ConnectionCase {
    id: String,
    connection: Connection,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
struct Connection {
    source_principal: Option<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

const NO_GRPC: &str = "gRPC: a denial is answered in HTTP form";

/// When the cases take place, in seconds since the epoch: tokens without times are valid then, those of the year 2100 are
/// not yet.
const NOW: u64 = 1_800_000_000;

// === Requests ===

pub(super) fn run_requests(file: &RequestFile, sink: &mut dyn FnMut(&str, Outcome)) {
    for group in &file.groups {
        let set = compile(group);
        for case in &group.cases {
            let outcome = match &set {
                _ if case.expect.grpc_status.is_some() => Outcome::Skipped(NO_GRPC.to_owned()),
                Err(reason) => Outcome::Skipped(format!("a policy is refused: {reason}")),
                Ok(set) => judge_request(set, &group.environment, case),
            };
            sink(&case.id, outcome);
        }
    }
}

fn compile(group: &RequestGroup) -> Result<PolicySet, String> {
    let mut mesh = MeshSettings::default();
    if let Some((own, aliases)) = group.environment.trust_domains.split_first() {
        mesh.trust_domain = own.clone();
        mesh.trust_domain_aliases = aliases.to_vec();
    }
    let policies: Vec<Value> = group.policies.iter().map(objects::policy).collect();
    let policies = objects::compile(&objects::read_in_force(&policies)?, &mesh)?;
    Ok(policies.with_tokens(tokens::compile(&group.request_authentication)?))
}

fn judge_request(set: &PolicySet, environment: &Environment, case: &RequestCase) -> Outcome {
    let request = &case.request;
    let source = match identity(request.source_principal.as_deref()) {
        Ok(source) => source,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let connection = ConnectionAttributes {
        source: source.as_ref(),
        source_ip: request.source_ip,
        destination_ip: environment.destination_ip.unwrap_or(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1))),
        destination_port: request.destination_port,
        sni: request.sni.as_deref(),
    };
    let received = match receive(request, environment, |head| Judged::of(set, &connection, head)) {
        Ok(received) => received,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let expect = &case.expect;
    let status = expect.status.map(|status| status.to_string());
    let mut got = vec![match &received {
        Ok(Judged { denied: None, .. }) => String::from("allow 200"),
        Ok(Judged { denied: Some(denied), .. }) => format!("deny {}", denied.status),
        Err(status) => format!("deny {status}"),
    }];
    let mut want = vec![format!("{} {}", expect.result, status.unwrap_or_default())];
    let denied = received.as_ref().ok().and_then(|judged| judged.denied.as_ref());
    if let Some(body) = &expect.body {
        // An answer to HEAD has none (RFC 9110 section 9.3.2).
        let found = denied.filter(|_| request.method != "HEAD").map_or("", |denied| denied.body);
        got.push(format!("body {found}"));
        want.push(format!("body {body}"));
    }
    if let Some(challenge) = &expect.www_authenticate {
        got.push(denied.and_then(|denied| denied.challenge.clone()).unwrap_or_default());
        want.push(challenge.clone());
    }
    if let Some(shadow) = &expect.shadow {
        let found = received.as_ref().ok().and_then(|judged| judged.shadow);
        got.push(format!("shadow {}", found.unwrap_or("none")));
        want.push(format!("shadow {shadow}"));
    }
    if let Some(path) = &expect.upstream_path {
        let found = received.as_ref().map(|judged| judged.path.as_str()).unwrap_or_default();
        let path = expect.also_ok_path.as_ref().filter(|also| *also == found).unwrap_or(path);
        got.push(format!("path {found}"));
        want.push(format!("path {path}"));
    }
    let (got, want) = (got.join(", "), want.join(", "));
    Outcome::Compared { got, want }
}

/// Sends the request of a case, with its token.
fn receive<T>(
    request: &Request,
    environment: &Environment,
    judge: impl FnOnce(&RequestHead<'_>) -> T,
) -> Result<Result<T, u16>, String> {
    let (target, token) = match &request.jwt {
        Some(jwt) => (jwt.target(&request.path)?, jwt.header()?),
        None => (request.path.clone(), None),
    };
    let sent = Sent {
        method: &request.method,
        target: &target,
        authority: &request.authority,
        headers: request.headers.as_ref(),
        token,
    };
    Ok(sent.receive(environment.path_normalization.into(), |_, head| judge(head)))
}

/// What the engine says of a request.
struct Judged {
    denied: Option<Denied>,
    shadow: Option<&'static str>,
    /// Path and query that the backend gets.
    path: String,
}

struct Denied {
    status: u16,
    body: &'static str,
    challenge: Option<String>,
}

impl Denied {
    fn of(set: &PolicySet, connection: &ConnectionAttributes<'_>, head: &RequestHead<'_>) -> Option<Self> {
        let authenticated = match set.tokens().authenticate(head, NOW) {
            Ok(authenticated) => authenticated,
            Err(rejection) => {
                let challenge = Some(Rejection::challenge(head));
                return Some(Self { status: rejection.status(), body: rejection.body(), challenge });
            }
        };
        let head = RequestHead { token: authenticated.token.as_ref(), ..*head };
        let is_allowed = set.evaluate(connection, Some(&head)).is_allowed();
        (!is_allowed).then_some(Self { status: DENIED_STATUS, body: DENIED_BODY, challenge: None })
    }
}

impl Judged {
    fn of(set: &PolicySet, connection: &ConnectionAttributes<'_>, head: &RequestHead<'_>) -> Self {
        let shadow = |verdict: Verdict<'_>| if verdict.is_allowed() { "allowed" } else { "denied" };
        let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
        Self {
            denied: Denied::of(set, connection, head),
            shadow: set.shadow(connection, Some(head)).map(shadow),
            path: format!("{}{query}", head.path),
        }
    }
}

// === Connections ===

pub(super) fn run_connections(file: &ConnectionFile, sink: &mut dyn FnMut(&str, Outcome)) {
    for group in &file.groups {
        let policies: Vec<Value> = group.policies.iter().map(objects::policy).collect();
        let set = objects::read_in_force(&policies).and_then(|catalog| objects::compile_reduced(&catalog));
        for case in &group.cases {
            let outcome = match &set {
                Err(reason) => Outcome::Skipped(format!("a policy is refused: {reason}")),
                Ok(set) => judge_connection(set, case),
            };
            sink(&case.id, outcome);
        }
    }
}

fn judge_connection(set: &PolicySet, case: &ConnectionCase) -> Outcome {
    let source = match identity(case.connection.source_principal.as_deref()) {
        Ok(source) => source,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let connection = ConnectionAttributes {
        source: source.as_ref(),
        source_ip: case.connection.source_ip,
        destination_ip: case.connection.destination_ip,
        destination_port: case.connection.destination_port,
        sni: None,
    };
    let allowed = set.evaluate(&connection, None).is_allowed();
    let got = if allowed { "allow" } else { "deny" };
    Outcome::Compared { got: got.to_owned(), want: case.expect.result.clone() }
}

/// The identity of a principal, which is written without its scheme.
fn identity(principal: Option<&str>) -> Result<Option<Identity>, String> {
    let parse = |principal: &str| format!("spiffe://{principal}").parse();
    principal.map(parse).transpose().map_err(|error: model::IdentityError| format!("no identity: {error}"))
}

impl From<Mode> for Normalization {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::None => Self::None,
            Mode::Base => Self::Base,
            Mode::MergeSlashes => Self::MergeSlashes,
            Mode::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        }
    }
}
