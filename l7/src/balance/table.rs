//! Tables in which a hash finds its endpoint.

use std::sync::Arc;

use super::{maglev, ring, xxh64};
use crate::ir::HashTable;

/// Places of a table at most: its making must not hold up a worker.
pub const PLACES_MAX: u32 = 1 << 18;

/// Places that are looked at for one whose endpoint may be taken, before all endpoints are compared.
const STEPS_MAX: usize = 256;

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// By which it finds its places; the same in every proxy.
    pub name: Arc<str>,
    /// More than 0.
    pub weight: u32,
}

#[derive(Debug)]
pub struct Table {
    members: Vec<Member>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    Ring(Vec<(u64, u32)>),
    Maglev(Vec<u32>),
}

impl Table {
    /// The table of these members. Their order counts: sort them, so that all proxies have the same table.
    pub fn new(kind: HashTable, members: Vec<Member>) -> Self {
        let places = match kind {
            HashTable::Ring(least) => Places::Ring(ring::places(&members, least.min(PLACES_MAX))),
            HashTable::Maglev(size) => Places::Maglev(maglev::places(&members, size.min(PLACES_MAX))),
        };
        Self { members, places }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that this hash belongs to, or the next in the table that may be taken.
    pub fn find(&self, hash: u64, may_be_taken: impl Fn(usize) -> bool) -> Option<usize> {
        let at = |place: usize| -> Option<usize> {
            let member = match &self.places {
                Places::Ring(ring) => ring.get(place)?.1,
                Places::Maglev(table) => *table.get(place)?,
            };
            usize::try_from(member).ok()
        };
        let (first, count) = match &self.places {
            Places::Ring(ring) => (ring.partition_point(|(place, _)| *place < hash), ring.len()),
            Places::Maglev(table) => {
                let place = hash.checked_rem(table.len() as u64).unwrap_or_default();
                (usize::try_from(place).unwrap_or_default(), table.len())
            }
        };
        let near = (0..count.min(STEPS_MAX)).filter_map(|step| at((first + step) % count));
        let mut last = None;
        for member in near {
            // Neighbours are often the same.
            if last != Some(member) && may_be_taken(member) {
                return Some(member);
            }
            last = Some(member);
        }
        self.farthest(hash, may_be_taken)
    }

    /// Of those that may be taken the one that likes the hash best: so each hash still has a place of its own where most
    /// members are out.
    fn farthest(&self, hash: u64, may_be_taken: impl Fn(usize) -> bool) -> Option<usize> {
        let open = self.members.iter().enumerate().filter(|(index, _)| may_be_taken(*index));
        open.max_by_key(|(_, member)| xxh64(member.name.as_bytes(), hash)).map(|(index, _)| index)
    }

    /// How many places there are.
    pub fn len(&self) -> usize {
        match &self.places {
            Places::Ring(ring) => ring.len(),
            Places::Maglev(table) => table.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
