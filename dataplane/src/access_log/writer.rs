//! Where formatted lines go: many lines in one write, on the control thread.

use std::io::{self, Write};

use time::OffsetDateTime;

use super::format;
use super::record::Record;

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
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("format", &self.format).finish_non_exhaustive()
    }
}

impl LogWriter {
    pub fn new(format: LogFormat, sink: Box<dyn Write + Send>) -> Self {
        Self { format, sink, batch: String::new() }
    }

    /// Adds a line to the batch.
    pub fn add(&mut self, now: OffsetDateTime, record: &Record) {
        match self.format {
            LogFormat::Text => format::text(&mut self.batch, now, record),
            LogFormat::Json => format::json(&mut self.batch, now, record),
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
