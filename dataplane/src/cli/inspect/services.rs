//! `corelane services`.

use serde_json::Value;

use super::workloads::waypoint;
use super::{Filter, Shown, Table, list, text};

const COLUMNS: [&str; 5] = ["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"];
const WIDE: [&str; 3] = ["HOSTNAME", "PORTS", "LOAD BALANCING"];

pub(super) fn show(dump: &Value, filter: &Filter) -> Shown {
    let takes = |it: &&Value| filter.takes_named(it) && filter.takes_address(addresses(it));
    let mut wanted: Vec<&Value> = list(dump, "services").filter(takes).collect();
    wanted.sort_by_key(|it| (text(it, "namespace"), text(it, "name"), text(it, "hostname")));
    let rows = wanted.iter().map(|it| row(it, dump)).collect();
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: wanted.into_iter().cloned().collect() }
}

/// The virtual addresses, without their networks.
fn addresses(service: &Value) -> impl Iterator<Item = &str> {
    list(service, "vips").filter_map(Value::as_str).map(|vip| vip.split_once('/').map_or(vip, |(_, ip)| ip))
}

fn row(service: &Value, dump: &Value) -> Vec<String> {
    let endpoints: Vec<_> =
        service.get("endpoints").and_then(Value::as_object).into_iter().flat_map(|it| it.values()).collect();
    let healthy = endpoints.iter().filter(|it| text(it, "status") != "Unhealthy").count();
    let ports = service.get("ports").and_then(Value::as_object).into_iter().flatten();
    let ports: Vec<_> = ports.map(|(port, target)| format!("{port}->{target}")).collect();
    let balancing = service.get("loadBalancer").filter(|it| !it.is_null());
    vec![
        text(service, "namespace").to_owned(),
        text(service, "name").to_owned(),
        addresses(service).collect::<Vec<_>>().join(","),
        waypoint(service, dump),
        format!("{healthy}/{}", endpoints.len()),
        text(service, "hostname").to_owned(),
        ports.join(","),
        balancing.map_or("Standard", |it| text(it, "mode")).to_owned(),
    ]
}
