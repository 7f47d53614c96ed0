//! Telemetry.

use std::sync::Arc;

use l7::cel::Filter;

use super::super::catalog::Meta;
use super::super::istio::PolicyTarget;
use super::super::reader::{Fields, Findings, Item};
use super::super::telemetry::{AccessLogging, Mode, Telemetry};
use super::super::yaml::shortened;
use super::policy::target;

/// Bound of our own on each list.
const ENTRIES_MAX: usize = 64;

const MODES: [(&str, Mode); 3] =
    [("CLIENT_AND_SERVER", Mode::Both), ("CLIENT", Mode::Client), ("SERVER", Mode::Server)];

pub(super) fn telemetry(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<Telemetry> {
    let Some(spec) = fields.optional("spec") else {
        return Some(Telemetry { meta, target: PolicyTarget::Namespace, logging: Vec::new() });
    };
    let mut fields = spec.fields(findings)?;
    let target = target(&mut fields, findings)?;
    let logging = entries(&mut fields, "accessLogging", findings, access_logging);
    entries(&mut fields, "metrics", findings, metrics);
    fields.refuse(findings, "tracing");
    fields.finish(findings);
    Some(Telemetry { meta, target, logging })
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

fn metrics(item: &Item<'_>, findings: &mut Findings) -> Option<()> {
    let mut fields = item.fields(findings)?;
    providers(&mut fields, "prometheus", "the metrics page of the proxy", findings);
    fields.refuse(findings, "overrides");
    fields.refuse(findings, "reportingInterval");
    fields.finish(findings);
    Some(())
}

fn matched_mode(fields: &mut Fields<'_>, findings: &mut Findings) -> Mode {
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
