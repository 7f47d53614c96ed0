//! Sends spans by OTLP over gRPC, in batches, on the control thread.
//!
//! Bounded: spans that find the queue full are dropped, and so is a batch that the collector does not take in time;
//! both are counted. Nothing is tried again, for a collector that is overloaded is not helped by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::otlp::{self, Origin};
use crate::access_log::Record;

/// Spans that wait to be sent. At about 2 KB each that is 8 MB.
pub const SPANS_MAX: usize = 4_096;
/// Spans of one request to the collector.
pub const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
pub const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take, the connection included.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    #[error("{address:?} is no address of a collector: {why}; write http://HOST:4317")]
    Address { address: String, why: String },
}

/// How many spans were sent, and how many were lost on the way.
#[derive(Debug, Default)]
pub struct SpanCounts {
    pub exported: AtomicU64,
    pub dropped: AtomicU64,
}

/// The control thread's end. Dropping it lets the task that sends end once it has sent what waits.
#[derive(Debug)]
pub struct Exporter {
    sender: mpsc::Sender<(Origin, Span)>,
    counts: Arc<SpanCounts>,
}

/// Sends what the exporter is offered.
#[derive(Debug)]
pub struct Sending {
    receiver: mpsc::Receiver<(Origin, Span)>,
    endpoint: Endpoint,
    counts: Arc<SpanCounts>,
    /// The last batch was taken.
    works: bool,
}

/// Whether `address` can be a collector's: `http://HOST:PORT`.
pub fn check_address(address: &str) -> Result<(), ExporterError> {
    endpoint(address).map(drop)
}

fn endpoint(address: &str) -> Result<Endpoint, ExporterError> {
    let refused = |why: String| ExporterError::Address { address: address.to_owned(), why };
    if !address.starts_with("http://") {
        return Err(refused("only gRPC without TLS is spoken, to a collector on the node".to_owned()));
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| refused(error.to_string()))?;
    Ok(endpoint.connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT))
}

impl Exporter {
    /// An exporter and its task, which is to be spawned. Connects when there is something to send.
    pub fn new(address: &str) -> Result<(Self, Sending), ExporterError> {
        let (sender, receiver) = mpsc::channel(SPANS_MAX);
        let counts = Arc::<SpanCounts>::default();
        let endpoint = endpoint(address)?;
        let sending = Sending { receiver, endpoint, counts: Arc::clone(&counts), works: true };
        Ok((Self { sender, counts }, sending))
    }

    /// Takes the span of a request, if it has one.
    pub fn offer(&self, record: &Record) {
        if let Some(span) = otlp::span(record)
            && self.sender.try_send(span).is_err()
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }
}

impl Sending {
    /// Sends until the exporter is dropped and what it took is sent.
    pub async fn run(mut self) {
        let mut client = TraceServiceClient::new(self.endpoint.connect_lazy());
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.gather(&mut batch).await {
            self.send(&mut client, std::mem::take(&mut batch)).await;
        }
    }

    /// Fills a batch; `false` when there will be no more.
    async fn gather(&mut self, batch: &mut Vec<(Origin, Span)>) -> bool {
        let Some(first) = self.receiver.recv().await else { return false };
        batch.push(first);
        let more = async {
            while batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                if self.receiver.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // Cancelled at the deadline, it has lost nothing: what was received is in the batch.
        let _ = tokio::time::timeout(BATCH_WAIT, more).await;
        true
    }

    async fn send(&mut self, client: &mut TraceServiceClient<Channel>, batch: Vec<(Origin, Span)>) {
        let count = batch.len() as u64;
        let sent = tokio::time::timeout(EXPORT_TIMEOUT, client.export(request(batch))).await;
        let failure = match sent {
            Ok(Ok(answer)) => {
                let partial = answer.into_inner().partial_success;
                let refused = partial.and_then(|it| u64::try_from(it.rejected_spans).ok()).unwrap_or(0);
                self.counts.exported.fetch_add(count.saturating_sub(refused), Ordering::Relaxed);
                self.counts.dropped.fetch_add(refused, Ordering::Relaxed);
                self.works = true;
                return;
            }
            Ok(Err(status)) => status.to_string(),
            Err(_) => "it does not answer in time".to_owned(),
        };
        self.counts.dropped.fetch_add(count, Ordering::Relaxed);
        if std::mem::replace(&mut self.works, false) {
            tracing::warn!(
                reason = failure,
                spans = count,
                "the collector does not take spans; they are dropped"
            );
        }
    }
}

/// The spans by whose they are.
fn request(batch: Vec<(Origin, Span)>) -> ExportTraceServiceRequest {
    let mut by_origin = BTreeMap::<Origin, Vec<Span>>::new();
    for (origin, span) in batch {
        by_origin.entry(origin).or_default().push(span);
    }
    let scope = InstrumentationScope {
        name: "corelane".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let resource_spans = by_origin.into_iter().map(|(origin, spans)| ResourceSpans {
        resource: Some(Resource { attributes: origin.attributes(), ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope.clone()), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_a_collector_without_tls() {
        assert!(check_address("http://127.0.0.1:4317").is_ok());
        for wrong in ["https://collector:4317", "collector:4317", "", "http://a b"] {
            let error = check_address(wrong).unwrap_err().to_string();
            assert!(error.contains("write http://HOST:4317"), "{error}");
        }
    }
}
