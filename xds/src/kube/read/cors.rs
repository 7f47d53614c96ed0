//! The CORS filter of HTTPRoutes.

use std::sync::Arc;

use l7::ir::{Cors, OriginMatch};

use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;

// Bounds of the HTTPRoute schema.
const ENTRIES_MAX: usize = 64;
const ORIGIN_BYTES_MAX: usize = 253;
/// Seconds that a browser keeps an answer, where a filter does not say: the default of the schema.
const MAX_AGE_S: u32 = 5;

pub(super) fn cors(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<Cors>> {
    let mut fields = item.fields(findings)?;
    let mut origins = Vec::new();
    if let Some(list) = fields.optional("allowOrigins") {
        origins.extend(entries(&list, findings).iter().filter_map(|item| origin(item, findings)));
        if origins.len() > 1 && origins.contains(&OriginMatch::Any) {
            list.error(findings, "* allows every origin, so no other can stand beside it", "keep * alone");
        }
    }
    let credentials = fields.optional("allowCredentials").and_then(|item| item.boolean(findings));
    let methods = tokens(&mut fields, "allowMethods", findings);
    let headers = tokens(&mut fields, "allowHeaders", findings);
    let expose_headers = tokens(&mut fields, "exposeHeaders", findings);
    let max_age = fields.optional("maxAge").and_then(|item| item.integer(findings, 1, i64::from(i32::MAX)));
    fields.finish(findings);
    Some(Arc::new(Cors {
        origins,
        methods,
        headers,
        expose_headers,
        credentials: credentials.unwrap_or(false),
        max_age_s: Some(max_age.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(MAX_AGE_S)),
        forward_unmatched_preflights: false,
    }))
}

fn entries<'n>(list: &Item<'n>, findings: &mut Findings) -> Vec<Item<'n>> {
    let items = list.list(findings);
    if items.len() > ENTRIES_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    items
}

/// `SCHEME://HOST[:PORT]` whose host may begin with a star, or a star alone.
fn origin(item: &Item<'_>, findings: &mut Findings) -> Option<OriginMatch> {
    let text = item.filled(findings)?;
    if text == "*" {
        return Some(OriginMatch::Any);
    }
    let is_good = text.len() <= ORIGIN_BYTES_MAX
        && text.split_once("://").is_some_and(|(scheme, rest)| {
            let (host, port) = rest.split_once(':').unwrap_or((rest, "0"));
            let name = host.strip_prefix('*').unwrap_or(host);
            scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
                && (!name.is_empty() || host == "*")
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                && port.parse::<u16>().is_ok()
        });
    if !is_good {
        let fix = "write an origin such as https://www.example.com, https://*.example.com or *";
        item.error(findings, format!("{:?} is no origin", shortened(text)), fix);
        return None;
    }
    let text = Arc::from(text);
    Some(if str::contains(&text, '*') { OriginMatch::Glob(text) } else { OriginMatch::Exact(text) })
}

/// Names of methods or headers, or a star alone.
fn tokens(fields: &mut Fields<'_>, field: &'static str, findings: &mut Findings) -> Vec<Arc<str>> {
    let Some(list) = fields.optional(field) else {
        return Vec::new();
    };
    let mut names: Vec<Arc<str>> = Vec::new();
    for item in entries(&list, findings) {
        let Some(text) = item.filled(findings) else {
            continue;
        };
        if !text.bytes().all(super::route::is_token) {
            item.error(findings, format!("{:?} cannot be a name here", shortened(text)), "write a name or *");
            continue;
        }
        names.push(Arc::from(text));
    }
    if names.len() > 1 && names.iter().any(|name| &**name == "*") {
        list.error(findings, "* stands for every name, so no other can stand beside it", "keep * alone");
    }
    names
}
