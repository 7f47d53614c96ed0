//! Further tries at a request: whether there is one, and when. Time and randomness are arguments.
//!
//! A try may only be repeated while nothing of its response has gone to the client and what was sent of the request is
//! still at hand; both are for the caller to know.

mod budget;

use std::num::NonZeroU32;
use std::time::Duration;

pub use budget::Budget;

use crate::ir::{Retry, RetryOn};

/// Before the second try, where a route does not say.
const BACKOFF_MS: u64 = 25;
/// The longest wait is so many times the first, where a route does not say.
const BACKOFF_RANGE: u64 = 10;

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// There was no connection, so nothing of the request has left.
    Unconnected,
    /// The backend refused the stream, and says so that it has done nothing (RFC 9113 section 8.7).
    Refused,
    /// The stream or its connection ended before a response began.
    Reset {
        /// Something of the request had been sent.
        sent: bool,
    },
    /// The limit on a try passed before a response began.
    TimedOut,
    /// A response began.
    Answered {
        status: u16,
        /// Of a gRPC response that consists of trailers only.
        grpc: Option<u16>,
    },
}

/// The tries at one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// Further ones, after the first.
    made: u32,
}

impl Tries {
    /// After so many further tries.
    pub fn after(made: u32) -> Self {
        Self { made }
    }

    /// A try has ended: how long to wait before the next one, if there is to be one. `random` is drawn evenly from all
    /// numbers.
    pub fn again(&mut self, retry: &Retry, end: TryEnd, random: u64) -> Option<Duration> {
        if self.made >= retry.attempts || !calls_for_another(&retry.on, end) {
            return None;
        }
        self.made += 1;
        Some(wait(retry, self.made, random))
    }

    /// Tries after the first.
    pub fn made(&self) -> u32 {
        self.made
    }
}

/// Whether a route wants another try after one that ended so.
pub fn calls_for_another(on: &RetryOn, end: TryEnd) -> bool {
    let any_reset = on.reset || on.server_error;
    match end {
        TryEnd::Unconnected => on.connect_failure || on.reset_before_request || any_reset || on.gateway_error,
        TryEnd::Refused => on.refused_stream || on.reset_before_request || any_reset,
        TryEnd::Reset { sent: false } => on.reset_before_request || any_reset,
        TryEnd::Reset { sent: true } => any_reset,
        TryEnd::TimedOut => on.timeout || any_reset,
        TryEnd::Answered { status, grpc } => {
            on.statuses.contains(&status)
                || (on.server_error && (500..600).contains(&status))
                || (on.gateway_error && (502..505).contains(&status))
                || (on.retriable_4xx && status == 409)
                || grpc.is_some_and(|code| on.grpc_codes.contains(&code))
        }
    }
}

/// Doubled from try to try up to the longest wait, and up to a quarter more of it by chance, so that those who failed
/// together do not come back together. A wait that the route names is never cut short.
fn wait(retry: &Retry, number: u32, random: u64) -> Duration {
    let first = retry.backoff_ms.map_or(BACKOFF_MS, |ms| u64::from(NonZeroU32::get(ms)));
    let most = retry.backoff_max_ms.map_or(first * BACKOFF_RANGE, |ms| u64::from(NonZeroU32::get(ms)));
    let doubled = first.saturating_mul(1_u64 << number.saturating_sub(1).min(20));
    let least_us = doubled.min(most.max(first)) * 1000;
    let extra = u64::try_from((u128::from(random) * u128::from(least_us / 4 + 1)) >> 64).unwrap_or_default();
    Duration::from_micros(least_us + extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(attempts: u32, on: RetryOn) -> Retry {
        Retry { attempts, on, ..Retry::default() }
    }

    #[test]
    fn there_are_as_many_tries_as_the_route_says() {
        let own = retry(2, RetryOn { statuses: vec![500], ..RetryOn::default() });
        let failed = TryEnd::Answered { status: 500, grpc: None };
        let mut tries = Tries::default();
        assert!(tries.again(&own, failed, 0).is_some());
        assert!(tries.again(&own, TryEnd::Answered { status: 503, grpc: None }, 0).is_none());
        assert!(tries.again(&own, failed, 0).is_some());
        assert!(tries.again(&own, failed, 0).is_none());
        assert_eq!(tries.made(), 2);
    }

    #[test]
    fn each_end_has_its_conditions() {
        let answered = |status, grpc| TryEnd::Answered { status, grpc };
        let all = [
            TryEnd::Unconnected,
            TryEnd::Refused,
            TryEnd::Reset { sent: false },
            TryEnd::Reset { sent: true },
            TryEnd::TimedOut,
            answered(200, Some(14)),
            answered(409, None),
            answered(500, None),
            answered(503, None),
        ];
        let calls = |on: RetryOn| -> String {
            all.iter().map(|end| if calls_for_another(&on, *end) { 'x' } else { '-' }).collect()
        };
        let none = RetryOn::default;
        assert_eq!(calls(none()), "---------");
        assert_eq!(calls(RetryOn { connect_failure: true, ..none() }), "x--------");
        assert_eq!(calls(RetryOn { refused_stream: true, ..none() }), "-x-------");
        assert_eq!(calls(RetryOn { reset_before_request: true, ..none() }), "xxx------");
        assert_eq!(calls(RetryOn { reset: true, ..none() }), "xxxxx----");
        assert_eq!(calls(RetryOn { timeout: true, ..none() }), "----x----");
        assert_eq!(calls(RetryOn { server_error: true, ..none() }), "xxxxx--xx");
        assert_eq!(calls(RetryOn { gateway_error: true, ..none() }), "x-------x");
        assert_eq!(calls(RetryOn { retriable_4xx: true, ..none() }), "------x--");
        assert_eq!(calls(RetryOn { statuses: vec![500], ..none() }), "-------x-");
        assert_eq!(calls(RetryOn { grpc_codes: vec![14], ..none() }), "-----x---");
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_never_cut_short() {
        bolero::check!().with_type::<(u32, u32, u32, u64)>().for_each(|(first, most, number, random)| {
            let own = Retry {
                backoff_ms: NonZeroU32::new(*first),
                backoff_max_ms: NonZeroU32::new(*most),
                ..Retry::default()
            };
            let first = if *first == 0 { 25 } else { u64::from(*first) };
            let most = if *most == 0 { first * 10 } else { u64::from(*most).max(first) };
            let mut expected = first;
            for _ in 1..(*number).min(64) {
                expected = (expected * 2).min(most);
            }
            let got = u64::try_from(wait(&own, *number, *random).as_micros()).unwrap();
            // Twenty doublings are as good as any number of them: the longest wait is less than 2^32 times the first.
            assert!(got >= first * 1000 && got <= most * 1250, "{got}");
            if expected == most || *number <= 21 {
                assert!(
                    (expected * 1000..=expected * 1250).contains(&got) || *number > 21,
                    "{got} {expected}"
                );
            }
        });
    }

    #[test]
    fn waits_are_spread_over_a_quarter_and_have_a_default() {
        let waits = |own: Retry, number| {
            [0, 1 << 63, u64::MAX]
                .map(|random| u64::try_from(wait(&own, number, random).as_micros()).unwrap())
        };
        assert_eq!(waits(Retry::default(), 1), [25_000, 28_125, 31_250]);
        // No more than ten times the first.
        assert_eq!(waits(Retry::default(), 4), [200_000, 225_000, 250_000]);
        assert_eq!(waits(Retry::default(), 5), [250_000, 281_250, 312_500]);
        assert_eq!(waits(Retry { backoff_ms: NonZeroU32::new(10), ..Retry::default() }, 9)[0], 100_000);
    }

    #[test]
    fn tries_made_elsewhere_count() {
        let own = retry(2, RetryOn { statuses: vec![500], ..RetryOn::default() });
        let failed = TryEnd::Answered { status: 500, grpc: None };
        let mut tries = Tries::after(1);
        assert!(tries.again(&own, failed, 0).is_some() && tries.made() == 2);
        assert_eq!(Tries::after(2).again(&own, failed, 0), None);
    }
}
