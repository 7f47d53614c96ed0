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
use crate::session::traffic::{Again, Cluster};

#[derive(Debug)]
pub(in crate::session) struct Retrying {
    retry: Arc<Retry>,
    /// Of the backend; shared by all requests of this worker.
    budget: Option<Rc<RefCell<Budget>>>,
    node: Rc<Node>,
    /// Bounds the further tries that are under way, of which this request's may be one.
    cluster: Option<Rc<Cluster>>,
    under_way: RefCell<Option<Again>>,
}

impl Retrying {
    /// `None` where the route asks for no further tries. The request counts as one.
    pub(super) fn of(matched: &MatchedRoute<'_>, backend: &Backend, node: &Rc<Node>) -> Option<Self> {
        let budget = node.retry_budgets.of(backend);
        if let Some(budget) = &budget {
            budget.borrow_mut().note_request(Instant::now());
        }
        let retry = matched.rule.retry.clone().filter(|retry| retry.attempts > 0)?;
        let (cluster, under_way) = (None, RefCell::default());
        Some(Self { retry, budget, node: Rc::clone(node), cluster, under_way })
    }

    /// The same within what the traffic policy of the service allows.
    pub(super) fn bounded_by(&mut self, cluster: &Rc<Cluster>) {
        self.cluster = Some(Rc::clone(cluster));
    }

    /// The pause before the next try, if there is to be one; `tries` have been made.
    pub(super) fn again(&self, failure: Failure, tries: u32) -> Option<Duration> {
        let end = match failure {
            Failure::Unreachable => TryEnd::Unconnected,
            Failure::Refused => TryEnd::Refused,
            Failure::Broken => TryEnd::Reset { sent: true },
            Failure::TimedOut => TryEnd::TimedOut,
            Failure::Answered { status, grpc } => TryEnd::Answered { status, grpc },
            Failure::Client | Failure::Overflow => return None,
        };
        let mut made = Tries::after(tries.saturating_sub(1));
        let pause = made.again(&self.retry, end, self.node.random())?;
        let is_borne =
            self.budget.as_ref().is_none_or(|budget| budget.borrow_mut().take_retry(Instant::now()));
        (is_borne && self.is_admitted()).then_some(pause)
    }

    fn is_admitted(&self) -> bool {
        let Some(cluster) = &self.cluster else { return true };
        // A further try takes the place of the one before.
        drop(self.under_way.take());
        let admitted = cluster.try_again();
        let is_admitted = admitted.is_ok();
        self.under_way.replace(admitted.ok());
        is_admitted
    }
}
