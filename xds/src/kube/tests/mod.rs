//! The front end against the captures, the authorization cases and a corpus of bad texts.

mod attachment;
mod backend_policies;
mod cases;
mod corpus;
mod custom;
mod filters;
mod fuzz;
mod golden;
mod grpc_routes;
mod request_authentication;
mod routes;
mod telemetry;
mod traffic;

use super::{Loaded, Problem, load_documents};

fn load(text: &str) -> Loaded {
    load_documents(vec![("a.yaml", text)])
}

/// Every finding as `LINE:COLUMN severity field: message | fix`.
fn findings(text: &str) -> Vec<String> {
    load(text)
        .problems
        .iter()
        .map(|problem| {
            let Problem { line, column, severity, field, message, fix, .. } = problem;
            format!("{line}:{column} {severity} {field}: {message} | {fix}")
        })
        .collect()
}
