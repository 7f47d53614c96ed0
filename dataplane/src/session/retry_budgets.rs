//! How many further tries each backend bears, as one worker counts them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Instant;

use foldhash::fast::RandomState;
use l7::ir::{Backend, BackendTarget, RetryBudget};
use l7::retry::Budget;
use model::NamespacedHostname;

/// Budgets that a worker keeps; with more, it begins anew.
const BUDGETS_MAX: usize = 4096;

/// By service and port.
type Kept = HashMap<(NamespacedHostname, u16), (RetryBudget, Rc<RefCell<Budget>>), RandomState>;

#[derive(Debug)]
pub(super) struct RetryBudgets {
    kept: RefCell<Kept>,
    /// They share what is always allowed.
    workers: NonZeroU32,
}

impl RetryBudgets {
    pub(super) fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        Self { kept: RefCell::default(), workers }
    }

    /// The budget of a backend; begun anew where its policy has changed. `None` where no policy bounds it.
    pub(super) fn of(&self, backend: &Backend) -> Option<Rc<RefCell<Budget>>> {
        let (Some(policy), BackendTarget::Service { service, port }) =
            (backend.retry_budget, &backend.target)
        else {
            return None;
        };
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= BUDGETS_MAX {
            kept.clear();
        }
        let fresh = || (policy, Rc::new(RefCell::new(Budget::new(policy, self.workers, Instant::now()))));
        let (held, budget) = kept.entry((service.clone(), *port)).or_insert_with(fresh);
        if *held != policy {
            (*held, *budget) = fresh();
        }
        Some(Rc::clone(budget))
    }
}
