//! The two forms of a log line. Keys that ztunnel writes have its names and order; ours follow them.
//!
//! Invariant: whatever a peer puts into a path, method or name, a line stays one line, and a quoted value ends at its
//! own closing quote.

use std::fmt::{Display, Write};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::record::{Authority, DryRun, Observed, Party, Record, Stage};

/// Receives the keys and values of a record in order.
trait Fields {
    /// A value that needs no quotes in text form: addresses and numbers.
    fn bare(&mut self, key: &str, value: &dyn Display);
    fn quoted(&mut self, key: &str, value: &str);
    fn number(&mut self, key: &str, value: u64);
}

/// Times with microseconds, as ztunnel writes them.
pub(crate) const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Appends the text form, without the end of line. Time, level, scope, message and fields stand apart by tabs. The
/// time must be in UTC; `repeated` is how many records the line stands for where it is not one.
pub fn text(out: &mut String, now: OffsetDateTime, record: &Record, repeated: Option<u64>) {
    // Writing into a String cannot fail; formatting of a time within the years 0 to 9999 neither.
    let time = now.format(TIME).unwrap_or_default();
    let _ = write!(out, "{time}\t{}\taccess\t{}\t", record.level().label(), message(record));
    visit(record, repeated, &mut Text { out, first: true });
}

/// Appends the JSON form, likewise.
pub fn json(out: &mut String, now: OffsetDateTime, record: &Record, repeated: Option<u64>) {
    let time = now.format(TIME).unwrap_or_default();
    let _ = write!(
        out,
        r#"{{"level":"{}","time":"{time}","scope":"access","message":"{}""#,
        record.level().label(),
        message(record)
    );
    visit(record, repeated, &mut Json { out });
    out.push('}');
}

fn message(record: &Record) -> &'static str {
    match record.stage {
        Stage::Opened => "connection opened",
        Stage::Ended if record.is_early_denial() => "connection failed",
        Stage::Ended if record.http.is_some() => "request complete",
        Stage::Ended => "connection complete",
    }
}

/// What is known of a connection that was turned away at once.
fn visit_early(record: &Record, fields: &mut dyn Fields) {
    if let Some(address) = record.source.address {
        fields.bare("src.addr", &address);
    }
    if let Some(address) = record.destination.address {
        fields.bare("dst.addr", &address);
    }
    fields.quoted("direction", record.direction.label());
    fields.quoted("error", record.cause.error().unwrap_or_default());
    if let Some(workload) = &record.source.workload {
        fields.quoted("src.workload", &workload.name);
        fields.quoted("src.namespace", &workload.namespace);
    }
    if let Some(service) = &record.service {
        fields.quoted("dst.service", &service.key.hostname);
    }
    fields.quoted("close_cause", record.cause.label());
    fields.number("worker", u64::from(record.worker));
}

fn visit(record: &Record, repeated: Option<u64>, fields: &mut dyn Fields) {
    if record.is_early_denial() {
        visit_early(record, fields);
    } else {
        visit_known(record, fields);
    }
    if let Some(count) = repeated {
        fields.number("repeated", count);
    }
}

fn visit_known(record: &Record, fields: &mut dyn Fields) {
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
    if record.stage == Stage::Opened {
        return fields.number("worker", u64::from(record.worker));
    }
    fields.number("bytes_sent", record.bytes_sent);
    fields.number("bytes_recv", record.bytes_received);
    fields.quoted("duration", &format!("{}ms", record.duration.as_millis()));
    visit_http(fields, record);
    if let Some(tls) = record.tls {
        fields.quoted("tls.version", tls.version_name());
        fields.quoted("tls.cipher", tls.cipher_suite_name());
    }
    fields.number("worker", u64::from(record.worker));
    let error = record.cause.error();
    if error.is_some() || record.http.is_some() {
        fields.quoted("response_flags", record.flags());
    }
    if let Some(error) = error {
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
    for (key, value) in [
        ("http.authority", &*http.authority),
        ("http.user_agent", &http.user_agent),
        ("http.request_id", &http.request_id),
    ] {
        if !value.is_empty() {
            fields.quoted(key, value);
        }
    }
    fields.number("http.status", u64::from(http.status));
    if let Some(status) = http.grpc_status {
        fields.number("grpc.status", u64::from(status.code()));
    }
    if let Some((route, rule)) = &http.route {
        fields.quoted("http.route", route);
        fields.number("http.route_rule", u64::from(*rule));
    }
    if let Some(policy) = &http.policy {
        fields.quoted("policy", policy);
    }
    if let Some(observed) = &http.observed {
        visit_observed(fields, observed);
    }
    let of_client = http.caller.map(|caller| (caller.trace, None));
    let own = http.span.map(|span| (span.trace, Some(span.span)));
    if let Some((trace, span)) = own.or(of_client) {
        fields.quoted("trace_id", &trace.to_string());
        if let Some(span) = span {
            fields.quoted("span_id", &span.to_string());
        }
    }
}

fn visit_observed(fields: &mut dyn Fields, observed: &Observed) {
    if let Some(DryRun { allowed, policy }) = &observed.dry_run {
        fields.quoted("dry_run.result", if *allowed { "allowed" } else { "denied" });
        if let Some(policy) = policy {
            fields.quoted("dry_run.policy", policy);
        }
    }
    if let Some(policy) = &observed.audit {
        fields.quoted("audit.policy", policy);
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
    first: bool,
}

impl Text<'_> {
    fn field(&mut self, key: &str, value: std::fmt::Arguments<'_>) {
        let space = if std::mem::take(&mut self.first) { "" } else { " " };
        let _ = write!(self.out, "{space}{key}={value}");
    }
}

impl Fields for Text<'_> {
    fn bare(&mut self, key: &str, value: &dyn Display) {
        self.field(key, format_args!("{value}"));
    }

    fn quoted(&mut self, key: &str, value: &str) {
        // The debug form leaves printable characters alone and escapes quotes, backslashes and control characters.
        self.field(key, format_args!("{value:?}"));
    }

    fn number(&mut self, key: &str, value: u64) {
        self.field(key, format_args!("{value}"));
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
