//! The lists of values in the rules of an AuthorizationPolicy.

use std::sync::Arc;

use super::super::istio::Values;
use super::super::problem::Severity;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::registry;

/// Bound of Istio's schema on rules and on every list in them.
pub(super) const ENTRIES_MAX: usize = 512;
const SERVICE_ACCOUNTS_MAX: usize = 16;

/// What the values of a list must look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Principal,
    Method,
    Path,
    Port,
    Network,
    ServiceAccount,
    TrustDomain,
}

/// A list that may be absent, but must hold something if it is there: emptied by mistake it would match everything.
pub(super) fn entries<'n>(
    fields: &mut Fields<'n>,
    name: &'static str,
    findings: &mut Findings,
) -> Vec<Item<'n>> {
    let Some(list) = fields.optional(name) else {
        return Vec::new();
    };
    let items = list.list(findings);
    if items.is_empty() {
        list.error(findings, format!("{name} is empty"), format!("add an entry, or remove {name}"));
    }
    if items.len() > ENTRIES_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    items
}

pub(super) fn values(
    fields: &mut Fields<'_>,
    (name, not_name): (&'static str, &'static str),
    form: Form,
    findings: &mut Findings,
) -> Values {
    let any_of = list(fields, name, form, findings);
    let none_of = list(fields, not_name, form, findings);
    Values { any_of, none_of }
}

fn list(fields: &mut Fields<'_>, name: &'static str, form: Form, findings: &mut Findings) -> Vec<Arc<str>> {
    let items = entries(fields, name, findings);
    if form == Form::ServiceAccount && items.len() > SERVICE_ACCOUNTS_MAX {
        let field = format!("{}.{name}", fields.path);
        let fix = format!("keep at most {SERVICE_ACCOUNTS_MAX}");
        findings.add(Severity::Error, fields.at, &field, "there are too many service accounts", fix);
    }
    items.iter().filter_map(|item| value(item, form, findings)).collect()
}

fn value(item: &Item<'_>, form: Form, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    let shown = shortened(text);
    match form {
        Form::Text => {}
        Form::Principal => {
            if let Some(rest) = text.strip_prefix("spiffe://") {
                let message = "principals are compared without spiffe://, so this one never matches";
                item.warning(findings, message, format!("write {rest}"));
            }
        }
        Form::Method => {
            if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
                let message = format!("methods are compared with case, and {shown:?} is not upper case");
                item.warning(findings, message, format!("write {}", text.to_ascii_uppercase()));
            }
        }
        Form::Path => path(item, text, findings)?,
        Form::Port => {
            if text.parse::<u16>().is_err() || text.starts_with('+') {
                item.error(
                    findings,
                    format!("{shown:?} is no port"),
                    "write a number from 0 to 65535 in quotes",
                );
                return None;
            }
        }
        Form::Network => {
            registry::network(item, findings)?;
        }
        Form::ServiceAccount => service_account(item, text, findings)?,
        Form::TrustDomain => trust_domain(item, text, findings)?,
    }
    Some(Arc::from(text))
}

fn path(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    if text.contains(['{', '}']) {
        if let Err(error) = l7::template::Template::compile(&Arc::from(text)) {
            let fix = "use {*} for one segment and {**} for the rest, each as a whole segment";
            item.error(findings, error.to_string(), fix);
            return None;
        }
    } else if !text.starts_with(['/', '*']) {
        let message = format!("every path begins with a slash, so {:?} never matches", shortened(text));
        item.warning(findings, message, format!("write /{text}"));
    }
    Some(())
}

fn service_account(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    let shown = shortened(text);
    if text.contains('*') {
        item.error(findings, format!("{shown:?} holds a wildcard"), "write each service account out");
        return None;
    }
    let (namespace, account) = text.split_once('/').map_or((None, text), |(left, right)| (Some(left), right));
    if account.is_empty() || account.contains('/') || namespace == Some("") {
        let fix = "write ACCOUNT or NAMESPACE/ACCOUNT";
        item.error(findings, format!("{shown:?} does not name a service account"), fix);
        return None;
    }
    Some(())
}

fn trust_domain(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    let stars = text.matches('*').count();
    let message = if text.contains('/') {
        "a trust domain holds no slash"
    } else if stars > 1 {
        "at most one * may stand in a trust domain"
    } else if stars == 1 && !text.starts_with('*') && !text.ends_with('*') {
        "a * may stand only at the start or the end of a trust domain"
    } else {
        return Some(());
    };
    item.error(
        findings,
        format!("{:?}: {message}", shortened(text)),
        "write it like example.org or *.example.org",
    );
    None
}
