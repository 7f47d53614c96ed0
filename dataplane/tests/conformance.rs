//! Every case of the repository, run as `corelane conformance l7/cases` runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use dataplane::conformance::{self, ConformanceError, Report};

/// Everything that may be left out, and how often. A case that becomes possible, or one more that does not run,
/// changes this list.
const SKIPPED: [(&str, usize); 7] = [
    ("TLS to the backend needs sockets; run by session_cases", 10),
    ("a request to an address of a pod is under no route; run by session_tcp", 1),
    ("endpoints written by hand need sockets; run by session_cases", 1),
    ("gRPC over TLS of the backend's own needs sockets; run by session_backend_tls", 2),
    ("gRPC: a denial is answered in HTTP form", 1),
    ("hostnames of a route of a Service: implementations differ, ours obeys them", 1),
    ("protocol h2c-prior-knowledge needs sockets; run by session_http2", 1),
];

fn run(path: &str) -> Report {
    conformance::run(&[PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)]).unwrap()
}

#[test]
fn no_case_fails_and_what_is_skipped_is_known() {
    let report = run("../l7/cases");
    let mut table = Vec::new();
    report.write_table(&mut table).unwrap();
    println!("{}", String::from_utf8(table).unwrap());
    assert_eq!(report.failures().collect::<Vec<_>>(), Vec::<&conformance::CaseResult>::new());

    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in report.results.iter().filter_map(|result| result.skipped.as_deref()) {
        *skipped.entry(reason).or_default() += 1;
    }
    assert_eq!(skipped.into_iter().collect::<Vec<_>>(), SKIPPED);
    assert!(report.results.len() >= 844, "{} cases", report.results.len());
}

#[test]
fn results_come_in_the_order_of_files_and_cases() {
    let (first, second) = (run("../l7/cases/authz"), run("../l7/cases/authz"));
    assert_eq!(first, second);
    let files: Vec<&str> = first.results.iter().map(|result| result.file.as_str()).collect();
    assert!(files.is_sorted());
    assert_eq!(first.results[0].id, "act-none/0");
    let one_file = run("../l7/cases/authz/grpc.yaml");
    let ids: Vec<&str> = one_file.results.iter().map(|result| result.id.as_str()).collect();
    assert_eq!(ids, ["grpc/0", "grpc/1"]);
}

#[test]
fn a_wrong_expectation_fails() {
    let dir = tempfile::tempdir().unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../l7/cases/authz/combination.yaml");
    let text = std::fs::read_to_string(source).unwrap();
    let swapped = text.replace("result: allow", "result: deny").replace("status: 200", "status: 403");
    std::fs::write(dir.path().join("swapped.yaml"), swapped).unwrap();
    let report = conformance::run(&[dir.path().to_owned()]).unwrap();
    let allowed = text.matches("result: allow").count();
    assert_eq!(report.failures().count(), allowed);
}

#[test]
fn what_is_no_case_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let none = conformance::run(&[dir.path().to_owned()]).unwrap_err();
    assert!(matches!(none, ConformanceError::Empty(_)), "{none}");
    std::fs::write(dir.path().join("a.yaml"), "kind: something-else\n").unwrap();
    let other = conformance::run(&[dir.path().to_owned()]).unwrap_err().to_string();
    assert!(other.contains("a.yaml") && other.contains("something-else"), "{other}");
    let missing = conformance::run(&[dir.path().join("missing")]).unwrap_err();
    assert!(matches!(missing, ConformanceError::Read { .. }), "{missing}");
}
