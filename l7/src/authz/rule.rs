//! One rule, compiled, and its evaluation in three values.

use std::sync::Arc;

use super::subject::Subject;
use super::test::{Letters, TestError, TestList, is_address};
use crate::ir::{self, Attribute};

/// Kleene's three values: `Unknown` where a request that is still to come decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    False,
    Unknown,
    True,
}

/// All clauses hold.
#[derive(Debug)]
pub(super) struct Rule {
    clauses: Box<[Clause]>,
}

/// Any match holds, or there is none.
#[derive(Debug)]
struct Clause {
    matches: Box<[Match]>,
}

/// Every condition holds, and there is one.
#[derive(Debug)]
struct Match {
    conditions: Box<[Condition]>,
}

#[derive(Debug)]
struct Condition {
    attribute: Attribute,
    any_of: TestList,
    none_of: TestList,
}

/// Why a policy cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authorization policy {namespace}/{name}, rule {rule}: {cause}")]
pub struct CompileError {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Index into the policy's rules.
    pub rule: usize,
    #[source]
    pub cause: TestError,
}

// === impl Truth ===

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Truth {
    fn negated(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }

    fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::False => Self::False,
            Self::True => other(),
            Self::Unknown => match other() {
                Self::False => Self::False,
                Self::Unknown | Self::True => Self::Unknown,
            },
        }
    }

    /// True if all are true, false as soon as one is false.
    fn all(values: impl Iterator<Item = Self>) -> Self {
        let mut result = Self::True;
        for value in values {
            match value {
                Self::False => return Self::False,
                Self::Unknown => result = Self::Unknown,
                Self::True => {}
            }
        }
        result
    }

    /// False if all are false, true as soon as one is true.
    fn any(values: impl Iterator<Item = Self>) -> Self {
        Self::all(values.map(Self::negated)).negated()
    }
}

// === impl Rule ===

impl Rule {
    pub(super) fn compile(rule: &ir::Rule) -> Result<Self, TestError> {
        let clauses = rule.clauses.iter().map(Clause::compile).collect::<Result<_, _>>()?;
        Ok(Self { clauses })
    }

    pub(super) fn holds(&self, subject: &Subject<'_>) -> Truth {
        Truth::all(self.clauses.iter().map(|clause| clause.holds(subject)))
    }
}

impl Clause {
    fn compile(clause: &ir::Clause) -> Result<Self, TestError> {
        Ok(Self { matches: clause.matches.iter().map(Match::compile).collect::<Result<_, _>>()? })
    }

    fn holds(&self, subject: &Subject<'_>) -> Truth {
        if self.matches.is_empty() {
            return Truth::True;
        }
        Truth::any(self.matches.iter().map(|entry| entry.holds(subject)))
    }
}

impl Match {
    fn compile(entry: &ir::Match) -> Result<Self, TestError> {
        Ok(Self { conditions: entry.conditions.iter().map(Condition::compile).collect::<Result<_, _>>()? })
    }

    fn holds(&self, subject: &Subject<'_>) -> Truth {
        if self.conditions.is_empty() {
            return Truth::False;
        }
        Truth::all(self.conditions.iter().map(|condition| condition.holds(subject)))
    }
}

impl Condition {
    fn compile(condition: &ir::Condition) -> Result<Self, TestError> {
        let attribute = condition.attribute.clone();
        let any_of = TestList::compile(&attribute, &condition.any_of)?;
        let none_of = TestList::compile(&attribute, &condition.none_of)?;
        Ok(Self { attribute, any_of, none_of })
    }

    fn holds(&self, subject: &Subject<'_>) -> Truth {
        let positive =
            if self.any_of.is_empty() { Truth::True } else { self.holds_one_of(&self.any_of, subject) };
        positive.and(|| {
            if self.none_of.is_empty() {
                Truth::True
            } else {
                self.holds_one_of(&self.none_of, subject).negated()
            }
        })
    }

    /// An absent attribute passes no test.
    fn holds_one_of(&self, tests: &TestList, subject: &Subject<'_>) -> Truth {
        if subject.is_unknown(&self.attribute) {
            return Truth::Unknown;
        }
        let letters = Letters::of(&self.attribute);
        let text = |value: &str| tests.holds_for_text(value.as_bytes(), letters);
        let holds = match &self.attribute {
            Attribute::DestinationPort => tests.holds_for_port(subject.connection.destination_port),
            Attribute::RequestHeader(name) => {
                subject.header_values(name).any(|value| tests.holds_for_text(value, letters))
            }
            Attribute::RequestAudiences => subject.token().is_some_and(|token| token.audiences().any(&text)),
            Attribute::RequestClaim(path) => subject.token().is_some_and(|token| token.claim(path).any(text)),
            attribute if is_address(attribute) => {
                subject.address(attribute).is_some_and(|address| tests.holds_for_address(address))
            }
            Attribute::SourceServiceAccount => {
                subject.account().is_some_and(|value| tests.holds_for_text(&value, letters))
            }
            attribute => subject.text(attribute).is_some_and(|value| tests.holds_for_text(value, letters)),
        };
        holds.into()
    }
}
