//! `tracing` of Telemetry.

use std::sync::Arc;

use l7::http1::is_token;
use l7::ir::{CustomTag, TagValue};

use super::super::reader::{Fields, Findings, Item};
use super::super::telemetry::{Tracing, TracingProvider};
use super::super::yaml::shortened;
use super::telemetry::{ENTRIES_MAX, matched_mode};
use super::virtual_traffic::percent;

pub(super) fn tracing(item: &Item<'_>, findings: &mut Findings) -> Option<Tracing> {
    let mut fields = item.fields(findings)?;
    let mode = matched_mode(&mut fields, findings);
    let provider = provider(&mut fields, findings);
    let mut flag = |name| fields.optional(name).and_then(|item| item.boolean(findings));
    let (disabled, istio_tags) = (flag("disableSpanReporting"), flag("enableIstioTags"));
    let sampling = fields.optional("randomSamplingPercentage").and_then(|item| percent(&item, findings));
    let tags = fields.optional("customTags").map(|item| custom_tags(&item, findings));
    by_request_id(&mut fields, findings);
    fields.finish(findings);
    Some(Tracing {
        mode,
        provider,
        disabled,
        sampling: sampling.map(|share| share.numerator),
        tags,
        istio_tags,
    })
}

/// Spans go to one collector.
fn provider(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<TracingProvider> {
    let list = fields.optional("providers")?;
    let items = list.list(findings);
    if items.len() > 1 {
        list.error(findings, "there is more than one provider", "keep one of them");
    }
    let mut fields = items.first()?.fields(findings)?;
    let name = fields.required(findings, "name");
    fields.finish(findings);
    let item = name?;
    let name = Arc::from(item.filled(findings)?);
    Some(TracingProvider { name, at: findings.shifted(item.node.at), field: Arc::from(item.path.as_str()) })
}

/// The share is drawn by lot, and no id of a request has a say in it.
fn by_request_id(fields: &mut Fields<'_>, findings: &mut Findings) {
    let Some(item) = fields.optional("useRequestIdForTraceSampling") else { return };
    if item.boolean(findings) == Some(true) {
        item.error(
            findings,
            "request ids do not decide here which requests have spans",
            "write false, or remove it",
        );
    }
}

fn custom_tags(item: &Item<'_>, findings: &mut Findings) -> Vec<CustomTag> {
    let Some(fields) = item.fields(findings) else { return Vec::new() };
    let entries = fields.entries();
    if entries.len() > ENTRIES_MAX {
        let message = format!("{} tags are too many", entries.len());
        item.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    let tags = entries
        .into_iter()
        .filter_map(|(name, item)| Some(CustomTag { name: Arc::from(name), value: value(&item, findings)? }));
    tags.collect()
}

fn value(item: &Item<'_>, findings: &mut Findings) -> Option<TagValue> {
    let mut fields = item.fields(findings)?;
    let written = [fields.optional("literal"), fields.optional("environment"), fields.optional("header")];
    fields.refuse(findings, "formatter");
    fields.finish(findings);
    let mut count = 0;
    let mut value = None;
    for (index, item) in written.iter().enumerate() {
        let Some(item) = item else { continue };
        count += 1;
        value = match index {
            0 => literal(item, findings),
            1 => named(item, findings).map(|(name, default)| TagValue::Environment { name, default }),
            _ => header(item, findings),
        };
    }
    if count != 1 {
        item.error(findings, "a tag has one value", "write literal, environment or header");
    }
    value
}

fn literal(item: &Item<'_>, findings: &mut Findings) -> Option<TagValue> {
    let mut fields = item.fields(findings)?;
    let value = fields.required(findings, "value").and_then(|item| item.shared(findings));
    fields.finish(findings);
    value.map(TagValue::Literal)
}

fn header(item: &Item<'_>, findings: &mut Findings) -> Option<TagValue> {
    let (name, default) = named(item, findings)?;
    if !name.bytes().all(is_token) {
        item.error(
            findings,
            format!("{:?} names no header", shortened(&name)),
            "write a name such as x-user",
        );
        return None;
    }
    Some(TagValue::Header { name: Arc::from(name.to_ascii_lowercase()), default })
}

fn named(item: &Item<'_>, findings: &mut Findings) -> Option<(Arc<str>, Arc<str>)> {
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let default = fields.optional("defaultValue").and_then(|item| item.shared(findings));
    fields.finish(findings);
    Some((Arc::from(name?), default.unwrap_or_default()))
}
