//! Takes access-log records out of their queue and has them written, and shown to whoever watches.

use std::rc::Rc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::access_log::{LogWriter, Record, Records, Stage};
use crate::metrics::Metrics;
use crate::trace::Exporter;

/// How long a record may wait. Polling costs the workers nothing; a wake-up for each record would.
const EVERY: Duration = Duration::from_millis(20);

/// Called with each record.
type Watcher = Box<dyn FnMut(&Record)>;

/// The reader of the queue. Runs until it is dropped.
pub struct LogPump {
    records: Records,
    writer: Option<LogWriter>,
    watcher: Option<Watcher>,
    exporter: Option<Exporter>,
    /// Those that show how many records were lost.
    metrics: Vec<Rc<Metrics>>,
    complained: bool,
}

impl LogPump {
    pub fn new(records: Records) -> Self {
        Self { records, writer: None, watcher: None, exporter: None, metrics: Vec::new(), complained: false }
    }

    /// Writes each record as a line.
    pub fn write_to(mut self, writer: LogWriter) -> Self {
        self.writer = Some(writer);
        self
    }

    /// Shows each record to `watcher`.
    pub fn watched_by(mut self, watcher: impl FnMut(&Record) + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Has the spans of requests sent to a collector.
    pub fn exporting_to(mut self, exporter: Option<Exporter>) -> Self {
        self.exporter = exporter;
        self
    }

    /// Has the loss of records counted there.
    pub fn counted_in(mut self, metrics: Rc<Metrics>) -> Self {
        self.metrics.push(metrics);
        self
    }

    pub async fn run(mut self) -> std::convert::Infallible {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turn();
        }
    }

    /// Takes what is there, at most a turn's worth.
    fn turn(&mut self) {
        let (now, at) = (OffsetDateTime::now_utc(), Instant::now());
        let (writer, watcher, exporter) = (&mut self.writer, &mut self.watcher, &self.exporter);
        self.records.drain(|record| {
            if let Some(writer) = writer {
                writer.add(now, at, &record);
            }
            if let Some(exporter) = exporter {
                exporter.offer(&record);
            }
            if let (Stage::Ended, Some(watcher)) = (record.stage, &mut *watcher) {
                watcher(&record);
            }
        });
        if let Some(writer) = &mut self.writer {
            writer.add_repetitions(now, at);
        }
        let written = self.writer.as_mut().map_or(Ok(()), LogWriter::flush);
        if let Err(error) = written
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::error!(%error, "access log lines are being lost: they cannot be written");
        }
        let dropped = self.records.dropped();
        for metrics in &self.metrics {
            metrics.set_log_dropped(dropped);
            if let Some(exporter) = &self.exporter {
                metrics.set_spans(exporter.counts());
            }
        }
    }
}

impl Drop for LogPump {
    fn drop(&mut self) {
        // What was noted before the end is written as well.
        self.turn();
        if let Some(writer) = &mut self.writer {
            writer.add_last_repetitions(OffsetDateTime::now_utc());
            // Nothing could be done about it, and there is no other place to say it.
            let _ = writer.flush();
        }
    }
}

impl std::fmt::Debug for LogPump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogPump").field("records", &self.records).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::format::tests::plain_record;
    use crate::access_log::{LogFormat, queue};
    use std::cell::Cell;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn records_are_written_and_shown_also_at_the_end() {
        let (recorder, records) = queue();
        let (sink, seen) = (Sink::default(), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&seen);
        let mut pump = LogPump::new(records)
            .write_to(LogWriter::new(LogFormat::Json, Box::new(sink.clone())))
            .watched_by(move |_| counted.set(counted.get() + 1));
        recorder.record(plain_record());
        pump.turn();
        recorder.record(plain_record());
        drop(pump);
        assert_eq!(seen.get(), 2);
        assert_eq!(String::from_utf8(sink.0.lock().unwrap().clone()).unwrap().lines().count(), 2);
    }
}
