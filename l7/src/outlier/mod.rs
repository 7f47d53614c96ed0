//! Endpoints that fail are left out for a while (outlier detection, as Envoy's:
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>).
//!
//! - One that fails so often in a row is left out, if the share that may be out allows for it.
//! - It comes back at the first sweep after its time: the base time, once for each ejection that it has not lived down, and
//!   [`EJECTION_MAX`] at most.
//! - At each sweep that finds an endpoint in, one ejection is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ir::OutlierDetection;

/// The longest time out, unless the base time is longer (Envoy: `max_ejection_time`).
pub const EJECTION_MAX: Duration = Duration::from_mins(5);

/// Sweeps that are made up for after a pause; after more of them nothing is remembered.
const SWEEPS_MAX: u32 = 1000;

/// How a request or connection to an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The status of its response.
    Status(u16),
    /// A connection was made; more is not seen of it.
    Connected,
    /// No connection, or one that broke off before an answer.
    Unconnected,
    /// No answer in time.
    TimedOut,
}

/// What is known of the endpoints of one service, as far as they fail.
#[derive(Debug)]
pub struct Outliers {
    policy: OutlierDetection,
    /// Only of those that have failed.
    hosts: HashMap<Arc<str>, Host, foldhash::fast::RandomState>,
    out: usize,
    sweep: Instant,
}

#[derive(Debug, Default)]
struct Host {
    server_errors: u32,
    gateway_errors: u32,
    local_errors: u32,
    out_since: Option<Instant>,
    ejections: u32,
}

impl Outliers {
    pub fn new(policy: OutlierDetection, now: Instant) -> Self {
        Self { policy, hosts: HashMap::default(), out: 0, sweep: now + interval(&policy) }
    }

    /// Enters how something ended at an endpoint; true if the endpoint is out from now on. `total` counts the endpoints of
    /// the service.
    pub fn note(
        &mut self,
        host: &Arc<str>,
        answer: Answer,
        now: Instant,
        total: impl FnOnce() -> usize,
    ) -> bool {
        self.advance(now);
        let policy = self.policy;
        let faults = Faults::of(answer, policy.split_local_origin);
        let Some(entry) = self.hosts.get_mut(host) else {
            if !faults.is_any() {
                return false;
            }
            self.hosts.insert(Arc::clone(host), Host::default());
            return self.note(host, answer, now, total);
        };
        entry.count(faults);
        if !entry.is_beyond(&policy) || entry.out_since.is_some() {
            return false;
        }
        entry.forgive();
        let may_be_out = total() as u64 * u64::from(policy.ejection_percent_max.min(100));
        if (self.out as u64 + 1) * 100 > may_be_out {
            return false;
        }
        entry.out_since = Some(now);
        entry.ejections = entry.ejections.saturating_add(1);
        self.out += 1;
        true
    }

    /// Makes up for the sweeps that are due.
    pub fn advance(&mut self, now: Instant) {
        let interval = interval(&self.policy);
        let mut sweeps = 0;
        while self.sweep <= now {
            if self.hosts.is_empty() || sweeps == SWEEPS_MAX {
                self.hosts.clear();
                self.out = 0;
                self.sweep = now + interval;
                return;
            }
            let at = self.sweep;
            self.sweep_at(at);
            self.sweep += interval;
            sweeps += 1;
        }
    }

    fn sweep_at(&mut self, now: Instant) {
        let base = Duration::from_millis(self.policy.base_ejection_ms.get().into());
        for host in self.hosts.values_mut() {
            let Some(since) = host.out_since else {
                host.ejections = host.ejections.saturating_sub(1);
                continue;
            };
            let time = base.saturating_mul(host.ejections).min(EJECTION_MAX.max(base));
            if since + time <= now {
                host.out_since = None;
                host.forgive();
                self.out -= 1;
            }
        }
        self.hosts.retain(|_, host| !host.is_blameless());
    }

    /// Forgets those that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.hosts.retain(|name, _| is_there(name));
        self.out = self.hosts.values().filter(|host| host.out_since.is_some()).count();
    }

    /// Whether any endpoint has failed lately.
    pub fn is_quiet(&self) -> bool {
        self.hosts.is_empty()
    }

    /// How many are out.
    pub fn out(&self) -> usize {
        self.out
    }

    pub fn is_out(&self, host: &str) -> bool {
        self.out > 0 && self.hosts.get(host).is_some_and(|host| host.out_since.is_some())
    }

    /// Whether so few are left that all are taken, bad or not (Envoy's panic threshold). `total` as above.
    pub fn is_panic(&self, total: usize) -> bool {
        let left = total.saturating_sub(self.out) as u64;
        left * 100 < total as u64 * u64::from(self.policy.health_percent_min)
    }
}

fn interval(policy: &OutlierDetection) -> Duration {
    Duration::from_millis(policy.interval_ms.get().into())
}

/// What an answer says; `None` says nothing of that kind.
#[derive(Debug, Clone, Copy)]
struct Faults {
    server: Option<bool>,
    gateway: Option<bool>,
    local: Option<bool>,
}

impl Faults {
    fn of(answer: Answer, split: bool) -> Self {
        let status = match answer {
            Answer::Status(status) => Some(status),
            _ if split => None,
            Answer::Connected => Some(200),
            Answer::Unconnected => Some(503),
            Answer::TimedOut => Some(504),
        };
        Self {
            server: status.map(|status| (500..600).contains(&status)),
            gateway: status.map(|status| matches!(status, 502..=504)),
            local: split.then_some(matches!(answer, Answer::Unconnected | Answer::TimedOut)),
        }
    }

    fn is_any(self) -> bool {
        [self.server, self.gateway, self.local].contains(&Some(true))
    }
}

impl Host {
    fn count(&mut self, faults: Faults) {
        let counts = [
            (&mut self.server_errors, faults.server),
            (&mut self.gateway_errors, faults.gateway),
            (&mut self.local_errors, faults.local),
        ];
        for (count, fault) in counts {
            match fault {
                Some(true) => *count = count.saturating_add(1),
                Some(false) => *count = 0,
                None => {}
            }
        }
    }

    fn is_beyond(&self, policy: &OutlierDetection) -> bool {
        let beyond = |count: u32, most: u32| most > 0 && count >= most;
        beyond(self.server_errors, policy.consecutive_5xx)
            || beyond(self.gateway_errors, policy.consecutive_gateway_errors)
            || beyond(self.local_errors, policy.consecutive_local_origin)
    }

    fn forgive(&mut self) {
        (self.server_errors, self.gateway_errors, self.local_errors) = (0, 0, 0);
    }

    fn is_blameless(&self) -> bool {
        self.out_since.is_none()
            && self.ejections == 0
            && (self.server_errors, self.gateway_errors, self.local_errors) == (0, 0, 0)
    }
}

#[cfg(test)]
mod tests;
