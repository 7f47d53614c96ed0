//! From a tree to an expression whose names are known and whose types fit.

use std::sync::Arc;

use super::attribute::{ATTRIBUTES, HEADERS, REFERER};
use super::evaluate::{Comparison, Expression, Operator, TextTest};
use super::parser::{Node, NodeKind};
use super::{FilterError, Value};
use crate::router::Pattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Boolean,
    Integer,
    Double,
    Text,
    Duration,
}

pub(super) struct Checked {
    pub(super) root: Expression,
    pub(super) headers: Vec<Arc<str>>,
}

type Typed = (Expression, Type);

/// The root must be a condition.
pub(super) fn condition(node: &Node) -> Result<Checked, FilterError> {
    let mut checker = Checker { headers: Vec::new() };
    let root = checker.boolean(node)?;
    Ok(Checked { root, headers: checker.headers })
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "a condition",
            Self::Integer => "a whole number",
            Self::Double => "a number",
            Self::Text => "a text",
            Self::Duration => "a duration",
        }
    }

    fn is_comparable(self, other: Self) -> bool {
        let is_number = |it| matches!(it, Self::Integer | Self::Double);
        self == other || (is_number(self) && is_number(other))
    }
}

struct Checker {
    headers: Vec<Arc<str>>,
}

impl Checker {
    fn boolean(&mut self, node: &Node) -> Result<Expression, FilterError> {
        self.of_type(node, Type::Boolean)
    }

    fn of_type(&mut self, node: &Node, wanted: Type) -> Result<Expression, FilterError> {
        let (expression, found) = self.check(node)?;
        if found == wanted {
            return Ok(expression);
        }
        Err(wrong(node, format!("{} is expected, and this is {}", wanted.name(), found.name())))
    }

    fn check(&mut self, node: &Node) -> Result<Typed, FilterError> {
        let constant = |value, of| Ok((Expression::Constant(value), of));
        match &node.kind {
            NodeKind::Boolean(value) => constant(Value::Boolean(*value), Type::Boolean),
            NodeKind::Integer(value) => constant(Value::Integer(*value), Type::Integer),
            NodeKind::Double(value) => constant(Value::Double(*value), Type::Double),
            NodeKind::Text(value) => constant(Value::Text(value.clone().into()), Type::Text),
            NodeKind::Name(_) | NodeKind::Select(..) => self.attribute(node),
            NodeKind::Index(map, key) => self.header_of(map, key),
            NodeKind::Call { function, receiver, arguments } => {
                self.call(node, function, receiver.as_deref(), arguments)
            }
            NodeKind::List(_) => Err(wrong(node, "a list stands only after \"in\"")),
            NodeKind::Not(inner) => Ok((Expression::Not(Box::new(self.boolean(inner)?)), Type::Boolean)),
            NodeKind::Negate(inner) => match self.check(inner)? {
                (inner, of @ (Type::Integer | Type::Double)) => Ok((Expression::Negate(Box::new(inner)), of)),
                (_, of) => Err(wrong(inner, format!("a number is expected, and this is {}", of.name()))),
            },
            NodeKind::Binary(sign, left, right) => self.binary(node, sign, left, right),
            NodeKind::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                let condition = self.boolean(condition)?;
                let (yes, of) = self.check(yes)?;
                let no = self.of_type(no, of)?;
                Ok((Expression::Choose(Box::new([condition, yes, no])), of))
            }
        }
    }

    fn binary(&mut self, node: &Node, sign: &str, left: &Node, right: &Node) -> Result<Typed, FilterError> {
        let of_both = |make: fn(Box<Expression>, Box<Expression>) -> Expression, one, other| {
            (make(Box::new(one), Box::new(other)), Type::Boolean)
        };
        match sign {
            "&&" => Ok(of_both(Expression::And, self.boolean(left)?, self.boolean(right)?)),
            "||" => Ok(of_both(Expression::Or, self.boolean(left)?, self.boolean(right)?)),
            "in" => self.within(left, right),
            _ => match (Comparison::of(sign), Operator::of(sign)) {
                (Some(comparison), _) => self.compare(comparison, left, right),
                (None, Some(operator)) => self.calculate(operator, left, right),
                (None, None) => Err(wrong(node, format!("{sign:?} is not known"))),
            },
        }
    }

    fn compare(&mut self, comparison: Comparison, left: &Node, right: &Node) -> Result<Typed, FilterError> {
        let (one, of) = self.check(left)?;
        let (other, of_other) = self.check(right)?;
        if !of.is_comparable(of_other) {
            let what = format!("{} is never compared with {}", of.name(), of_other.name());
            return Err(wrong(right, what));
        }
        Ok((Expression::Compare(comparison, Box::new(one), Box::new(other)), Type::Boolean))
    }

    fn calculate(&mut self, operator: Operator, left: &Node, right: &Node) -> Result<Typed, FilterError> {
        let (one, of) = self.check(left)?;
        let is_text = of == Type::Text && operator == Operator::Add;
        if !is_text && !matches!(of, Type::Integer | Type::Double) {
            return Err(wrong(left, format!("a number is expected, and this is {}", of.name())));
        }
        let other = self.of_type(right, of)?;
        Ok((Expression::Calculate(operator, Box::new(one), Box::new(other)), of))
    }

    /// `x in [a, b]`, or the name of a header in the headers.
    fn within(&mut self, left: &Node, right: &Node) -> Result<Typed, FilterError> {
        if path(right).as_deref() == Some(HEADERS) {
            let NodeKind::Text(name) = &left.kind else {
                return Err(wrong(left, "the name of a header is expected in quotes"));
            };
            let name = self.note_header(name);
            return Ok((Expression::HasHeader(name), Type::Boolean));
        }
        let NodeKind::List(items) = &right.kind else {
            return Err(wrong(right, "a list such as [404, 503] is expected after \"in\""));
        };
        let (sought, of) = self.check(left)?;
        let mut members = Vec::with_capacity(items.len());
        for item in items {
            let (member, of_member) = self.check(item)?;
            if !of.is_comparable(of_member) {
                return Err(wrong(item, format!("{} is never {}", of.name(), of_member.name())));
            }
            members.push(member);
        }
        Ok((Expression::Within(Box::new(sought), members), Type::Boolean))
    }

    fn attribute(&mut self, node: &Node) -> Result<Typed, FilterError> {
        if let NodeKind::Select(map, name) = &node.kind
            && path(map).as_deref() == Some(HEADERS)
        {
            return Ok((Expression::Header(self.note_header(name)), Type::Text));
        }
        let Some(path) = path(node) else { return Err(wrong(node, "this has no fields")) };
        if path == REFERER {
            return Ok((Expression::Header(self.note_header("referer")), Type::Text));
        }
        if path == HEADERS {
            return Err(wrong(node, "name the header, as in request.headers['x-user']"));
        }
        let Some((_, attribute, of)) = ATTRIBUTES.into_iter().find(|(name, ..)| *name == path) else {
            let known: Vec<&str> = ATTRIBUTES.iter().map(|(name, ..)| *name).collect();
            let known = known.join(", ");
            return Err(wrong(node, format!("{path:?} is not known here; known are {known}, {HEADERS}")));
        };
        Ok((Expression::Attribute(attribute), of))
    }

    fn header_of(&mut self, map: &Node, key: &Node) -> Result<Typed, FilterError> {
        match &key.kind {
            NodeKind::Text(name) if path(map).as_deref() == Some(HEADERS) => {
                Ok((Expression::Header(self.note_header(name)), Type::Text))
            }
            NodeKind::Text(_) => Err(wrong(map, format!("only {HEADERS} has entries"))),
            _ => Err(wrong(key, "the name of a header is expected in quotes")),
        }
    }

    fn note_header(&mut self, name: &str) -> Arc<str> {
        let name: Arc<str> = Arc::from(name.to_ascii_lowercase());
        if !self.headers.contains(&name) {
            self.headers.push(Arc::clone(&name));
        }
        name
    }

    fn call(
        &mut self,
        node: &Node,
        function: &str,
        receiver: Option<&Node>,
        arguments: &[Node],
    ) -> Result<Typed, FilterError> {
        let boxed = |(expression, _): Typed| Box::new(expression);
        match (function, receiver, arguments) {
            ("has", None, [what]) => Ok((Expression::Has(boxed(self.attribute(what)?)), Type::Boolean)),
            ("size", None, [text]) | ("size", Some(text), []) => {
                let text = self.of_type(text, Type::Text)?;
                Ok((Expression::Size(Box::new(text)), Type::Integer))
            }
            ("int", None, [value]) => Ok((Expression::ToInteger(boxed(self.check(value)?)), Type::Integer)),
            ("double", None, [value]) => Ok((Expression::ToDouble(boxed(self.check(value)?)), Type::Double)),
            ("string", None, [value]) => Ok((Expression::ToText(boxed(self.check(value)?)), Type::Text)),
            ("duration", None, [Node { kind: NodeKind::Text(text), at }]) => match nanoseconds(text) {
                Some(value) => Ok((Expression::Constant(Value::Duration(value)), Type::Duration)),
                None => Err(FilterError { at: *at, what: "write a duration such as 500ms or 1.5s".into() }),
            },
            ("matches", Some(text), [Node { kind: NodeKind::Text(pattern), at }]) => {
                let text = Box::new(self.of_type(text, Type::Text)?);
                let pattern = Pattern::compile_search(&Arc::from(pattern.as_str()))
                    .map_err(|error| FilterError { at: *at, what: error.to_string() })?;
                Ok((Expression::Matches(text, Box::new(pattern)), Type::Boolean))
            }
            (_, Some(text), [part]) if TextTest::of(function).is_some() => {
                let test = TextTest::of(function).unwrap_or(TextTest::Contains);
                let text = Box::new(self.of_type(text, Type::Text)?);
                let part = Box::new(self.of_type(part, Type::Text)?);
                Ok((Expression::Test(test, text, part), Type::Boolean))
            }
            _ => {
                let known = "contains, startsWith, endsWith and matches of a text, size, int, double, string, \
                             duration, has";
                Err(wrong(node, format!("{function:?} is not known with these arguments; known are {known}")))
            }
        }
    }
}

fn wrong(node: &Node, what: impl Into<String>) -> FilterError {
    FilterError { at: node.at, what: what.into() }
}

/// Names between dots.
fn path(node: &Node) -> Option<String> {
    match &node.kind {
        NodeKind::Name(name) => Some(name.clone()),
        NodeKind::Select(of, name) => Some(format!("{}.{name}", path(of)?)),
        _ => None,
    }
}

/// A duration as CEL writes it: numbers with their units, one after the other.
fn nanoseconds(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] =
        [("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1.0), ("h", 3.6e12), ("m", 6e10), ("s", 1e9)];
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit() && it != '.').filter(|digits| *digits > 0)?;
        let (number, after) = rest.split_at(digits);
        let (unit, factor) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        total += number.parse::<f64>().ok()? * factor;
        rest = after.strip_prefix(unit)?;
    }
    // Within the range it fits.
    #[allow(clippy::cast_possible_truncation)]
    (!text.is_empty() && total < 9e18).then_some(total as i64)
}
