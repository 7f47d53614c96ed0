//! The log filter, changeable while the program runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Targets that may have levels of their own.
const DIRECTIVES_MAX: usize = 256;

/// Puts a filter into force.
type Apply = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// The program's one log filter.
pub struct LogFilter {
    initial: String,
    current: Mutex<String>,
    apply: Box<Apply>,
}

static FILTER: OnceLock<LogFilter> = OnceLock::new();

/// Why the filter was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    #[error("invalid log filter {filter:?}: {reason}")]
    Invalid { filter: String, reason: String },
    #[error("the log filter of this program cannot be changed while it runs")]
    Fixed,
}

/// Makes the program's filter known; `apply` changes it. A second call is without effect.
pub fn install(initial: &str, apply: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static) {
    let filter = LogFilter {
        initial: initial.to_owned(),
        current: Mutex::new(initial.to_owned()),
        apply: Box::new(apply),
    };
    drop(FILTER.set(filter));
}

/// The program's filter, if it was made known.
pub fn installed() -> Option<&'static LogFilter> {
    FILTER.get()
}

impl LogFilter {
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts `text` into force: a level for all, or `target=level` pairs with commas (`:` may stand for `=`). What it
    /// does not name stays as it is. What is in force then.
    pub fn set(&self, text: &str) -> Result<String, LogFilterError> {
        self.change(&self.current(), text)
    }

    /// As it was at the start.
    pub fn reset(&self) -> Result<String, LogFilterError> {
        self.change(&self.initial, "")
    }

    fn change(&self, from: &str, text: &str) -> Result<String, LogFilterError> {
        let invalid = |reason: String| LogFilterError::Invalid { filter: text.to_owned(), reason };
        let filter = merged(from, text).map_err(invalid)?;
        let parsed = EnvFilter::try_new(&filter).map_err(|error| invalid(error.to_string()))?;
        (self.apply)(parsed).map_err(invalid)?;
        filter.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(filter)
    }
}

/// The directives of `from` with those of `text` added or in their places.
fn merged(from: &str, text: &str) -> Result<String, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for directive in directives(from).chain(directives(text)) {
        let (target, level) = parts(directive)?;
        match all.iter_mut().find(|(known, _)| *known == target) {
            Some((_, in_force)) => *in_force = level,
            None => all.push((target, level)),
        }
    }
    if all.len() > DIRECTIVES_MAX {
        return Err(format!("more than {DIRECTIVES_MAX} targets; reset the filter first"));
    }
    let written = all.iter().map(|(target, level)| match target.as_str() {
        "" => level.clone(),
        target => format!("{target}={level}"),
    });
    Ok(written.collect::<Vec<_>>().join(","))
}

/// The parts between commas.
fn directives(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

/// Target and level; the target of a level for all is empty.
fn parts(directive: &str) -> Result<(String, String), String> {
    let level = |text: &str| {
        let parsed = text.trim().parse::<LevelFilter>();
        parsed
            .map(|level| level.to_string())
            .map_err(|_| format!("{:?} is not a level (off, error, warn, info, debug, trace)", text.trim()))
    };
    // A colon may stand for the sign, but two of them are a module's path.
    let colon = || directive.rsplit_once(':').filter(|(target, _)| !target.ends_with(':'));
    match directive.rsplit_once('=').or_else(colon) {
        Some((target, text)) => Ok((target.trim().to_owned(), level(text)?)),
        // A word that is no level would be a target to the parser: refused, it is a slip.
        None => Ok((String::new(), level(directive)?)),
    }
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogFilter").field("current", &self.current()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn levels_and_targets_are_taken_and_slips_refused() {
        let applied = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&applied);
        let filter = LogFilter {
            initial: "info".into(),
            current: Mutex::new("info".into()),
            apply: Box::new(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }),
        };
        assert_eq!(filter.set("debug").unwrap(), "debug");
        assert_eq!(filter.set("dataplane:trace,info").unwrap(), "info,dataplane=trace");
        assert!(filter.set("verbose").unwrap_err().to_string().contains("not a level"));
        assert!(filter.set("a=b=c").is_err());
        assert_eq!(filter.current(), "info,dataplane=trace");
        assert_eq!(filter.set("a::b=WARN, a::c:error").unwrap(), "info,dataplane=trace,a::b=warn,a::c=error");
        assert_eq!(filter.set("warn,dataplane=off").unwrap(), "warn,dataplane=off,a::b=warn,a::c=error");
        assert_eq!(filter.reset().unwrap(), "info");
        assert_eq!(filter.set("a[span{x=1}]=debug").unwrap(), "info,a[span{x=1}]=debug");
        assert!(filter.set("x::").is_err());
        assert_eq!(filter.reset().unwrap(), "info");
        assert_eq!(applied.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn fuzz_what_is_in_force_can_be_put_into_force_again() {
        bolero::check!().with_type::<(String, String)>().for_each(|(from, text)| {
            if let Ok(filter) = merged(from, text) {
                assert_eq!(merged(&filter, "").unwrap(), filter);
            }
        });
    }
}
