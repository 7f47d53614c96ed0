//! Regular expressions of routes: they cover the whole text, and neither building nor matching one can run away.
//!
//! The dialect is RE2's as Envoy has it, with classes such as `\d` and `\w` of ASCII only. Matching takes time linear
//! in the text whatever the expression; an expression too big to build is refused by name.

use std::sync::Arc;

use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, meta};

/// Longest expression: that of a header value in the Gateway API.
const PATTERN_BYTES_MAX: usize = 4096;
/// Size of the compiled automaton; `a{1000}` fits, `(a{100}){100}{100}` does not.
const AUTOMATON_BYTES_MAX: usize = 256 << 10;
/// States found while matching are kept up to this size, for each thread that matches.
const CACHE_BYTES_MAX: usize = 256 << 10;
/// Depth of nested groups.
const NESTING_MAX: u32 = 50;

/// A regular expression that a text matches as a whole.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: meta::Regex,
    text_bytes: usize,
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
    pub(super) fn compile(pattern: &Arc<str>) -> Result<Self, PatternError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::Length(pattern.len()));
        }
        let dialect = syntax::Config::new().unicode(false).utf8(false).nest_limit(NESTING_MAX);
        let invalid = |cause: String| PatternError::Invalid { pattern: pattern.clone(), cause };
        // Parsed alone first, so that no parenthesis can close the group put around it.
        syntax::parse_with(pattern, &dialect).map_err(|error| invalid(error.to_string()))?;
        let limits = meta::Config::new()
            .utf8_empty(false)
            .nfa_size_limit(Some(AUTOMATON_BYTES_MAX))
            .onepass_size_limit(Some(AUTOMATON_BYTES_MAX))
            .hybrid_cache_capacity(CACHE_BYTES_MAX);
        let regex = meta::Builder::new()
            .configure(limits)
            .syntax(dialect)
            .build(&format!(r"\A(?:{pattern})\z"))
            .map_err(|error| match error.size_limit() {
                Some(_) => PatternError::Size(pattern.clone()),
                None => invalid(error.to_string()),
            })?;
        Ok(Self { regex, text_bytes: pattern.len() })
    }

    pub(super) fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(Input::new(text).anchored(Anchored::Yes))
    }

    /// Length of the expression as written.
    pub(super) fn text_bytes(&self) -> usize {
        self.text_bytes
    }
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
