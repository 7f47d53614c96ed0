//! What an expression says of a request. `None` is what is not known, or cannot be calculated.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::{Attribute, Facts, Value};
use crate::router::Pattern;

/// Its types have been checked.
#[derive(Debug)]
pub(super) enum Expression {
    Constant(Value<'static>),
    Attribute(Attribute),
    Header(Arc<str>),
    HasHeader(Arc<str>),
    Has(Box<Self>),
    Not(Box<Self>),
    Negate(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Choose(Box<[Self; 3]>),
    Compare(Comparison, Box<Self>, Box<Self>),
    Within(Box<Self>, Vec<Self>),
    Calculate(Operator, Box<Self>, Box<Self>),
    Test(TextTest, Box<Self>, Box<Self>),
    Matches(Box<Self>, Box<Pattern>),
    Size(Box<Self>),
    ToInteger(Box<Self>),
    ToDouble(Box<Self>),
    ToText(Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

impl Comparison {
    pub(super) fn of(sign: &str) -> Option<Self> {
        Some(match sign {
            "==" => Self::Equal,
            "!=" => Self::NotEqual,
            "<" => Self::Less,
            "<=" => Self::LessOrEqual,
            ">" => Self::Greater,
            ">=" => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Operator {
    pub(super) fn of(sign: &str) -> Option<Self> {
        Some(match sign {
            "+" => Self::Add,
            "-" => Self::Subtract,
            "*" => Self::Multiply,
            "/" => Self::Divide,
            "%" => Self::Remainder,
            _ => return None,
        })
    }

    fn calculate<'a>(self, left: &Value<'a>, right: &Value<'a>) -> Option<Value<'a>> {
        match (left, right) {
            (Value::Integer(left), Value::Integer(right)) => {
                let result = match self {
                    Self::Add => left.checked_add(*right),
                    Self::Subtract => left.checked_sub(*right),
                    Self::Multiply => left.checked_mul(*right),
                    Self::Divide => left.checked_div(*right),
                    Self::Remainder => left.checked_rem(*right),
                };
                result.map(Value::Integer)
            }
            (Value::Double(left), Value::Double(right)) => Some(Value::Double(match self {
                Self::Add => left + right,
                Self::Subtract => left - right,
                Self::Multiply => left * right,
                Self::Divide => left / right,
                Self::Remainder => return None,
            })),
            (Value::Text(left), Value::Text(right)) if self == Self::Add => {
                Some(Value::Text(format!("{left}{right}").into()))
            }
            _ => None,
        }
    }
}

impl TextTest {
    pub(super) fn of(function: &str) -> Option<Self> {
        Some(match function {
            "contains" => Self::Contains,
            "startsWith" => Self::StartsWith,
            "endsWith" => Self::EndsWith,
            _ => return None,
        })
    }

    fn holds(self, text: &str, part: &str) -> bool {
        match self {
            Self::Contains => text.contains(part),
            Self::StartsWith => text.starts_with(part),
            Self::EndsWith => text.ends_with(part),
        }
    }
}

impl Expression {
    pub(super) fn evaluate<'a>(&'a self, facts: &'a impl Facts) -> Option<Value<'a>> {
        match self {
            Self::Constant(value) => Some(value.clone()),
            Self::Attribute(attribute) => facts.attribute(*attribute),
            Self::Header(name) => facts.header(name).map(|value| Value::Text(value.into())),
            Self::HasHeader(name) => Some(Value::Boolean(facts.header(name).is_some())),
            Self::Has(what) => Some(Value::Boolean(what.evaluate(facts).is_some())),
            Self::Not(inner) => Some(Value::Boolean(!inner.truth(facts)?)),
            Self::Negate(inner) => match inner.evaluate(facts)? {
                Value::Integer(number) => number.checked_neg().map(Value::Integer),
                Value::Double(number) => Some(Value::Double(-number)),
                _ => None,
            },
            Self::And(left, right) => both(left, right, facts, false),
            Self::Or(left, right) => both(left, right, facts, true),
            Self::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                if condition.truth(facts)? { yes.evaluate(facts) } else { no.evaluate(facts) }
            }
            Self::Compare(comparison, left, right) => {
                let (left, right) = (left.evaluate(facts)?, right.evaluate(facts)?);
                Some(Value::Boolean(order(&left, &right).is_some_and(|order| comparison.holds(order))))
            }
            Self::Within(sought, members) => within(sought, members, facts),
            Self::Calculate(operator, left, right) => {
                operator.calculate(&left.evaluate(facts)?, &right.evaluate(facts)?)
            }
            Self::Test(test, text, part) => {
                let (text, part) = (text.text(facts)?, part.text(facts)?);
                Some(Value::Boolean(test.holds(&text, &part)))
            }
            Self::Matches(text, pattern) => {
                Some(Value::Boolean(pattern.is_match(text.text(facts)?.as_bytes())))
            }
            Self::Size(text) => {
                let count = text.text(facts)?.chars().count();
                i64::try_from(count).ok().map(Value::Integer)
            }
            Self::ToInteger(value) => integer(&value.evaluate(facts)?).map(Value::Integer),
            Self::ToDouble(value) => double(&value.evaluate(facts)?).map(Value::Double),
            Self::ToText(value) => Some(Value::Text(text(value.evaluate(facts)?))),
        }
    }

    fn truth(&self, facts: &impl Facts) -> Option<bool> {
        match self.evaluate(facts)? {
            Value::Boolean(truth) => Some(truth),
            _ => None,
        }
    }

    fn text<'a>(&'a self, facts: &'a impl Facts) -> Option<Cow<'a, str>> {
        match self.evaluate(facts)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// One side that is `decisive` decides, whatever the other one is, known or not.
fn both<'a>(
    left: &'a Expression,
    right: &'a Expression,
    facts: &'a impl Facts,
    decisive: bool,
) -> Option<Value<'a>> {
    let left = left.truth(facts);
    if left == Some(decisive) {
        return Some(Value::Boolean(decisive));
    }
    let right = right.truth(facts);
    if right == Some(decisive) {
        return Some(Value::Boolean(decisive));
    }
    (left.is_some() && right.is_some()).then_some(Value::Boolean(!decisive))
}

fn within<'a>(sought: &'a Expression, members: &'a [Expression], facts: &'a impl Facts) -> Option<Value<'a>> {
    let sought = sought.evaluate(facts)?;
    for member in members {
        if order(&sought, &member.evaluate(facts)?).is_some_and(Ordering::is_eq) {
            return Some(Value::Boolean(true));
        }
    }
    Some(Value::Boolean(false))
}

#[allow(clippy::cast_precision_loss)] // As CEL compares numbers of two types, near enough for statuses and sizes.
fn order(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    match (left, right) {
        (Value::Boolean(left), Value::Boolean(right)) => Some(left.cmp(right)),
        (Value::Integer(left), Value::Integer(right)) | (Value::Duration(left), Value::Duration(right)) => {
            Some(left.cmp(right))
        }
        (Value::Double(left), Value::Double(right)) => left.partial_cmp(right),
        (Value::Integer(left), Value::Double(right)) => (*left as f64).partial_cmp(right),
        (Value::Double(left), Value::Integer(right)) => left.partial_cmp(&(*right as f64)),
        (Value::Text(left), Value::Text(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

fn integer(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        // Within the range it fits.
        #[allow(clippy::cast_possible_truncation)]
        Value::Double(number) => (number.abs() < 9e18).then_some(*number as i64),
        Value::Text(text) => text.parse().ok(),
        Value::Boolean(_) | Value::Duration(_) => None,
    }
}

#[allow(clippy::cast_precision_loss)] // That is what the conversion means.
fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        Value::Text(text) => text.parse().ok(),
        Value::Boolean(_) | Value::Duration(_) => None,
    }
}

#[allow(clippy::cast_precision_loss)] // For people to read.
fn text(value: Value<'_>) -> Cow<'_, str> {
    match value {
        Value::Text(text) => text,
        Value::Boolean(truth) => truth.to_string().into(),
        Value::Integer(number) => number.to_string().into(),
        Value::Double(number) => number.to_string().into(),
        Value::Duration(nanoseconds) => format!("{}s", nanoseconds as f64 / 1e9).into(),
    }
}
