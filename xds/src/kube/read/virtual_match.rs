//! `match` of a VirtualService's routes.

use std::sync::Arc;

use l7::ir::{HttpMatch, PathMatch, SourceMatch, ValueMatch, ValueTest};

use super::super::reader::{Fields, Findings, Item};
use super::super::traffic::VirtualMatch;
use super::super::yaml::shortened;
use super::virtual_service::MESH;
use super::{names, route};

// Bounds of our own.
const MATCHES_MAX: usize = 1024;
const CONDITIONS_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 4096;

/// Never empty: a route without `match` takes everything.
pub(super) fn matches(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<VirtualMatch> {
    let Some(list) = fields.optional("match") else {
        return vec![VirtualMatch::default()];
    };
    let items = list.list(findings);
    if items.len() > MATCHES_MAX {
        list.error(findings, "there are too many matches", format!("keep at most {MATCHES_MAX}"));
    }
    if items.is_empty() {
        return vec![VirtualMatch::default()];
    }
    items.iter().filter_map(|item| one(item, findings)).collect()
}

fn one(item: &Item<'_>, findings: &mut Findings) -> Option<VirtualMatch> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    fields.ignore(&["name", "statPrefix"]);
    let ignore_case =
        fields.optional("ignoreUriCase").and_then(|item| item.boolean(findings)).unwrap_or_default();
    let path = match fields.optional("uri") {
        Some(item) => text_match(&item, findings).and_then(|text| path(text, ignore_case, &item, findings)),
        None => Some(PathMatch::default()),
    };
    let mut headers = conditions(&mut fields, "headers", Named::Header, findings);
    for (field, name) in [("scheme", ":scheme"), ("method", ":method"), ("authority", ":authority")] {
        if let Some(value) = fields.optional(field).and_then(|item| text_match(&item, findings)) {
            headers.push(ValueMatch { name: Arc::from(name), value });
        }
    }
    let query = conditions(&mut fields, "queryParams", Named::Parameter, findings);
    let without_headers = conditions(&mut fields, "withoutHeaders", Named::Header, findings);
    let port = fields.optional("port").map(|item| item.port(findings));
    let labels = fields.optional("sourceLabels").map(|item| item.labels(findings)).unwrap_or_default();
    let namespace = fields.optional("sourceNamespace").and_then(|item| names::namespace(&item, findings));
    let gateways = fields.optional("gateways").map(|list| list.texts(findings));
    fields.finish(findings);
    // A condition with an error is not there: without it the match would take what it must not.
    if findings.errors > errors {
        return None;
    }
    let source = (namespace.is_some() || !labels.is_empty()).then_some(SourceMatch { namespace, labels });
    Some(VirtualMatch {
        entry: HttpMatch { path: path?, method: None, headers, query, without_headers, source },
        port: port.flatten(),
        is_elsewhere: gateways.is_some_and(|names| !names.iter().any(|name| &**name == MESH)),
    })
}

/// `StringMatch`: exact, prefix or regex. Without any of them, whatever value.
pub(super) fn text_match(item: &Item<'_>, findings: &mut Findings) -> Option<ValueTest> {
    let mut fields = item.fields(findings)?;
    let mut tests = Vec::new();
    if let Some(item) = fields.optional("exact") {
        tests.push(bounded(&item, findings).map(ValueTest::Exact));
    }
    if let Some(item) = fields.optional("prefix") {
        tests.push(bounded(&item, findings).map(ValueTest::Prefix));
    }
    if let Some(item) = fields.optional("regex") {
        let text = item.filled(findings)?;
        tests.push(route::regex(&item, text, findings).map(ValueTest::Regex));
    }
    fields.finish(findings);
    match tests.len() {
        0 => Some(ValueTest::Present),
        1 => tests.pop().flatten(),
        _ => {
            item.error(findings, "exact, prefix and regex exclude each other", "keep one of them");
            None
        }
    }
}

fn bounded(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.text(findings)?;
    if text.len() > TEXT_BYTES_MAX {
        item.error(findings, "the text is too long", format!("keep at most {TEXT_BYTES_MAX} bytes"));
        return None;
    }
    Some(Arc::from(text))
}

fn path(test: ValueTest, ignore_case: bool, item: &Item<'_>, findings: &mut Findings) -> Option<PathMatch> {
    let text = match &test {
        ValueTest::Exact(text) | ValueTest::Prefix(text) => text.clone(),
        ValueTest::Regex(text) => return Some(PathMatch::Regex(text.clone())),
        _ => {
            item.error(findings, "uri says nothing", "write exact, prefix or regex, or leave uri out");
            return None;
        }
    };
    if !text.starts_with('/') {
        let message = format!("every path begins with a slash, so {:?} is none", shortened(&text));
        item.error(findings, message, format!("write /{}", shortened(&text)));
        return None;
    }
    Some(match test {
        ValueTest::Exact(_) if ignore_case => PathMatch::Regex(any_case(&text, "")),
        ValueTest::Exact(_) => PathMatch::Exact(text),
        _ if ignore_case => PathMatch::Regex(any_case(&text, ".*")),
        _ => PathMatch::TextPrefix(text),
    })
}

/// A literal as a regular expression that does not look at case.
fn any_case(text: &str, rest: &str) -> Arc<str> {
    let mut pattern = String::from("(?i)");
    for letter in text.chars() {
        if !letter.is_ascii_alphanumeric() && letter.is_ascii() {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push_str(rest);
    Arc::from(pattern)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Header,
    Parameter,
}

fn conditions(
    fields: &mut Fields<'_>,
    field: &'static str,
    named: Named,
    findings: &mut Findings,
) -> Vec<ValueMatch> {
    let Some(item) = fields.optional(field) else {
        return Vec::new();
    };
    let Some(entries) = item.fields(findings).map(|fields| fields.entries()) else {
        return Vec::new();
    };
    if entries.len() > CONDITIONS_MAX {
        item.error(findings, "there are too many conditions", format!("keep at most {CONDITIONS_MAX}"));
    }
    let condition = |(name, item): &(&str, Item<'_>)| {
        let value = text_match(item, findings)?;
        let name = if named == Named::Header { name.to_ascii_lowercase() } else { (*name).to_owned() };
        if named == Named::Header && (name.is_empty() || !name.bytes().all(l7::http1::is_token)) {
            let message = format!("{:?} cannot be a header name", shortened(&name));
            item.error(findings, message, "write method, authority and scheme in their own fields");
            return None;
        }
        Some(ValueMatch { name: Arc::from(name), value })
    };
    entries.iter().filter_map(condition).collect()
}
