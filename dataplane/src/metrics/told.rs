//! What of the metrics is told, by the rules of telemetry: whole metrics may be left out, and labels of them left out or
//! overwritten. The rules are asked at each scrape, on the control thread; workers count the same with and without.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use l7::ir::{Metric, MetricRule};
use l7::telemetry::Side;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use xds::snapshot::TelemetryTable;

use super::expose::encode_pair;
use super::labels::{LABEL_NAMES, LabelValues, Labels, Reporter};

/// Sums of one label set that can be added up.
pub(super) trait Sum: Copy + Default {
    fn add_sum(&mut self, other: &Self);
}

/// What was counted for one label set of workloads whose traffic is told of alike.
#[derive(Debug)]
pub(super) struct Total<'a, T> {
    pub(super) labels: &'a LabelValues,
    pub(super) side: Option<&'a Side>,
    pub(super) sum: T,
}

/// Labels as they are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tags<'a> {
    /// Of [`LABEL_NAMES`].
    values: Cow<'a, [Box<str>]>,
    /// Those that are not among them.
    others: BTreeMap<&'a str, &'a str>,
}

/// What is told of the traffic that is counted under these labels: by the workload whose proxy counts it.
pub(super) fn side_of<'t>(table: &'t TelemetryTable, labels: &Labels) -> Option<&'t Side> {
    match labels.reporter {
        Reporter::Source => Some(&table.of_workload(labels.source.workload.as_deref()?)?.client),
        Reporter::Destination => Some(&table.of_workload(labels.destination.workload.as_deref()?)?.server),
        Reporter::Waypoint => {
            Some(&table.of_destination(labels.service.as_ref().map(|service| &service.key))?.server)
        }
    }
    .map(|side| &**side)
}

/// What is told of a metric. Label sets that are equal then are one.
pub(super) fn told<'a, T: Sum>(totals: &'a [Total<'a, T>], metric: Metric) -> Vec<(Tags<'a>, T)> {
    if totals.iter().all(|total| total.side.is_none()) {
        return totals.iter().map(|total| (Tags::usual(total.labels), total.sum)).collect();
    }
    let mut merged = BTreeMap::<Tags<'a>, T>::new();
    for total in totals {
        let rule = total.side.and_then(|side| side.rules().metrics.get(&metric));
        let tags = match rule {
            Some(rule) if rule.disabled => continue,
            Some(rule) => Tags::edited(total.labels, rule),
            None => Tags::usual(total.labels),
        };
        merged.entry(tags).or_default().add_sum(&total.sum);
    }
    merged.into_iter().collect()
}

impl<'a> Tags<'a> {
    fn usual(labels: &'a LabelValues) -> Self {
        Self { values: Cow::Borrowed(labels), others: BTreeMap::new() }
    }

    fn edited(labels: &'a LabelValues, rule: &'a MetricRule) -> Self {
        let mut tags = Self::usual(labels);
        for (name, value) in &rule.tags {
            let value = value.as_deref().unwrap_or_default();
            let own = LABEL_NAMES.iter().position(|own| **own == **name);
            if let Some(place) = own.and_then(|place| tags.values.to_mut().get_mut(place)) {
                *place = value.into();
            } else if own.is_none() {
                tags.others.insert(name, value);
            }
        }
        tags
    }
}

impl EncodeLabelSet for Tags<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let own = LABEL_NAMES.iter().zip(self.values.iter()).map(|(name, value)| (*name, &**value));
        let all = own.chain(self.others.iter().map(|(name, value)| (*name, *value)));
        all.filter(|(_, value)| !value.is_empty())
            .try_for_each(|(name, value)| encode_pair(encoder, name, value))
    }
}

#[cfg(test)]
mod tests {
    use l7::ir::{MetricRule, Telemetry};
    use xds::decode::TelemetrySubject;
    use xds::delta::Sink;
    use xds::proto::{TELEMETRY_TYPE, l7 as wire};
    use xds::store::Store;

    use super::super::tests::labels;
    use super::super::{Metrics, metrics};
    use super::*;

    fn follow(metrics: &Metrics, rules: &[(Metric, MetricRule)]) {
        let mut telemetry = Telemetry::default();
        telemetry.client.metrics = rules.iter().cloned().collect();
        let message = wire::Telemetry { ir: serde_json::to_vec(&telemetry).unwrap().into() };
        let body = prost_types::Any {
            type_url: TELEMETRY_TYPE.to_owned(),
            value: prost::Message::encode_to_vec(&message),
        };
        let mut store = Store::new();
        store.upsert(TELEMETRY_TYPE, &TelemetrySubject::Mesh.to_string(), &body).unwrap();
        metrics.follow(store.snapshot().unwrap().telemetry());
    }

    fn tags(tags: &[(&str, Option<&str>)]) -> MetricRule {
        let tags = tags.iter().map(|(name, value)| ((*name).into(), value.map(Into::into)));
        MetricRule { disabled: false, tags: tags.collect() }
    }

    fn lines(metrics: &Metrics, family: &str) -> Vec<String> {
        let text = metrics.text().unwrap();
        text.lines().filter(|line| line.starts_with(family)).map(str::to_owned).collect()
    }

    #[test]
    fn label_sets_that_a_removed_label_told_apart_are_one() {
        let (workers, metrics) = metrics(1);
        for destination in ["web", "other"] {
            workers[0].tcp(&labels("client", destination)).opened();
        }
        let opened = || lines(&metrics, "istio_tcp_connections_opened_total");
        assert_eq!(opened().len(), 2);
        let of_destination = [
            "destination_workload",
            "destination_canonical_service",
            "destination_principal",
            "destination_app",
        ];
        let removed: Vec<_> = of_destination.iter().map(|name| (*name, None)).collect();
        follow(&metrics, &[(Metric::TcpOpened, tags(&removed))]);
        let one = opened();
        assert!(one.len() == 1 && one[0].ends_with(" 2"), "{one:?}");
        assert!(of_destination.iter().all(|name| !one[0].contains(&format!("{name}="))), "{one:?}");
        assert!(one[0].contains("destination_service="), "{one:?}");
        // Other metrics stay as they are.
        assert_eq!(lines(&metrics, "istio_tcp_sent_bytes_total").len(), 2);
        // And everything, once the rules have gone.
        metrics.follow(&std::sync::Arc::default());
        assert_eq!(opened().len(), 2);
    }

    #[test]
    fn a_metric_is_left_out_and_labels_are_overwritten_or_added() {
        let (workers, metrics) = metrics(1);
        workers[0].tcp(&labels("client", "web")).opened();
        let of_server = Labels { reporter: Reporter::Destination, ..labels("client", "web") };
        workers[0].tcp(&of_server).opened();
        let off = MetricRule { disabled: true, ..MetricRule::default() };
        let edited = tags(&[("source_app", Some("blue")), ("team", Some("red")), ("reporter", None)]);
        follow(&metrics, &[(Metric::TcpSent, off), (Metric::TcpOpened, edited)]);
        // The rules are those of clients: what servers count is told as ever.
        let sent = lines(&metrics, "istio_tcp_sent_bytes_total");
        assert!(sent.len() == 1 && sent[0].contains("reporter=\"destination\""), "{sent:?}");
        let opened = lines(&metrics, "istio_tcp_connections_opened_total");
        let of_client = opened.iter().find(|line| !line.contains("reporter=")).unwrap();
        assert!(
            of_client.contains("source_app=\"blue\"") && of_client.contains("team=\"red\""),
            "{opened:?}"
        );
        let of_server = opened.iter().find(|line| line.contains("reporter=\"destination\"")).unwrap();
        assert!(of_server.contains("source_app=\"client\"") && !of_server.contains("team="), "{opened:?}");
    }
}
