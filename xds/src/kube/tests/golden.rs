//! Objects that a real control plane was fed with.

use std::path::{Path, PathBuf};

use crate::kube::{MeshSettings, Severity, check_references, load_dir};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The errors of a scenario's input as `LINE field: message`.
fn errors(scenario: &str) -> Vec<String> {
    load_dir(&golden().join(scenario).join("input"))
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(|problem| format!("{} {} {}: {}", problem.line, problem.object, problem.field, problem.message))
        .collect()
}

#[test]
fn inputs_within_our_reach_load_without_a_finding() {
    for scenario in [
        "01-plain-ambient",
        "03-authz-l4",
        "05-serviceentry",
        "06-headless-multiport",
        "07-optout-use-waypoint",
    ] {
        let loaded = load_dir(&golden().join(scenario).join("input"));
        assert_eq!(loaded.problems, [], "{scenario}");
        assert_eq!(loaded.refused, [], "{scenario}");
        assert!(loaded.catalog.pods.len() >= 6, "{scenario}");
        let references = check_references(&loaded.catalog, &MeshSettings::default());
        assert_eq!(references, [], "{scenario}");
    }
    assert_eq!(errors("04-authz-l7-templates"), [] as [&str; 0]);
}

#[test]
fn steps_load_without_an_error() {
    let mut folders = 0;
    for scenario in std::fs::read_dir(golden()).unwrap() {
        let steps = scenario.unwrap().path().join("steps");
        if !steps.is_dir() {
            continue;
        }
        for problem in load_dir(&steps).problems {
            // Steps change an object more than once, and what a step deletes is only named.
            let is_deleted = problem.file.contains("-delete-");
            let is_expected = is_deleted
                || problem.message.contains("already written")
                || problem.message.contains("is not supported yet");
            assert!(is_expected || !problem.is_error(), "{}: {problem}", steps.display());
        }
        folders += 1;
    }
    assert!(folders >= 5);
}

#[test]
fn mirrors_and_retries_are_read_whole() {
    let loaded = load_dir(&golden().join("02-waypoint-httproute/input"));
    assert_eq!((loaded.refused, loaded.problems), (vec![], vec![]));
    for route in loaded.catalog.http_routes.values().filter(|route| route.meta.name.starts_with("echo")) {
        assert_eq!(route.rules[5].mirrors.len(), 1, "{}", route.meta.name);
        assert_eq!(route.rules[6].retry.as_ref().unwrap().attempts, 2);
    }
}

#[test]
fn unsupported_mesh_kinds_are_named_and_the_rest_is_kept() {
    let loaded = load_dir(&golden().join("09-l7-extras/input"));
    let mut kinds: Vec<&str> = loaded
        .problems
        .iter()
        .filter(|problem| problem.is_error())
        .map(|problem| problem.object.split(' ').next().unwrap())
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [] as [&str; 0]);
    assert_eq!(loaded.catalog.authorization_policies.len(), 2);
    assert_eq!(loaded.catalog.request_authentications.len(), 2);
    assert_eq!(loaded.catalog.gateways.len(), 2);
    let ignored = loaded.problems.iter().filter(|problem| !problem.is_error());
    assert!(ignored.clone().all(|problem| {
        ["Telemetry", "DestinationRule"].iter().any(|kind| problem.object.starts_with(kind))
    }));
}

#[test]
fn objects_have_the_values_of_the_text() {
    let catalog = load_dir(&golden().join("06-headless-multiport/input")).catalog;
    let name = |name: &str| crate::kube::ObjectName::new("app", name);
    let service = &catalog.services[&name("db")];
    assert!(service.headless && service.cluster_ips.is_empty());
    assert_eq!(service.ports.len(), 4);
    assert_eq!(service.ports[2].target, crate::kube::cluster::TargetPort::Name("named".into()));
    assert!(catalog.services[&name("multi")].internal_traffic_local);
    assert!(catalog.services[&name("prefer-close")].publish_not_ready_addresses);
    let pod = &catalog.pods[&name("db-1")];
    assert_eq!((pod.containers[0].ports[0].port, pod.ready), (7778, Some(true)));
    assert_eq!(pod.ips, ["10.244.2.31".parse::<std::net::IpAddr>().unwrap()]);
    assert!(catalog.pods[&name("hostnet")].host_network);
    let slice = &catalog.endpoint_slices[&name("noselector-s1")];
    assert_eq!(slice.service, Some(name("noselector")));
    assert!(slice.endpoints[0].ready && slice.endpoints[0].target_pod.is_none());
}
