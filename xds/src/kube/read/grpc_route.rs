//! GRPCRoute, read as the HTTPRoute that it amounts to: a method match is a match of the path
//! `/SERVICE/METHOD` (GRPCMethodMatch).

use std::sync::Arc;

use l7::ir::{HttpMatch, PathMatch, RouteKind};

use super::super::catalog::Meta;
use super::super::gateway::HttpRoute;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::route::{self, Named};

/// Of a service or a method, by the schema of GRPCRoute.
const NAME_BYTES_MAX: usize = 1024;
/// Stands for any service or method in an expression.
const ANY: &str = "[^/]+";

#[derive(Clone, Copy, PartialEq, Eq)]
enum MethodType {
    Exact,
    Regex,
}

pub(super) fn grpc_route(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<HttpRoute> {
    route::any_route(fields, meta, RouteKind::Grpc, findings)
}

/// One of `matches`.
pub(super) fn grpc_match(item: &Item<'_>, findings: &mut Findings) -> Option<HttpMatch> {
    let mut fields = item.fields(findings)?;
    let path = match fields.optional("method") {
        Some(item) => method(&item, findings),
        None => Some(PathMatch::Prefix(Arc::from("/"))),
    };
    let headers = route::conditions(&mut fields, findings, "headers", Named::Header);
    fields.finish(findings);
    Some(HttpMatch { path: path?, headers, ..HttpMatch::default() })
}

fn method(item: &Item<'_>, findings: &mut Findings) -> Option<PathMatch> {
    const TYPES: [(&str, MethodType); 2] =
        [("Exact", MethodType::Exact), ("RegularExpression", MethodType::Regex)];
    let mut fields = item.fields(findings)?;
    let method_type = match fields.optional("type") {
        Some(item) => item.one_of(findings, &TYPES),
        None => Some(MethodType::Exact),
    };
    let service = fields.optional("service");
    let method = fields.optional("method");
    fields.finish(findings);
    let method_type = method_type?;
    let [service, method] = [(service, true), (method, false)].map(|(item, is_service)| {
        item.map(|item| name(&item, method_type, is_service, findings).ok_or(Bad)).transpose()
    });
    let (Ok(service), Ok(method)) = (service, method) else { return None };
    let text = |name: &Option<Arc<str>>| name.as_deref().unwrap_or(ANY).to_owned();
    match (method_type, &service, &method) {
        (_, None, None) => {
            item.error(findings, "a method match needs a service or a method", "add service or method");
            None
        }
        (MethodType::Exact, Some(service), Some(method)) => {
            Some(PathMatch::Exact(Arc::from(format!("/{service}/{method}"))))
        }
        (MethodType::Exact, Some(service), None) => Some(PathMatch::Prefix(Arc::from(format!("/{service}")))),
        (MethodType::Exact, None, Some(method)) => Some(PathMatch::GrpcMethod(method.clone())),
        (MethodType::Regex, ..) => {
            let whole = format!("/(?:{})/(?:{})", text(&service), text(&method));
            route::regex(item, &whole, findings).map(PathMatch::Regex)
        }
    }
}

/// What has been reported must not count as left out.
struct Bad;

fn name(
    item: &Item<'_>,
    method_type: MethodType,
    is_service: bool,
    findings: &mut Findings,
) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    if text.len() > NAME_BYTES_MAX {
        item.error(findings, "the name is too long", format!("keep it below {NAME_BYTES_MAX} bytes"));
        return None;
    }
    if method_type == MethodType::Regex {
        return route::regex(item, text, findings);
    }
    let is_good = text.split('.').all(is_identifier) && (is_service || !text.contains('.'));
    if !is_good {
        let message =
            format!("{:?} names no {}", shortened(text), if is_service { "service" } else { "method" });
        let fix = if is_service {
            "write the name with its package, such as helloworld.Greeter"
        } else {
            "write the name alone, such as SayHello"
        };
        item.error(findings, message, fix);
        return None;
    }
    Some(Arc::from(text))
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
