//! `corelane workers`.

use serde_json::Value;

use super::{Shown, Table};

const COLUMNS: [&str; 8] =
    ["WORKER", "STATE", "CONNECTIONS", "TUNNELS", "STREAMS", "GENERATION", "TURN", "CPU TIME"];
const WIDE: [&str; 3] = ["SPARE BUFFERS", "SPARE PIPES", "LAST SIGN OF LIFE"];

/// The rows of the page of workers.
pub(super) fn show(page: &Value) -> Shown {
    let rows = page.as_array().into_iter().flatten().map(row).collect();
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: page.clone() }
}

fn row(worker: &Value) -> Vec<String> {
    let number = |name: &str| worker.get(name).and_then(Value::as_u64);
    let shown = |name: &str| number(name).map_or_else(String::new, |it| it.to_string());
    let millis = |name: &str| number(name).map_or_else(|| "NA".to_owned(), |it| format!("{it}ms"));
    let answers = worker.get("answers").and_then(Value::as_bool).unwrap_or_default();
    let streams = number("streamsOpened").unwrap_or_default() + number("streamsAccepted").unwrap_or_default();
    vec![
        shown("worker"),
        if answers { "Serving" } else { "Silent" }.to_owned(),
        shown("connections"),
        shown("tunnels"),
        streams.to_string(),
        shown("generation"),
        format!("{}us", number("meanTurnMicros").unwrap_or_default()),
        millis("cpuMillis"),
        format!("{}B", number("spareBufferBytes").unwrap_or_default()),
        shown("sparePipes"),
        millis("silentMillis"),
    ]
}
