//! The families of requests in a scrape. Names and labels are Istio's.
//! <https://istio.io/latest/docs/reference/config/metrics/>

use l7::ir::Metric;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::cells::REQUEST_BOUNDS;
use super::expose::{Encoded, buckets, counter, family, seconds};
use super::registry::{HistogramTotals, RequestTotals, State};
use super::told::{Total, told};

struct Histogram {
    metric: Metric,
    name: &'static str,
    help: &'static str,
    value: fn(&RequestTotals) -> &HistogramTotals,
    /// The sum in the unit of the name.
    sum: fn(u64) -> f64,
}

const HISTOGRAMS: [Histogram; 3] = [
    Histogram {
        metric: Metric::RequestDuration,
        name: "istio_request_duration_milliseconds",
        help: "The time from the first byte of a request to the last of its response.",
        value: |total| &total.duration_us,
        sum: |us| seconds(us) * 1_000.0,
    },
    Histogram {
        metric: Metric::RequestSize,
        name: "istio_request_bytes",
        help: "The size of requests, heads included.",
        value: |total| &total.request_bytes,
        sum: bytes,
    },
    Histogram {
        metric: Metric::ResponseSize,
        name: "istio_response_bytes",
        help: "The size of responses, heads included.",
        value: |total| &total.response_bytes,
        sum: bytes,
    },
];

struct Messages {
    metric: Metric,
    name: &'static str,
    help: &'static str,
    value: fn(&RequestTotals) -> u64,
}

const MESSAGES: [Messages; 2] = [
    Messages {
        metric: Metric::RequestMessages,
        name: "istio_request_messages",
        help: "The total number of gRPC messages that clients sent.",
        value: |total| total.request_messages,
    },
    Messages {
        metric: Metric::ResponseMessages,
        name: "istio_response_messages",
        help: "The total number of gRPC messages that servers sent.",
        value: |total| total.response_messages,
    },
];

pub(super) fn requests(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let totals = state.request_totals();
    let counts = told(&totals, Metric::RequestCount).into_iter().map(|(tags, sum)| (tags, sum.count()));
    counter(encoder, "istio_requests", "The total number of HTTP requests answered.", counts)?;
    for histogram in &HISTOGRAMS {
        expose(encoder, histogram, &totals)?;
    }
    for Messages { metric, name, help, value } in &MESSAGES {
        let values = told(&totals, *metric).into_iter().map(|(tags, sum)| (tags, value(&sum)));
        counter(encoder, name, help, values.filter(|(_, count)| *count != 0))?;
    }
    Ok(())
}

fn expose(
    encoder: &mut DescriptorEncoder<'_>,
    histogram: &Histogram,
    totals: &[Total<'_, RequestTotals>],
) -> Encoded {
    family(
        encoder,
        MetricType::Histogram,
        (histogram.name, histogram.help, None),
        told(totals, histogram.metric),
        |metric, total| {
            let total = (histogram.value)(&total);
            let buckets = buckets(&REQUEST_BOUNDS, &total.buckets);
            metric.encode_histogram::<NoLabelSet>((histogram.sum)(total.sum), total.count(), &buckets, None)
        },
    )
}

#[allow(clippy::cast_precision_loss)] // A sum for display.
fn bytes(sum: u64) -> f64 {
    sum as f64
}
