//! Telemetry.

use std::collections::BTreeMap;
use std::sync::Arc;

use l7::cel::{Filter, literal};
use l7::ir::Metric;

use super::super::catalog::Meta;
use super::super::istio::PolicyTarget;
use super::super::reader::{Fields, Findings, Item};
use super::super::telemetry::{AccessLogging, MetricOverride, Mode, Telemetry};
use super::super::yaml::shortened;
use super::policy::target;
use super::tracing::tracing;

/// Bound of our own on each list.
pub(super) const ENTRIES_MAX: usize = 64;

const MODES: [(&str, Mode); 3] =
    [("CLIENT_AND_SERVER", Mode::Both), ("CLIENT", Mode::Client), ("SERVER", Mode::Server)];

/// By the names of Istio; without one all are meant.
const METRICS: [(&str, Option<Metric>); 11] = [
    ("ALL_METRICS", None),
    ("REQUEST_COUNT", Some(Metric::RequestCount)),
    ("REQUEST_DURATION", Some(Metric::RequestDuration)),
    ("REQUEST_SIZE", Some(Metric::RequestSize)),
    ("RESPONSE_SIZE", Some(Metric::ResponseSize)),
    ("TCP_OPENED_CONNECTIONS", Some(Metric::TcpOpened)),
    ("TCP_CLOSED_CONNECTIONS", Some(Metric::TcpClosed)),
    ("TCP_SENT_BYTES", Some(Metric::TcpSent)),
    ("TCP_RECEIVED_BYTES", Some(Metric::TcpReceived)),
    ("GRPC_REQUEST_MESSAGES", Some(Metric::RequestMessages)),
    ("GRPC_RESPONSE_MESSAGES", Some(Metric::ResponseMessages)),
];

/// Whether the label is removed.
const OPERATIONS: [(&str, bool); 2] = [("UPSERT", false), ("REMOVE", true)];

pub(super) fn telemetry(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<Telemetry> {
    let Some(spec) = fields.optional("spec") else {
        let (logging, metrics, tracing) = (Vec::new(), Vec::new(), Vec::new());
        return Some(Telemetry { meta, target: PolicyTarget::Namespace, logging, metrics, tracing });
    };
    let mut fields = spec.fields(findings)?;
    let target = target(&mut fields, findings)?;
    let logging = entries(&mut fields, "accessLogging", findings, access_logging);
    let metrics = entries(&mut fields, "metrics", findings, metrics).into_iter().flatten().collect();
    let tracing = entries(&mut fields, "tracing", findings, tracing);
    fields.finish(findings);
    Some(Telemetry { meta, target, logging, metrics, tracing })
}

fn entries<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    findings: &mut Findings,
    read: impl Fn(&Item<'_>, &mut Findings) -> Option<T>,
) -> Vec<T> {
    let Some(list) = fields.optional(name) else { return Vec::new() };
    let items = list.list(findings);
    if items.len() > ENTRIES_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    items.iter().filter_map(|item| read(item, findings)).collect()
}

fn access_logging(item: &Item<'_>, findings: &mut Findings) -> Option<AccessLogging> {
    let mut fields = item.fields(findings)?;
    let mode = matched_mode(&mut fields, findings);
    providers(&mut fields, "envoy", "the access log of the proxy itself", findings);
    let disabled = fields.optional("disabled").and_then(|item| item.boolean(findings)).unwrap_or_default();
    let filter = fields.optional("filter").and_then(|item| filter(&item, findings));
    fields.finish(findings);
    Some(AccessLogging { mode, disabled, filter })
}

fn filter(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let mut fields = item.fields(findings)?;
    let item = fields.optional("expression");
    fields.finish(findings);
    let item = item?;
    let text = item.text(findings)?;
    if text.trim().is_empty() {
        return None;
    }
    if let Err(error) = Filter::compile(text) {
        let fix = "write a condition over attributes, such as response.code >= 400";
        item.error(findings, format!("{:?} cannot be a filter: {error}", shortened(text)), fix);
        return None;
    }
    Some(Arc::from(text))
}

fn metrics(item: &Item<'_>, findings: &mut Findings) -> Option<Vec<MetricOverride>> {
    let mut fields = item.fields(findings)?;
    providers(&mut fields, "prometheus", "the metrics page of the proxy", findings);
    let overrides = entries(&mut fields, "overrides", findings, metric_override);
    // A page is asked for by its readers.
    fields.refuse(findings, "reportingInterval");
    fields.finish(findings);
    Some(overrides)
}

fn metric_override(item: &Item<'_>, findings: &mut Findings) -> Option<MetricOverride> {
    let mut fields = item.fields(findings)?;
    let (mode, metrics) = match fields.optional("match") {
        Some(item) => metric_match(&item, findings)?,
        None => (Mode::default(), Metric::ALL.to_vec()),
    };
    let disabled = fields.optional("disabled").and_then(|item| item.boolean(findings));
    let tags = fields.optional("tagOverrides").map_or_else(BTreeMap::new, |item| tags(&item, findings));
    fields.finish(findings);
    Some(MetricOverride { mode, metrics, disabled, tags })
}

fn metric_match(item: &Item<'_>, findings: &mut Findings) -> Option<(Mode, Vec<Metric>)> {
    let mut fields = item.fields(findings)?;
    let mode = fields.optional("mode").map_or(Some(Mode::default()), |item| item.one_of(findings, &MODES));
    let metric = fields.optional("metric").map_or(Some(None), |item| item.one_of(findings, &METRICS));
    fields.refuse(findings, "customMetric");
    fields.finish(findings);
    Some((mode?, metric?.map_or_else(|| Metric::ALL.to_vec(), |metric| vec![metric])))
}

fn tags(item: &Item<'_>, findings: &mut Findings) -> BTreeMap<Arc<str>, Option<Arc<str>>> {
    let Some(fields) = item.fields(findings) else { return BTreeMap::new() };
    let mut tags = BTreeMap::new();
    for (name, item) in fields.entries() {
        if !is_label(name) {
            let message = format!("{:?} cannot name a label", shortened(name));
            item.error(findings, message, "write letters, digits and underscores, not a digit first");
        }
        if let Some(tag) = tag(&item, findings) {
            tags.insert(Arc::from(name), tag.value());
        }
    }
    if tags.len() > ENTRIES_MAX {
        let message = format!("{} labels are too many", tags.len());
        item.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    tags
}

/// What becomes of a label.
enum Tag {
    Removed,
    Text(Arc<str>),
}

impl Tag {
    fn value(self) -> Option<Arc<str>> {
        match self {
            Self::Removed => None,
            Self::Text(text) => Some(text),
        }
    }
}

fn tag(item: &Item<'_>, findings: &mut Findings) -> Option<Tag> {
    let mut fields = item.fields(findings)?;
    let removes = fields.optional("operation").map_or(Some(false), |item| item.one_of(findings, &OPERATIONS));
    let value = fields.optional("value");
    fields.finish(findings);
    match (removes?, value) {
        (true, None) => Some(Tag::Removed),
        (true, Some(value)) => {
            value.error(findings, "a label that is removed has no value", "remove value");
            None
        }
        (false, None) => {
            let fix = "write value: \"'a text'\", or operation: REMOVE";
            item.error(findings, "the label has no value", fix);
            None
        }
        (false, Some(value)) => {
            let text = value.text(findings)?;
            let literal = literal(text);
            if literal.is_none() {
                let message =
                    format!("{:?} is not supported: only a text is, the same for all", shortened(text));
                value.error(findings, message, "write a text in quotes of its own, such as \"'blue'\"");
            }
            Some(Tag::Text(literal?.into()))
        }
    }
}

/// As Prometheus has it.
fn is_label(name: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
    name.starts_with(is_letter) && name.chars().all(|it| is_letter(it) || it.is_ascii_digit())
}

pub(super) fn matched_mode(fields: &mut Fields<'_>, findings: &mut Findings) -> Mode {
    let Some(item) = fields.optional("match") else { return Mode::default() };
    let Some(mut fields) = item.fields(findings) else { return Mode::default() };
    let mode = fields.optional("mode").and_then(|item| item.one_of(findings, &MODES));
    fields.finish(findings);
    mode.unwrap_or_default()
}

/// Only one provider is served; others are refused by their names.
fn providers(fields: &mut Fields<'_>, served: &str, what: &str, findings: &mut Findings) {
    let Some(list) = fields.optional("providers") else { return };
    for item in list.list(findings) {
        let Some(mut fields) = item.fields(findings) else { continue };
        let name = fields.required(findings, "name");
        fields.finish(findings);
        let Some((item, name)) = name.and_then(|item| item.filled(findings).map(|name| (item, name))) else {
            continue;
        };
        if name != served {
            let message = format!("the provider {:?} is not supported", shortened(name));
            item.error(findings, message, format!("write {served}, which is {what}"));
        }
    }
}
