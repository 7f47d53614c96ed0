//! Further tries at one request, by its route and within what its backend bears.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use l7::ir::{Backend, Retry};
use l7::retry::{Budget, Tries, TryEnd};
use l7::router::MatchedRoute;

use super::Failure;
use crate::session::node::Node;

#[derive(Debug)]
pub(in crate::session) struct Retrying {
    retry: Arc<Retry>,
    /// Of the backend; shared by all requests of this worker.
    budget: Option<Rc<RefCell<Budget>>>,
    node: Rc<Node>,
}

impl Retrying {
    /// `None` where the route asks for no further tries. The request counts as one.
    pub(super) fn of(matched: &MatchedRoute<'_>, backend: &Backend, node: &Rc<Node>) -> Option<Self> {
        let budget = node.retry_budgets.of(backend);
        if let Some(budget) = &budget {
            budget.borrow_mut().note_request(Instant::now());
        }
        let retry = matched.rule.retry.clone().filter(|retry| retry.attempts > 0)?;
        Some(Self { retry, budget, node: Rc::clone(node) })
    }

    /// The pause before the next try, if there is to be one; `tries` have been made.
    pub(super) fn again(&self, failure: Failure, tries: u32) -> Option<Duration> {
        let end = match failure {
            Failure::Unreachable => TryEnd::Unconnected,
            Failure::Refused => TryEnd::Refused,
            Failure::Broken => TryEnd::Reset { sent: true },
            Failure::TimedOut => TryEnd::TimedOut,
            Failure::Status(status) => TryEnd::Answered { status, grpc: None },
            Failure::Client => return None,
        };
        let mut made = Tries::after(tries.saturating_sub(1));
        let pause = made.again(&self.retry, end, self.node.random())?;
        let is_borne =
            self.budget.as_ref().is_none_or(|budget| budget.borrow_mut().take_retry(Instant::now()));
        is_borne.then_some(pause)
    }
}
