//! Tables of a cluster in which hashes find their endpoints, made again when the endpoints change.
//!
//! Clients in different places may have different endpoints to choose from, and a cluster several levels of them; each such
//! list has a table of its own. Endpoints that are left out for a while stay in their table and are passed over.

use std::rc::Rc;
use std::sync::Arc;

use l7::balance::{Member, Table};
use l7::ir::HashTable;
use xds::snapshot::{Among, ServiceEntry};

/// Tables of one cluster; the oldest goes first.
const TABLES_MAX: usize = 8;
/// Lists that are known to have a certain table.
const KNOWN_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Tables {
    made: Vec<Rc<Indexed>>,
    /// Of one generation.
    known: Vec<Known>,
    generation: u64,
}

/// A table, and the index of each of its members among the endpoints.
#[derive(Debug)]
struct Indexed {
    table: Rc<Table>,
    indices: Vec<usize>,
}

/// What a list of endpoints depends on within one generation.
#[derive(Debug)]
struct Known {
    entry: Arc<ServiceEntry>,
    client: Arc<str>,
    rank: usize,
    table: Rc<Indexed>,
}

impl Tables {
    /// Index of the endpoint that a hash belongs to.
    pub(super) fn find(
        &mut self,
        kind: HashTable,
        hash: u64,
        generation: u64,
        among: &Among<'_, '_>,
    ) -> Option<usize> {
        if self.generation != generation {
            self.known.clear();
            self.generation = generation;
        }
        let is_same = |known: &&Known| {
            Arc::ptr_eq(&known.entry, among.entry())
                && known.rank == among.rank()
                && known.client == among.client().uid
        };
        let indexed = match self.known.iter().find(is_same) {
            Some(known) => Rc::clone(&known.table),
            None => self.look(kind, among),
        };
        let member = indexed
            .table
            .find(hash, |member| indexed.indices.get(member).is_some_and(|index| among.is_open(*index)))?;
        indexed.indices.get(member).copied()
    }

    fn look(&mut self, kind: HashTable, among: &Among<'_, '_>) -> Rc<Indexed> {
        let member = |index: usize| {
            let weight = among.weight(index)?;
            Some((Member { name: Arc::clone(&among.workload(index)?.uid), weight }, index))
        };
        let mut found: Vec<_> = (0..among.entry().endpoints.len()).filter_map(member).collect();
        found.sort_unstable();
        let (members, indices): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let table = match self.made.iter().position(|it| it.table.members() == members) {
            Some(at) => self.made.remove(at).table.clone(),
            None => Rc::new(Table::new(kind, members)),
        };
        let indexed = Rc::new(Indexed { table, indices });
        if self.made.len() >= TABLES_MAX {
            self.made.remove(0);
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.remove(0);
        }
        self.made.push(Rc::clone(&indexed));
        self.known.push(Known {
            entry: Arc::clone(among.entry()),
            client: Arc::clone(&among.client().uid),
            rank: among.rank(),
            table: Rc::clone(&indexed),
        });
        indexed
    }
}
