//! Where formatted lines go: many lines in one write, on the control thread.

use std::io::{self, Write};
use std::time::Instant;

use time::OffsetDateTime;

use super::format;
use super::record::{Level, Record};
use super::repeats::Repeats;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Formats records and writes them in batches.
pub struct LogWriter {
    format: LogFormat,
    sink: Box<dyn Write + Send>,
    batch: String,
    repeats: Repeats,
    /// Whether lines of this level are wanted.
    wants: fn(Level) -> bool,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("format", &self.format).finish_non_exhaustive()
    }
}

impl LogWriter {
    pub fn new(format: LogFormat, sink: Box<dyn Write + Send>) -> Self {
        Self { format, sink, batch: String::new(), repeats: Repeats::default(), wants: |_| true }
    }

    /// Writes only what the program's log filter lets pass for the target `access`.
    pub fn following_the_filter(self) -> Self {
        Self { wants: is_wanted, ..self }
    }

    /// Adds a line to the batch, or counts the record if it repeats others. What its telemetry leaves out is no line.
    pub fn add(&mut self, now: OffsetDateTime, at: Instant, record: &Record) {
        if (self.wants)(record.level()) && record.is_told() && self.repeats.admit(at, record) {
            self.push(now, record, None);
        }
    }

    /// Adds the lines of repetitions whose period is over.
    pub fn add_repetitions(&mut self, now: OffsetDateTime, at: Instant) {
        for (record, count) in self.repeats.take_due(at) {
            self.push(now, &record, Some(count));
        }
    }

    /// Adds the lines of all repetitions, for the end.
    pub fn add_last_repetitions(&mut self, now: OffsetDateTime) {
        for (record, count) in self.repeats.take_all() {
            self.push(now, &record, Some(count));
        }
    }

    fn push(&mut self, now: OffsetDateTime, record: &Record, repeated: Option<u64>) {
        match self.format {
            LogFormat::Text => format::text(&mut self.batch, now, record, repeated),
            LogFormat::Json => format::json(&mut self.batch, now, record, repeated),
        }
        self.batch.push('\n');
    }

    /// Writes the batch. What cannot be written is given up, so that a full disk does not fill memory as well.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let result = self.sink.write_all(self.batch.as_bytes()).and_then(|()| self.sink.flush());
        self.batch.clear();
        result
    }
}

/// Whether the log filter wants lines of the target `access` at this level.
pub(super) fn is_wanted(level: Level) -> bool {
    match level {
        Level::Debug => tracing::enabled!(target: "access", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "access", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "access", tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: "access", tracing::Level::ERROR),
    }
}
