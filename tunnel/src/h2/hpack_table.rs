//! HPACK's dynamic table (RFC 7541 section 2.3.2), used by the encoder and the decoder.
//!
//! Text of all entries lies in one buffer, oldest first; entries only point into it. The buffer never exceeds twice the
//! table's size. Nothing is allocated before the first insertion, so that an idle connection holds no table.

use std::collections::VecDeque;

/// Octets added to each entry's size (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// A name and value in the table.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    name_len: u32,
    value_len: u32,
    /// Hashes of the name, and of name and value, by the encoder; the decoder leaves them 0.
    name_hash: u32,
    hash: u32,
}

/// A first-in-first-out table bounded by the sum of its entries' sizes.
#[derive(Debug)]
pub(super) struct DynamicTable {
    text: Vec<u8>,
    /// Oldest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
}

impl DynamicTable {
    pub(super) fn new(size_max: usize) -> Self {
        Self { text: Vec::new(), entries: VecDeque::new(), size: 0, size_max }
    }

    pub(super) fn size_max(&self) -> usize {
        self.size_max
    }

    /// Changes the bound and evicts what no longer fits (RFC 7541 section 4.3).
    pub(super) fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(0);
    }

    /// Name and value by age, 0 being the newest.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8])> {
        let position = self.entries.len().checked_sub(age + 1)?;
        let entry = self.entries.get(position)?;
        let start = entry.start as usize;
        let middle = start + entry.name_len as usize;
        let text = self.text.get(start..middle + entry.value_len as usize)?;
        text.split_at_checked(entry.name_len as usize)
    }

    /// Adds an entry, evicting from the other end. One that is larger than the table empties it
    /// (RFC 7541 section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], name_hash: u32, hash: u32) {
        let len = name.len() + value.len();
        self.evict(len + ENTRY_OVERHEAD);
        if len + ENTRY_OVERHEAD > self.size_max {
            return;
        }
        if self.text.len() + len > self.size_max.saturating_mul(2) {
            self.compact();
        }
        // Lengths fit: no text is longer than the table's size, a u32 from SETTINGS.
        let as_u32 = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        self.entries.push_back(Entry {
            start: as_u32(self.text.len()),
            name_len: as_u32(name.len()),
            value_len: as_u32(value.len()),
            name_hash,
            hash,
        });
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.size += len + ENTRY_OVERHEAD;
        debug_assert!(self.size <= self.size_max);
    }

    /// Age of the entry with that name and value.
    pub(super) fn find(&self, hash: u32, name: &[u8], value: &[u8]) -> Option<usize> {
        self.ages()
            .find(|&(age, entry)| entry.hash == hash && self.get(age) == Some((name, value)))
            .map(first)
    }

    /// Age of the youngest entry with that name.
    pub(super) fn find_name(&self, name_hash: u32, name: &[u8]) -> Option<usize> {
        let same = |age| self.get(age).is_some_and(|(found, _)| found == name);
        self.ages().find(|&(age, entry)| entry.name_hash == name_hash && same(age)).map(first)
    }

    fn ages(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().rev().enumerate()
    }

    /// Makes room for `incoming`.
    fn evict(&mut self, incoming: usize) {
        while self.size + incoming > self.size_max {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size -= (entry.name_len + entry.value_len) as usize + ENTRY_OVERHEAD;
        }
        if self.entries.is_empty() {
            debug_assert_eq!(self.size, 0);
            self.text.clear();
        }
    }

    /// Moves the living text to the front of the buffer.
    fn compact(&mut self) {
        let dead = self.entries.front().map_or(self.text.len(), |entry| entry.start as usize);
        self.text.drain(..dead);
        for entry in &mut self.entries {
            entry.start -= u32::try_from(dead).unwrap_or(0);
        }
    }
}

fn first<A, B>(pair: (A, B)) -> A {
    pair.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_the_oldest_first_and_bounds_the_buffer() {
        let mut table = DynamicTable::new(100);
        for round in 0..1_000_u32 {
            let value = round.to_string();
            table.insert(b"name", value.as_bytes(), 0, 0);
            assert_eq!(table.get(0), Some((b"name".as_slice(), value.as_bytes())));
            assert!(table.size <= 100 && table.text.len() <= 200);
            if round > 0 {
                assert_eq!(table.get(1).unwrap().1, (round - 1).to_string().as_bytes());
            }
            assert_eq!(table.get(2), None);
        }
    }

    #[test]
    fn entry_larger_than_the_table_empties_it() {
        let mut table = DynamicTable::new(64);
        table.insert(b"a", b"b", 0, 0);
        table.insert(&[b'x'; 40], b"", 0, 0);
        assert_eq!(table.get(0), None);
        assert_eq!(table.size, 0);
    }

    #[test]
    fn smaller_bound_evicts_at_once() {
        let mut table = DynamicTable::new(4096);
        for name in [b"a", b"b", b"c"] {
            table.insert(name, b"", 0, 0);
        }
        table.set_size_max(66);
        assert_eq!(table.get(1).unwrap().0, b"b");
        assert_eq!(table.get(2), None);
        table.set_size_max(0);
        assert_eq!(table.get(0), None);
    }
}
