//! What is told of the requests of a chain, or of its connections: `access_log` and `tracing` of its last filter.
//!
//! What is not understood of them is left out and told as a problem; it closes no chain, for it decides about no request.

use std::sync::Arc;

use l7::cel::Filter;
use l7::ir::{CustomTag, LogRule, TagValue, TelemetrySide, TracingRule};

use super::Refusal;
use super::refusal::{Within, read, type_of, unpack};
use crate::proto::waypoint::access_log_filter::FilterSpecifier;
use crate::proto::waypoint::comparison_filter::Op;
use crate::proto::waypoint::custom_tag::Type;
use crate::proto::waypoint::{
    AccessLog, AccessLogFilter, CustomTag as WireTag, ExpressionFilter, HttpConnectionManager, Tracing,
};

const EXPRESSION: &str = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";
/// Filters of filters of filters.
const NESTING_MAX: usize = 8;
/// How the names of the tags begin that our spans have anyway.
const OF_ISTIO: &str = "istio.";

/// What one chain says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Told {
    pub(super) side: TelemetrySide,
    /// It has a log.
    pub(super) has_log: bool,
    pub(super) left_out: Vec<Refusal>,
}

pub(super) fn told(manager: &HttpConnectionManager) -> Told {
    of(&manager.access_log, &manager.tracing)
}

/// What is told of connections that carry no requests. They have a log, and no spans.
pub(super) fn of_connections(access_log: &[Vec<u8>]) -> Told {
    of(access_log, &[])
}

fn of(access_log: &[Vec<u8>], traced: &[u8]) -> Told {
    let mut left_out = Vec::new();
    let log = LogRule { disabled: false, filter: log_filter(access_log, &mut left_out) };
    let tracing = tracing(traced, &mut left_out);
    let side = TelemetrySide { log, tracing, ..TelemetrySide::default() };
    Told { side, has_log: !access_log.is_empty(), left_out }
}

/// A line stands if any of the logs wants it; `None`: all do.
fn log_filter(logs: &[Vec<u8>], left_out: &mut Vec<Refusal>) -> Option<Arc<str>> {
    let mut filters = Vec::new();
    for (index, bytes) in logs.iter().enumerate() {
        let expression = read::<AccessLog>(bytes).and_then(|log| match &log.filter {
            Some(filter) => expression(filter, 0).within("filter").map(Some),
            None => Ok(None),
        });
        match expression {
            Ok(Some(expression)) => filters.push(format!("({expression})")),
            Ok(None) => return None,
            Err(refusal) => {
                left_out.push(refusal.within_item("access_log", index));
                return None;
            }
        }
    }
    if filters.is_empty() {
        return None;
    }
    let all = filters.join(" || ");
    match Filter::compile(&all) {
        Ok(_) => Some(all.into()),
        Err(error) => {
            left_out.push(Refusal::at("access_log", error.to_string()));
            None
        }
    }
}

fn expression(filter: &AccessLogFilter, depth: usize) -> Result<String, Refusal> {
    if depth > NESTING_MAX {
        return Err(Refusal::new(format!("filters are nested deeper than {NESTING_MAX}")));
    }
    let joined = |filters: &[AccessLogFilter], sign| {
        let parts: Result<Vec<_>, _> = filters.iter().map(|it| expression(it, depth + 1)).collect();
        Ok(format!("({})", parts?.join(sign)))
    };
    match &filter.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(filter)) => {
            let Some(comparison) = &filter.comparison else {
                return Err(Refusal::at("status_code_filter", "there is no comparison"));
            };
            let sign = match comparison.op() {
                Op::Eq => "==",
                Op::Ge => ">=",
                Op::Le => "<=",
                Op::Ne => "!=",
            };
            let value = comparison.value.as_ref().map_or(0, |value| value.default_value);
            Ok(format!("response.code {sign} {value}"))
        }
        Some(FilterSpecifier::AndFilter(all)) => joined(&all.filters, " && "),
        Some(FilterSpecifier::OrFilter(any)) => joined(&any.filters, " || "),
        Some(FilterSpecifier::ExtensionFilter(filter)) => {
            let Some(config) = &filter.typed_config else {
                return Err(Refusal::at("extension_filter", "there is no typed_config"));
            };
            if type_of(config) != EXPRESSION {
                return Err(Refusal::at("extension_filter", format!("{} is not supported", type_of(config))));
            }
            let filter: ExpressionFilter = unpack(config, EXPRESSION).within("extension_filter")?;
            // By itself first, so that no parenthesis can close the one that is put around it.
            Filter::compile(&filter.expression)
                .map_err(|error| Refusal::at("extension_filter", error.to_string()))?;
            Ok(format!("({})", filter.expression))
        }
        None => Err(Refusal::new("there is none that is supported")),
    }
}

/// Without it there are no spans; what cannot be read says nothing.
fn tracing(bytes: &[u8], left_out: &mut Vec<Refusal>) -> TracingRule {
    if bytes.is_empty() {
        return TracingRule { disabled: true, ..TracingRule::default() };
    }
    let wire: Tracing = match read(bytes).within("tracing") {
        Ok(wire) => wire,
        Err(refusal) => {
            left_out.push(refusal);
            return TracingRule::default();
        }
    };
    let mut tags = Vec::new();
    for wire in wire.custom_tags.iter().filter(|it| !it.tag.starts_with(OF_ISTIO)) {
        match tag(wire) {
            Ok(value) => tags.push(CustomTag { name: wire.tag.as_str().into(), value }),
            Err(reason) => left_out.push(Refusal::at(&format!("tracing.custom_tags[{}]", wire.tag), reason)),
        }
    }
    let sampling = wire.random_sampling.as_ref().map(|percent| millionths(percent.value));
    let without_istio_tags = !wire.custom_tags.iter().any(|it| it.tag.starts_with(OF_ISTIO));
    TracingRule { disabled: false, sampling, tags, without_istio_tags }
}

fn tag(wire: &WireTag) -> Result<TagValue, &'static str> {
    match &wire.r#type {
        Some(Type::Literal(literal)) => Ok(TagValue::Literal(literal.value.as_str().into())),
        Some(Type::Environment(it)) => Ok(TagValue::Environment {
            name: it.name.as_str().into(),
            default: it.default_value.as_str().into(),
        }),
        Some(Type::RequestHeader(it)) => Ok(TagValue::Header {
            name: it.name.to_ascii_lowercase().into(),
            default: it.default_value.as_str().into(),
        }),
        Some(Type::Metadata(_) | Type::Value(_)) | None => {
            Err("only literal, environment and header are supported")
        }
    }
}

fn millionths(percent: f64) -> u32 {
    // In range it fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let share = (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    share
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::Any;

    use super::*;
    use crate::proto::waypoint::custom_tag::{Literal, Named};
    use crate::proto::waypoint::{
        AccessLogFilters, ComparisonFilter, ExtensionFilter, Percent, RuntimeNumber, StatusCodeFilter,
    };

    fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
        AccessLogFilter { filter_specifier: Some(specifier) }
    }

    fn status(op: Op, value: u32) -> AccessLogFilter {
        let value = Some(RuntimeNumber { default_value: value });
        let comparison = Some(ComparisonFilter { op: op.into(), value });
        filter(FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison }))
    }

    fn cel(expression: &str) -> AccessLogFilter {
        let value = ExpressionFilter { expression: expression.into() }.encode_to_vec();
        let typed_config = Some(Any { type_url: format!("type.googleapis.com/{EXPRESSION}"), value });
        filter(FilterSpecifier::ExtensionFilter(ExtensionFilter { name: "cel".into(), typed_config }))
    }

    fn of_logs(filters: impl IntoIterator<Item = Option<AccessLogFilter>>) -> (Option<String>, Vec<String>) {
        let logs = filters.into_iter().map(|filter| AccessLog { filter }.encode_to_vec());
        let manager = HttpConnectionManager { access_log: logs.collect(), ..Default::default() };
        let told = told(&manager);
        assert_eq!(told.has_log, !manager.access_log.is_empty());
        let left_out = told.left_out.iter().map(ToString::to_string).collect();
        (told.side.log.filter.map(|filter| filter.to_string()), left_out)
    }

    #[test]
    fn filters_become_one_expression() {
        let shown = |filters: Vec<Option<AccessLogFilter>>| {
            let (filter, left_out) = of_logs(filters);
            assert!(left_out.is_empty(), "{left_out:?}");
            filter.unwrap_or_default()
        };
        assert_eq!(shown(vec![]), "");
        assert_eq!(shown(vec![None]), "");
        assert_eq!(shown(vec![Some(status(Op::Ge, 400))]), "(response.code >= 400)");
        // A log that wants all has all.
        assert_eq!(shown(vec![Some(status(Op::Ge, 400)), None]), "");
        let both = AccessLogFilters { filters: vec![status(Op::Ne, 200), cel("connection.mtls || false")] };
        let both = filter(FilterSpecifier::AndFilter(both));
        let either =
            filter(FilterSpecifier::OrFilter(AccessLogFilters { filters: vec![both, status(Op::Eq, 0)] }));
        assert_eq!(
            shown(vec![Some(either), Some(status(Op::Le, 99))]),
            "(((response.code != 200 && (connection.mtls || false)) || response.code == 0)) || (response.code <= 99)"
        );
    }

    #[test]
    fn a_filter_that_is_not_understood_is_told_of_and_filters_nothing() {
        for (filter, problem) in [
            (
                cel("response.code_details == 'x'"),
                "access_log.filter.extension_filter: \"response.code_details\" is not",
            ),
            (cel("true) || (true"), "access_log.filter.extension_filter: \")\" is not expected here"),
            (AccessLogFilter::default(), "access_log.filter: there is none that is supported"),
        ] {
            let (expression, left_out) = of_logs([Some(filter)]);
            assert!(expression.is_none() && left_out.len() == 1, "{expression:?} {left_out:?}");
            assert!(left_out[0].starts_with(problem), "{left_out:?}");
        }
        // A filter by flags of responses: field 9.
        let manager =
            HttpConnectionManager { access_log: vec![vec![0x12, 2, 0x4a, 0]], ..Default::default() };
        let told = told(&manager);
        assert!(told.left_out[0].to_string().contains("field 9 of AccessLogFilter is not supported"));
    }

    #[test]
    fn tracing_says_share_and_tags_and_its_absence_that_there_is_none() {
        assert!(told(&HttpConnectionManager::default()).side.tracing.disabled);
        let named = |name: &str| Named { name: name.into(), default_value: "none".into() };
        let tag = |tag: &str, value| WireTag { tag: tag.into(), r#type: Some(value) };
        let wire = Tracing {
            random_sampling: Some(Percent { value: 12.5 }),
            custom_tags: vec![
                tag("istio.mesh_id", Type::Literal(Literal { value: "m".into() })),
                tag("istio.source_app", Type::Value(Vec::new())),
                tag("team", Type::Literal(Literal { value: "blue".into() })),
                tag("user", Type::RequestHeader(named("X-User"))),
                tag("node", Type::Environment(named("NODE"))),
                tag("cluster", Type::Value(Vec::new())),
            ],
        };
        let manager = HttpConnectionManager { tracing: wire.encode_to_vec(), ..Default::default() };
        let told = told(&manager);
        let rule = told.side.tracing;
        assert_eq!((rule.disabled, rule.sampling, rule.without_istio_tags), (false, Some(125_000), false));
        let names: Vec<_> = rule.tags.iter().map(|tag| &*tag.name).collect();
        assert_eq!(names, ["team", "user", "node"]);
        assert_eq!(rule.tags[1].value, TagValue::Header { name: "x-user".into(), default: "none".into() });
        assert_eq!(told.left_out.len(), 1);
        assert!(told.left_out[0].to_string().starts_with("tracing.custom_tags[cluster]: only literal"));
    }
}
