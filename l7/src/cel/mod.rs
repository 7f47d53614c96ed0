//! Expressions over finished requests and connections, in the part of the Common Expression Language (CEL) that filters of
//! access logs are written in, with Envoy's names of attributes.
//!
//! An expression is compiled once: names and types are checked where it is written, so that what could never hold is
//! refused there. There are no macros and no loops, so an evaluation visits each node of the expression once at most.
//! What is not known of a request (the status of one that was not answered) makes whatever depends on it unknown, and
//! an expression that is unknown in the end does not hold.
//!
//! <https://github.com/google/cel-spec>,
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes>

mod attribute;
mod check;
mod evaluate;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use attribute::Attribute;
use check::Checked;
use evaluate::Expression;

/// Longest expression.
pub const EXPRESSION_BYTES_MAX: usize = 4096;
/// Deepest nesting of an expression.
const NESTING_MAX: usize = 32;
/// Most parts of an expression.
const NODES_MAX: usize = 256;

/// An expression that holds or does not.
pub struct Filter {
    text: Arc<str>,
    root: Expression,
    headers: Vec<Arc<str>>,
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}, at character {at}")]
pub struct FilterError {
    /// Counts from 1.
    pub at: usize,
    pub what: String,
}

/// What an expression asks about.
pub trait Facts {
    /// `None` where it is not known.
    fn attribute(&self, attribute: Attribute) -> Option<Value<'_>>;

    /// The value of a request's header, by its name in lower case. Only those of [`Filter::headers`] are asked for.
    fn header(&self, name: &str) -> Option<&str>;
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Text(Cow<'a, str>),
    /// In nanoseconds.
    Duration(i64),
}

impl Filter {
    pub fn compile(text: &str) -> Result<Self, FilterError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            let what = format!("{} bytes are too many, write at most {EXPRESSION_BYTES_MAX}", text.len());
            return Err(FilterError { at: 1, what });
        }
        let parsed = parser::parse(text)?;
        let Checked { root, headers } = check::condition(&parsed)?;
        Ok(Self { text: Arc::from(text), root, headers })
    }

    /// Whether it holds; what is unknown does not.
    pub fn holds(&self, facts: &impl Facts) -> bool {
        self.root.evaluate(facts) == Some(Value::Boolean(true))
    }

    /// The headers of requests that it looks at, in lower case.
    pub fn headers(&self) -> &[Arc<str>] {
        &self.headers
    }
}

/// The text that an expression stands for whatever it is asked about; `None` where it is none that is just a text.
pub fn literal(text: &str) -> Option<String> {
    match parser::parse(text).ok()?.kind {
        parser::NodeKind::Text(text) => Some(text),
        _ => None,
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text).finish()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
