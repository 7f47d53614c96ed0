//! Traces and request ids on real sockets: what an upstream is told, what the log says, what a collector gets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use dataplane::access_log::{Direction, Record};
use dataplane::session::NodeOptions;
use dataplane::trace::{Exporter, Sampling};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use session_support::{Bed, PATIENCE, Setup, inside, pods, policy};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const ROUTE: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.1, selector: { app: server }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules: [{ backendRefs: [{ name: web, port: 80 }] }]
";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector that hands on what it gets.
struct Collector(Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts a collector on loopback: its address, and what it gets.
fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    // A new network namespace has its loopback down.
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let service = TraceServiceServer::new(Collector(tell));
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
    });
    (format!("http://{address}"), told)
}

/// Has the exporter send what it is offered of these records, to the end; what it sent and lost.
fn export(address: &str, records: &[&Record]) -> (u64, u64) {
    let (exporter, sending) = Exporter::new(address).unwrap();
    let counts = exporter.counts().clone();
    for record in records {
        exporter.offer(record);
    }
    drop(exporter);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(sending.run());
    (counts.exported.load(Ordering::Relaxed), counts.dropped.load(Ordering::Relaxed))
}

/// Routed at the client's proxy and authorized at the server's, with a server that answers with the head it got.
fn bed(traces: Option<Sampling>) -> Bed {
    let yaml = yaml();
    let options = NodeOptions { traces, ..NodeOptions::default() };
    let bed = Bed::with(&yaml, &Setup { options, ..Setup::default() });
    bed.serve("server", 8080, |socket, _| {
        let mut reader = BufReader::new(socket);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            reader.get_mut().write_all(reply.as_bytes()).unwrap();
        }
    });
    bed
}

fn yaml() -> String {
    pods() + ROUTE + &policy("paths", "ALLOW", "[{ to: [{ operation: { paths: ['/v1/*'] } }] }]")
}

/// Asks, and gives what the server got, by name; and both proxies' records, the client's first.
fn ask(bed: &mut Bed, path: &str, headers: &str) -> (BTreeMap<String, String>, [Record; 2]) {
    let mut client = bed.client("client", "10.96.1.1:80".parse().unwrap());
    client
        .send(format!("GET {path} HTTP/1.1\r\nHost: web:80\r\nUser-Agent: test/1\r\n{headers}\r\n"))
        .unwrap();
    let response = client.response().unwrap();
    let lines = response.text().lines().filter_map(|line| line.split_once(": "));
    let got = lines.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let mut record = |direction| {
        bed.record(path, |it| {
            it.direction == direction && it.http.as_ref().is_some_and(|http| http.path.as_str() == path)
        })
    };
    (got, [record(Direction::Outbound), record(Direction::Inbound)])
}

fn spans(request: &ExportTraceServiceRequest) -> BTreeMap<String, Span> {
    let mut spans = BTreeMap::new();
    for of_pod in &request.resource_spans {
        let attributes = &of_pod.resource.as_ref().unwrap().attributes;
        let pod = attributes.iter().find(|it| it.key == "k8s.pod.name").unwrap();
        let Some(Value::StringValue(pod)) = &pod.value.as_ref().unwrap().value else { panic!("{pod:?}") };
        for span in of_pod.scope_spans.iter().flat_map(|it| &it.spans) {
            spans.insert(pod.clone(), span.clone());
        }
    }
    spans
}

#[test]
fn a_sampled_request_has_a_span_at_each_proxy_below_that_of_its_client() {
    inside("a_sampled_request_has_a_span_at_each_proxy_below_that_of_its_client", || {
        let (address, told) = collector();
        let mut bed = bed(Sampling::of_percent(0.0));
        let others = "tracestate: vendor=x\r\nb3: 1-2-1\r\nX-B3-TraceId: 3\r\n";
        let headers = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n{others}");
        let (got, [client, server]) = ask(&mut bed, "/v1/a", &headers);
        let [of_client, of_server] = [&client, &server].map(|it| it.http.as_ref().unwrap());
        let (first, second) = (of_client.span.unwrap(), of_server.span.unwrap());
        assert_eq!(
            (first.trace.to_string(), first.parent.unwrap().to_string()),
            (TRACE.into(), CALLER.into())
        );
        assert_eq!((second.trace, second.parent), (first.trace, Some(first.span)));
        assert_eq!(got["traceparent"], format!("00-{TRACE}-{}-01", second.span));
        assert_eq!([&got["tracestate"], &got["b3"], &got["x-b3-traceid"]], ["vendor=x", "1-2-1", "3"]);

        assert_eq!(export(&address, &[&client, &server]), (2, 0));
        let request = told.recv_timeout(PATIENCE).unwrap();
        let spans = spans(&request);
        let (outer, inner) = (&spans["client"], &spans["server"]);
        assert_eq!(
            (&outer.span_id, &outer.parent_span_id),
            (&first.span.bytes().to_vec(), &first.parent.unwrap().bytes().to_vec())
        );
        assert_eq!((&inner.parent_span_id, &inner.trace_id), (&outer.span_id, &outer.trace_id));
        assert_eq!((outer.kind, inner.kind), (3, 2), "client and server");
        assert_eq!(outer.name, "web.app.svc.cluster.local:80/*");
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano);
        let has = |key: &str, value: &str| {
            let value = Some(Value::StringValue(value.to_owned()));
            inner.attributes.iter().any(|it| it.key == key && it.value.as_ref().unwrap().value == value)
        };
        assert!(has("http.status_code", "200") && has("user_agent", "test/1"), "{inner:?}");
        assert!(has("istio.source_principal", "spiffe://cluster.local/ns/app/sa/client"), "{inner:?}");
    });
}

#[test]
fn the_sampling_begins_traces_and_a_client_that_records_nothing_is_left_alone() {
    inside("the_sampling_begins_traces_and_a_client_that_records_nothing_is_left_alone", || {
        let mut all = bed(Sampling::of_percent(100.0));
        let (got, [client, server]) = ask(&mut all, "/v1/a", "");
        let [client, server] = [client, server].map(|it| it.http.unwrap().span.unwrap());
        assert_eq!((client.parent, server.parent), (None, Some(client.span)));
        assert!(got["traceparent"].contains(&client.trace.to_string()));
        let unsampled = format!("00-{TRACE}-{CALLER}-00");
        let (got, records) = ask(&mut all, "/v1/b", &format!("traceparent: {unsampled}\r\n"));
        assert_eq!(got["traceparent"], unsampled);
        assert!(records.iter().all(|it| it.http.as_ref().unwrap().span.is_none()));
        assert_eq!(export("http://127.0.0.1:9", &[&records[0]]), (0, 0), "nothing is sent of it");
        drop(all);
        // Without a collector nothing is added, and what the client says is passed on.
        let mut off = bed(None);
        let sampled = format!("00-{TRACE}-{CALLER}-01");
        let (got, records) = ask(&mut off, "/v1/c", &format!("traceparent: {sampled}\r\n"));
        assert_eq!(got["traceparent"], sampled);
        assert!(records.iter().all(|it| it.http.as_ref().unwrap().caller.is_some()));
        assert!(!ask(&mut off, "/v1/d", "").0.contains_key("traceparent"));
    });
}

#[test]
fn a_request_id_is_kept_or_made_once_on_the_way() {
    inside("a_request_id_is_kept_or_made_once_on_the_way", || {
        let mut bed = bed(None);
        let ids = |records: &[Record; 2]| {
            records.each_ref().map(|it| it.http.as_ref().unwrap().request_id.to_string())
        };
        let (got, records) = ask(&mut bed, "/v1/a", "");
        let made = &got["x-request-id"];
        assert_eq!(ids(&records), [made.clone(), made.clone()]);
        assert_eq!((made.len(), made.as_bytes()[14]), (36, b'4'), "a random UUID: {made}");
        let (got, records) = ask(&mut bed, "/v1/b", "X-Request-Id: mine\r\n");
        assert_eq!((&*got["x-request-id"], ids(&records)), ("mine", ["mine".into(), "mine".into()]));
        assert_ne!(&ask(&mut bed, "/v1/c", "").0["x-request-id"], made);
    });
}

#[test]
fn spans_that_no_collector_takes_are_counted() {
    inside("spans_that_no_collector_takes_are_counted", || {
        let (address, told) = collector();
        let mut bed = bed(Sampling::of_percent(100.0));
        let (_, [client, server]) = ask(&mut bed, "/v1/a", "");
        // Nobody listens there.
        assert_eq!(export("http://127.0.0.1:9", &[&client, &server]), (0, 2));
        // More than wait at most: the rest is lost, and the others arrive in several requests.
        let many = vec![&client; dataplane::trace::export::SPANS_MAX + 10];
        assert_eq!(export(&address, &many), (dataplane::trace::export::SPANS_MAX as u64, 10));
        let sizes: Vec<usize> = told
            .try_iter()
            .map(|it| it.resource_spans.iter().flat_map(|it| &it.scope_spans).map(|it| it.spans.len()).sum())
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), dataplane::trace::export::SPANS_MAX);
        assert!(sizes.iter().all(|size| *size <= dataplane::trace::export::BATCH_MAX), "{sizes:?}");
    });
}

#[test]
fn telemetry_decides_which_requests_have_spans_on_which_side() {
    inside("telemetry_decides_which_requests_have_spans_on_which_side", || {
        let mut bed = bed(Sampling::of_percent(0.0));
        let of = |tracing: &str| {
            yaml()
                + "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
                   metadata: { name: all, namespace: istio-system }\nspec: { tracing: ["
                + tracing
                + "] }\n"
        };
        let has_spans = |records: [Record; 2]| records.map(|it| it.http.unwrap().span.is_some());
        let (got, records) = ask(&mut bed, "/v1/before", "");
        assert_eq!((has_spans(records), got.get("traceparent")), ([false, false], None));
        bed.apply(&of("{ randomSamplingPercentage: 100 }"));
        let (_, records) = ask(&mut bed, "/v1/all", "");
        assert_eq!(has_spans(records), [true, true]);
        // The server's proxy takes the client's for the parent of what it does not tell of itself.
        bed.apply(&of(
            "{ randomSamplingPercentage: 100 }, { match: { mode: SERVER }, disableSpanReporting: true }",
        ));
        let (got, records) = ask(&mut bed, "/v1/client", "");
        let of_client = records[0].http.as_ref().unwrap().span.unwrap();
        assert_eq!(got["traceparent"], of_client.context().to_string());
        assert_eq!(has_spans(records), [true, false]);
        bed.apply(&of("{ randomSamplingPercentage: 0 }"));
        let (_, records) = ask(&mut bed, "/v1/none", "");
        assert_eq!(has_spans(records), [false, false]);
    });
}
