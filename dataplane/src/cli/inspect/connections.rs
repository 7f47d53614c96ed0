//! `corelane connections`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::filter::Way;
use super::{Filter, Shown, Table, list, text};

const COLUMNS: [&str; 6] = ["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"];
const WIDE: [&str; 4] = ["PEER IDENTITY", "BYTES SENT", "BYTES RECEIVED", "WORKER"];

/// The connections of each workload of the dump, or of the page of live ones, which knows more of each.
pub(super) fn show(dump: &Value, live: Option<&Value>, filter: &Filter) -> Shown {
    let names = Names::of(dump, filter.raw);
    let states = dump.get("workloadState").and_then(Value::as_object).into_iter().flatten();
    let mut wanted: Vec<_> = states.filter(|(_, state)| filter.takes_named(&state["info"])).collect();
    wanted.sort_by_key(|(_, state)| (text(&state["info"], "namespace"), text(&state["info"], "name")));
    let (mut rows, mut entries) = (Vec::new(), Vec::new());
    for (uid, state) in wanted {
        let info = &state["info"];
        let name = format!("{}.{}", text(info, "name"), text(info, "namespace"));
        for way in [Way::Inbound, Way::Outbound].into_iter().filter(|way| filter.takes_direction(*way)) {
            for connection in of(uid, state, live, way).filter(|it| takes(filter, it)) {
                rows.push(row(&name, way, connection, &names));
                entries.push(connection.clone());
            }
        }
    }
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: Value::Array(entries) }
}

fn label(way: Way) -> &'static str {
    match way {
        Way::Inbound => "inbound",
        Way::Outbound => "outbound",
    }
}

/// The connections of one workload in one direction.
fn of<'a>(
    uid: &'a str,
    state: &'a Value,
    live: Option<&'a Value>,
    way: Way,
) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    match live.and_then(Value::as_array) {
        Some(all) => {
            let own = move |it: &&Value| text(it, "workload") == uid && text(it, "direction") == label(way);
            Box::new(all.iter().filter(own))
        }
        None => Box::new(list(&state["connections"], label(way))),
    }
}

fn takes(filter: &Filter, connection: &Value) -> bool {
    let addresses = ["src", "originalDst", "actualDst"].map(|name| host(text(connection, name)));
    filter.takes_address(addresses.into_iter())
}

fn row(workload: &str, way: Way, connection: &Value, names: &Names<'_>) -> Vec<String> {
    let name = |field| names.of_address(text(connection, field));
    let (local, remote, peer) = match way {
        Way::Inbound => (name("actualDst"), name("src"), "srcIdentity"),
        Way::Outbound => (name("src"), name("actualDst"), "dstIdentity"),
    };
    let direction = match way {
        Way::Inbound => "Inbound",
        Way::Outbound => "Outbound",
    };
    let number =
        |field| connection.get(field).and_then(Value::as_u64).map_or_else(String::new, |it| it.to_string());
    vec![
        workload.to_owned(),
        direction.to_owned(),
        local,
        remote,
        name("originalDst"),
        text(connection, "protocol").to_owned(),
        text(connection, peer).to_owned(),
        number("bytesSent"),
        number("bytesReceived"),
        number("worker"),
    ]
}

/// Names by address.
struct Names<'a>(BTreeMap<&'a str, String>);

impl<'a> Names<'a> {
    /// No names at all where the addresses are wanted.
    fn of(dump: &'a Value, raw: bool) -> Self {
        let mut names = BTreeMap::new();
        if raw {
            return Self(names);
        }
        for workload in list(dump, "workloads") {
            let name = format!("{}.{}", text(workload, "name"), text(workload, "namespace"));
            names
                .extend(list(workload, "workloadIps").filter_map(Value::as_str).map(|ip| (ip, name.clone())));
        }
        for service in list(dump, "services") {
            let vips = list(service, "vips").filter_map(Value::as_str);
            let ips = vips.filter_map(|vip| vip.split_once('/')).map(|(_, ip)| ip);
            names.extend(ips.map(|ip| (ip, text(service, "hostname").to_owned())));
        }
        Self(names)
    }

    /// `NAME:PORT` where the address has a name.
    fn of_address(&self, address: &str) -> String {
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        self.0.get(host(address)).map_or_else(|| address.to_owned(), |name| format!("{name}:{port}"))
    }
}

/// The address without its port and brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
