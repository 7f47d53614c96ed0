//! HTTPRoute and what it shares with GRPCRoute, with the rules that their schemas state beyond types.
//!
//! What the intermediate form cannot express refuses the route: a route with a part left out would send traffic where
//! its author did not want it.

use std::sync::Arc;

use l7::ir::{HttpMatch, PathMatch, RouteKind, Timeouts, UrlAction, ValueMatch, ValueTest};

use super::super::catalog::Meta;
use super::super::gateway::{BackendRef, HttpRoute, HttpRouteRule, ParentRef};
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::filter::Holder;
use super::{filter, grpc_route, names, retry, timeouts};

// Bounds of the HTTPRoute schema.
const PARENTS_MAX: usize = 32;
const HOSTNAMES_MAX: usize = 16;
const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
const MATCHES_TOTAL_MAX: usize = 128;
const CONDITIONS_MAX: usize = 16;
const BACKENDS_MAX: usize = 16;
const WEIGHT_MAX: i64 = 1_000_000;
const PATH_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 4096;

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum PathType {
    Exact,
    Prefix,
    Regex,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueType {
    Exact,
    Regex,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Header,
    QueryParameter,
}

pub(super) fn http_route(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<HttpRoute> {
    any_route(fields, meta, RouteKind::Http, findings)
}

pub(super) fn any_route(
    fields: &mut Fields<'_>,
    meta: Meta,
    kind: RouteKind,
    findings: &mut Findings,
) -> Option<HttpRoute> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let parents = fields.optional("parentRefs").map_or_else(Vec::new, |list| parents(&list, &meta, findings));
    let mut hostnames = Vec::new();
    if let Some(list) = fields.optional("hostnames") {
        let items = bounded(&list, HOSTNAMES_MAX, findings);
        hostnames.extend(items.iter().filter_map(|item| names::hostname(item, findings)));
    }
    let rules = match fields.optional("rules") {
        Some(list) => rules(&list, &meta, kind, findings),
        None => vec![HttpRouteRule {
            name: None,
            matches: vec![match_all()],
            filters: None,
            mirrors: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
        }],
    };
    fields.ignore(&["useDefaultGateways"]);
    fields.finish(findings);
    Some(HttpRoute { kind, meta, parents, hostnames, rules })
}

/// The entries of a list that has at most so many.
pub(super) fn bounded<'n>(list: &Item<'n>, most: usize, findings: &mut Findings) -> Vec<Item<'n>> {
    let items = list.list(findings);
    if items.len() > most {
        list.error(findings, format!("{} entries are too many", items.len()), format!("keep at most {most}"));
    }
    items
}

fn text<'n>(fields: &mut Fields<'n>, findings: &mut Findings, name: &'static str) -> Option<&'n str> {
    fields.optional(name).and_then(|item| item.text(findings))
}

// === Parents ===

fn parents(list: &Item<'_>, meta: &Meta, findings: &mut Findings) -> Vec<ParentRef> {
    let mut parents: Vec<ParentRef> = Vec::new();
    for item in bounded(list, PARENTS_MAX, findings) {
        let Some(parent) = parent(&item, meta, findings) else {
            continue;
        };
        let same = |other: &ParentRef| {
            (&other.group, &other.kind, &other.namespace, &other.name, &other.section_name, other.port)
                == (
                    &parent.group,
                    &parent.kind,
                    &parent.namespace,
                    &parent.name,
                    &parent.section_name,
                    parent.port,
                )
        };
        if parents.iter().any(same) {
            item.error(findings, "this parent is named twice", "remove one, or tell them apart by port");
        }
        parents.push(parent);
    }
    parents
}

fn parent(item: &Item<'_>, meta: &Meta, findings: &mut Findings) -> Option<ParentRef> {
    let mut fields = item.fields(findings)?;
    let group = text(&mut fields, findings, "group").unwrap_or("gateway.networking.k8s.io");
    let kind = text(&mut fields, findings, "kind").unwrap_or("Gateway");
    let namespace = fields.optional("namespace").map(|item| names::namespace(&item, findings));
    let name = fields.required(findings, "name").and_then(|item| names::subdomain(&item, findings));
    let section_name = fields.optional("sectionName").and_then(|item| names::subdomain(&item, findings));
    let port = fields.optional("port").map(|item| item.port(findings));
    fields.finish(findings);
    Some(ParentRef {
        group: Arc::from(group),
        kind: Arc::from(kind),
        namespace: namespace.unwrap_or_else(|| Some(meta.namespace.clone()))?,
        name: name?,
        section_name,
        // A port that was written but is bad must not widen the route to every port.
        port: match port {
            Some(port) => Some(port?),
            None => None,
        },
        at: item.node.at,
    })
}

// === Rules ===

fn rules(list: &Item<'_>, meta: &Meta, kind: RouteKind, findings: &mut Findings) -> Vec<HttpRouteRule> {
    let items = bounded(list, RULES_MAX, findings);
    if items.is_empty() {
        list.error(findings, "a route needs at least one rule", "add a rule, or leave rules out");
    }
    let mut rules: Vec<HttpRouteRule> = Vec::new();
    for item in &items {
        let Some(rule) = rule(item, meta, kind, findings) else {
            continue;
        };
        if rule.name.is_some() && rules.iter().any(|other| other.name == rule.name) {
            item.error(findings, "two rules bear this name", "rename one of the two");
        }
        rules.push(rule);
    }
    let total: usize = rules.iter().map(|rule| rule.matches.len()).sum();
    if total > MATCHES_TOTAL_MAX {
        let message = format!("{total} matches of all rules are too many");
        list.error(findings, message, format!("keep at most {MATCHES_TOTAL_MAX}"));
    }
    rules
}

fn rule(item: &Item<'_>, meta: &Meta, kind: RouteKind, findings: &mut Findings) -> Option<HttpRouteRule> {
    let mut fields = item.fields(findings)?;
    let name = fields.optional("name").and_then(|item| names::subdomain(&item, findings));
    let mut matches = Vec::new();
    if let Some(list) = fields.optional("matches") {
        let items = bounded(&list, MATCHES_MAX, findings);
        matches.extend(items.iter().filter_map(|item| match kind {
            RouteKind::Http | RouteKind::Virtual => http_match(item, findings),
            RouteKind::Grpc => grpc_route::grpc_match(item, findings),
        }));
    }
    if matches.is_empty() {
        matches.push(match_all());
    }
    let holder = Holder { meta, kind, matches: &matches };
    let (filters, mirrors) = filter::filters(&mut fields, &holder, findings);
    let mut backends = Vec::new();
    if let Some(list) = fields.optional("backendRefs") {
        let items = bounded(&list, BACKENDS_MAX, findings);
        backends.extend(items.iter().filter_map(|item| backend(item, &holder, findings)));
    }
    let redirects =
        filters.as_ref().is_some_and(|filters| matches!(filters.url, Some(UrlAction::Redirect(_))));
    if redirects && !backends.is_empty() {
        let fix = "remove backendRefs: a request that is redirected is not forwarded";
        item.error(findings, "a rule with RequestRedirect cannot have backendRefs", fix);
    }
    // These are of HTTPRoute alone; in a GRPCRoute they are unknown fields.
    let (timeouts, retry) = match kind {
        RouteKind::Http | RouteKind::Virtual => {
            (timeouts::timeouts(&mut fields, findings), retry::retry(&mut fields, findings))
        }
        RouteKind::Grpc => (Timeouts::default(), None),
    };
    let session = retry::session(&mut fields, retry::SESSION_NAME, findings);
    fields.finish(findings);
    Some(HttpRouteRule { name, matches, filters, mirrors, backends, timeouts, retry, session })
}

/// An entry of `backendRefs`.
fn backend(item: &Item<'_>, holder: &Holder<'_>, findings: &mut Findings) -> Option<BackendRef> {
    let mut fields = item.fields(findings)?;
    let weight = fields.optional("weight").and_then(|item| item.integer(findings, 0, WEIGHT_MAX));
    let (filters, mirrors) = filter::filters(&mut fields, holder, findings);
    let reference = reference(fields, item, holder.meta, findings)?;
    let weight = weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
    Some(BackendRef { weight, filters, mirrors, ..reference })
}

/// What names a backend; nothing else may be left in `fields`.
pub(super) fn reference(
    mut fields: Fields<'_>,
    item: &Item<'_>,
    meta: &Meta,
    findings: &mut Findings,
) -> Option<BackendRef> {
    let group = text(&mut fields, findings, "group").unwrap_or_default();
    let kind = text(&mut fields, findings, "kind").unwrap_or("Service");
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let namespace = fields.optional("namespace").map(|item| names::namespace(&item, findings));
    let port = fields.optional("port").map(|item| item.port(findings));
    fields.finish(findings);
    if port.is_none() && group.is_empty() && kind == "Service" {
        item.error(findings, "a Service backend needs a port", "add port");
    }
    Some(BackendRef {
        group: Arc::from(group),
        kind: Arc::from(kind),
        namespace: namespace.unwrap_or_else(|| Some(meta.namespace.clone()))?,
        name: Arc::from(name?),
        port: port.flatten(),
        weight: 1,
        filters: None,
        mirrors: Vec::new(),
        field: Arc::from(item.path.as_str()),
        at: item.node.at,
    })
}

// === Matches ===

/// What a rule without matches stands for.
fn match_all() -> HttpMatch {
    HttpMatch::default()
}

fn http_match(item: &Item<'_>, findings: &mut Findings) -> Option<HttpMatch> {
    let mut fields = item.fields(findings)?;
    let path = match fields.optional("path") {
        Some(item) => path(&item, findings),
        None => Some(PathMatch::Prefix(Arc::from("/"))),
    };
    let method = fields.optional("method").and_then(|item| method(&item, findings));
    let headers = conditions(&mut fields, findings, "headers", Named::Header);
    let query = conditions(&mut fields, findings, "queryParams", Named::QueryParameter);
    fields.finish(findings);
    Some(HttpMatch { path: path?, method, headers, query, ..HttpMatch::default() })
}

fn method(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let choices = METHODS.map(|method| (method, method));
    item.one_of(findings, &choices).map(Arc::from)
}

fn path(item: &Item<'_>, findings: &mut Findings) -> Option<PathMatch> {
    const TYPES: [(&str, PathType); 3] = [
        ("Exact", PathType::Exact),
        ("PathPrefix", PathType::Prefix),
        ("RegularExpression", PathType::Regex),
    ];
    let mut fields = item.fields(findings)?;
    let path_type = match fields.optional("type") {
        Some(item) => item.one_of(findings, &TYPES),
        None => Some(PathType::Prefix),
    };
    let value = fields.optional("value");
    fields.finish(findings);
    let text = match &value {
        Some(item) => item.text(findings)?,
        None => "/",
    };
    let item = value.as_ref().unwrap_or(item);
    if text.len() > PATH_BYTES_MAX {
        item.error(findings, "the path is too long", format!("keep it below {PATH_BYTES_MAX} bytes"));
    }
    match path_type? {
        PathType::Regex => regex(item, text, findings).map(PathMatch::Regex),
        PathType::Exact => literal_path(item, text, findings).map(PathMatch::Exact),
        PathType::Prefix => literal_path(item, text, findings).map(PathMatch::Prefix),
    }
}

fn literal_path(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<Arc<str>> {
    let shown = shortened(text);
    if !text.starts_with('/') {
        item.error(
            findings,
            format!("the path {shown:?} does not begin with a slash"),
            format!("write /{shown}"),
        );
        return None;
    }
    let inner = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| text.contains(part));
    let outer = ["/..", "/."].into_iter().find(|end| text.ends_with(end));
    if let Some(part) = inner.or(outer) {
        let message = format!("the path {shown:?} holds {part:?}, which no normalised path does");
        item.error(findings, message, "write the path as it is after normalisation");
        return None;
    }
    if !is_path(text) {
        let fix = "percent-encode what is not a letter, a digit or one of -/._~!$&'()*+,;=:@";
        item.error(findings, format!("the path {shown:?} holds a character that no path may hold"), fix);
        return None;
    }
    Some(Arc::from(text))
}

/// The characters of RFC 3986 section 3.3, with complete percent escapes.
fn is_path(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_good = match byte {
            b'%' => [bytes.next(), bytes.next()]
                .into_iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !is_good {
            return false;
        }
    }
    true
}

pub(super) fn conditions(
    fields: &mut Fields<'_>,
    findings: &mut Findings,
    field: &'static str,
    named: Named,
) -> Vec<ValueMatch> {
    let Some(list) = fields.optional(field) else {
        return Vec::new();
    };
    let mut conditions: Vec<ValueMatch> = Vec::new();
    let mut spelled: Vec<&str> = Vec::new();
    for item in bounded(&list, CONDITIONS_MAX, findings) {
        let Some((spelling, condition)) = condition(&item, named, findings) else {
            continue;
        };
        if spelled.contains(&spelling) {
            item.error(
                findings,
                format!("{:?} is named twice", shortened(spelling)),
                "remove one of the two",
            );
            continue;
        }
        spelled.push(spelling);
        // Header names that differ in case only: the schema lets them pass, and the first counts.
        if conditions.iter().any(|other| other.name == condition.name) {
            let message = format!("{:?} is named already, and only the first counts", shortened(spelling));
            item.warning(findings, message, "remove one of the two");
            continue;
        }
        conditions.push(condition);
    }
    conditions
}

fn condition<'n>(item: &Item<'n>, named: Named, findings: &mut Findings) -> Option<(&'n str, ValueMatch)> {
    const TYPES: [(&str, ValueType); 2] =
        [("Exact", ValueType::Exact), ("RegularExpression", ValueType::Regex)];
    let mut fields = item.fields(findings)?;
    let value_type = match fields.optional("type") {
        Some(item) => item.one_of(findings, &TYPES),
        None => Some(ValueType::Exact),
    };
    let name = fields.required(findings, "name");
    let value = fields.required(findings, "value");
    fields.finish(findings);
    let (name_item, value_item) = (name?, value?);
    let name = name_item.filled(findings)?;
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
        let fix = "use at most 256 letters, digits or one of !#$%&'*+-.^_`|~";
        name_item.error(findings, format!("{:?} cannot be a name here", shortened(name)), fix);
        return None;
    }
    let value = value_item.filled(findings)?;
    if value.len() > VALUE_BYTES_MAX {
        value_item.error(findings, "the value is too long", format!("keep it below {VALUE_BYTES_MAX} bytes"));
    }
    let value = match value_type? {
        ValueType::Exact => ValueTest::Exact(Arc::from(value)),
        ValueType::Regex => ValueTest::Regex(regex(&value_item, value, findings)?),
    };
    let key = if named == Named::Header { Arc::from(name.to_ascii_lowercase()) } else { Arc::from(name) };
    Some((name, ValueMatch { name: key, value }))
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

pub(super) fn regex(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<Arc<str>> {
    if text.is_empty() {
        item.error(findings, "the expression is empty", "write .* to match anything");
        return None;
    }
    let text: Arc<str> = Arc::from(text);
    if let Err(error) = l7::router::check_pattern(&text) {
        // Of the parser's picture of the place, only its verdict fits on a line.
        let error = error.to_string();
        let verdict = error.lines().find_map(|line| line.trim().strip_prefix("error: ")).unwrap_or(&error);
        let message = format!("{:?} is no regular expression: {}", shortened(&text), shortened(verdict));
        item.error(findings, message, "write it in the RE2 dialect; it must cover the whole text");
        return None;
    }
    Some(text)
}
