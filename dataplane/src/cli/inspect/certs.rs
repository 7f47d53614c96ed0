//! `corelane certs`.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Filter, Shown, Table, list, text};

const COLUMNS: [&str; 7] =
    ["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
const WIDE: [&str; 1] = ["REASON"];
/// Where there is nothing to show.
const NOTHING: &str = "NA";

pub(super) fn show(dump: &Value, filter: &Filter, now: OffsetDateTime) -> Shown {
    let mut wanted: Vec<&Value> = list(dump, "certificates").filter(|it| takes(filter, it)).collect();
    wanted.sort_by_key(|it| text(it, "identity"));
    let rows = wanted.iter().flat_map(|it| rows(it, now)).collect();
    Shown { table: Table::new(&COLUMNS, &WIDE, rows), json: wanted.into_iter().cloned().collect() }
}

/// By the namespace, and for the workload by the service account, which is all that an identity has of them.
fn takes(filter: &Filter, entry: &Value) -> bool {
    let Ok(identity) = text(entry, "identity").parse::<model::Identity>() else { return true };
    let named = serde_json::json!({ "name": identity.service_account(), "namespace": identity.namespace() });
    filter.takes_named(&named)
}

fn rows(entry: &Value, now: OffsetDateTime) -> Vec<Vec<String>> {
    let identity = text(entry, "identity");
    // `Unavailable: REASON`
    let (status, reason) = text(entry, "state").split_once(": ").unwrap_or((text(entry, "state"), ""));
    let row = |kind: &str, certificate: Option<&Value>| {
        let field = |name| certificate.map_or(NOTHING, |it| text(it, name)).to_owned();
        let serial = field("serialNumber");
        vec![
            identity.to_owned(),
            kind.to_owned(),
            status.to_owned(),
            certificate.is_some_and(|it| is_valid(it, now)).to_string(),
            hexadecimal(&serial).unwrap_or(serial),
            field("expirationTime"),
            field("validFrom"),
            reason.to_owned(),
        ]
    };
    let chain = list(entry, "certChain").enumerate();
    let chain = chain.map(|(place, it)| row(if place == 0 { "Leaf" } else { "Intermediate" }, Some(it)));
    let mut rows: Vec<_> = chain.chain(list(entry, "rootCerts").map(|it| row("Root", Some(it)))).collect();
    if rows.is_empty() {
        rows.push(row(NOTHING, None));
    }
    rows
}

fn is_valid(certificate: &Value, now: OffsetDateTime) -> bool {
    let time = |name| OffsetDateTime::parse(text(certificate, name), &Rfc3339).ok();
    matches!((time("validFrom"), time("expirationTime")), (Some(from), Some(to)) if from <= now && now < to)
}

/// A decimal number of any length in hexadecimal; `None` if it is none.
pub(super) fn hexadecimal(decimal: &str) -> Option<String> {
    // Digits of base 16, the lowest first.
    let mut digits: Vec<u32> = vec![0];
    if decimal.is_empty() {
        return None;
    }
    for character in decimal.chars() {
        let mut carry = character.to_digit(10)?;
        for digit in &mut digits {
            let value = *digit * 10 + carry;
            (*digit, carry) = (value % 16, value / 16);
        }
        if carry > 0 {
            digits.push(carry);
        }
    }
    digits.into_iter().rev().map(|digit| char::from_digit(digit, 16)).collect()
}
