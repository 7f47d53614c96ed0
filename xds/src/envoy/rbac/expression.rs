//! Trees of conditions as RBAC writes them, brought into the form of the IR: of all clauses one match each, of a match
//! all conditions.

use l7::ir::{Attribute, Clause, Condition, Match, Test};

use crate::envoy::Refusal;

/// A tree may stand for so many alternatives.
const ALTERNATIVES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expression {
    Always,
    Test(Attribute, Test),
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
}

/// Conditions of which all must hold; none: it always holds.
type Alternative = Vec<Condition>;

impl Expression {
    pub(super) fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    /// A clause that holds where any of the expressions does; `None` where that is always so.
    pub(super) fn clause(any_of: &[Self]) -> Result<Option<Clause>, Refusal> {
        let mut alternatives = Vec::new();
        for expression in any_of {
            alternatives.extend(expression.alternatives(Sign::Plain)?);
        }
        let alternatives = merged(alternatives);
        if alternatives.iter().any(Vec::is_empty) {
            return Ok(None);
        }
        let mut matches: Vec<_> = alternatives.into_iter().map(|conditions| Match { conditions }).collect();
        if matches.is_empty() {
            // A match without conditions is one that never holds.
            matches.push(Match::default());
        }
        Ok(Some(Clause { matches }))
    }

    fn alternatives(&self, sign: Sign) -> Result<Vec<Alternative>, Refusal> {
        match (self, sign) {
            (Self::Always, Sign::Plain) => Ok(vec![Vec::new()]),
            (Self::Always, Sign::Negated) => Ok(Vec::new()),
            (Self::Test(attribute, test), sign) => Ok(vec![vec![condition(attribute, test, sign)]]),
            (Self::Not(inner), sign) => inner.alternatives(sign.other()),
            (Self::Any(parts), Sign::Plain) | (Self::All(parts), Sign::Negated) => sum(parts, sign),
            (Self::All(parts), Sign::Plain) | (Self::Any(parts), Sign::Negated) => product(parts, sign),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Plain,
    Negated,
}

impl Sign {
    fn other(self) -> Self {
        match self {
            Self::Plain => Self::Negated,
            Self::Negated => Self::Plain,
        }
    }
}

fn condition(attribute: &Attribute, test: &Test, sign: Sign) -> Condition {
    let (any_of, none_of) = match sign {
        Sign::Plain => (vec![test.clone()], Vec::new()),
        Sign::Negated => (Vec::new(), vec![test.clone()]),
    };
    Condition { attribute: attribute.clone(), any_of, none_of }
}

fn sum(parts: &[Expression], sign: Sign) -> Result<Vec<Alternative>, Refusal> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(part.alternatives(sign)?);
        bounded(all.len())?;
    }
    Ok(merged(all))
}

fn product(parts: &[Expression], sign: Sign) -> Result<Vec<Alternative>, Refusal> {
    let mut product = vec![Vec::new()];
    for part in parts {
        let alternatives = part.alternatives(sign)?;
        bounded(product.len().saturating_mul(alternatives.len()))?;
        let with = |left: &Alternative| {
            let left = left.clone();
            alternatives.iter().map(move |right| joined(left.clone(), right)).collect::<Vec<_>>()
        };
        product = product.iter().flat_map(with).collect();
    }
    Ok(product)
}

fn bounded(alternatives: usize) -> Result<(), Refusal> {
    if alternatives > ALTERNATIVES_MAX {
        return Err(Refusal::new(format!("the rule stands for more than {ALTERNATIVES_MAX} alternatives")));
    }
    Ok(())
}

/// Both alternatives in one. What must not hold of one attribute goes into one condition.
fn joined(mut left: Alternative, right: &Alternative) -> Alternative {
    for condition in right {
        let same = |own: &&mut Condition| {
            own.attribute == condition.attribute && own.any_of.is_empty() && condition.any_of.is_empty()
        };
        match left.iter_mut().find(same) {
            Some(own) => own.none_of.extend(condition.none_of.iter().cloned()),
            None => left.push(condition.clone()),
        }
    }
    left
}

/// Tests on one attribute, of which one must hold, become one condition.
fn merged(alternatives: Vec<Alternative>) -> Vec<Alternative> {
    let mut merged: Vec<Alternative> = Vec::with_capacity(alternatives.len());
    for mut alternative in alternatives {
        if let ([condition], Some([own])) = (&mut alternative[..], merged.last_mut().map(|it| &mut it[..]))
            && own.attribute == condition.attribute
            && own.none_of.is_empty()
            && condition.none_of.is_empty()
        {
            own.any_of.append(&mut condition.any_of);
            continue;
        }
        merged.push(alternative);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Expression {
        Expression::Test(Attribute::RequestPath, Test::Exact(text.into()))
    }

    fn method(text: &str) -> Expression {
        Expression::Test(Attribute::RequestMethod, Test::Exact(text.into()))
    }

    fn texts(clause: &Clause) -> Vec<Vec<(usize, usize)>> {
        let counts = |condition: &Condition| (condition.any_of.len(), condition.none_of.len());
        clause.matches.iter().map(|entry| entry.conditions.iter().map(counts).collect()).collect()
    }

    #[test]
    fn what_istiod_writes_becomes_one_match() {
        let expression = Expression::All(vec![
            Expression::Any(vec![path("/a"), path("/b")]),
            Expression::Any(vec![path("/c"), path("/d")]).not(),
            Expression::Any(vec![method("GET")]),
        ]);
        let clause = Expression::clause(&[expression]).unwrap().unwrap();
        assert_eq!(texts(&clause), [[(2, 0), (0, 2), (1, 0)]]);
    }

    #[test]
    fn alternatives_across_attributes_are_multiplied() {
        let either = Expression::Any(vec![path("/a"), method("GET")]);
        let clause =
            Expression::clause(&[Expression::All(vec![either.clone(), either.clone()])]).unwrap().unwrap();
        assert_eq!(clause.matches.len(), 4);
        let neither = Expression::clause(&[either.not()]).unwrap().unwrap();
        assert_eq!(texts(&neither), [[(0, 1), (0, 1)]]);
    }

    #[test]
    fn always_and_never_are_told_apart() {
        assert_eq!(Expression::clause(&[path("/a"), Expression::Always]).unwrap(), None);
        let never = Expression::clause(&[Expression::Always.not()]).unwrap().unwrap();
        assert_eq!(never.matches, [Match::default()]);
    }

    #[test]
    fn an_explosion_is_refused() {
        let either = Expression::Any(vec![path("/a"), method("GET")]);
        assert!(Expression::clause(&[Expression::All(vec![either; 11])]).is_err());
    }
}
