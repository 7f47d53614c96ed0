//! The two forms of a log line. Keys that ztunnel writes have its names and order; ours follow them.
//!
//! Invariant: whatever a peer puts into a path, method or name, a line stays one line, and a quoted value ends at its
//! own closing quote.

use std::fmt::{Display, Write};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::record::{Authority, Party, Record};

/// Receives the keys and values of a record in order.
trait Fields {
    /// A value that needs no quotes in text form: addresses and numbers.
    fn bare(&mut self, key: &str, value: &dyn Display);
    fn quoted(&mut self, key: &str, value: &str);
    fn number(&mut self, key: &str, value: u64);
}

/// Appends the text form, without the end of line.
pub fn text(out: &mut String, now: OffsetDateTime, record: &Record) {
    // Writing into a String cannot fail; formatting of a time within the years 0 to 9999 neither.
    let time = now.format(&Rfc3339).unwrap_or_default();
    let _ = write!(out, "{time} {} access {}", level(record), message(record));
    visit(record, &mut Text { out });
}

/// Appends the JSON form, without the end of line.
pub fn json(out: &mut String, now: OffsetDateTime, record: &Record) {
    let time = now.format(&Rfc3339).unwrap_or_default();
    let _ = write!(
        out,
        r#"{{"level":"{}","time":"{time}","scope":"access","message":"{}""#,
        level(record),
        message(record)
    );
    visit(record, &mut Json { out });
    out.push('}');
}

fn level(record: &Record) -> &'static str {
    if record.cause.error().is_some() { "error" } else { "info" }
}

fn message(record: &Record) -> &'static str {
    if record.http.is_some() { "request complete" } else { "connection complete" }
}

fn visit(record: &Record, fields: &mut dyn Fields) {
    visit_party(fields, &SOURCE, &record.source);
    if let Some(address) = record.destination.address {
        fields.bare("dst.addr", &address);
    }
    match &record.hbone_authority {
        Some(Authority::Address(address)) => fields.bare("dst.hbone_addr", address),
        Some(Authority::Hostname(host, port)) => fields.quoted("dst.hbone_addr", &format!("{host}:{port}")),
        None => {}
    }
    if let Some(service) = &record.service {
        fields.quoted("dst.service", &service.key.hostname);
    }
    visit_party(fields, &DESTINATION, &Party { address: None, ..record.destination.clone() });
    fields.quoted("direction", record.direction.label());
    fields.number("bytes_sent", record.bytes_sent);
    fields.number("bytes_recv", record.bytes_received);
    fields.quoted("duration", &format!("{}ms", record.duration.as_millis()));
    visit_http(fields, record);
    if let Some(tls) = record.tls {
        fields.quoted("tls.version", tls.version_name());
        fields.quoted("tls.cipher", tls.cipher_suite_name());
    }
    fields.number("worker", u64::from(record.worker));
    if let Some(error) = record.cause.error() {
        fields.quoted("response_flags", record.cause.flag().label());
        fields.quoted("close_cause", record.cause.label());
        fields.quoted("error", error);
    }
}

fn visit_http(fields: &mut dyn Fields, record: &Record) {
    let Some(http) = &record.http else { return };
    fields.quoted("http.method", &http.method);
    fields.quoted("http.path", http.path.as_str());
    if http.path.is_cut() {
        fields.bare("http.path_cut", &true);
    }
    fields.number("http.status", u64::from(http.status));
    if let Some((route, rule)) = &http.route {
        fields.quoted("http.route", route);
        fields.number("http.route_rule", u64::from(*rule));
    }
    if let Some(policy) = &http.policy {
        fields.quoted("policy", policy);
    }
}

/// Key names of one end.
struct PartyKeys {
    address: &'static str,
    workload: &'static str,
    namespace: &'static str,
    identity: &'static str,
    cluster: &'static str,
}

const SOURCE: PartyKeys = PartyKeys {
    address: "src.addr",
    workload: "src.workload",
    namespace: "src.namespace",
    identity: "src.identity",
    cluster: "src.cluster",
};

const DESTINATION: PartyKeys = PartyKeys {
    address: "dst.addr",
    workload: "dst.workload",
    namespace: "dst.namespace",
    identity: "dst.identity",
    cluster: "dst.cluster",
};

fn visit_party(fields: &mut dyn Fields, keys: &PartyKeys, party: &Party) {
    if let Some(address) = party.address {
        fields.bare(keys.address, &address);
    }
    if let Some(workload) = &party.workload {
        fields.quoted(keys.workload, &workload.name);
        fields.quoted(keys.namespace, &workload.namespace);
    }
    if let Some(identity) = &party.identity {
        fields.quoted(keys.identity, identity.uri());
    }
    if let Some(workload) = &party.workload {
        fields.quoted(keys.cluster, &workload.cluster_id);
    }
}

struct Text<'a> {
    out: &'a mut String,
}

impl Fields for Text<'_> {
    fn bare(&mut self, key: &str, value: &dyn Display) {
        let _ = write!(self.out, " {key}={value}");
    }

    fn quoted(&mut self, key: &str, value: &str) {
        // `escape_debug` leaves printable characters alone and escapes quotes, backslashes and control characters.
        let _ = write!(self.out, " {key}=\"{}\"", value.escape_debug());
    }

    fn number(&mut self, key: &str, value: u64) {
        let _ = write!(self.out, " {key}={value}");
    }
}

struct Json<'a> {
    out: &'a mut String,
}

impl Fields for Json<'_> {
    fn bare(&mut self, key: &str, value: &dyn Display) {
        self.quoted(key, &value.to_string());
    }

    fn quoted(&mut self, key: &str, value: &str) {
        let value = serde_json::to_string(value).unwrap_or_default();
        let _ = write!(self.out, ",\"{key}\":{value}");
    }

    fn number(&mut self, key: &str, value: u64) {
        let _ = write!(self.out, ",\"{key}\":{value}");
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
pub(crate) mod tests;
