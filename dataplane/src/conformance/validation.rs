//! Which rules of an AuthorizationPolicy the front end and the engine accept.

use serde_json::{Value, json};
use xds::kube::MeshSettings;

use super::{Outcome, objects};

#[derive(Debug, serde::Deserialize)]
pub(super) struct File {
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    id: String,
    rule: Value,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    valid: bool,
}

pub(super) fn run(file: &File, sink: &mut dyn FnMut(&str, Outcome)) {
    for case in &file.cases {
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "foo" },
            "spec": { "rules": [case.rule] },
        });
        let accepted =
            objects::read([&policy]).and_then(|catalog| objects::compile(&catalog, &MeshSettings::default()));
        let outcome = match accepted {
            // Refusing is the right answer to what cannot be enforced, and says nothing about the syntax.
            Err(reason) if case.expect.valid && reason.contains("not supported") => Outcome::Skipped(reason),
            accepted => Outcome::Compared { got: shown(accepted.is_ok()), want: shown(case.expect.valid) },
        };
        sink(&case.id, outcome);
    }
}

fn shown(valid: bool) -> String {
    String::from(if valid { "valid" } else { "refused" })
}
