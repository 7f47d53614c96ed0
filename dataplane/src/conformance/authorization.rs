//! Cases of authorization: requests at a proxy that sees them, connections at one that does not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use l7::authz::{PolicySet, Verdict};
use l7::ir::{ConnectionAttributes, RequestHead};
use l7::path::Normalization;
use model::Identity;
use serde_json::Value;
use xds::kube::MeshSettings;

use super::Outcome;
use super::objects;
use super::request::{Headers, Sent};

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
    jwt: Option<Value>,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    result: String,
    status: Option<u16>,
    grpc_status: Option<u32>,
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

#[derive(Debug, serde::Deserialize)]
pub(super) struct CustomFile {
    cases: Vec<CustomCase>,
}

#[derive(Debug, serde::Deserialize)]
struct CustomCase {
    id: String,
}

const NO_JWT: &str = "RequestAuthentication: tokens are not validated";
const NO_GRPC: &str = "gRPC: a denial is answered in HTTP form";
const NO_CUSTOM: &str = "action CUSTOM: there is no external authorizer";

// === Requests ===

pub(super) fn run_requests(file: &RequestFile, sink: &mut dyn FnMut(&str, Outcome)) {
    for group in &file.groups {
        let set = compile(group);
        for case in &group.cases {
            let outcome = match &set {
                _ if !group.request_authentication.is_empty() || case.request.jwt.is_some() => {
                    Outcome::Skipped(NO_JWT.to_owned())
                }
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
    objects::compile(&objects::read_in_force(&policies)?, &mesh)
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
    let sent = Sent {
        method: &request.method,
        target: &request.path,
        authority: &request.authority,
        headers: request.headers.as_ref(),
    };
    let received =
        sent.receive(environment.path_normalization.into(), |_, head| Judged::of(set, &connection, head));
    let expect = &case.expect;
    let status = expect.status.map(|status| status.to_string());
    let mut got = vec![match &received {
        Ok(judged) if judged.allowed => String::from("allow 200"),
        Ok(_) => format!("deny {}", l7::authz::DENIED_STATUS),
        Err(status) => format!("deny {status}"),
    }];
    let mut want = vec![format!("{} {}", expect.result, status.unwrap_or_default())];
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

/// What the engine says of a request.
struct Judged {
    allowed: bool,
    shadow: Option<&'static str>,
    /// Path and query that the backend gets.
    path: String,
}

impl Judged {
    fn of(set: &PolicySet, connection: &ConnectionAttributes<'_>, head: &RequestHead<'_>) -> Self {
        let shadow = |verdict: Verdict<'_>| if verdict.is_allowed() { "allowed" } else { "denied" };
        let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
        Self {
            allowed: set.evaluate(connection, Some(head)).is_allowed(),
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

pub(super) fn skip_custom(file: &CustomFile, sink: &mut dyn FnMut(&str, Outcome)) {
    for case in &file.cases {
        sink(&case.id, Outcome::Skipped(NO_CUSTOM.to_owned()));
    }
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
