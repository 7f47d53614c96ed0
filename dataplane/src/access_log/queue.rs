//! The bounded queue from the workers to the log: never blocks a worker, counts what it drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::record::Record;

/// Records waiting at most. At 400 bytes each that is 4 MB for the whole process, and 12 MB where
/// all are of requests.
pub const RECORDS_MAX: usize = 10_000;
/// Records formatted in one turn of the control thread, so that a flood of them does not starve its other work.
pub const RECORDS_PER_TURN_MAX: usize = 1_024;

const _: () = assert!(RECORDS_PER_TURN_MAX <= RECORDS_MAX);

/// The workers' end. Cloned once for each worker.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: Sender<Record>,
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
    let (sender, receiver) = bounded(records_max);
    let dropped = Arc::new(AtomicU64::new(0));
    (Recorder { sender, dropped: Arc::clone(&dropped) }, Records { receiver, dropped })
}

// === impl Recorder ===

impl Recorder {
    /// Queues the record, or drops it and counts the loss where the queue is full or the log is gone.
    pub fn record(&self, record: Record) {
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
    use super::super::format::tests::plain_record;
    use super::*;

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
