//! What a run shows: a row for each request, made of what the node proxies noted of it, and a verdict for each step.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::access_log::record::{Direction, Party, Record};

/// One request as the proxies on its way saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `namespace/name` of the client pod.
    pub from: String,
    /// What the client addressed.
    pub to: String,
    /// `namespace/name` of the pod that the request came to, where it is known.
    pub pod: Option<String>,
    pub method: String,
    pub path: String,
    /// As the client saw it.
    pub status: Option<u16>,
    pub route: Option<String>,
    pub policy: Option<String>,
    pub source_identity: Option<String>,
    pub destination_identity: Option<String>,
    pub tls_version: Option<String>,
    pub cipher_suite: Option<String>,
    /// Of the client's node proxy.
    pub outbound_worker: Option<u16>,
    /// Of the server's node proxy.
    pub inbound_worker: Option<u16>,
    /// From the client, to the client.
    pub bytes: (u64, u64),
    pub duration_us: u64,
    /// Why it ended where it did not end in order.
    pub cause: Option<String>,
}

/// How a step came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub step: String,
    pub ok: bool,
    /// What held, or why it failed.
    pub detail: String,
}

// === impl Row ===

impl Row {
    /// Takes over what a proxy noted.
    pub fn add(&mut self, record: &Record) {
        match record.direction {
            Direction::Outbound => self.outbound_worker = Some(record.worker),
            Direction::Inbound => self.inbound_worker = Some(record.worker),
        }
        fill(&mut self.source_identity, identity(&record.source));
        fill(&mut self.destination_identity, identity(&record.destination));
        fill(&mut self.pod, pod(&record.destination));
        if let Some(tls) = record.tls {
            fill(&mut self.tls_version, Some(tls.version_name().to_owned()));
            fill(&mut self.cipher_suite, Some(tls.cipher_suite_name().to_owned()));
        }
        if let Some(http) = &record.http {
            fill(&mut self.route, http.route.as_ref().map(|(name, rule)| format!("{name} #{rule}")));
            fill(&mut self.policy, http.policy.as_ref().map(ToString::to_string));
        }
        // The client's own side is the better witness of bytes; the server's stands in for clients outside.
        if record.direction == Direction::Outbound {
            self.bytes = (record.bytes_sent, record.bytes_received);
        } else if self.outbound_worker.is_none() {
            self.bytes = (record.bytes_received, record.bytes_sent);
        }
        fill(&mut self.cause, record.cause.error().map(|_| record.cause.label().to_owned()));
    }

    pub fn is_mutual_tls(&self) -> bool {
        self.tls_version.is_some() && self.source_identity.is_some() && self.destination_identity.is_some()
    }

    /// Cells in the order of [`HEADER`].
    fn cells(&self) -> [String; 7] {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let server = match (&self.destination_identity, &self.pod) {
            (Some(identity), _) => short_identity(identity).to_owned(),
            (None, Some(pod)) => format!("> {pod}"),
            (None, None) => "-".to_owned(),
        };
        let client = self.source_identity.as_deref().map_or("no identity", short_identity);
        let status = self.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        let outcome = self.cause.as_ref().map_or_else(|| status.clone(), |cause| format!("{status} {cause}"));
        let worker = |index: Option<u16>| index.map_or_else(String::new, |index| index.to_string());
        let workers = format!("{} > {}", worker(self.outbound_worker), worker(self.inbound_worker));
        // A request that the client's own proxy answered went nowhere.
        let carried = self.pod.is_some() || self.inbound_worker.is_some();
        let tls = self.tls_version.as_deref().unwrap_or(if carried { "plain text" } else { "-" });
        let took = time(Duration::from_micros(self.duration_us));
        [
            format!("{}\n{client}", self.from),
            format!("{}\n{server}", self.to),
            format!("{} {}\n{outcome}", self.method, self.path),
            format!("{}\n{}", or_dash(&self.route), or_dash(&self.policy)),
            format!("{tls}\n{}", or_dash(&self.cipher_suite)),
            format!("{workers}\n{took}"),
            format!("{}\n{}", self.bytes.0, self.bytes.1),
        ]
    }
}

const HEADER: [&str; 7] = [
    "from\nidentity",
    "to\nidentity, > pod",
    "request\nstatus, cause",
    "route, rule\npolicy",
    "TLS\ncipher suite",
    "worker\ntime",
    "bytes out\nin",
];

/// The rows as a table of at most `width` columns.
pub fn table(rows: &[Row], width: u16) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(HEADER);
    for row in rows {
        table.add_row(row.cells());
    }
    table.to_string()
}

/// `ok   title: detail` or `FAILED title: detail`.
pub fn verdict_line(verdict: &Verdict) -> String {
    let word = if verdict.ok { "ok    " } else { "FAILED" };
    let mut line = format!("{word} {}", verdict.step);
    if !verdict.detail.is_empty() {
        // Writing into a String cannot fail.
        let _ = write!(line, ": {}", verdict.detail);
    }
    line
}

pub fn time(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

fn fill(field: &mut Option<String>, value: Option<String>) {
    if field.is_none() {
        *field = value;
    }
}

fn identity(party: &Party) -> Option<String> {
    party.identity.as_ref().map(|identity| identity.uri().to_owned())
}

fn pod(party: &Party) -> Option<String> {
    party.workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.name))
}

/// Without scheme and trust domain, which all have in common.
fn short_identity(uri: &str) -> &str {
    let path = uri.trim_start_matches("spiffe://");
    path.split_once('/').map_or(path, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::cause::CloseCause;
    use crate::access_log::format::tests::{plain_record, workload};
    use crate::access_log::record::{HttpFacts, TlsFacts};

    fn party(name: &str) -> Party {
        let workload = workload("hello", name);
        Party { address: None, identity: Some(workload.identity.clone()), workload: Some(workload) }
    }

    #[test]
    fn a_row_joins_what_both_proxies_noted() {
        let http =
            |route, policy| Some(Box::new(HttpFacts { status: 403, route, policy, ..HttpFacts::default() }));
        let tls = Some(TlsFacts::from(tunnel::tls::CipherSuite::Aes256GcmSha384));
        let outbound = Record {
            source: party("client"),
            destination: party("web"),
            tls,
            worker: 1,
            bytes_sent: 10,
            bytes_received: 20,
            http: http(Some(("hello/web".into(), 2)), None),
            ..plain_record()
        };
        let inbound = Record {
            direction: Direction::Inbound,
            worker: 0,
            bytes_sent: 7,
            cause: CloseCause::PolicyDenied,
            http: http(None, Some("hello/paths".into())),
            ..outbound.clone()
        };
        let mut row = Row {
            from: "hello/client".into(),
            to: "web.hello:80".into(),
            status: Some(403),
            ..Row::default()
        };
        row.add(&outbound);
        row.add(&inbound);
        assert!(row.is_mutual_tls());
        assert_eq!((row.outbound_worker, row.inbound_worker), (Some(1), Some(0)));
        assert_eq!(row.bytes, (10, 20));
        assert_eq!(row.route.as_deref(), Some("hello/web #2"));
        assert_eq!(row.policy.as_deref(), Some("hello/paths"));
        assert_eq!(row.cause.as_deref(), Some("policy_denied"));
        let text = table(&[row], 200);
        for cell in
            ["ns/hello/sa/web", "web.hello:80", "1 > 0", "TLS_AES_256_GCM_SHA384", "403 policy_denied"]
        {
            assert!(text.contains(cell), "{cell} not in\n{text}");
        }
    }

    #[test]
    fn verdicts_say_why() {
        let verdict = Verdict { step: "routes".into(), ok: false, detail: "got 404".into() };
        assert_eq!(verdict_line(&verdict), "FAILED routes: got 404");
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!(time(Duration::from_micros(999)), "999 us");
        assert_eq!(time(Duration::from_micros(1_500)), "1.5 ms");
        assert_eq!(time(Duration::from_millis(2_500)), "2.50 s");
    }
}
