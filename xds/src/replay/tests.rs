use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Every client folder of every scenario.
fn captures() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for scenario in
        fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).filter(|it| it.is_dir())
    {
        for client in fs::read_dir(scenario).unwrap().map(|entry| entry.unwrap().path()) {
            let name = client.file_name().unwrap().to_str().unwrap().to_owned();
            if client.is_dir() && name != "input" && name != "steps" {
                folders.push(client);
            }
        }
    }
    folders.sort();
    assert!(folders.len() >= 20, "the captures are missing");
    folders
}

#[test]
fn every_captured_response_is_accepted() {
    for folder in captures() {
        let replay = replay(&folder).unwrap();
        assert!(!replay.responses.is_empty());
        for response in &replay.responses {
            assert!(
                !matches!(response.outcome, Outcome::Rejected { .. }),
                "{}/{}: {:?}",
                folder.display(),
                response.file,
                response.outcome
            );
        }
    }
}

#[test]
fn our_requests_are_the_captured_ones() {
    for folder in captures() {
        let replay = replay(&folder).unwrap();
        assert_eq!(replay.differences, [""; 0], "{}", folder.display());
    }
}

#[test]
fn the_comparison_of_requests_is_not_empty() {
    let requests: usize = captures().iter().map(|folder| replay(folder).unwrap().requests).sum();
    // Each response has its acknowledgement, each stream its first requests.
    let responses: usize = captures().iter().map(|folder| replay(folder).unwrap().responses.len()).sum();
    assert!(requests > responses, "{requests} requests for {responses} responses");
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The resources of a type that a client must hold at the end, folded from the JSON twins of the captured messages:
/// another encoding, another reader, and no code of the client or the store.
fn folded(folder: &Path, type_name: &str) -> BTreeMap<String, Value> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut held = BTreeMap::new();
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(&format!("-resp-{type_name}.json")) {
            continue;
        }
        let response = json(&path);
        for resource in response["resources"].as_array().into_iter().flatten() {
            held.insert(resource["name"].as_str().unwrap().to_owned(), resource["resource"].clone());
        }
        for removed in response["removedResources"].as_array().into_iter().flatten() {
            held.remove(removed.as_str().unwrap());
        }
    }
    held
}

fn ips(addresses: &Value) -> Vec<String> {
    use base64::Engine;
    let decode = |text: &Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap();
        match <[u8; 4]>::try_from(&*bytes) {
            Ok(octets) => std::net::IpAddr::from(octets).to_string(),
            Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(&*bytes).unwrap()).to_string(),
        }
    };
    addresses.as_array().into_iter().flatten().map(decode).collect()
}

fn text<'a>(value: &'a Value, default: &'a str) -> &'a str {
    value.as_str().unwrap_or(default)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|it| it.as_str().unwrap().to_owned()).collect()
}

fn expected_workload(name: &str, sent: &Value) -> Value {
    json!({
        "uid": name,
        "name": text(&sent["name"], ""),
        "namespace": text(&sent["namespace"], ""),
        "ips": ips(&sent["addresses"]),
        "hostname": text(&sent["hostname"], ""),
        "protocol": if text(&sent["tunnelProtocol"], "") == "HBONE" { "HBONE" } else { "TCP" },
        "account": text(&sent["serviceAccount"], "default"),
        "status": if text(&sent["status"], "") == "UNHEALTHY" { "Unhealthy" } else { "Healthy" },
        "node": text(&sent["node"], ""),
        "policies": strings(&sent["authorizationPolicies"]),
        "services": sent["services"].as_object().map(|it| it.keys().cloned().collect::<BTreeSet<_>>()).unwrap_or_default(),
        "waypoint": waypoint(&sent["waypoint"]),
        "mode": if text(&sent["networkMode"], "") == "HOST_NETWORK" { "HostNetwork" } else { "Standard" },
        "zone": text(&sent["locality"]["zone"], ""),
    })
}

fn waypoint(sent: &Value) -> Value {
    if let Some(hostname) = sent["hostname"].as_object() {
        return json!(format!("{}/{}", text(&hostname["namespace"], ""), text(&hostname["hostname"], "")));
    }
    match sent["address"].as_object() {
        Some(address) => json!(format!("/{}", ips(&json!([address["address"]]))[0])),
        None => Value::Null,
    }
}

fn held_workload(dumped: &Value) -> Value {
    json!({
        "uid": dumped["uid"],
        "name": dumped["name"],
        "namespace": dumped["namespace"],
        "ips": dumped["workloadIps"],
        "hostname": text(&dumped["hostname"], ""),
        "protocol": dumped["protocol"],
        "account": dumped["serviceAccount"],
        "status": dumped["status"],
        "node": text(&dumped["node"], ""),
        "policies": strings(&dumped["authorizationPolicies"]),
        "services": strings(&dumped["services"]).into_iter().collect::<BTreeSet<_>>(),
        "waypoint": dumped["waypoint"]["destination"],
        "mode": dumped["networkMode"],
        "zone": text(&dumped["locality"]["zone"], ""),
    })
}

fn expected_service(sent: &Value, members: &BTreeSet<String>) -> Value {
    let port = |value: &Value| value.as_u64().unwrap_or(0);
    let ports = sent["ports"].as_array().into_iter().flatten();
    json!({
        "name": text(&sent["name"], ""),
        "key": format!("{}/{}", text(&sent["namespace"], ""), text(&sent["hostname"], "")),
        "vips": sent["addresses"].as_array().into_iter().flatten()
            .map(|it| format!("{}/{}", text(&it["network"], ""), ips(&json!([it["address"]]))[0]))
            .collect::<Vec<_>>(),
        "ports": ports.map(|it| (port(&it["servicePort"]).to_string(), port(&it["targetPort"]))).collect::<BTreeMap<_, _>>(),
        "waypoint": waypoint(&sent["waypoint"]),
        "members": members,
        "mode": sent["loadBalancing"]["mode"].as_str().map(str::to_lowercase),
    })
}

fn held_service(dumped: &Value) -> Value {
    json!({
        "name": dumped["name"],
        "key": format!("{}/{}", text(&dumped["namespace"], ""), text(&dumped["hostname"], "")),
        "vips": dumped["vips"],
        "ports": dumped["ports"],
        "waypoint": dumped["waypoint"]["destination"],
        "members": dumped["endpoints"].as_object().unwrap().keys().collect::<BTreeSet<_>>(),
        "mode": dumped["loadBalancer"]["mode"].as_str().map(str::to_lowercase),
    })
}

#[test]
fn the_final_state_is_what_the_captured_messages_add_up_to() {
    for folder in captures() {
        let state = dump::state(&replay(&folder).unwrap().snapshot);
        let list = |key: &str| state[key].as_array().unwrap().clone();
        let (mut workloads, mut services) = (BTreeMap::new(), BTreeMap::new());
        for (name, sent) in folded(&folder, "Address") {
            match sent["workload"].as_object() {
                Some(_) => drop(workloads.insert(name, sent["workload"].clone())),
                None => drop(services.insert(name, sent["service"].clone())),
            }
        }
        workloads.extend(folded(&folder, "Workload"));
        let members = |key: &str| -> BTreeSet<String> {
            let serves = |it: &Value| it["services"].as_object().is_some_and(|it| it.contains_key(key));
            workloads.iter().filter(|(_, it)| serves(it)).map(|(uid, _)| uid.clone()).collect()
        };
        let want: Vec<_> = workloads.iter().map(|(name, sent)| expected_workload(name, sent)).collect();
        let got: Vec<_> = list("workloads").iter().map(held_workload).collect();
        assert_eq!(got, want, "workloads of {}", folder.display());
        let want: Vec<_> = services.iter().map(|(key, sent)| expected_service(sent, &members(key))).collect();
        // Of a waypoint's stream the filter chains say which services there are.
        if !folder.ends_with("envoy-waypoint") {
            let got: Vec<_> = list("services").iter().map(held_service).collect();
            assert_eq!(got, want, "services of {}", folder.display());
        }
        let want: Vec<_> = folded(&folder, "Authorization")
            .iter()
            .map(|(name, sent)| (name.clone(), text(&sent["action"], "ALLOW").to_lowercase()))
            .collect();
        let got: Vec<_> = list("policies")
            .iter()
            .map(|it| {
                let name = format!("{}/{}", text(&it["namespace"], ""), text(&it["name"], ""));
                (name, text(&it["action"], "").to_lowercase())
            })
            .collect();
        assert_eq!(got, want, "policies of {}", folder.display());
    }
}

/// Pods with an address as the scenario leaves them: its input, then its steps, in order.
fn pods(scenario: &Path) -> BTreeMap<String, String> {
    let mut files: Vec<_> = ["input", "steps"]
        .iter()
        .flat_map(|folder| fs::read_dir(scenario.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    // "input" sorts before "steps", and both number their files.
    files.sort();
    let mut pods = BTreeMap::new();
    for path in files {
        let delete = path.file_name().unwrap().to_str().unwrap().contains("-delete-");
        let content = fs::read_to_string(&path).unwrap();
        for object in serde_saphyr::from_multiple::<Value>(&content).unwrap() {
            if object["kind"] != "Pod" {
                continue;
            }
            let metadata = &object["metadata"];
            let uid = format!(
                "Kubernetes//Pod/{}/{}",
                text(&metadata["namespace"], "default"),
                text(&metadata["name"], "")
            );
            match object["status"]["podIP"].as_str() {
                _ if delete => drop(pods.remove(&uid)),
                Some(ip) => drop(pods.insert(uid, ip.to_owned())),
                None => {}
            }
        }
    }
    pods
}

#[test]
fn a_wildcard_client_ends_with_the_pods_of_the_scenario_s_yaml() {
    for folder in captures().into_iter().filter(|it| it.ends_with("ztunnel")) {
        let scenario = folder.parent().unwrap();
        let state = dump::state(&replay(&folder).unwrap().snapshot);
        let held: BTreeMap<_, _> = state["workloads"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| text(&it["uid"], "").contains("//Pod/"))
            .map(|it| (text(&it["uid"], "").to_owned(), text(&it["workloadIps"][0], "").to_owned()))
            .collect();
        assert_eq!(held, pods(scenario), "{}", scenario.display());
    }
}

#[test]
fn the_output_is_a_line_for_each_response_and_then_the_state() {
    let ignoring = replay(&golden().join("02-waypoint-httproute/agw-waypoint")).unwrap();
    let lines: Vec<_> = ignoring.lines().collect();
    assert_eq!(lines.len(), ignoring.responses.len() + 1);
    let first = lines.iter().find(|line| line["file"].as_str().is_some_and(|it| it.contains("-AgwResource")));
    let first = first.unwrap();
    assert_eq!((&first["result"], &first["reason"]), (&json!("ACK"), &json!("type ignored")));
    assert!(lines.iter().any(|line| line["result"] == "ACK" && line["reason"] == ""));
    let state = lines.last().unwrap();
    for key in ["workloads", "services", "policies", "routes"] {
        assert!(state[key].is_array(), "{key}");
    }
}

#[test]
fn a_folder_that_is_no_capture_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let error = replay(folder.path()).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    fs::write(folder.path().join("001-resp-Address.pb"), [0xff]).unwrap();
    assert!(matches!(replay(folder.path()).unwrap_err(), ReplayError::Decode { .. }));
    assert!(matches!(replay(Path::new("/nowhere")).unwrap_err(), ReplayError::Read { .. }));
}

#[test]
fn no_workload_is_left_waiting_for_a_policy_that_never_comes() {
    for folder in captures().into_iter().filter(|it| it.ends_with("ztunnel")) {
        let snapshot = replay(&folder).unwrap().snapshot;
        for workload in snapshot.workloads() {
            for name in &workload.authorization_policies {
                let mut keys =
                    snapshot.policies().map(|it| format!("{}/{}", it.policy.namespace, it.policy.name));
                assert!(
                    keys.any(|key| *key == **name),
                    "{}: {} names {name}",
                    folder.display(),
                    workload.uid
                );
            }
        }
    }
}
