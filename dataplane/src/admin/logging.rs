//! The log filter, changeable while the program runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;

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

    /// Puts `text` into force: a level, or `target=level` pairs with commas (`:` may stand for `=`).
    pub fn set(&self, text: &str) -> Result<String, LogFilterError> {
        let filter = text.replace(':', "=");
        let invalid = |reason: String| LogFilterError::Invalid { filter: text.to_owned(), reason };
        let parsed = EnvFilter::try_new(&filter).map_err(|error| invalid(error.to_string()))?;
        // A word that is no level is a target to the parser: refuse it, it is a slip.
        if !filter.contains('=') && filter.parse::<tracing::level_filters::LevelFilter>().is_err() {
            return Err(invalid("not a level (off, error, warn, info, debug, trace)".to_owned()));
        }
        (self.apply)(parsed).map_err(invalid)?;
        filter.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(filter)
    }

    pub fn reset(&self) -> Result<String, LogFilterError> {
        self.set(&self.initial.clone())
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
        assert_eq!(filter.set("dataplane:trace,info").unwrap(), "dataplane=trace,info");
        assert!(filter.set("verbose").unwrap_err().to_string().contains("not a level"));
        assert!(filter.set("a=b=c").is_err());
        assert_eq!(filter.current(), "dataplane=trace,info");
        assert_eq!(filter.reset().unwrap(), "info");
        assert_eq!(applied.load(Ordering::Relaxed), 3);
    }
}
