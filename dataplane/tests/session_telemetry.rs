//! Telemetry at a pair of node proxies: which lines come to stand in the access log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use dataplane::access_log::{Direction, LogFormat, LogWriter, Record};
use session_support::http::Client;
use session_support::{Bed, inside, pods, policy};
use time::OffsetDateTime;

/// The server reads requests: what is under `/never` is denied.
fn yaml(telemetry: &[(&str, &str, &str)]) -> String {
    let denied = policy("never", "DENY", "[{ to: [{ operation: { paths: ['/never*'] } }] }]");
    let objects = telemetry.iter().map(|(namespace, name, spec)| {
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
             metadata: {{ name: {name}, namespace: {namespace} }}\nspec: {{ {spec} }}\n"
        )
    });
    pods() + &denied + &objects.collect::<String>()
}

fn bed(telemetry: &[(&str, &str, &str)]) -> (Bed, SocketAddr) {
    let bed = Bed::new(&yaml(telemetry));
    let (tell, _told) = channel();
    let server = bed.serve_http("server", 8080, tell);
    (bed, server)
}

/// The lines that the records of the server's proxy make, by the paths of their requests. The last path of `paths` is one
/// that is logged: what is not there then does not come any more, for a worker's records stay in their order.
fn logged(bed: &mut Bed, client: &mut Client, paths: &[&str]) -> Vec<String> {
    for path in paths {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\nX-Debug: on\r\n\r\n")).unwrap();
        client.response().unwrap();
    }
    let last = paths.last().unwrap();
    let is_last = |record: &Record| path_of(record).as_deref() == Some(*last);
    let record = bed.record(last, |record| is_last(record) && record.direction == Direction::Inbound);
    let mut records = std::mem::take(&mut bed.records);
    records.push(record);
    records.iter().filter(|record| record.direction == Direction::Inbound).filter_map(line).collect()
}

fn path_of(record: &Record) -> Option<String> {
    record.http.as_ref().map(|http| http.path.as_str().to_owned())
}

/// The path of a request whose record makes a line.
fn line(record: &Record) -> Option<String> {
    let sink = Sink::default();
    let mut writer = LogWriter::new(LogFormat::Text, Box::new(sink.clone()));
    writer.add(OffsetDateTime::UNIX_EPOCH, Instant::now(), record);
    writer.flush().unwrap();
    let written = !sink.0.lock().unwrap().is_empty();
    written.then(|| path_of(record)).flatten()
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const FAILED: &str = "accessLogging: [{ filter: { expression: 'response.code >= 400' } }]";

#[test]
fn a_filter_leaves_out_lines_and_follows_its_object_on_connections_that_are_open() {
    inside("a_filter_leaves_out_lines_and_follows_its_object_on_connections_that_are_open", || {
        let (mut bed, server) = bed(&[("istio-system", "all", FAILED)]);
        let mut client = bed.client("client", server);
        let paths = ["/fine", "/never/1", "/fine/2", "/never/2"];
        assert_eq!(logged(&mut bed, &mut client, &paths), ["/never/1", "/never/2"]);
        // The object changes, the connection does not.
        let by_header = "accessLogging: [{ filter: { expression: \"request.headers['x-debug'] == 'on' && request.host == 'web' && \
                         request.path.startsWith('/a')\" } }]";
        bed.apply(&yaml(&[("app", "all", by_header)]));
        assert_eq!(logged(&mut bed, &mut client, &["/b", "/never", "/a"]), ["/a"]);
        // Without an object every line stands.
        bed.apply(&yaml(&[]));
        assert_eq!(logged(&mut bed, &mut client, &["/b", "/never"]), ["/b", "/never"]);
    });
}

#[test]
fn a_log_that_is_disabled_queues_nothing_on_the_sides_it_is_disabled_for() {
    inside("a_log_that_is_disabled_queues_nothing_on_the_sides_it_is_disabled_for", || {
        let off = "accessLogging: [{ match: { mode: SERVER }, disabled: true }]";
        let selecting = format!("selector: {{ matchLabels: {{ app: server }} }}, {off}");
        let (mut bed, server) = bed(&[("app", "server", &selecting)]);
        {
            let mut client = bed.client("client", server);
            assert_eq!([client.get("/1").status, client.get("/never").status], [200, 403]);
        }
        // The client's proxy has its line, which ends the connection; the server's has none, denied or not.
        bed.record("the client's connection", |record| record.direction == Direction::Outbound);
        bed.until_idle();
        let (_, inbound): (Vec<_>, Vec<_>) =
            bed.records.drain(..).partition(|record| record.direction == Direction::Outbound);
        assert!(inbound.is_empty(), "{inbound:?}");
        bed.apply(&yaml(&[]));
        let mut client = bed.client("client", server);
        assert_eq!(logged(&mut bed, &mut client, &["/2"]), ["/2"]);
    });
}

#[test]
fn a_metric_that_is_disabled_or_a_label_that_is_removed_is_not_told() {
    inside("a_metric_that_is_disabled_or_a_label_that_is_removed_is_not_told", || {
        let overrides = "metrics: [{ overrides: [\
            { match: { metric: REQUEST_COUNT, mode: SERVER }, tagOverrides: { source_workload: { operation: REMOVE }, \
              team: { value: \"'blue'\" } } }, \
            { match: { metric: REQUEST_DURATION }, disabled: true }] }]";
        let (mut bed, server) = bed(&[("app", "all", overrides)]);
        let mut client = bed.client("client", server);
        assert_eq!(logged(&mut bed, &mut client, &["/1", "/2"]), ["/1", "/2"]);
        let told = ["reporter=\"destination\"", "team=\"blue\"", "response_code=\"200\""];
        assert_eq!(bed.metric("istio_requests_total", &told), 2);
        assert_eq!(bed.metric("istio_requests_total", &["source_workload="]), 0);
        assert_eq!(bed.metric("istio_request_duration_milliseconds_count", &[]), 0);
        assert_eq!(bed.metric("istio_request_bytes_count", &["source_workload=\"client\""]), 2);
        bed.apply(&yaml(&[]));
        assert_eq!(bed.metric("istio_requests_total", &["source_workload=\"client\""]), 2);
        assert_eq!(bed.metric("istio_request_duration_milliseconds_count", &[]), 2);
    });
}
