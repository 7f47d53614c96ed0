//! What one turn of a link's reader may do, so that others get theirs soon whatever a peer sends.
//!
//! Bytes are a poor measure: half a megabyte is thirty records of bulk, or fifty thousand frames of one octet for two
//! applications by turns. So a turn counts what it found in the bytes, reads less at once from a link on which they are full of
//! it, and after some system calls leaves the rest of them to tasks of their own.

use std::cell::Cell;

use crate::worker::READ_BUFFER_BYTES;

/// Full reads in a row before other links get their turn.
const READS_MAX: usize = 4;
/// Events and records, as [`tunnel::session::Ingest::work`] weighs them, that one read should find: some tenths of a millisecond.
const WORK_MAX: usize = 4_096;
/// Least that is read at once: a TLS record.
const READ_BYTES_MIN: usize = 16 * 1024;
/// What is read of a link of which nothing is known yet.
const READ_BYTES_FIRST: usize = 64 * 1024;
/// Payload handed to applications by system calls within the turn. What comes after is kept, and written by a task of its
/// stream, many pieces at once.
const DELIVERIES_MAX: u32 = 256;

const _: () = assert!(READ_BYTES_MIN <= READ_BYTES_FIRST && READ_BYTES_FIRST <= READ_BUFFER_BYTES);

/// The measure of one link.
#[derive(Debug)]
pub(super) struct Turn {
    read_bytes: Cell<usize>,
    reads: Cell<usize>,
    work: Cell<usize>,
    deliveries: Cell<u32>,
    cut_short: Cell<bool>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            read_bytes: Cell::new(READ_BYTES_FIRST),
            reads: Cell::new(0),
            work: Cell::new(0),
            deliveries: Cell::new(0),
            cut_short: Cell::new(false),
        }
    }
}

impl Turn {
    pub(super) fn begin(&self) {
        self.reads.set(0);
        self.work.set(0);
        self.deliveries.set(0);
        self.cut_short.set(false);
    }

    /// How much the next read may take.
    pub(super) fn read_bytes(&self) -> usize {
        self.read_bytes.get()
    }

    /// Notes what a read took and what was found in it; whether another one may follow at once if there is more.
    pub(super) fn note(&self, bytes: usize, work: usize) -> bool {
        let allowed = self.read_bytes.get();
        if work > WORK_MAX {
            self.read_bytes.set((allowed.min(bytes) * WORK_MAX / work).max(READ_BYTES_MIN));
        } else if bytes >= allowed && work <= WORK_MAX / 2 {
            self.read_bytes.set((allowed * 2).min(READ_BUFFER_BYTES));
        }
        self.cut_short.set(bytes >= allowed);
        self.reads.set(self.reads.get() + 1);
        self.work.set(self.work.get() + work);
        self.reads.get() < READS_MAX && self.work.get() < WORK_MAX
    }

    /// Whether the last read took all that it might, so that there may be more.
    pub(super) fn was_cut_short(&self) -> bool {
        self.cut_short.get()
    }

    /// Whether an application may be written to now.
    pub(super) fn may_deliver(&self) -> bool {
        let deliveries = self.deliveries.get();
        self.deliveries.set(deliveries.saturating_add(1));
        deliveries < DELIVERIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_read_in_ever_larger_pieces_and_small_frames_in_smaller_ones() {
        let turn = Turn::default();
        let mut reads = Vec::new();
        for _ in 0..5 {
            turn.begin();
            reads.push(turn.read_bytes());
            assert!(turn.note(turn.read_bytes(), turn.read_bytes() / 2_000));
        }
        assert_eq!(reads, [64, 128, 256, 512, 512].map(|kib| kib << 10));
        turn.begin();
        // A frame of one octet is ten.
        assert!(!turn.note(READ_BUFFER_BYTES, READ_BUFFER_BYTES / 10));
        let smaller = turn.read_bytes();
        assert!((READ_BYTES_MIN..50_000).contains(&smaller), "{smaller}");
        turn.note(smaller, smaller / 10);
        assert_eq!(turn.read_bytes(), smaller, "which is about right");
        turn.note(smaller, smaller);
        assert_eq!(turn.read_bytes(), READ_BYTES_MIN);
    }

    #[test]
    fn a_read_that_is_not_full_says_nothing_about_larger_ones() {
        let turn = Turn::default();
        turn.note(100, 4);
        assert_eq!(turn.read_bytes(), READ_BYTES_FIRST);
        assert!(!turn.was_cut_short());
        turn.note(READ_BYTES_FIRST, 4);
        assert!(turn.was_cut_short());
    }

    #[test]
    fn a_turn_ends_after_some_reads_some_work_and_some_system_calls() {
        let turn = Turn::default();
        turn.begin();
        assert_eq!((0..10).take_while(|_| turn.note(1_000, 10)).count(), READS_MAX - 1);
        turn.begin();
        assert_eq!((0..10).take_while(|_| turn.note(1_000, WORK_MAX / 2)).count(), 1);
        assert_eq!((0..1_000).filter(|_| turn.may_deliver()).count(), DELIVERIES_MAX as usize);
        turn.begin();
        assert!(turn.may_deliver());
    }
}
