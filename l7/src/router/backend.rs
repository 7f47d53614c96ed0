//! Choice of a backend by weight, and with it of the filters that apply.

use std::sync::Arc;

use model::NamespacedHostname;

use super::MatchedRoute;
use crate::filter::Chain;
use crate::ir::{Backend, BackendTarget, HttpRule};
use crate::session::Bond;

/// What a rule gives a request to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Picked<'a> {
    /// May be an invalid one: it keeps its share of the requests and answers 500.
    Backend(&'a Backend),
    /// The rule has no backend with a weight: 500.
    None,
}

/// What becomes of a request that a rule takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken<'a> {
    /// It goes to a port of a Service, changed by the filters.
    Forwarded { service: &'a NamespacedHostname, port: u16, backend: &'a Backend, filters: Chain },
    /// The client is sent elsewhere; [`Chain::redirect`] is never `None` here.
    Redirected(Chain),
    /// 500: the backend is not valid for this reason, or there is none.
    Failed(Option<&'a Arc<str>>),
}

impl<'a> MatchedRoute<'a> {
    /// Picks a backend of the rule as [`pick_backend`] does, unless the rule redirects.
    pub fn take(&self, random: u64) -> Taken<'a> {
        self.take_of(|rule| pick_backend(&rule.backends, random))
    }

    /// The same for a request that is bound: it goes to the backend of its session, if the rule still has it. One that
    /// gets no new sessions, its weight being 0, keeps those that it has.
    pub fn take_bound(&self, bond: &Bond, random: u64) -> Taken<'a> {
        self.take_of(|rule| {
            let bound = rule.backends.iter().find(|backend| bond.is_to(&backend.target));
            bound.map_or_else(|| pick_backend(&rule.backends, random), Picked::Backend)
        })
    }

    fn take_of(&self, pick: impl FnOnce(&'a HttpRule) -> Picked<'a>) -> Taken<'a> {
        let mut filters = Chain::of_rule(self.rule.filters.as_ref(), self.matched());
        if filters.redirect().is_some() {
            return Taken::Redirected(filters);
        }
        let Picked::Backend(backend) = pick(self.rule) else {
            return Taken::Failed(None);
        };
        match &backend.target {
            BackendTarget::Invalid(reason) => Taken::Failed(Some(reason)),
            BackendTarget::Service { service, port } => {
                filters.push_backend(backend, self.matched());
                if filters.redirect().is_some() {
                    return Taken::Redirected(filters);
                }
                Taken::Forwarded { service, port: *port, backend, filters }
            }
        }
    }
}

/// Picks one of `backends`; with `random` evenly distributed, each in proportion to its weight.
pub fn pick_backend(backends: &[Backend], random: u64) -> Picked<'_> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    // Scaling by multiplication spreads the remainder evenly and needs no division; below 2^64 as `random` is.
    let mut point = u64::try_from((u128::from(random) * u128::from(total)) >> 64).unwrap_or_default();
    for backend in backends {
        let weight = u64::from(backend.weight);
        if point < weight {
            return Picked::Backend(backend);
        }
        point -= weight;
    }
    Picked::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let backends = weights.iter().enumerate().map(|(index, weight)| Backend {
            target: BackendTarget::Invalid(index.to_string().into()),
            weight: *weight,
            subset: None,
            filters: None,
            tls: None,
            retry_budget: None,
            session: None,
        });
        backends.collect()
    }

    fn shares(weights: &[u32]) -> Vec<u32> {
        let backends = backends(weights);
        let mut counts = vec![0; weights.len()];
        for step in 0..1000_u64 {
            if let Picked::Backend(backend) =
                pick_backend(&backends, step * (u64::MAX / 1000) + u64::MAX / 2000)
            {
                counts[backends.iter().position(|own| own == backend).unwrap()] += 1;
            }
        }
        counts
    }

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!(shares(&[70, 30, 0]), [700, 300, 0]);
        assert_eq!(shares(&[0, 1]), [0, 1000]);
        let even = shares(&[u32::MAX, u32::MAX]);
        assert_eq!(even.iter().sum::<u32>(), 1000);
        assert!(even.iter().all(|count| (499..=501).contains(count)), "{even:?}");
    }

    #[test]
    fn without_a_weight_there_is_none() {
        assert_eq!(pick_backend(&backends(&[]), 0), Picked::None);
        assert_eq!(pick_backend(&backends(&[0, 0]), u64::MAX), Picked::None);
        assert!(matches!(pick_backend(&backends(&[0, 1]), u64::MAX), Picked::Backend(_)));
    }
}
