//! Regular expressions of routes: they cover the whole text, and neither building nor matching one can run away.
//!
//! The dialect is RE2's as Envoy has it, with classes such as `\d` and `\w` of ASCII only. Matching takes time linear
//! in the text whatever the expression; an expression too big to build is refused by name.
//!
//! Nearly every expression becomes a complete automaton, which needs no memory to match with: so workers share it
//! without a lock and match without allocation. One whose automaton would be too big is simulated, in memory that is
//! allocated for each match.

use std::sync::Arc;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, pikevm};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

/// Longest expression: that of a header value in the Gateway API.
const PATTERN_BYTES_MAX: usize = 4096;
/// Size of a compiled automaton; `a{1000}` fits, `(a{100}){100}{100}` does not.
const AUTOMATON_BYTES_MAX: usize = 256 << 10;
/// Depth of nested groups.
const NESTING_MAX: u32 = 50;

/// A regular expression that a text matches as a whole.
#[derive(Debug)]
pub(crate) struct Pattern {
    machine: Machine,
    text_bytes: usize,
}

#[derive(Debug)]
enum Machine {
    /// Deterministic, with every state built.
    Complete(Box<dense::DFA<Vec<u32>>>),
    /// Its states are followed side by side.
    Simulated(Box<pikevm::PikeVM>),
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("regular expression of {0} bytes is longer than {PATTERN_BYTES_MAX}")]
    Length(usize),
    #[error("regular expression {pattern:?}: {cause}")]
    Invalid { pattern: Arc<str>, cause: String },
    #[error(
        "regular expression {0:?} takes more than {AUTOMATON_BYTES_MAX} bytes compiled; make its counts smaller"
    )]
    Size(Arc<str>),
}

impl Pattern {
    pub(crate) fn compile(pattern: &Arc<str>) -> Result<Self, PatternError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::Length(pattern.len()));
        }
        let dialect = syntax::Config::new().unicode(false).utf8(false).nest_limit(NESTING_MAX);
        let invalid = |cause: String| PatternError::Invalid { pattern: pattern.clone(), cause };
        // Parsed alone first, so that no parenthesis can close the group put around it.
        syntax::parse_with(pattern, &dialect).map_err(|error| invalid(error.to_string()))?;
        let limits = thompson::Config::new()
            .utf8(false)
            .nfa_size_limit(Some(AUTOMATON_BYTES_MAX))
            .which_captures(thompson::WhichCaptures::None);
        let nfa = thompson::Compiler::new()
            .configure(limits)
            .syntax(dialect)
            .build(&format!(r"\A(?:{pattern})\z"))
            .map_err(|error| match error.size_limit() {
                Some(_) => PatternError::Size(pattern.clone()),
                None => invalid(error.to_string()),
            })?;
        let machine = if let Ok(dfa) = dense::Builder::new().configure(complete()).build_from_nfa(&nfa) {
            Machine::Complete(Box::new(dfa))
        } else {
            let vm = pikevm::PikeVM::new_from_nfa(nfa).map_err(|error| invalid(error.to_string()))?;
            Machine::Simulated(Box::new(vm))
        };
        Ok(Self { machine, text_bytes: pattern.len() })
    }

    /// One that a part of a text need match.
    pub(crate) fn compile_search(pattern: &Arc<str>) -> Result<Self, PatternError> {
        // Alone first, so that no parenthesis can close the group put around it.
        Self::compile(pattern)?;
        let around = Self::compile(&Arc::from(format!("(?s:.*)(?:{pattern})(?s:.*)")))?;
        Ok(Self { text_bytes: pattern.len(), ..around })
    }

    pub(crate) fn is_match(&self, text: &[u8]) -> bool {
        let input = Input::new(text).anchored(Anchored::Yes).earliest(true);
        match &self.machine {
            // It never gives up, for no byte makes it.
            Machine::Complete(dfa) => dfa.try_search_fwd(&input).is_ok_and(|found| found.is_some()),
            Machine::Simulated(vm) => vm.is_match(&mut vm.create_cache(), input),
        }
    }

    /// Length of the expression as written.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text_bytes
    }
}

fn complete() -> dense::Config {
    dense::Config::new()
        .start_kind(StartKind::Anchored)
        .dfa_size_limit(Some(AUTOMATON_BYTES_MAX))
        .determinize_size_limit(Some(AUTOMATON_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, PatternError> {
        Pattern::compile(&Arc::from(text))
    }

    #[test]
    fn covers_the_whole_text() {
        for (text, value, expected) in [
            ("/v[0-9]+/x", "/v12/x", true),
            ("/v[0-9]+/x", "/v12/x/y", false),
            ("a|ab", "ab", true),
            ("a|ab", "xab", false),
            ("", "", true),
            (r"\d", "\u{663}", false),
            ("(?i)GET", "get", true),
        ] {
            assert_eq!(pattern(text).unwrap().is_match(value.as_bytes()), expected, "{text} {value}");
        }
        assert!(pattern("a.c").unwrap().is_match(b"a\xffc"));
    }

    #[test]
    fn an_expression_with_too_many_states_is_simulated() {
        let wide = pattern(".*a.{14}").unwrap();
        assert!(matches!(wide.machine, Machine::Simulated(_)));
        assert!(wide.is_match(b"xxa01234567890123") && !wide.is_match(b"xxa0123456789012"));
        for text in ["/v[0-9]+/x", ".*", "(?i)get|(?:put)?", r"/[^/]+/(?:Get|List)\b.*", "a{1000}"] {
            assert!(matches!(pattern(text).unwrap().machine, Machine::Complete(_)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_invalid_or_explodes_and_names_it() {
        for text in ["(", "a)|(b", "(?<=a)b", r"(a)\1", "(a{100}){100}"] {
            let error = pattern(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        let many = "(".repeat(60) + &")".repeat(60);
        assert!(matches!(pattern(&many), Err(PatternError::Invalid { .. })));
        assert_eq!(pattern(&"a".repeat(5000)).unwrap_err(), PatternError::Length(5000));
        assert!(pattern("a{1000}").is_ok());
    }
}
