//! The bounded queue from the workers to the log: never blocks a worker, counts what it drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, TrySendError};

use super::record::Record;
use super::writer::is_wanted;
use crate::worker::{Outbox, outbox};

/// Records waiting at most. At 400 bytes each that is 4 MB for the whole process, and 12 MB where
/// all are of requests; none while none waits.
pub const RECORDS_MAX: usize = 10_000;
/// Records formatted in one turn of the control thread, so that a flood of them does not starve its other work.
pub const RECORDS_PER_TURN_MAX: usize = 1_024;

const _: () = assert!(RECORDS_PER_TURN_MAX <= RECORDS_MAX);

/// The workers' end. Cloned once for each worker.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: Outbox<Record>,
    /// What the log filter does not want is not queued, unless it is a span as well.
    follows_filter: bool,
    dropped: Arc<AtomicU64>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct Records {
    receiver: Receiver<Record>,
    dropped: Arc<AtomicU64>,
}

/// A queue of [`RECORDS_MAX`] records.
pub fn queue() -> (Recorder, Records) {
    queue_of(RECORDS_MAX)
}

fn queue_of(records_max: usize) -> (Recorder, Records) {
    let (sender, receiver) = outbox(records_max);
    let dropped = Arc::new(AtomicU64::new(0));
    (Recorder { sender, follows_filter: false, dropped: Arc::clone(&dropped) }, Records { receiver, dropped })
}

// === impl Recorder ===

impl Recorder {
    /// Queues only what the program's log filter lets pass for the target `access`, and sampled requests. For readers
    /// that look at nothing else: what nobody reads costs a worker no wait in the queue, and no foreign thread its
    /// release.
    pub fn following_the_filter(self) -> Self {
        Self { follows_filter: true, ..self }
    }

    /// Queues the record unless its telemetry silences it; where the queue is full or the log is gone, drops it and
    /// counts the loss.
    pub fn record(&self, record: Record) {
        let is_unwanted = record.is_silenced() || (self.follows_filter && !is_wanted(record.level()));
        if is_unwanted && !record.is_sampled() {
            return;
        }
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.sender.try_send(record) {
            // Relaxed: the number is only read for display; the slow path may pay for an atomic addition.
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Records ===

impl Records {
    /// Hands at most [`RECORDS_PER_TURN_MAX`] waiting records to `take`; how many there were.
    pub fn drain(&self, mut take: impl FnMut(Record)) -> usize {
        let mut count = 0;
        for record in self.receiver.try_iter().take(RECORDS_PER_TURN_MAX) {
            take(record);
            count += 1;
        }
        count
    }

    /// Records lost so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cause::CloseCause;
    use super::super::format::tests::plain_record;
    use super::super::record::HttpFacts;
    use super::*;
    use crate::trace::{SpanFacts, SpanId, TraceId};

    #[test]
    fn what_the_filter_does_not_want_is_queued_only_as_a_span() {
        let (recorder, records) = queue_of(4);
        let recorder = recorder.following_the_filter();
        let queued = |level: tracing::Level, record: Record| {
            let subscriber = tracing_subscriber::fmt().with_max_level(level).finish();
            tracing::subscriber::with_default(subscriber, || recorder.record(record));
            records.drain(|_| {})
        };
        assert_eq!(queued(tracing::Level::WARN, plain_record()), 0);
        assert_eq!(queued(tracing::Level::INFO, plain_record()), 1);
        let failed = Record { cause: CloseCause::ConnectFailed, ..plain_record() };
        assert_eq!(queued(tracing::Level::WARN, failed), 1);
        let span = SpanFacts {
            trace: TraceId::of(1, 2),
            span: SpanId::of(3),
            parent: None,
            began: std::time::SystemTime::UNIX_EPOCH,
        };
        let http = HttpFacts { span: Some(span), ..HttpFacts::default() };
        let sampled = Record { http: Some(Box::new(http)), ..plain_record() };
        assert_eq!(queued(tracing::Level::WARN, sampled), 1);
        assert_eq!(records.dropped(), 0);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (recorder, records) = queue_of(2);
        for worker in 0..5 {
            recorder.record(Record { worker, ..plain_record() });
        }
        let mut workers = Vec::new();
        assert_eq!(records.drain(|r| workers.push(r.worker)), 2);
        assert_eq!(workers, [0, 1]);
        assert_eq!(records.dropped(), 3);
    }

    #[test]
    fn a_log_that_is_gone_does_not_disturb_the_worker() {
        let (recorder, records) = queue_of(2);
        let dropped = Arc::clone(&records.dropped);
        drop(records);
        recorder.record(plain_record());
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}
