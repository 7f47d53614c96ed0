//! A list of tests on one attribute, compiled: literals are compared as literals, never as patterns.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::ir::{Attribute, Test};
use crate::template::{Template, TemplateError};

/// From this many exact values on, a hash finds one sooner than comparing each.
const HASHED_FROM: usize = 8;

/// ORed tests.
#[derive(Debug, Default)]
pub(super) struct TestList {
    exact: Exact,
    texts: Box<[TextTest]>,
    networks: Box<[IpNet]>,
    ports: Box<[u16]>,
    is_empty: bool,
}

#[derive(Debug)]
enum Exact {
    Few(Box<[Box<[u8]>]>),
    Many(HashSet<Box<[u8]>, RandomState>),
}

#[derive(Debug)]
enum TextTest {
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    NonEmpty,
    Any,
    /// The pieces between the stars.
    Glob(Box<[Box<[u8]>]>),
    Template(Template),
}

/// How letters are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    Exact,
    /// Patterns are stored in lower case.
    AnyCase,
}

/// Why a test cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    #[error("test {test} cannot be made on {attribute}")]
    Kind { test: String, attribute: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl Letters {
    pub(super) fn of(attribute: &Attribute) -> Self {
        match attribute {
            Attribute::RequestHost => Self::AnyCase,
            _ => Self::Exact,
        }
    }

    pub(super) fn stored(self, text: &str) -> Box<[u8]> {
        match self {
            Self::Exact => text.as_bytes().into(),
            Self::AnyCase => text.to_ascii_lowercase().into_bytes().into(),
        }
    }

    fn equal(self, left: &[u8], right: &[u8]) -> bool {
        match self {
            Self::Exact => left == right,
            Self::AnyCase => left.eq_ignore_ascii_case(right),
        }
    }
}

impl Default for Exact {
    fn default() -> Self {
        Self::Few(Box::default())
    }
}

impl TestList {
    pub(super) fn compile(attribute: &Attribute, tests: &[Test]) -> Result<Self, TestError> {
        let letters = Letters::of(attribute);
        let (mut exact, mut texts, mut networks, mut ports) = (vec![], vec![], vec![], vec![]);
        for test in tests {
            let fits = match test {
                Test::Ip(_) => is_address(attribute),
                Test::Port(_) => *attribute == Attribute::DestinationPort,
                Test::Template(_) => *attribute == Attribute::RequestPath,
                _ => !is_address(attribute) && *attribute != Attribute::DestinationPort,
            };
            if !fits {
                let (test, attribute) = (format!("{test:?}"), format!("{attribute:?}"));
                return Err(TestError::Kind { test, attribute });
            }
            match test {
                Test::Exact(text) => exact.push(letters.stored(text)),
                Test::Prefix(text) => texts.push(TextTest::Prefix(letters.stored(text))),
                Test::Suffix(text) => texts.push(TextTest::Suffix(letters.stored(text))),
                Test::Present if matches!(attribute, Attribute::RequestHeader(_)) => {
                    texts.push(TextTest::Any);
                }
                Test::Present => texts.push(TextTest::NonEmpty),
                Test::Glob(text) => {
                    let pieces = text.split('*').map(|piece| letters.stored(piece)).collect();
                    texts.push(TextTest::Glob(pieces));
                }
                Test::Template(text) => texts.push(TextTest::Template(compile_template(text)?)),
                Test::Ip(network) => networks.push(network.trunc()),
                Test::Port(port) => ports.push(*port),
            }
        }
        // A hash needs one spelling, so texts compared without case stay a list.
        let exact = if exact.len() >= HASHED_FROM && letters == Letters::Exact {
            Exact::Many(exact.into_iter().collect())
        } else {
            Exact::Few(exact.into())
        };
        Ok(Self {
            exact,
            texts: texts.into(),
            networks: networks.into(),
            ports: ports.into(),
            is_empty: tests.is_empty(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    pub(super) fn holds_for_text(&self, value: &[u8], letters: Letters) -> bool {
        let exact = match &self.exact {
            Exact::Few(texts) => texts.iter().any(|text| letters.equal(text, value)),
            Exact::Many(texts) => texts.contains(value),
        };
        exact || self.texts.iter().any(|test| test.holds(value, letters))
    }

    pub(super) fn holds_for_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    pub(super) fn holds_for_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }
}

impl TextTest {
    fn holds(&self, value: &[u8], letters: Letters) -> bool {
        match self {
            Self::Prefix(text) => starts_with(value, text, letters),
            Self::Suffix(text) => ends_with(value, text, letters),
            Self::NonEmpty => !value.is_empty(),
            Self::Any => true,
            Self::Glob(pieces) => !value.is_empty() && glob(value, pieces, letters),
            Self::Template(template) => template.matches_bytes(value),
        }
    }
}

pub(super) fn is_address(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp)
}

fn compile_template(text: &Arc<str>) -> Result<Template, TestError> {
    Ok(Template::compile(text)?)
}

fn starts_with(value: &[u8], text: &[u8], letters: Letters) -> bool {
    value.get(..text.len()).is_some_and(|start| letters.equal(start, text))
}

fn ends_with(value: &[u8], text: &[u8], letters: Letters) -> bool {
    value
        .len()
        .checked_sub(text.len())
        .and_then(|at| value.get(at..))
        .is_some_and(|end| letters.equal(end, text))
}

/// Each piece but the first and the last may lie anywhere after the one before it: taking the leftmost place of
/// each leaves the most room to the rest, so no backtracking is needed.
fn glob(value: &[u8], pieces: &[Box<[u8]>], letters: Letters) -> bool {
    let (first, middle, last) = match pieces {
        [] => return false,
        [only] => return letters.equal(value, only),
        [first, middle @ .., last] => (first, middle, last),
    };
    if !starts_with(value, first, letters) {
        return false;
    }
    let mut rest = value.get(first.len()..).unwrap_or_default();
    for piece in middle.iter().filter(|piece| !piece.is_empty()) {
        let Some(at) = rest.windows(piece.len()).position(|window| letters.equal(window, piece)) else {
            return false;
        };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    ends_with(rest, last, letters)
}
