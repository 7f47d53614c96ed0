//! Values by text, in few lines of cache: a lookup in a map that does not fit the cache reads one line of the slots and,
//! where the text is short, one entry, which holds it.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

/// Texts up to this size lie in their entry.
const TEXT_BYTES_INLINE: usize = 24;

#[derive(Debug)]
pub(super) struct TextMap<T> {
    hasher: RandomState,
    /// A power of two of them or none, less than three quarters taken; the entry of a text is named in the first slot
    /// that was free from the one on that its hash points at.
    slots: Box<[Slot]>,
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Of the hash those bits that do not say where the slot is: texts are hardly ever compared in vain.
    fingerprint: u32,
    /// [`FREE`] if none.
    entry: u32,
}

const FREE: u32 = u32::MAX;

/// Starts with a line of the cache, and ends with one.
#[derive(Debug)]
#[repr(align(64))]
struct Entry<T> {
    text: SmallVec<[u8; TEXT_BYTES_INLINE]>,
    value: T,
}

impl<T> Default for TextMap<T> {
    fn default() -> Self {
        Self { hasher: RandomState::default(), slots: Box::default(), entries: Vec::new() }
    }
}

impl<T: Default> TextMap<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }

    pub(super) fn get(&self, text: &[u8]) -> Option<&T> {
        let hash = self.hasher.hash_one(text);
        let found = self.probe(hash).find_map(|slot| self.entry(slot, hash, text));
        found.and_then(|at| self.entries.get(at)).map(|entry| &entry.value)
    }

    /// Changes the value of `text`, the default if it has none yet.
    pub(super) fn update(&mut self, text: &[u8], change: impl FnOnce(&mut T)) {
        let hash = self.hasher.hash_one(text);
        let known = self.probe(hash).find_map(|slot| self.entry(slot, hash, text));
        if let Some(entry) = known.and_then(|at| self.entries.get_mut(at)) {
            return change(&mut entry.value);
        }
        let mut value = T::default();
        change(&mut value);
        self.entries.push(Entry { text: SmallVec::from_slice(text), value });
        let (entries, slots) = (self.entries.len(), self.slots.len());
        if entries * 4 > slots * 3 {
            self.slots = vec![Slot { fingerprint: 0, entry: FREE }; (slots * 2).max(4)].into();
            (0..entries).for_each(|at| self.name(at));
        } else {
            self.name(entries - 1);
        }
    }

    /// Names an entry in the first slot that is free for it.
    fn name(&mut self, at: usize) {
        let Some(entry) = self.entries.get(at) else { return };
        let hash = self.hasher.hash_one(&*entry.text);
        let free = (first(hash) + self.probe(hash).count()) & self.mask();
        if let Some(slot) = self.slots.get_mut(free) {
            *slot = Slot { fingerprint: fingerprint(hash), entry: super::index(at) };
        }
    }

    /// What is left of a position in a round of slots.
    fn mask(&self) -> usize {
        self.slots.len().saturating_sub(1)
    }

    /// The taken slots in which the text may be named.
    fn probe(&self, hash: u64) -> impl Iterator<Item = Slot> {
        let mask = self.mask();
        let slots = (first(hash)..).map_while(move |at| self.slots.get(at & mask).copied());
        slots.take_while(|slot| slot.entry != FREE)
    }

    /// Position of the entry that a slot names, if it is that of the text.
    fn entry(&self, slot: Slot, hash: u64, text: &[u8]) -> Option<usize> {
        let at = slot.entry as usize;
        let is_own = || self.entries.get(at).is_some_and(|entry| *entry.text == *text);
        (slot.fingerprint == fingerprint(hash) && is_own()).then_some(at)
    }
}

/// The slot at which a search begins, to be taken modulo their number.
fn first(hash: u64) -> usize {
    low_half(hash) as usize
}

fn fingerprint(hash: u64) -> u32 {
    low_half(hash >> 32)
}

fn low_half(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn finds_what_was_put_in_and_nothing_else() {
        let mut map = TextMap::<usize>::default();
        assert!(map.is_empty() && map.get(b"").is_none());
        let mut twin: HashMap<String, usize> = HashMap::new();
        for number in 0..5_000_usize {
            // Shorter and longer than what lies in an entry; each about three times.
            let number = number % 1_700;
            let text =
                if number == 0 { String::new() } else { format!("{number}{}", "x".repeat(number % 40)) };
            map.update(text.as_bytes(), |value| *value += number + 1);
            *twin.entry(text).or_default() += number + 1;
        }
        for (text, value) in &twin {
            assert_eq!(map.get(text.as_bytes()), Some(value), "{text}");
            assert!(map.get(format!("{text}y").as_bytes()).is_none());
        }
        assert_eq!(map.values_mut().map(|value| *value).sum::<usize>(), twin.values().sum::<usize>());
    }

    #[test]
    fn an_entry_of_a_short_path_is_two_lines_of_cache() {
        assert_eq!(size_of::<Entry<super::super::candidates::Candidates>>(), 128);
        assert_eq!(size_of::<Slot>(), 8);
    }
}
