//! Matches that share a path, by rank; many of them are told apart by a header without trying each.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::condition::{Conditions, with_header};
use super::{Asked, MatchId};

/// From this many matches on, the header that most of them name is looked up instead of compared.
const INDEXED_FROM: usize = 8;

/// Most paths have one match, which then lies in the table itself.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: SmallVec<[Candidate; 1]>,
    index: Option<Box<HeaderIndex>>,
}

/// A match whose path is the one looked for.
#[derive(Debug)]
pub(super) struct Candidate {
    conditions: Conditions,
    id: MatchId,
}

/// Positions in the list, ascending, by what they ask of one header.
#[derive(Debug)]
struct HeaderIndex {
    name: Box<str>,
    by_value: HashMap<Box<[u8]>, Vec<u32>, RandomState>,
    /// Matches that do not ask for one value of the header.
    others: Vec<u32>,
}

// === impl Candidates ===

impl Candidates {
    pub(super) fn push(&mut self, candidate: Candidate) {
        self.list.push(candidate);
    }

    /// Brings the list into the order of rank and indexes it; to be called once, after the last [`Self::push`].
    pub(super) fn sort(&mut self) {
        self.list.sort_by_key(Candidate::rank);
        self.list.shrink_to_fit();
        self.index = HeaderIndex::over(&self.list).map(Box::new);
    }

    /// The first match that holds.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<MatchId> {
        let Some(index) = &self.index else {
            return self.list.iter().find(|candidate| candidate.holds(asked)).map(Candidate::id);
        };
        let named: &[u32] = with_header(asked.head, &index.name, |value| {
            value.and_then(|value| index.by_value.get(value)).map_or(&[][..], Vec::as_slice)
        });
        let at = merged(named, &index.others).find(|at| self.holds(*at, asked))?;
        self.list.get(at as usize).map(Candidate::id)
    }

    fn holds(&self, at: u32, asked: &Asked<'_>) -> bool {
        self.list.get(at as usize).is_some_and(|candidate| candidate.holds(asked))
    }
}

/// Both ascending sequences as one.
fn merged<'a>(left: &'a [u32], right: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
    let (mut left, mut right) = (left.iter().copied().peekable(), right.iter().copied().peekable());
    std::iter::from_fn(move || match (left.peek(), right.peek()) {
        (Some(first), Some(second)) if first <= second => left.next(),
        (Some(_), None) => left.next(),
        _ => right.next(),
    })
}

// === impl Candidate ===

impl Candidate {
    pub(super) fn new(conditions: Conditions, id: MatchId) -> Self {
        Self { conditions, id }
    }

    pub(super) fn id(&self) -> MatchId {
        self.id
    }

    pub(super) fn rank(&self) -> impl Ord + use<> {
        (self.conditions.rank(), self.id)
    }

    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        self.conditions.hold(asked)
    }
}

// === impl HeaderIndex ===

impl HeaderIndex {
    /// The index by the header that most matches ask one value of; `None` if the list is short or none does.
    fn over(list: &[Candidate]) -> Option<Self> {
        if list.len() < INDEXED_FROM {
            return None;
        }
        let mut uses: HashMap<String, usize> = HashMap::new();
        for (name, _) in list.iter().flat_map(|candidate| candidate.conditions.exact_headers()) {
            *uses.entry(name.to_ascii_lowercase()).or_default() += 1;
        }
        // Of equally used names the first by alphabet, so that the same routes compile to the same tables.
        let (name, _) =
            uses.into_iter().max_by(|left, right| left.1.cmp(&right.1).then(right.0.cmp(&left.0)))?;
        let mut index = Self { name: name.into(), by_value: HashMap::default(), others: Vec::new() };
        for (at, candidate) in list.iter().enumerate() {
            let value =
                candidate.conditions.exact_headers().find(|(own, _)| own.eq_ignore_ascii_case(&index.name));
            let positions = match value {
                Some((_, value)) => index.by_value.entry(value.into()).or_default(),
                None => &mut index.others,
            };
            positions.push(super::index(at));
        }
        Some(index)
    }
}
