//! BackendTLSPolicy, XBackendTrafficPolicy.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{CertificateName, RetryBudget};

use super::super::backend_policy::{
    Authorities, AuthorityRef, BackendTlsPolicy, BackendTrafficPolicy, PolicyTargetRef,
};
use super::super::catalog::Meta;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::{names, retry, timeouts};

// Bounds of the schemas.
const TARGETS_MAX: usize = 16;
const AUTHORITIES_MAX: usize = 8;
const NAMES_MAX: usize = 5;
const URI_BYTES_MAX: usize = 253;

// Defaults of the schema of XBackendTrafficPolicy.
const BUDGET_PERCENT: i64 = 20;
const BUDGET_INTERVAL_MS: u32 = 10_000;
const MIN_RETRIES: i64 = 10;
const MIN_INTERVAL_MS: u32 = 1000;

// === BackendTLSPolicy ===

pub(super) fn backend_tls_policy(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<BackendTlsPolicy> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let targets = targets(&mut fields, findings);
    let validation = fields.required(findings, "validation")?;
    if let Some(options) = fields.optional("options") {
        let message = "options are of other implementations, and none is known here";
        options.error(findings, message, "remove options");
    }
    fields.finish(findings);
    let mut fields = validation.fields(findings)?;
    let hostname = fields.required(findings, "hostname").and_then(|item| sni(&item, findings));
    let mut alternatives = Vec::new();
    if let Some(list) = fields.optional("subjectAltNames") {
        let items = bounded(&list, NAMES_MAX, findings);
        alternatives.extend(items.iter().filter_map(|item| alternative(item, findings)));
    }
    let references = fields.optional("caCertificateRefs");
    let well_known = fields.optional("wellKnownCACertificates");
    fields.finish(findings);
    let authorities = match (references, well_known) {
        (None, Some(item)) => item.one_of(findings, &[("System", ())]).map(|()| Authorities::System),
        (Some(list), None) => {
            let items = bounded(&list, AUTHORITIES_MAX, findings);
            let references = items.iter().filter_map(|item| authority(item, findings)).collect();
            Some(Authorities::References(references))
        }
        (Some(_), Some(item)) => {
            let message = "wellKnownCACertificates and caCertificateRefs exclude each other";
            item.error(findings, message, "keep one of the two");
            None
        }
        (None, None) => {
            let fix = "add caCertificateRefs, or wellKnownCACertificates: System";
            validation.error(findings, "the policy does not say whom to trust", fix);
            None
        }
    };
    Some(BackendTlsPolicy {
        meta,
        targets,
        hostname: hostname?,
        names: alternatives,
        authorities: authorities?,
    })
}

fn bounded<'n>(list: &Item<'n>, most: usize, findings: &mut Findings) -> Vec<Item<'n>> {
    let items = list.list(findings);
    if items.is_empty() {
        list.error(findings, "this list must not be empty", "add an entry, or remove the field");
    }
    if items.len() > most {
        list.error(findings, format!("{} entries are too many", items.len()), format!("keep at most {most}"));
    }
    items
}

/// Whole names only: they are sent as SNI.
fn sni(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let hostname = names::hostname(item, findings)?;
    if hostname.starts_with('*') {
        item.error(findings, format!("{hostname:?} names no one host"), "write the name in full");
        return None;
    }
    Some(hostname)
}

fn alternative(item: &Item<'_>, findings: &mut Findings) -> Option<CertificateName> {
    let mut fields = item.fields(findings)?;
    let is_uri = fields
        .required(findings, "type")
        .and_then(|item| item.one_of(findings, &[("Hostname", false), ("URI", true)]));
    let (wanted, other) = if is_uri? { ("uri", "hostname") } else { ("hostname", "uri") };
    let value = fields.required(findings, wanted);
    if let Some(item) = fields.optional(other) {
        item.error(findings, format!("a name of this type has no {other}"), format!("remove {other}"));
    }
    fields.finish(findings);
    let value = value?;
    if wanted == "hostname" {
        return names::hostname(&value, findings).map(CertificateName::Dns);
    }
    let text = value.filled(findings)?;
    let is_good = text.len() <= URI_BYTES_MAX
        && text.is_ascii()
        && text.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    if !is_good {
        let fix = "write a URI with its scheme, such as spiffe://example.com/ns/app/sa/web";
        value.error(findings, format!("{:?} is no absolute URI", shortened(text)), fix);
        return None;
    }
    Some(CertificateName::Uri(Arc::from(text)))
}

fn authority(item: &Item<'_>, findings: &mut Findings) -> Option<AuthorityRef> {
    let mut fields = item.fields(findings)?;
    let group = fields.required(findings, "group").and_then(|item| item.shared(findings));
    let kind = fields.required(findings, "kind").and_then(|item| item.filled(findings));
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    fields.finish(findings);
    Some(AuthorityRef {
        group: group?,
        kind: Arc::from(kind?),
        name: Arc::from(name?),
        field: Arc::from(item.path.as_str()),
        at: item.node.at,
    })
}

fn targets(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<PolicyTargetRef> {
    let Some(list) = fields.required(findings, "targetRefs") else {
        return Vec::new();
    };
    let mut targets: Vec<PolicyTargetRef> = Vec::new();
    for item in bounded(&list, TARGETS_MAX, findings) {
        let Some(target) = target(&item, findings) else {
            continue;
        };
        let key = |it: &PolicyTargetRef| {
            (it.group.clone(), it.kind.clone(), it.name.clone(), it.section_name.clone())
        };
        if targets.iter().any(|other| key(other) == key(&target)) {
            item.error(
                findings,
                "this target is named twice",
                "remove one, or tell them apart by sectionName",
            );
        }
        targets.push(target);
    }
    targets
}

fn target(item: &Item<'_>, findings: &mut Findings) -> Option<PolicyTargetRef> {
    let mut fields = item.fields(findings)?;
    let group = fields.required(findings, "group").and_then(|item| item.shared(findings));
    let kind = fields.required(findings, "kind").and_then(|item| item.filled(findings));
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let section_name = fields.optional("sectionName").map(|item| names::subdomain(&item, findings));
    fields.finish(findings);
    Some(PolicyTargetRef {
        group: group?,
        kind: Arc::from(kind?),
        name: Arc::from(name?),
        // A section that was written but is bad must not widen the policy to every port.
        section_name: match section_name {
            Some(section) => Some(section?),
            None => None,
        },
        field: Arc::from(item.path.as_str()),
        at: item.node.at,
    })
}

// === XBackendTrafficPolicy ===

pub(super) fn backend_traffic_policy(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<BackendTrafficPolicy> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let targets = targets(&mut fields, findings);
    let budget = fields.optional("retryConstraint").and_then(|item| budget(&item, findings));
    // Each Service that the policy names gives it a name of its own.
    let session = retry::session(&mut fields, "", findings);
    fields.finish(findings);
    Some(BackendTrafficPolicy { meta, targets, retry_budget: budget, session })
}

fn budget(item: &Item<'_>, findings: &mut Findings) -> Option<RetryBudget> {
    let mut fields = item.fields(findings)?;
    let (mut percent, mut interval_ms) = (None, None);
    if let Some(item) = fields.optional("budget") {
        let mut fields = item.fields(findings)?;
        percent = fields.optional("percent").and_then(|item| item.integer(findings, 0, 100));
        interval_ms = fields.optional("interval").and_then(|item| interval(&item, findings));
        fields.finish(findings);
    }
    let (mut count, mut min_interval_ms) = (None, None);
    if let Some(item) = fields.optional("minRetryRate") {
        let mut fields = item.fields(findings)?;
        count = fields.optional("count").and_then(|item| item.integer(findings, 1, 1_000_000));
        min_interval_ms = fields.optional("interval").and_then(|item| interval(&item, findings));
        fields.finish(findings);
    }
    fields.finish(findings);
    let number = |value: Option<i64>, default: i64| u32::try_from(value.unwrap_or(default)).ok();
    let or = |value: Option<NonZeroU32>, default: u32| value.or(NonZeroU32::new(default));
    Some(RetryBudget {
        percent: number(percent, BUDGET_PERCENT)?,
        interval_ms: or(interval_ms, BUDGET_INTERVAL_MS)?,
        min_retries: number(count, MIN_RETRIES)?,
        min_interval_ms: or(min_interval_ms, MIN_INTERVAL_MS)?,
    })
}

fn interval(item: &Item<'_>, findings: &mut Findings) -> Option<NonZeroU32> {
    const MOST_MS: u32 = 3_600_000;
    let errors = findings.errors;
    let interval = timeouts::limit(item, findings).filter(|ms| ms.get() <= MOST_MS);
    if interval.is_none() && findings.errors == errors {
        item.error(findings, "the interval is out of range", "write a duration of more than 0s, 1h at most");
    }
    interval
}
