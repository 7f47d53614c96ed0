//! The variables that the program was started with, and what is wrong with one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::values;

/// A value as a message shows it; longer ones are cut.
const SHOWN_CHARACTERS_MAX: usize = 80;

/// Variables by name. Those whose name or value is no UTF-8 are not in it.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// Why the configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name}={value:?} cannot be used: {allowed}")]
    Value { name: String, value: String, allowed: String },
    #[error("{name} is not set: {why}")]
    Missing { name: &'static str, why: &'static str },
    #[error("there is no variable {name}: those of corelane are {known}")]
    Unknown { name: String, known: String },
    #[error("{from} cannot be read as a ProxyConfig: {reason}")]
    ProxyConfig { from: String, reason: String },
    #[error("{0}")]
    Conflict(&'static str),
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let pairs = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self(pairs.collect())
    }

    /// What is known by another name too; a value of its own wins.
    pub(super) fn alias(&mut self, theirs: &str, ours: &str) {
        if let Some(value) = self.filled(theirs).map(str::to_owned) {
            self.set_default(ours, &value);
        }
    }

    /// Gives a variable a value, unless it has one.
    pub(super) fn set_default(&mut self, name: &str, value: &str) {
        if self.filled(name).is_none() {
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    /// The value as it is, empty ones included.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value, unless it is empty.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|text| !text.is_empty())
    }

    pub(super) fn text_or(&self, name: &str, default: &str) -> String {
        self.text(name).unwrap_or(default).to_owned()
    }

    /// What `parse` makes of the value. `allowed` completes "cannot be used: ".
    pub(super) fn parse<T>(
        &self,
        name: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| ConfigError::value(name, value, allowed))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.parse(name, "it must be true or false", |text| text.parse().ok())?.unwrap_or(default))
    }

    /// A whole number in a range, its ends included.
    pub(super) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let allowed = match *range.end() {
            u64::MAX => format!("it must be a whole number of at least {}", range.start()),
            end => format!("it must be a whole number from {} to {end}", range.start()),
        };
        self.parse(name, &allowed, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    pub(super) fn duration(&self, name: &str, default: Duration) -> Result<Duration, ConfigError> {
        Ok(self.parse(name, values::DURATION_ALLOWED, values::duration)?.unwrap_or(default))
    }

    /// Variables whose name begins so, without that beginning.
    pub(super) fn prefixed(&self, prefix: &'static str) -> impl Iterator<Item = (&str, &str)> {
        let after = self.0.range(prefix.to_owned()..);
        after
            .map_while(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
            .filter(|(rest, _)| !rest.is_empty())
    }
}

/// For tests, and for those who start proxies in their own process.
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// Only the names: values may be secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl ConfigError {
    pub(super) fn value(name: &str, value: &str, allowed: impl Into<String>) -> Self {
        let mut shown: String = value.chars().take(SHOWN_CHARACTERS_MAX).collect();
        if shown.len() < value.len() {
            shown.push_str("...");
        }
        Self::Value { name: name.to_owned(), value: shown, allowed: allowed.into() }
    }
}
