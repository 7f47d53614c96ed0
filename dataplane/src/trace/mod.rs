//! Traces: which requests have a span ([`sampling`]), how it is passed on ([`context`]), and where it goes ([`export`]).
//!
//! A worker decides about the span of a request when it has read the head, tells the upstream of it, and notes it in the
//! record of the access log. The control thread makes the span of that record ([`otlp`]) and sends it on: a trace costs
//! a worker one random number, and a request that is sampled one header more. Spans have no queue of their own on the
//! way up, so whatever loses records (`corelane_access_log_dropped_total`) loses spans, too.

pub mod context;
pub mod export;
pub mod otlp;
pub mod request_id;
pub mod sampling;

pub use context::{SpanId, TraceContext, TraceId};
pub use export::{Exporter, ExporterError, Sending, SpanCounts};
pub(crate) use otlp::cluster;
pub use sampling::{Sampling, SpanFacts};
