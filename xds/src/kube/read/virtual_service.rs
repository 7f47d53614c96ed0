//! VirtualService: its routes for HTTP. Routes for TCP and TLS, delegates and other parts that are not honoured refuse the
//! object by name, for the rest of it would send traffic where its author did not want it.

use std::sync::Arc;

use l7::filter;
use l7::ir::{
    DirectResponse, Filters, HeaderEdits, HeaderValue, PathRewrite, Redirect, Scheme, Timeouts, UrlAction,
    UrlRewrite,
};

use super::super::catalog::Meta;
use super::super::reader::{Fields, Findings, Item};
use super::super::traffic::{Destination, ExportTo, VirtualRoute, VirtualService};
use super::super::yaml::shortened;
use super::{duration, virtual_match, virtual_traffic};

// Bounds of our own.
const HOSTS_MAX: usize = 256;
const ROUTES_MAX: usize = 4096;
const DESTINATIONS_MAX: usize = 128;
const WEIGHT_MAX: i64 = 1_000_000;
const BODY_BYTES_MAX: usize = 64 << 10;

/// The gateway that stands for all traffic between workloads.
pub(super) const MESH: &str = "mesh";

pub(super) fn virtual_service(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<VirtualService> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let hosts = fields.required(findings, "hosts").map(|list| hosts(&list, findings));
    let gateways = fields.optional("gateways").map(|list| list.texts(findings));
    let is_for_mesh = gateways.is_none_or(|names| names.iter().any(|name| &**name == MESH));
    let export_to = export_to(&mut fields, &meta, findings);
    let mut http = Vec::new();
    if let Some(list) = fields.optional("http") {
        let items = list.list(findings);
        if items.len() > ROUTES_MAX {
            list.error(findings, "there are too many routes", format!("keep at most {ROUTES_MAX}"));
        }
        http.extend(items.iter().filter_map(|item| route(item, findings)));
    }
    for unsupported in ["tcp", "tls"] {
        fields.refuse(findings, unsupported);
    }
    fields.finish(findings);
    if !is_for_mesh {
        let message = "only traffic of the gateway \"mesh\" is governed here, and gateways does not name it";
        spec.warning(findings, message, "add mesh to gateways, unless another proxy serves this gateway");
    }
    Some(VirtualService { meta, hosts: hosts?, is_for_mesh, export_to: export_to?, http })
}

pub(super) fn hosts(list: &Item<'_>, findings: &mut Findings) -> Vec<Arc<str>> {
    let items = list.list(findings);
    if items.is_empty() || items.len() > HOSTS_MAX {
        list.error(findings, format!("write one to {HOSTS_MAX} hosts"), "");
    }
    items.iter().filter_map(|item| host(item, findings)).collect()
}

/// A host as Istio writes it: a short or full name, `*.suffix`, or `*`.
pub(super) fn host(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    if text == "*" {
        return Some(Arc::from("*"));
    }
    super::names::hostname(item, findings)
}

/// `exportTo`: `None` once it is reported that it cannot be honoured.
pub(super) fn export_to(fields: &mut Fields<'_>, meta: &Meta, findings: &mut Findings) -> Option<ExportTo> {
    let Some(list) = fields.optional("exportTo") else {
        return Some(ExportTo::Everybody);
    };
    let mut namespaces = Vec::new();
    for item in list.list(findings) {
        match item.filled(findings)? {
            "*" => return Some(ExportTo::Everybody),
            "." => namespaces.push(meta.namespace.clone()),
            "~" => {
                item.error(findings, "exportTo \"~\" is not supported", "write \".\" or \"*\"");
                return None;
            }
            _ => namespaces.push(super::names::namespace(&item, findings)?),
        }
    }
    Some(if namespaces.is_empty() { ExportTo::Everybody } else { ExportTo::Namespaces(namespaces) })
}

// === Routes ===

fn route(item: &Item<'_>, findings: &mut Findings) -> Option<VirtualRoute> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    let name = fields.optional("name").and_then(|item| item.shared(findings));
    let matches = virtual_match::matches(&mut fields, findings);
    let mut filters = Filters::default();
    if let Some(item) = fields.optional("headers") {
        (filters.request_headers, filters.response_headers) = headers(&item, findings);
    }
    let redirect = fields.optional("redirect");
    if let Some(item) = &redirect {
        filters.url = self::redirect(item, findings).map(UrlAction::Redirect);
    }
    let direct_item = fields.optional("directResponse");
    let direct = direct_item.as_ref().and_then(|item| direct(item, findings)).map(Arc::new);
    let rewrite_item = fields.optional("rewrite");
    let (rewrite_uri, authority) = rewrite_item.as_ref().map_or((None, None), |item| rewrite(item, findings));
    if let Some(hostname) = authority {
        filters.url = Some(UrlAction::Rewrite(UrlRewrite { hostname: Some(hostname), path: None }));
    }
    let mut destinations = Vec::new();
    if let Some(list) = fields.optional("route") {
        let items = list.list(findings);
        if items.len() > DESTINATIONS_MAX {
            list.error(
                findings,
                "there are too many destinations",
                format!("keep at most {DESTINATIONS_MAX}"),
            );
        }
        let several = items.len() > 1;
        destinations.extend(items.iter().filter_map(|item| weighted(item, several, findings)));
    }
    let retries = fields.optional("retries");
    let (retry, per_try) = virtual_traffic::retry(retries.as_ref(), findings);
    let timeout = fields.optional("timeout").and_then(|item| duration::duration_or_zero(&item, findings));
    let timeouts =
        Timeouts { request_ms: timeout.and_then(std::num::NonZeroU32::new), backend_request_ms: per_try };
    let fault = fields.optional("fault").and_then(|item| virtual_traffic::fault(&item, findings));
    let mirrors = virtual_traffic::mirrors(&mut fields, findings);
    let cors = fields.optional("corsPolicy").and_then(|item| virtual_traffic::cors(&item, findings));
    if let Some(item) = fields.optional("delegate") {
        item.error(findings, "delegate is not supported", "write the routes of the delegate here");
    }
    fields.finish(findings);
    let ends = [redirect.is_some(), direct_item.is_some(), !destinations.is_empty()];
    if findings.errors == errors && ends.iter().filter(|end| **end).count() != 1 {
        let message = "a route ends in exactly one of route, redirect and directResponse";
        item.error(findings, message, "write one of them");
    }
    if redirect.is_some() && rewrite_item.is_some() {
        item.error(findings, "redirect and rewrite exclude each other", "remove one of the two");
    }
    Some(VirtualRoute {
        name,
        matches,
        filters,
        rewrite_uri,
        destinations,
        mirrors,
        timeouts,
        retry,
        fault: fault.map(Arc::new),
        direct,
        cors: cors.map(Arc::new),
    })
}

fn weighted(item: &Item<'_>, several: bool, findings: &mut Findings) -> Option<Destination> {
    let mut fields = item.fields(findings)?;
    let destination = fields.required(findings, "destination").and_then(|item| destination(&item, findings));
    let weight = fields.optional("weight").and_then(|item| item.integer(findings, 0, WEIGHT_MAX));
    let edits = fields.optional("headers").map(|item| headers(&item, findings));
    fields.finish(findings);
    let filters = edits.map(|(request_headers, response_headers)| {
        Arc::new(Filters { request_headers, response_headers, ..Filters::default() })
    });
    // A single destination takes all, whatever is written; of several one without weight takes nothing.
    let weight = weight.and_then(|weight| u32::try_from(weight).ok());
    let weight = if several { weight.unwrap_or(0) } else { weight.filter(|it| *it > 0).unwrap_or(1) };
    Some(Destination { weight, filters, ..destination? })
}

pub(super) fn destination(item: &Item<'_>, findings: &mut Findings) -> Option<Destination> {
    let mut fields = item.fields(findings)?;
    let host = fields.required(findings, "host").and_then(|item| super::names::hostname(&item, findings));
    let subset = fields.optional("subset").and_then(|item| item.shared(findings));
    let port = match fields.optional("port") {
        Some(item) => {
            let mut fields = item.fields(findings)?;
            let number = fields.required(findings, "number").and_then(|item| item.port(findings));
            fields.finish(findings);
            // A port that is wrong must not become that of the request.
            Some(number?)
        }
        None => None,
    };
    fields.finish(findings);
    Some(Destination {
        host: host?,
        subset: subset.filter(|name| !name.is_empty()),
        port,
        weight: 1,
        filters: None,
        field: Arc::from(item.path.as_str()),
        at: item.node.at,
    })
}

// === What is done to messages ===

/// Edits of requests and of responses.
fn headers(item: &Item<'_>, findings: &mut Findings) -> (HeaderEdits, HeaderEdits) {
    let Some(mut fields) = item.fields(findings) else {
        return Default::default();
    };
    let mut edits = |name| fields.optional(name).map_or_else(HeaderEdits::default, |it| edits(&it, findings));
    let both = (edits("request"), edits("response"));
    fields.finish(findings);
    both
}

fn edits(item: &Item<'_>, findings: &mut Findings) -> HeaderEdits {
    let Some(mut fields) = item.fields(findings) else {
        return HeaderEdits::default();
    };
    let mut values = |name| fields.optional(name).map_or_else(Vec::new, |item| values(&item, findings));
    let (set, add) = (values("set"), values("add"));
    let mut remove = Vec::new();
    if let Some(list) = fields.optional("remove") {
        for item in list.list(findings) {
            let Some(name) = item.filled(findings).map(|name| Arc::<str>::from(name.to_ascii_lowercase()))
            else {
                continue;
            };
            if let Err(fault) = filter::header_name(&name) {
                item.error(findings, fault.to_string(), "");
            }
            remove.push(name);
        }
    }
    fields.finish(findings);
    HeaderEdits { remove, set, add }
}

fn values(item: &Item<'_>, findings: &mut Findings) -> Vec<HeaderValue> {
    let mut values = Vec::new();
    for (name, value) in item.labels(findings) {
        let name: Arc<str> = Arc::from(name.to_ascii_lowercase());
        let checked = filter::header_name(&name).and_then(|()| filter::header_value(&name, &value));
        if let Err(fault) = checked {
            item.error(findings, fault.to_string(), "");
        } else if value.contains('%') {
            let message = format!("the value of {name:?} holds a %, with which Envoy's commands begin");
            item.error(findings, message, "write the value itself: commands are not supported");
        }
        values.push(HeaderValue { name, value });
    }
    values
}

/// `uri` and `authority`.
fn rewrite(item: &Item<'_>, findings: &mut Findings) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let Some(mut fields) = item.fields(findings) else {
        return (None, None);
    };
    let uri = fields.optional("uri").and_then(|item| path(&item, findings));
    let authority = fields.optional("authority").and_then(|item| super::names::hostname(&item, findings));
    if let Some(item) = fields.optional("uriRegexRewrite") {
        item.error(findings, "uriRegexRewrite is not supported", "write uri");
    }
    fields.finish(findings);
    (uri, authority)
}

fn path(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let path: Arc<str> = Arc::from(item.filled(findings)?);
    if let Err(fault) = filter::replacement(&PathRewrite::Full(path.clone())) {
        item.error(findings, fault.to_string(), "write a path such as /v2");
        return None;
    }
    Some(path)
}

fn redirect(item: &Item<'_>, findings: &mut Findings) -> Option<Redirect> {
    const SCHEMES: [(&str, Scheme); 2] = [("http", Scheme::Http), ("https", Scheme::Https)];
    let mut fields = item.fields(findings)?;
    let path = fields.optional("uri").and_then(|item| path(&item, findings)).map(PathRewrite::Full);
    let hostname = fields.optional("authority").and_then(|item| super::names::hostname(&item, findings));
    let port = fields.optional("port").and_then(|item| item.port(findings));
    if let Some(item) = fields.optional("derivePort") {
        item.one_of(findings, &[("FROM_PROTOCOL_DEFAULT", ())]);
    }
    let scheme = fields.optional("scheme").and_then(|item| item.one_of(findings, &SCHEMES));
    let statuses = [301_i64, 302, 303, 307, 308];
    let status = match fields.optional("redirectCode") {
        Some(item) => match item.integer(findings, 301, 308) {
            Some(status) if statuses.contains(&status) => u16::try_from(status).ok(),
            Some(status) => {
                item.error(
                    findings,
                    format!("{status} is no status of a redirect"),
                    "write 301, 302, 303, 307 or 308",
                );
                None
            }
            None => None,
        },
        None => Some(301),
    };
    fields.finish(findings);
    Some(Redirect { scheme, hostname, port, path, status: status? })
}

fn direct(item: &Item<'_>, findings: &mut Findings) -> Option<DirectResponse> {
    let mut fields = item.fields(findings)?;
    let status = fields.required(findings, "status").and_then(|item| item.integer(findings, 200, 599));
    let body = match fields.optional("body") {
        Some(item) => {
            let mut fields = item.fields(findings)?;
            let text = fields.optional("string").and_then(|item| item.shared(findings));
            fields.refuse(findings, "bytes");
            fields.finish(findings);
            text.unwrap_or_default()
        }
        None => Arc::default(),
    };
    if body.len() > BODY_BYTES_MAX {
        let message = format!("a body of {:?} bytes is too long", body.len());
        item.error(findings, message, format!("keep at most {BODY_BYTES_MAX}: {:?}", shortened(&body)));
    }
    fields.finish(findings);
    Some(DirectResponse { status: u16::try_from(status?).ok()?, body })
}
