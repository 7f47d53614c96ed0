//! The streams of one connection: small records in a dense array, found by identifier through an open-addressed index.
//!
//! Identifiers are odd and mostly consecutive, so identifier / 2 modulo the index's size spreads them perfectly; the
//! worst a peer can do is a probe as long as its number of streams, which SETTINGS_MAX_CONCURRENT_STREAMS bounds.

/// What the engine knows of a stream. No buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// What the peer lets us send; negative after it lowered SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.9.2).
    pub(super) send_window: i32,
    /// What we let the peer send.
    pub(super) receive_window: i32,
    /// Released by the consumer, not yet announced.
    pub(super) release_pending: u32,
    /// Payload still due by content-length; `UNCHECKED` if there is none to check.
    pub(super) content_remaining: u64,
    /// Of the peer's header blocks, as their list counts them: they are held for about as long as the stream.
    pub(super) head_bytes: u32,
    /// Bits of `state`.
    pub(super) state: u16,
}

const _: () = assert!(size_of::<Stream>() <= 32);

/// No content-length to check.
pub(super) const UNCHECKED: u64 = u64::MAX;

/// Bits of `Stream::state`.
pub(super) mod state {
    /// We have sent END_STREAM.
    pub(crate) const LOCAL_ENDED: u16 = 1;
    /// The peer has sent END_STREAM.
    pub(crate) const REMOTE_ENDED: u16 = 1 << 1;
    /// Our final header block is out: DATA may follow.
    pub(crate) const HEADERS_SENT: u16 = 1 << 2;
    /// The peer's final header block is in: DATA may follow.
    pub(crate) const HEADERS_RECEIVED: u16 = 1 << 3;
    /// A send took less than offered; `Writable` is owed.
    pub(crate) const BLOCKED: u16 = 1 << 4;
    /// In one of the queues for the connection window.
    pub(crate) const QUEUED: u16 = 1 << 5;
    /// `Writable` was delivered and nothing was accepted since.
    pub(crate) const GRANTED: u16 = 1 << 6;
    /// Found blocked by the last scan for stalled streams.
    pub(crate) const STALLED: u16 = 1 << 7;
    /// The request was HEAD or CONNECT: content-length of the response says nothing about its payload.
    pub(crate) const NO_CONTENT_CHECK: u16 = 1 << 8;
}

impl Stream {
    #[inline]
    pub(super) fn is(&self, bits: u16) -> bool {
        self.state & bits == bits
    }
}

/// The streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    dense: Vec<Stream>,
    /// Position in `dense` + 1, or 0. Length is 0 or a power of two, at least twice the number of streams.
    index: Vec<u32>,
    /// `head_bytes` of all streams together.
    head_bytes: usize,
}

/// Smallest index; kept while idle.
const INDEX_MIN: usize = 8;
/// An index above this is freed when the last stream ends.
const INDEX_KEPT: usize = 64;

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.dense.len()
    }

    /// What the peer's header blocks on these streams hold.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Counts another header block of a stream.
    pub(super) fn hold_head(&mut self, id: u32, bytes: u32) {
        let Some(stream) = self.get_mut(id) else { return };
        stream.head_bytes = stream.head_bytes.saturating_add(bytes);
        self.head_bytes += bytes as usize;
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.dense.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.dense.iter()
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.dense.get(self.find(id)?.1)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let (_, position) = self.find(id)?;
        self.dense.get_mut(position)
    }

    /// Adds a stream; its identifier must be new.
    pub(super) fn insert(&mut self, stream: Stream) {
        debug_assert!(self.get(stream.id).is_none());
        self.dense.push(stream);
        if self.dense.len() * 2 > self.index.len() {
            self.rebuild((self.index.len() * 2).max(INDEX_MIN));
        } else {
            self.link(stream.id, self.dense.len());
        }
    }

    /// Takes a stream out.
    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let (slot, position) = self.find(id)?;
        let last = self.dense.len() - 1;
        if position != last {
            let moved = self.dense.get(last)?.id;
            let (moved_slot, _) = self.find(moved)?;
            *self.index.get_mut(moved_slot)? = number(position + 1);
        }
        let stream = self.dense.swap_remove(position);
        self.unlink(slot);
        self.head_bytes = self.head_bytes.saturating_sub(stream.head_bytes as usize);
        if self.dense.is_empty() && self.index.len() > INDEX_KEPT {
            *self = Self::default();
        }
        Some(stream)
    }

    fn mask(&self) -> usize {
        self.index.len().wrapping_sub(1)
    }

    fn home(&self, id: u32) -> usize {
        (id >> 1) as usize & self.mask()
    }

    /// Slot in the index and position in the array.
    #[inline]
    fn find(&self, id: u32) -> Option<(usize, usize)> {
        let mut slot = self.home(id);
        loop {
            // An empty index has no slot at all; a full one cannot be, so the search ends.
            let position = (*self.index.get(slot)? as usize).checked_sub(1)?;
            if self.dense.get(position)?.id == id {
                return Some((slot, position));
            }
            slot = (slot + 1) & self.mask();
        }
    }

    /// Enters a position (counted from 1) under an identifier.
    fn link(&mut self, id: u32, position_plus_one: usize) {
        let mut slot = self.home(id);
        let mask = self.mask();
        while let Some(entry) = self.index.get_mut(slot) {
            if *entry == 0 {
                *entry = number(position_plus_one);
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Empties a slot and moves later entries of the same run back, so that no search stops early.
    fn unlink(&mut self, slot: usize) {
        let mask = self.mask();
        let mut hole = slot;
        let mut next = (slot + 1) & mask;
        while let Some(&entry) = self.index.get(next) {
            let Some(stream) = (entry as usize).checked_sub(1).and_then(|position| self.dense.get(position))
            else {
                break;
            };
            // The entry may move into the hole if its home is not between the hole and itself.
            let distance_home = next.wrapping_sub(self.home(stream.id)) & mask;
            let distance_hole = next.wrapping_sub(hole) & mask;
            if distance_home >= distance_hole {
                if let Some(target) = self.index.get_mut(hole) {
                    *target = entry;
                }
                hole = next;
            }
            next = (next + 1) & mask;
        }
        if let Some(target) = self.index.get_mut(hole) {
            *target = 0;
        }
    }

    #[cold]
    fn rebuild(&mut self, len: usize) {
        debug_assert!(len.is_power_of_two());
        self.index.clear();
        self.index.resize(len, 0);
        for position in 0..self.dense.len() {
            if let Some(stream) = self.dense.get(position) {
                self.link(stream.id, position + 1);
            }
        }
    }
}

fn number(position: usize) -> u32 {
    // There are at most 2^30 identifiers.
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn stream(id: u32, send_window: i32) -> Stream {
        Stream {
            id,
            send_window,
            receive_window: 0,
            release_pending: 0,
            content_remaining: UNCHECKED,
            head_bytes: 0,
            state: 0,
        }
    }

    #[test]
    fn fuzz_agrees_with_an_ordered_map() {
        bolero::check!().with_type::<Vec<(bool, u8, i32)>>().for_each(|steps| {
            let mut streams = Streams::default();
            let mut model = BTreeMap::new();
            for &(insert, id, window) in steps {
                // Identifiers of the same home in a small index, and neighbours.
                let id = (u32::from(id & 7) + u32::from(id >> 3) * 64) * 2 + 1;
                if insert && !model.contains_key(&id) {
                    streams.insert(stream(id, window));
                    streams.hold_head(id, id);
                    model.insert(id, window);
                } else {
                    assert_eq!(streams.remove(id).map(|gone| gone.send_window), model.remove(&id));
                }
                assert_eq!(streams.len(), model.len());
                assert_eq!(streams.head_bytes(), model.keys().map(|id| *id as usize).sum());
                for (id, window) in &model {
                    assert_eq!(streams.get(*id).map(|found| found.send_window), Some(*window));
                }
            }
        });
    }

    #[test]
    fn large_index_is_freed_when_idle() {
        let mut streams = Streams::default();
        for id in 0..1_000 {
            streams.insert(stream(id * 2 + 1, 0));
        }
        for id in 0..1_000 {
            assert!(streams.remove(id * 2 + 1).is_some());
        }
        assert_eq!((streams.index.capacity(), streams.dense.capacity()), (0, 0));
    }
}
