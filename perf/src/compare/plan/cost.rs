//! How long a plan takes.

use std::time::Duration;

use super::super::work::{self, Kind, Scale};
use super::Entry;
use crate::Failure;

/// Measurements shorter than this say nothing, longer ones nothing more.
const SECONDS: std::ops::RangeInclusive<f64> = 0.4..=3.0;

/// Until a topology answers as it shall; measured, and not on a quiet machine.
const START_SECONDS: f64 = 1.2;
/// Of a connection that is opened to be idle.
const IDLE_CONNECTION_SECONDS: f64 = 400e-6;
/// Of a measurement beside its duration and its warming: connections, and counting of system calls.
const BESIDE_SECONDS: f64 = 0.2;
/// What most proxies move, within a factor of two.
const BYTES_PER_SECOND: f64 = 0.9e9;

/// Works of one round, and what they take: so many seconds, and so many times the duration of a measurement.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cost {
    fixed: f64,
    durations: f64,
    /// Of the first round alone.
    once: f64,
}

impl Cost {
    pub(super) fn of(entries: &[Entry], scale: &Scale) -> Self {
        let mut cost = Self::default();
        for Entry { works, .. } in entries {
            for instance in work::instances(works, true) {
                let is_once = instance.contains(&Kind::Idle);
                *(if is_once { &mut cost.once } else { &mut cost.fixed }) += START_SECONDS;
            }
            for work in works {
                match work {
                    Kind::Idle => cost.once += scale.idle as f64 * IDLE_CONNECTION_SECONDS,
                    Kind::Bulk { .. } => cost.fixed += scale.bulk_bytes as f64 / BYTES_PER_SECOND,
                    Kind::Flood => cost.durations += FLOODS * (1.0 + WARMING_SHARE),
                    Kind::Slow => {
                        cost.fixed += SLOW_SECONDS + 3.0 * scale.idle as f64 * IDLE_CONNECTION_SECONDS;
                        cost.durations += 2.0 * (1.0 + WARMING_SHARE);
                    }
                    Kind::Overload => {
                        cost.fixed += OVERLOAD_SECONDS;
                        cost.durations += 1.0 + WARMING_SHARE;
                    }
                    Kind::Churn => cost.durations += 2.0 * (1.0 + WARMING_SHARE),
                    _ => {
                        cost.fixed += BESIDE_SECONDS;
                        cost.durations += 1.0 + WARMING_SHARE;
                    }
                }
            }
        }
        cost
    }

    pub(super) fn total(self, rounds: usize, duration: Duration) -> Duration {
        let round = self.fixed + self.durations * duration.as_secs_f64();
        Duration::from_secs_f64(self.once + rounds as f64 * round)
    }

    /// How long each measurement may be so that `rounds` fit into `budget`.
    pub(super) fn fit(self, rounds: usize, budget: Duration) -> Result<Duration, Failure> {
        let room = (budget.as_secs_f64() - self.once) / rounds as f64 - self.fixed;
        let seconds = room / self.durations.max(1.0);
        if seconds < *SECONDS.start() {
            let least = self.total(rounds, Duration::from_secs_f64(*SECONDS.start()));
            return Err(format!(
                "{rounds} rounds of this take {:.0} minutes at least: give --budget more, fewer --rounds, or name what to run with --peer and --work",
                (least.as_secs_f64() / 60.0).ceil()
            )
            .into());
        }
        Ok(Duration::from_secs_f64(seconds.min(*SECONDS.end())))
    }
}

/// A flood takes half a duration; there are some, and one measurement without.
const FLOODS: f64 = 4.5;
/// What slow clients are given: twice ten seconds.
const SLOW_SECONDS: f64 = 20.0;
/// A crowd, those of it who still wait when it ends, and the calm after it.
const OVERLOAD_SECONDS: f64 = 4.5;
/// What comes before a measurement, as a share of it.
const WARMING_SHARE: f64 = 0.2;
