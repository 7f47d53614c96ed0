//! The spellings that Kubernetes allows for names, host names and labels.

use std::sync::Arc;

use super::super::catalog::{Kind, Labels};
use super::super::reader::{Findings, Item};
use super::super::yaml::shortened;

/// RFC 1123 section 2.1: a label has at most 63 octets.
const LABEL_BYTES_MAX: usize = 63;
/// RFC 1123 section 2.1: a name has at most 253.
const SUBDOMAIN_BYTES_MAX: usize = 253;

/// The name of an object of a kind.
pub(super) fn object(kind: Kind, item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    match kind {
        Kind::Namespace | Kind::Service => label(item, findings),
        _ => subdomain(item, findings),
    }
}

pub(super) fn namespace(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    label(item, findings)
}

fn label(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    if is_label(text) {
        return Some(Arc::from(text));
    }
    let fix = "use at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit";
    item.error(findings, format!("{:?} cannot be a name", shortened(text)), fix);
    None
}

pub(super) fn subdomain(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    if is_subdomain(text) {
        return Some(Arc::from(text));
    }
    let fix = "use at most 253 of a-z, 0-9, - and ., each part beginning and ending with a letter or digit";
    item.error(findings, format!("{:?} cannot be a name", shortened(text)), fix);
    None
}

/// A host name, which may begin with `*.`.
pub(super) fn hostname(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    let rest = text.strip_prefix("*.").unwrap_or(text);
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    if is_subdomain(rest) && !is_address {
        return Some(Arc::from(text));
    }
    let fix = "write a name such as web.example.com or *.example.com, in lower case and without a port";
    item.error(findings, format!("{:?} cannot be a host name", shortened(text)), fix);
    None
}

pub(super) fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && is_label_like(text)
}

pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_BYTES_MAX && text.split('.').all(is_label_like)
}

fn is_label_like(text: &str) -> bool {
    let is_end =
        |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    is_end(text.bytes().next())
        && is_end(text.bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// `matchLabels` of a selector, the only form that policies take.
pub(super) fn match_labels(selector: &Item<'_>, findings: &mut Findings) -> Option<Labels> {
    let mut fields = selector.fields(findings)?;
    let item = fields.optional("matchLabels");
    fields.finish(findings);
    let Some(item) = item else {
        return Some(Labels::new());
    };
    let labels = item.labels(findings);
    for (key, value) in &labels {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            let message = format!("{key:?}: {value:?} selects nothing: a selector compares whole labels");
            item.error(findings, message, "write the key and the value without *");
        }
    }
    Some(labels)
}
