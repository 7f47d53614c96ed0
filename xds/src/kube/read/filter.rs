//! Filters of the rules and backends of HTTPRoutes and GRPCRoutes.
//!
//! A filter that is not served refuses the route: what it was to change or to keep out would pass unchanged.

use std::sync::Arc;

use l7::filter::{self, FilterFault};
use l7::ir::{
    Filters, Fraction, HeaderEdits, HeaderValue, HttpMatch, PathMatch, PathRewrite, Redirect, RouteKind,
    Scheme, UrlAction, UrlRewrite,
};

use super::super::catalog::Meta;
use super::super::gateway::MirrorRef;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::{cors, names, route};

// Bounds of the HTTPRoute schema.
const FILTERS_MAX: usize = 16;
const EDITS_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum FilterType {
    RequestHeaders,
    ResponseHeaders,
    Rewrite,
    Redirect,
    Mirror,
    Cors,
    Unsupported(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PathRewriteType {
    Full,
    Prefix,
}

/// Where filters stand.
pub(super) struct Holder<'a> {
    /// Of the route.
    pub(super) meta: &'a Meta,
    pub(super) kind: RouteKind,
    /// Those of the rule.
    pub(super) matches: &'a [HttpMatch],
}

/// The `filters` of a rule or a backend, the mirrors apart: their targets are yet to be found. `None` where none are
/// written.
pub(super) fn filters(
    fields: &mut Fields<'_>,
    holder: &Holder<'_>,
    findings: &mut Findings,
) -> (Option<Arc<Filters>>, Vec<MirrorRef>) {
    let (mut filters, mut mirrors) = (Filters::default(), Vec::new());
    let Some(list) = fields.optional("filters") else {
        return (None, mirrors);
    };
    let items = list.list(findings);
    if items.len() > FILTERS_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {FILTERS_MAX}"));
    }
    let mut seen: Vec<FilterType> = Vec::new();
    for item in &items {
        let Some(written) = one(item, holder, (&mut filters, &mut mirrors), findings) else {
            continue;
        };
        if written == FilterType::Mirror {
            continue;
        }
        if seen.contains(&written) {
            item.error(findings, "a filter of this type is written already", "merge the two into one");
        }
        seen.push(written);
    }
    if seen.contains(&FilterType::Rewrite) && seen.contains(&FilterType::Redirect) {
        let fix = "remove one of the two: a request that is redirected is not forwarded";
        list.error(findings, "URLRewrite and RequestRedirect exclude each other", fix);
    }
    ((!seen.is_empty()).then(|| Arc::new(filters)), mirrors)
}

/// Reads one filter into its place.
fn one(
    item: &Item<'_>,
    holder: &Holder<'_>,
    (filters, mirrors): (&mut Filters, &mut Vec<MirrorRef>),
    findings: &mut Findings,
) -> Option<FilterType> {
    const TYPES: [(&str, FilterType); 8] = [
        ("RequestHeaderModifier", FilterType::RequestHeaders),
        ("ResponseHeaderModifier", FilterType::ResponseHeaders),
        ("RequestMirror", FilterType::Mirror),
        ("ExtensionRef", FilterType::Unsupported("ExtensionRef")),
        ("URLRewrite", FilterType::Rewrite),
        ("RequestRedirect", FilterType::Redirect),
        ("CORS", FilterType::Cors),
        ("ExternalAuth", FilterType::Unsupported("ExternalAuth")),
    ];
    // The first of them are those of GRPCRoute.
    let known = if holder.kind == RouteKind::Grpc { TYPES.get(..4) } else { Some(&TYPES[..]) };
    let mut fields = item.fields(findings)?;
    let type_item = fields.required(findings, "type")?;
    let written = type_item.one_of(findings, known.unwrap_or_default())?;
    match written {
        FilterType::RequestHeaders => {
            let own = fields.required(findings, "requestHeaderModifier")?;
            filters.request_headers = header_edits(&own, findings)?;
        }
        FilterType::ResponseHeaders => {
            let own = fields.required(findings, "responseHeaderModifier")?;
            filters.response_headers = header_edits(&own, findings)?;
        }
        FilterType::Rewrite => {
            let own = fields.required(findings, "urlRewrite")?;
            filters.url = Some(UrlAction::Rewrite(rewrite(&own, holder.matches, findings)?));
        }
        FilterType::Redirect => {
            let own = fields.required(findings, "requestRedirect")?;
            filters.url = Some(UrlAction::Redirect(redirect(&own, holder.matches, findings)?));
        }
        FilterType::Mirror => {
            let own = fields.required(findings, "requestMirror")?;
            mirrors.push(mirror(&own, holder, findings)?);
        }
        FilterType::Cors => {
            let own = fields.required(findings, "cors")?;
            filters.cors = Some(cors::cors(&own, findings)?);
        }
        FilterType::Unsupported(name) => {
            type_item.error(findings, format!("filter {name} is not supported yet"), "remove the filter");
            return None;
        }
    }
    fields.finish(findings);
    Some(written)
}

// === Mirrors ===

fn mirror(item: &Item<'_>, holder: &Holder<'_>, findings: &mut Findings) -> Option<MirrorRef> {
    let mut fields = item.fields(findings)?;
    let backend = fields.required(findings, "backendRef");
    let percent = fields.optional("percent");
    let fraction = fields.optional("fraction");
    fields.finish(findings);
    let share = match (percent, fraction) {
        (None, None) => Some(Fraction::ALL),
        (Some(percent), None) => {
            let percent = percent.integer(findings, 0, 100);
            percent.and_then(|percent| u32::try_from(percent).ok()).map(Fraction::percent)
        }
        (None, Some(item)) => fraction_of(&item, findings),
        (Some(_), Some(item)) => {
            item.error(findings, "percent and fraction exclude each other", "keep one of the two");
            None
        }
    };
    let backend = backend?;
    let backend = route::reference(backend.fields(findings)?, &backend, holder.meta, findings);
    Some(MirrorRef { backend: backend?, share: share? })
}

fn fraction_of(item: &Item<'_>, findings: &mut Findings) -> Option<Fraction> {
    let mut fields = item.fields(findings)?;
    let most = i64::from(i32::MAX);
    let numerator = fields.required(findings, "numerator").and_then(|item| item.integer(findings, 0, most));
    let denominator = fields.optional("denominator").map(|item| item.integer(findings, 1, most));
    fields.finish(findings);
    let number = |value: i64| u32::try_from(value).ok();
    let numerator = number(numerator?)?;
    let denominator = std::num::NonZeroU32::new(number(denominator.unwrap_or(Some(100))?)?)?;
    if numerator > denominator.get() {
        item.error(findings, "the share is more than the whole", "make numerator at most denominator");
        return None;
    }
    Some(Fraction { numerator, denominator })
}

// === Headers ===

fn header_edits(item: &Item<'_>, findings: &mut Findings) -> Option<HeaderEdits> {
    let mut fields = item.fields(findings)?;
    let set = header_values(&mut fields, "set", findings);
    let add = header_values(&mut fields, "add", findings);
    let mut remove: Vec<Arc<str>> = Vec::new();
    if let Some(list) = fields.optional("remove") {
        for item in entries(&list, findings) {
            remove.extend(header_name(&item, findings));
        }
    }
    fields.finish(findings);
    Some(HeaderEdits { remove, set, add })
}

fn entries<'n>(list: &Item<'n>, findings: &mut Findings) -> Vec<Item<'n>> {
    let items = list.list(findings);
    if items.len() > EDITS_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {EDITS_MAX}"));
    }
    items
}

fn header_values(fields: &mut Fields<'_>, field: &'static str, findings: &mut Findings) -> Vec<HeaderValue> {
    let Some(list) = fields.optional(field) else {
        return Vec::new();
    };
    let mut values: Vec<HeaderValue> = Vec::new();
    for item in entries(&list, findings) {
        let Some(value) = one_header_value(&item, findings) else {
            continue;
        };
        let shown = shortened(&value.name);
        if values.iter().any(|other| other.name == value.name) {
            item.error(findings, format!("{shown:?} is named twice"), "remove one of the two");
        } else if values.iter().any(|other| other.name.eq_ignore_ascii_case(&value.name)) {
            // The schema lets names that differ in case only pass, and the first counts.
            let message = format!("{shown:?} is named already, and only the first counts");
            item.warning(findings, message, "remove one of the two");
        } else {
            values.push(value);
        }
    }
    values
}

fn one_header_value(item: &Item<'_>, findings: &mut Findings) -> Option<HeaderValue> {
    let mut fields = item.fields(findings)?;
    let name_item = fields.required(findings, "name");
    let value_item = fields.required(findings, "value");
    fields.finish(findings);
    let (name_item, value_item) = (name_item?, value_item?);
    let name = header_name(&name_item, findings)?;
    let value = value_item.text(findings)?;
    if let Err(fault) = filter::header_value(&name, value) {
        value_item.error(
            findings,
            fault.to_string(),
            "write 1 to 4096 letters, digits, signs and inner blanks",
        );
        return None;
    }
    Some(HeaderValue { name, value: Arc::from(value) })
}

fn header_name(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let name: Arc<str> = Arc::from(item.text(findings)?);
    let Err(fault) = filter::header_name(&name) else {
        return Some(name);
    };
    let fix = match fault {
        FilterFault::Reserved(_) if name.eq_ignore_ascii_case("host") => {
            "remove it; to change the host of a request, write urlRewrite.hostname"
        }
        FilterFault::Reserved(_) => "remove it: the proxy writes this header itself",
        _ => "use at most 256 letters, digits or one of !#$%&'*+-.^_`|~",
    };
    let message = match fault {
        FilterFault::Name(_) => format!("{:?} cannot be a header name", shortened(&name)),
        fault => fault.to_string(),
    };
    item.error(findings, message, fix);
    None
}

// === Places ===

fn rewrite(item: &Item<'_>, matches: &[HttpMatch], findings: &mut Findings) -> Option<UrlRewrite> {
    let mut fields = item.fields(findings)?;
    let hostname = read(fields.optional("hostname"), |item| hostname(item, findings));
    let path = read(fields.optional("path"), |item| path_rewrite(item, matches, findings));
    fields.finish(findings);
    Some(UrlRewrite { hostname: hostname.ok()?, path: path.ok()? })
}

fn redirect(item: &Item<'_>, matches: &[HttpMatch], findings: &mut Findings) -> Option<Redirect> {
    const SCHEMES: [(&str, Scheme); 2] = [("http", Scheme::Http), ("https", Scheme::Https)];
    const STATUSES: [i64; 5] = [301, 302, 303, 307, 308];
    let mut fields = item.fields(findings)?;
    let scheme = read(fields.optional("scheme"), |item| item.one_of(findings, &SCHEMES));
    let hostname = read(fields.optional("hostname"), |item| hostname(item, findings));
    let path = read(fields.optional("path"), |item| path_rewrite(item, matches, findings));
    let port = read(fields.optional("port"), |item| item.port(findings));
    let status = read(fields.optional("statusCode"), |item| {
        let status = item.integer(findings, 300, 399)?;
        if !STATUSES.contains(&status) {
            item.error(findings, format!("{status} is not served"), "write 301, 302, 303, 307 or 308");
            return None;
        }
        u16::try_from(status).ok()
    });
    fields.finish(findings);
    Some(Redirect {
        scheme: scheme.ok()?,
        hostname: hostname.ok()?,
        port: port.ok()?,
        path: path.ok()?,
        status: status.ok()?.unwrap_or(302),
    })
}

/// A field that was written and is bad; what is wrong with it has been reported.
struct Bad;

/// A bad field must not count as one that was left out.
fn read<'n, T>(item: Option<Item<'n>>, value: impl FnOnce(&Item<'n>) -> Option<T>) -> Result<Option<T>, Bad> {
    item.map(|item| value(&item).ok_or(Bad)).transpose()
}

fn hostname(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let hostname = names::hostname(item, findings)?;
    if hostname.starts_with('*') {
        item.error(findings, format!("{hostname:?} names no one host"), "write the name in full");
        return None;
    }
    Some(hostname)
}

fn path_rewrite(item: &Item<'_>, matches: &[HttpMatch], findings: &mut Findings) -> Option<PathRewrite> {
    const TYPES: [(&str, PathRewriteType); 2] =
        [("ReplaceFullPath", PathRewriteType::Full), ("ReplacePrefixMatch", PathRewriteType::Prefix)];
    let mut fields = item.fields(findings)?;
    let rewrite_type = fields.required(findings, "type")?.one_of(findings, &TYPES)?;
    let value = fields.required(
        findings,
        match rewrite_type {
            PathRewriteType::Full => "replaceFullPath",
            PathRewriteType::Prefix => "replacePrefixMatch",
        },
    );
    fields.finish(findings);
    let value = value?;
    let text: Arc<str> = Arc::from(value.text(findings)?);
    let rewrite = match rewrite_type {
        PathRewriteType::Full => PathRewrite::Full(text.clone()),
        PathRewriteType::Prefix => PathRewrite::Prefix(text.clone()),
    };
    if filter::replacement(&rewrite).is_err() {
        let message = format!("the path {:?} cannot stand in for another", shortened(&text));
        let fix = "begin with one slash, percent-encode what no path may hold, write no //, . or .. elements";
        value.error(findings, message, fix);
        return None;
    }
    let has_one_prefix = matches!(matches, [HttpMatch { path: PathMatch::Prefix(_), .. }]);
    if rewrite_type == PathRewriteType::Prefix && !has_one_prefix {
        let message = "ReplacePrefixMatch needs a rule with exactly one match, of type PathPrefix";
        item.error(findings, message, "write one rule for each prefix, or use ReplaceFullPath");
        return None;
    }
    Some(rewrite)
}
