//! Bounds the further tries at a backend, so that a backend in trouble is not given more trouble (Gateway API,
//! `BackendTrafficPolicy.retryConstraint`).

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::ir::RetryBudget;

/// Parts of an interval that are forgotten one by one.
const SLOTS: u32 = 10;

/// What was sent to one backend lately.
#[derive(Debug)]
pub struct Budget {
    policy: RetryBudget,
    /// All requests, further tries among them.
    requests: Window,
    retries: Window,
    /// Further tries, over the interval of the least that is always allowed.
    least: Window,
}

impl Budget {
    /// `workers` keep a budget each: they share what is always allowed.
    pub fn new(policy: RetryBudget, workers: NonZeroU32, now: Instant) -> Self {
        let policy = RetryBudget { min_retries: policy.min_retries.div_ceil(workers.get()), ..policy };
        Self {
            policy,
            requests: Window::new(policy.interval_ms, now),
            retries: Window::new(policy.interval_ms, now),
            least: Window::new(policy.min_interval_ms, now),
        }
    }

    /// A request is sent for the first time.
    pub fn note_request(&mut self, now: Instant) {
        self.requests.add(now);
    }

    /// Whether a request may be sent once more; if so it counts as sent.
    pub fn take_retry(&mut self, now: Instant) -> bool {
        let retries = self.retries.count(now) + 1;
        let requests = self.requests.count(now) + 1;
        let is_within_share = retries * 100 <= requests * u64::from(self.policy.percent);
        if !is_within_share && self.least.count(now) >= u64::from(self.policy.min_retries) {
            return false;
        }
        for window in [&mut self.requests, &mut self.retries, &mut self.least] {
            window.add(now);
        }
        true
    }
}

/// Counts of the slots of an interval that ends now.
#[derive(Debug)]
struct Window {
    slot: Duration,
    counts: [u64; SLOTS as usize],
    total: u64,
    /// Index of the slot that is being filled.
    at: usize,
    /// When it began.
    began: Instant,
}

impl Window {
    fn new(interval_ms: NonZeroU32, now: Instant) -> Self {
        let slot = Duration::from_millis(interval_ms.get().into()) / SLOTS;
        Self { slot, counts: [0; SLOTS as usize], total: 0, at: 0, began: now }
    }

    fn add(&mut self, now: Instant) {
        self.forget(now);
        if let Some(count) = self.counts.get_mut(self.at) {
            *count += 1;
            self.total += 1;
        }
    }

    fn count(&mut self, now: Instant) -> u64 {
        self.forget(now);
        self.total
    }

    fn forget(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        let passed = elapsed.as_nanos() / self.slot.as_nanos().max(1);
        if passed >= u128::from(SLOTS) {
            self.counts = [0; SLOTS as usize];
            self.total = 0;
            self.began = now;
            return;
        }
        for _ in 0..passed {
            self.at = (self.at + 1) % self.counts.len();
            if let Some(count) = self.counts.get_mut(self.at) {
                self.total -= std::mem::take(count);
            }
            self.began += self.slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn budget(percent: u32, min_retries: u32) -> RetryBudget {
        RetryBudget { percent, interval_ms: ms(10_000), min_retries, min_interval_ms: ms(1000) }
    }

    #[test]
    fn a_share_of_the_requests_may_be_tries() {
        let now = Instant::now();
        let mut own = Budget::new(budget(20, 0), ms(1), now);
        assert!(!own.take_retry(now));
        (0..100).for_each(|_| own.note_request(now));
        let allowed = (0..100).filter(|_| own.take_retry(now)).count();
        assert_eq!(allowed, 25, "a fifth of 125");
        assert!(own.take_retry(now + Duration::from_secs(9)) == own.take_retry(now + Duration::from_secs(9)));
        assert!(!own.take_retry(now + Duration::from_secs(20)), "nothing is remembered");
    }

    #[test]
    fn some_tries_are_always_allowed_and_workers_share_them() {
        let now = Instant::now();
        let mut own = Budget::new(budget(0, 10), ms(4), now);
        assert_eq!((0..100).filter(|_| own.take_retry(now)).count(), 3);
        let later = now + Duration::from_millis(1100);
        assert_eq!((0..100).filter(|_| own.take_retry(later)).count(), 3);
    }

    /// Remembers every moment.
    fn naive(moments: &[u64], now: u64, interval: u64) -> u64 {
        moments.iter().filter(|moment| **moment + interval > now).count() as u64
    }

    #[test]
    fn fuzz_a_window_forgets_within_a_slot_of_its_interval() {
        bolero::check!().with_type::<Vec<u16>>().for_each(|steps| {
            let start = Instant::now();
            let mut window = Window::new(ms(1000), start);
            let (mut now, mut moments) = (0, Vec::new());
            for step in steps {
                now += u64::from(step % 400);
                let at = start + Duration::from_millis(now);
                if step % 3 == 0 {
                    window.add(at);
                    moments.push(now);
                }
                let got = window.count(at);
                // What is a whole interval old is gone; what is a slot less than that is not.
                assert!(got <= naive(&moments, now, 1000), "{got}");
                assert!(got >= naive(&moments, now, 900), "{got}");
            }
        });
    }
}
