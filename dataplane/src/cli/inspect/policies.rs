//! `corelane policies`.

use serde_json::Value;

use super::{Filter, Shown, Table, list, text};

const COLUMNS: [&str; 4] = ["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"];
const WIDE: [&str; 2] = ["RULES", "DRY RUN"];

pub(super) fn show(dump: &Value, filter: &Filter) -> Shown {
    let mut wanted: Vec<&Value> = list(dump, "policies").filter(|it| filter.takes_named(it)).collect();
    wanted.sort_by_key(|it| (text(it, "namespace"), text(it, "name")));
    let row = |policy: &&Value| {
        let dry_run = policy.get("dryRun").and_then(Value::as_bool).unwrap_or_default();
        vec![
            text(policy, "namespace").to_owned(),
            text(policy, "name").to_owned(),
            text(policy, "action").to_owned(),
            text(policy, "scope").to_owned(),
            list(policy, "rules").count().to_string(),
            dry_run.to_string(),
        ]
    };
    let rows = wanted.iter().map(row).collect();
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: wanted.into_iter().cloned().collect() }
}
