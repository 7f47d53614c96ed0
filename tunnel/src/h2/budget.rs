//! A token bucket: how much of something a peer may do in a burst and per second. Time is only looked at when the
//! tokens run out, so that it costs one comparison as a rule.

use std::time::Instant;

#[derive(Debug)]
pub(super) struct Budget {
    tokens: u32,
    burst: u32,
    per_second: u32,
    refilled: Instant,
}

impl Budget {
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { tokens: burst, burst, per_second, refilled: now }
    }

    /// Pays for something; false if the budget is used up.
    #[inline]
    pub(super) fn spend(&mut self, cost: u32, now: Instant) -> bool {
        if self.tokens < cost {
            self.refill(now);
        }
        match self.tokens.checked_sub(cost) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }

    /// Credit for useful work, up to the burst.
    #[inline]
    pub(super) fn earn(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
    }

    #[cold]
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = elapsed.as_millis().saturating_mul(u128::from(self.per_second)) / 1_000;
        if earned > 0 {
            self.earn(u32::try_from(earned).unwrap_or(u32::MAX));
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn allows_the_burst_then_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(10, 5, start);
        assert_eq!((0..20).filter(|_| budget.spend(1, start)).count(), 10);
        assert!(!budget.spend(1, start + Duration::from_millis(199)));
        assert!(budget.spend(1, start + Duration::from_millis(200)));
        let later = start + Duration::from_mins(1);
        assert_eq!((0..20).filter(|_| budget.spend(1, later)).count(), 10, "no more than the burst is saved");
    }

    #[test]
    fn useful_work_earns_up_to_the_burst() {
        let now = Instant::now();
        let mut budget = Budget::new(3, 0, now);
        assert!(budget.spend(3, now) && !budget.spend(1, now));
        budget.earn(100);
        assert!(budget.spend(3, now) && !budget.spend(1, now));
    }
}
