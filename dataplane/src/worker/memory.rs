//! Bytes that a worker holds because somebody is slow: payload that applications have not taken, output that peers have
//! not read, and what every connection costs.
//!
//! Whoever holds bytes says so with [`Memory::take`] and [`Memory::give_back`]; nothing is allocated here. New work is
//! refused from nine tenths on, so that what is there can go on. At the whole, applications are not read any more, and a
//! stream whose payload would have to be kept is reset: windows that were granted cannot be taken back.

use std::cell::Cell;

/// The account of one worker.
#[derive(Debug)]
pub struct Memory {
    held: Cell<usize>,
    max: Cell<usize>,
    refused: Cell<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { held: Cell::new(0), max: Cell::new(usize::MAX), refused: Cell::new(0) }
    }
}

impl Memory {
    /// Bounds what is held; until then there is no bound.
    pub fn set_max(&self, bytes: usize) {
        self.max.set(bytes);
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    pub fn take(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_add(bytes));
    }

    pub fn give_back(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
    }

    /// Whether new work is to be refused.
    pub fn is_tight(&self) -> bool {
        let max = self.max.get();
        self.held.get() >= max - max / 10
    }

    /// Whether nothing more is to be held.
    pub fn is_full(&self) -> bool {
        self.held.get() >= self.max.get()
    }

    /// Notes that something was given up for want of memory.
    pub fn note_refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// How often that was since the last call.
    pub fn take_refused(&self) -> u64 {
        self.refused.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_work_is_refused_before_the_whole_is_held() {
        let memory = Memory::default();
        memory.take(1 << 40);
        assert!(!memory.is_tight(), "no bound was set");
        memory.give_back(1 << 40);
        memory.set_max(100);
        memory.take(89);
        assert!(!memory.is_tight());
        memory.take(1);
        assert!(memory.is_tight() && !memory.is_full());
        memory.take(10);
        assert!(memory.is_full());
        memory.give_back(11);
        assert!(!memory.is_tight() && memory.held() == 89);
    }
}
