//! Cases of action CUSTOM: about which requests the authorizer is asked, and what its answer does to them. The authorizer
//! itself is the case's.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use l7::authz::{DENIED_STATUS, PolicySet};
use l7::check::{Answer, Approval, Denied, rule};
use l7::ir::{ConnectionAttributes, RequestHead};
use l7::path::Normalization;
use serde_json::{Value, json};
use xds::kube::{MeshSettings, convert};

use super::request::Sent;
use super::{Outcome, objects};

/// The providers that the mesh of the cases has; any other is unknown.
const PROVIDERS: [&str; 3] = ["ext", "p1", "p2"];

#[derive(Debug, serde::Deserialize)]
pub(super) struct File {
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    id: String,
    policies: Vec<Value>,
    request: Request,
    /// `allow`, `deny STATUS`, `unreachable`; `-` where nobody is asked.
    ext_authz_answer: String,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
struct Request {
    method: String,
    path: String,
    authority: String,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    result: String,
    status: Option<u16>,
    called: bool,
}

pub(super) fn run(file: &File, sink: &mut dyn FnMut(&str, Outcome)) {
    for case in &file.cases {
        let outcome = match compile(case) {
            Err(reason) => Outcome::Skipped(format!("a policy is refused: {reason}")),
            Ok(set) => judge(&set, case).unwrap_or_else(Outcome::Skipped),
        };
        sink(&case.id, outcome);
    }
}

/// The policies of a case, beside a mesh that has its providers.
fn compile(case: &Case) -> Result<PolicySet, String> {
    let mesh = MeshSettings::default();
    let providers = PROVIDERS.map(|name| {
        json!({ "name": name, "envoyExtAuthzHttp": { "service": "ext.foo.svc.cluster.local", "port": 80 } })
    });
    let config = json!({ "extensionProviders": providers }).to_string();
    let mut all: Vec<Value> = case.policies.iter().map(objects::policy).collect();
    all.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": config },
    }));
    all.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "ext", "namespace": "foo" },
        "spec": { "ports": [{ "port": 80 }] },
    }));
    let catalog = objects::read(&all)?;
    let (policies, errors) = convert::policies(&catalog, &mesh);
    if let Some(error) = errors.first() {
        return Err(error.to_string());
    }
    let policies = policies.into_iter().map(|it| Arc::new(it.policy));
    PolicySet::compile(policies).map_err(|error| error.to_string())
}

fn judge(set: &PolicySet, case: &Case) -> Result<Outcome, String> {
    let connection = ConnectionAttributes {
        source: None,
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
        destination_ip: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
        destination_port: 80,
        sni: None,
    };
    let request = &case.request;
    let sent = Sent {
        method: &request.method,
        target: &request.path,
        authority: &request.authority,
        headers: None,
        token: None,
    };
    let answer = answer(&case.ext_authz_answer)?;
    let received =
        sent.receive(Normalization::Base, |_, head| decide(set, &connection, head, answer.as_ref()));
    let (called, denied) = received.map_err(|status| format!("the request is refused with {status}"))?;
    let result = |denied: bool| if denied { "deny" } else { "allow" };
    let shown = |result: &str, status: Option<u16>, called: bool| {
        format!("{result} {}, asked: {called}", status.map_or_else(String::new, |status| status.to_string()))
    };
    let (got, expect) = (shown(result(denied.is_some()), denied, called), &case.expect);
    Ok(Outcome::Compared { got, want: shown(&expect.result, expect.status, expect.called) })
}

/// Whether somebody is asked, and the status of the answer to a request that does not pass.
fn decide(
    set: &PolicySet,
    connection: &ConnectionAttributes<'_>,
    head: &RequestHead<'_>,
    answer: Option<&Answer>,
) -> (bool, Option<u16>) {
    let mut approved = Vec::new();
    for ask in set.asks(connection, head) {
        let Some(authorizer) = ask.authorizer else { continue };
        let answer = answer.cloned().unwrap_or(Answer::Failed("the case says nobody is asked"));
        match rule(authorizer, answer) {
            Ok(_) => approved.push(Arc::clone(authorizer)),
            Err(denied) => return (true, Some(denied.status)),
        }
    }
    let allowed = set.evaluate_asked(connection, Some(head), &approved).is_allowed();
    (!approved.is_empty(), (!allowed).then_some(DENIED_STATUS))
}

fn answer(text: &str) -> Result<Option<Answer>, String> {
    let unknown = || format!("an answer {text:?} is not known");
    Ok(match text {
        "-" => None,
        "allow" => Some(Answer::Allowed(Approval::default())),
        "unreachable" => Some(Answer::Failed("nobody is there")),
        other => {
            let status = other.strip_prefix("deny ").and_then(|status| status.parse().ok());
            let status = status.ok_or_else(unknown)?;
            Some(Answer::Denied(Denied { status, ..Denied::default() }))
        }
    })
}
