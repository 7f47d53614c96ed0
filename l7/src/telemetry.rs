//! What is told of traffic, ready to be asked: [`crate::ir::Telemetry`] with its expressions compiled.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cel::{Facts, Filter, FilterError};
use crate::ir;

/// Both sides of a workload's traffic. Shared, so that a record can carry its side.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    pub client: Arc<Side>,
    pub server: Arc<Side>,
}

/// One of them.
#[derive(Debug, PartialEq)]
pub struct Side {
    rules: ir::TelemetrySide,
    filter: Option<Filter>,
    headers: Box<[Arc<str>]>,
}

impl Telemetry {
    pub fn compile(written: &ir::Telemetry) -> Result<Self, FilterError> {
        let side = |rules: &ir::TelemetrySide| Side::compile(rules.clone()).map(Arc::new);
        Ok(Self { client: side(&written.client)?, server: side(&written.server)? })
    }
}

impl Side {
    pub fn compile(rules: ir::TelemetrySide) -> Result<Self, FilterError> {
        let filter = rules.log.filter.as_deref().map(Filter::compile).transpose()?;
        let asked = filter.iter().flat_map(|filter| filter.headers().iter().cloned());
        let tags = rules.tracing.tags.iter().filter_map(|tag| match &tag.value {
            ir::TagValue::Header { name, .. } => Some(Arc::clone(name)),
            ir::TagValue::Literal(_) | ir::TagValue::Environment { .. } => None,
        });
        let headers: BTreeSet<_> = asked.chain(tags).collect();
        Ok(Self { rules, filter, headers: headers.into_iter().collect() })
    }

    pub fn rules(&self) -> &ir::TelemetrySide {
        &self.rules
    }

    /// Whether no line can come to stand in the log.
    pub fn is_silent(&self) -> bool {
        self.rules.log.disabled
    }

    /// Whether a line is to stand in the log.
    pub fn logs(&self, facts: &impl Facts) -> bool {
        !self.is_silent() && self.filter.as_ref().is_none_or(|filter| filter.holds(facts))
    }

    /// The headers of requests, in lower case, that have to be noted.
    pub fn headers(&self) -> &[Arc<str>] {
        &self.headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{Attribute, Value};

    struct Answered(i64);

    impl Facts for Answered {
        fn attribute(&self, attribute: Attribute) -> Option<Value<'_>> {
            (attribute == Attribute::ResponseCode).then_some(Value::Integer(self.0))
        }

        fn header(&self, _name: &str) -> Option<&str> {
            None
        }
    }

    fn side(disabled: bool, filter: Option<&str>) -> Side {
        let log = ir::LogRule { disabled, filter: filter.map(Arc::from) };
        Side::compile(ir::TelemetrySide { log, ..ir::TelemetrySide::default() }).unwrap()
    }

    #[test]
    fn headers_are_those_of_the_filter_and_of_tags() {
        let log = ir::LogRule { disabled: false, filter: Some("'x-b' in request.headers".into()) };
        let header = |name: &str| ir::TagValue::Header { name: name.into(), default: "".into() };
        let tag = |name: &str, value| ir::CustomTag { name: name.into(), value };
        let tags = vec![
            tag("a", header("x-a")),
            tag("b", header("x-b")),
            tag("c", ir::TagValue::Literal("c".into())),
        ];
        let tracing = ir::TracingRule { tags, ..ir::TracingRule::default() };
        let side = Side::compile(ir::TelemetrySide { log, tracing, ..ir::TelemetrySide::default() }).unwrap();
        assert_eq!(side.headers(), [Arc::from("x-a"), Arc::from("x-b")]);
    }

    #[test]
    fn a_line_stands_unless_it_is_silenced_or_left_out() {
        assert!(side(false, None).logs(&Answered(200)));
        assert!(!side(true, None).logs(&Answered(200)) && side(true, None).is_silent());
        let failed = side(false, Some("response.code >= 400 || 'x-a' in request.headers"));
        assert!(failed.logs(&Answered(503)) && !failed.logs(&Answered(200)));
        assert_eq!(failed.headers(), [Arc::from("x-a")]);
    }
}
