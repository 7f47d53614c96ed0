//! Keeps the access-log records of the request that is under way, for the report.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::access_log::Record;

/// Records kept; older ones give way.
const RECORDS_MAX: usize = 1_024;

/// Shared between the log's reader and the runner of a plan.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    records: Rc<RefCell<VecDeque<Record>>>,
}

impl Observer {
    /// Notes a record.
    pub fn note(&self, record: &Record) {
        let mut records = self.records.borrow_mut();
        if records.len() == RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(record.clone());
    }

    pub fn clear(&self) {
        self.records.borrow_mut().clear();
    }

    /// What was noted since the last [`Observer::clear`], in order.
    pub fn records(&self) -> Vec<Record> {
        self.records.borrow().iter().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.records.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::format::tests::plain_record;

    #[test]
    fn the_newest_records_are_kept() {
        let observer = Observer::default();
        for worker in 0..RECORDS_MAX + 2 {
            observer.note(&Record { worker: u16::try_from(worker).unwrap(), ..plain_record() });
        }
        assert_eq!(observer.records().first().unwrap().worker, 2);
        assert_eq!(observer.len(), RECORDS_MAX);
        observer.clear();
        assert!(observer.is_empty());
    }
}
