//! A persistent table of values found by a hash that their owner computes; several values may have the same one.
//!
//! A trie of exact slices: a leaf is one allocation of as many slots as it has values, so a value costs about 24 bytes
//! where a map of general use, with room to grow in every node, takes more than 100. A change copies one leaf and the
//! branches above it, and shares the rest with every clone.
//!
//! Invariants:
//! - A branch's child holds the values whose next three bits of the hash are its index.
//! - Only a leaf at the greatest depth, where no bits are left, holds more than [`LEAF_MAX`] values.
//! - A branch holds more than [`LEAF_MIN`] values, so that a table that shrinks gives back its branches.

use std::sync::Arc;

/// Children of a branch.
const FANOUT: usize = 8;
const FANOUT_BITS: u32 = 3;
/// Values of a leaf before it splits.
const LEAF_MAX: usize = 32;
/// Values of a branch at which it becomes a leaf again; well below [`LEAF_MAX`], so that no value at the edge moves
/// everything to and fro.
const LEAF_MIN: usize = 16;

/// The table. A clone costs one reference count.
#[derive(Debug, Clone)]
pub(crate) struct Table<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Node<T> {
    Leaf(Arc<[Slot<T>]>),
    Branch(Arc<[Self; FANOUT]>),
}

#[derive(Debug, Clone)]
struct Slot<T> {
    hash: u32,
    value: T,
}

// === impl Table ===

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { root: Node::empty(), len: 0 }
    }
}

impl<T: Clone> Table<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, hash: u32, value: T) {
        self.root.insert(Slot { hash, value }, 0);
        self.len += 1;
    }

    /// Takes out one value of this hash, if one is meant.
    pub(crate) fn remove(&mut self, hash: u32, is_meant: &dyn Fn(&T) -> bool) -> Option<T> {
        let removed = self.root.remove(hash, is_meant, 0)?;
        self.len -= 1;
        Some(removed)
    }

    /// Every value of this hash.
    pub(crate) fn get(&self, hash: u32) -> impl Iterator<Item = &T> {
        let mut node = &self.root;
        let mut depth = 0;
        let leaf = loop {
            match node {
                Node::Leaf(slots) => break &**slots,
                Node::Branch(children) => match children.get(child_of(hash, depth)) {
                    Some(child) => node = child,
                    None => break &[],
                },
            }
            depth += 1;
        };
        leaf.iter().filter(move |slot| slot.hash == hash).map(|slot| &slot.value)
    }

    /// In no particular order.
    pub(crate) fn iter(&self) -> Iter<'_, T> {
        Iter { branches: vec![std::slice::from_ref(&self.root).iter()], leaf: [].iter() }
    }
}

pub(crate) struct Iter<'a, T> {
    branches: Vec<std::slice::Iter<'a, Node<T>>>,
    leaf: std::slice::Iter<'a, Slot<T>>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(slot) = self.leaf.next() {
                return Some(&slot.value);
            }
            match self.branches.last_mut()?.next() {
                Some(Node::Leaf(slots)) => self.leaf = slots.iter(),
                Some(Node::Branch(children)) => self.branches.push(children.iter()),
                None => drop(self.branches.pop()),
            }
        }
    }
}

// === impl Node ===

impl<T> Node<T> {
    fn empty() -> Self {
        Self::Leaf(Arc::default())
    }
}

impl<T: Clone> Node<T> {
    fn insert(&mut self, slot: Slot<T>, depth: u32) {
        match self {
            Self::Leaf(slots) if slots.len() < LEAF_MAX || !has_bits(depth) => {
                *slots = slots.iter().cloned().chain([slot]).collect();
            }
            Self::Leaf(slots) => {
                let mut parts: [Vec<Slot<T>>; FANOUT] = Default::default();
                for slot in slots.iter().cloned().chain([slot]) {
                    if let Some(part) = parts.get_mut(child_of(slot.hash, depth)) {
                        part.push(slot);
                    }
                }
                *self = Self::Branch(Arc::new(parts.map(|part| Self::leaf(part, depth + 1))));
            }
            Self::Branch(children) => {
                if let Some(child) = Arc::make_mut(children).get_mut(child_of(slot.hash, depth)) {
                    child.insert(slot, depth + 1);
                }
            }
        }
    }

    /// A leaf, or what it splits into: it may be that all values of a leaf went to one child.
    fn leaf(mut slots: Vec<Slot<T>>, depth: u32) -> Self {
        if slots.len() <= LEAF_MAX {
            return Self::Leaf(slots.into());
        }
        let last = slots.pop();
        let mut node = Self::Leaf(slots.into());
        if let Some(last) = last {
            node.insert(last, depth);
        }
        node
    }

    fn remove(&mut self, hash: u32, is_meant: &dyn Fn(&T) -> bool, depth: u32) -> Option<T> {
        match self {
            Self::Leaf(slots) => {
                let index = slots.iter().position(|slot| slot.hash == hash && is_meant(&slot.value))?;
                let removed = slots.get(index)?.value.clone();
                let others = slots.iter().enumerate().filter(|(at, _)| *at != index);
                *slots = others.map(|(_, slot)| slot.clone()).collect();
                Some(removed)
            }
            Self::Branch(children) => {
                let child = Arc::make_mut(children).get_mut(child_of(hash, depth))?;
                let removed = child.remove(hash, is_meant, depth + 1)?;
                let leaves: Option<Vec<_>> = children.iter().map(Self::slots).collect();
                if let Some(leaves) = leaves
                    && leaves.iter().map(|slots| slots.len()).sum::<usize>() <= LEAF_MIN
                {
                    *self = Self::Leaf(leaves.into_iter().flatten().cloned().collect());
                }
                Some(removed)
            }
        }
    }

    fn slots(&self) -> Option<&[Slot<T>]> {
        match self {
            Self::Leaf(slots) => Some(slots),
            Self::Branch(_) => None,
        }
    }
}

/// Whether the hash has bits left that tell the children of this depth apart.
fn has_bits(depth: u32) -> bool {
    (depth + 1) * FANOUT_BITS <= u32::BITS
}

fn child_of(hash: u32, depth: u32) -> usize {
    // Three bits fit everywhere.
    ((hash >> (depth * FANOUT_BITS)) & 0b111) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth<T>(node: &Node<T>) -> usize {
        match node {
            Node::Leaf(_) => 0,
            Node::Branch(children) => 1 + children.iter().map(depth).max().unwrap(),
        }
    }

    #[test]
    fn values_of_one_hash_are_all_found_however_many() {
        let mut table = Table::default();
        for number in 0..200 {
            table.insert(7, number);
        }
        table.insert(7 | 1 << 31, 1000);
        assert_eq!(table.get(7).copied().collect::<std::collections::BTreeSet<_>>(), (0..200).collect());
        assert_eq!(table.get(7 | 1 << 31).collect::<Vec<_>>(), [&1000]);
        assert_eq!(table.remove(7, &|it| *it == 150), Some(150));
        assert_eq!(table.remove(7, &|it| *it == 150), None);
        assert_eq!(table.len(), 200);
    }

    #[test]
    fn a_table_that_empties_gives_its_branches_back() {
        let mut table = Table::default();
        for number in 0..10_000_u32 {
            table.insert(number.wrapping_mul(0x9e37_79b9), number);
        }
        assert!(depth(&table.root) >= 3);
        for number in 0..10_000_u32 {
            assert_eq!(table.remove(number.wrapping_mul(0x9e37_79b9), &|it| *it == number), Some(number));
        }
        assert_eq!((table.len(), depth(&table.root), table.iter().count()), (0, 0, 0));
    }

    #[test]
    fn fuzz_the_table_agrees_with_a_list_and_its_clones_stay_as_they_were() {
        bolero::check!().with_type::<Vec<(bool, u16)>>().for_each(|steps| {
            let mut table = Table::default();
            let mut list = Vec::new();
            let mut clones = Vec::new();
            for (step, (adds, number)) in steps.iter().enumerate() {
                // Few hashes of which many agree in their low bits.
                let hash = u32::from(number % 64) << 12;
                if *adds {
                    table.insert(hash, *number);
                    list.push(*number);
                } else {
                    let removed = table.remove(hash, &|it| it == number);
                    let at = list.iter().position(|it| it == number);
                    assert_eq!(removed, at.map(|at| list.swap_remove(at)));
                }
                if step % 16 == 0 {
                    clones.push((table.clone(), list.clone()));
                }
            }
            for (table, mut list) in clones.into_iter().chain([(table, list)]) {
                let mut held: Vec<_> = table.iter().copied().collect();
                held.sort_unstable();
                list.sort_unstable();
                assert_eq!((held, table.len()), (list.clone(), list.len()));
                for number in 0..64_u16 {
                    let mut found: Vec<_> = table.get(u32::from(number) << 12).copied().collect();
                    found.sort_unstable();
                    assert_eq!(
                        found,
                        list.iter().copied().filter(|it| it % 64 == number).collect::<Vec<_>>()
                    );
                }
            }
        });
    }
}
