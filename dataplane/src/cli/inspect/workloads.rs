//! `corelane workloads`.

use serde_json::Value;

use super::{Filter, Shown, Table, list, text};

const COLUMNS: [&str; 6] = ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"];
const WIDE: [&str; 6] = ["SERVICE ACCOUNT", "STATUS", "CLUSTER", "NETWORK", "POLICIES", "UID"];

pub(super) fn show(dump: &Value, filter: &Filter) -> Shown {
    let mut wanted: Vec<&Value> = list(dump, "workloads").filter(|it| takes(filter, it)).collect();
    wanted.sort_by_key(|it| (text(it, "namespace"), text(it, "name"), text(it, "node")));
    let rows = wanted.iter().map(|it| row(it, dump)).collect();
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: wanted.into_iter().cloned().collect() }
}

fn takes(filter: &Filter, workload: &Value) -> bool {
    let addresses = list(workload, "workloadIps").filter_map(Value::as_str);
    filter.takes_named(workload)
        && filter.takes_node(text(workload, "node"))
        && filter.takes_address(addresses)
}

fn row(workload: &Value, dump: &Value) -> Vec<String> {
    let addresses: Vec<_> = list(workload, "workloadIps").filter_map(Value::as_str).collect();
    let policies: Vec<_> = list(workload, "authorizationPolicies").filter_map(Value::as_str).collect();
    vec![
        text(workload, "namespace").to_owned(),
        text(workload, "name").to_owned(),
        addresses.join(","),
        text(workload, "node").to_owned(),
        waypoint(workload, dump),
        text(workload, "protocol").to_owned(),
        text(workload, "serviceAccount").to_owned(),
        text(workload, "status").to_owned(),
        text(workload, "clusterId").to_owned(),
        text(workload, "network").to_owned(),
        policies.join(","),
        text(workload, "uid").to_owned(),
    ]
}

/// The name of the service that the entry's traffic goes through, or where it stands.
pub(super) fn waypoint(entry: &Value, dump: &Value) -> String {
    let Some(waypoint) = entry.get("waypoint").filter(|it| !it.is_null()) else { return "None".to_owned() };
    let destination = text(waypoint, "destination");
    let by_address = |service: &Value| list(service, "vips").any(|vip| vip.as_str() == Some(destination));
    let by_name = |service: &Value| {
        destination.split_once('/') == Some((text(service, "namespace"), text(service, "hostname")))
    };
    let found = list(dump, "services").find(|service| by_address(service) || by_name(service));
    found.map_or(destination, |service| text(service, "name")).to_owned()
}
