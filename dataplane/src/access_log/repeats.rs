//! Keeps one failing client from filling the log: of identical early denials the first is written at once, the others
//! as one line with their number when the period is over.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::cause::CloseCause;
use super::record::{Direction, Record};

/// How long identical denials are only counted.
pub const REPEATS_PERIOD: Duration = Duration::from_secs(10);
/// Kinds of denials that are counted at a time; those beyond are written one by one.
pub const REPEATS_KINDS_MAX: usize = 4_096;

/// What makes two denials the same: the client's port does not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    direction: Direction,
    cause: CloseCause,
    source: Option<IpAddr>,
    destination: Option<SocketAddr>,
}

#[derive(Debug)]
struct Counted {
    ends: Instant,
    /// The last of those that were not written, with their number.
    unwritten: Option<(Record, u64)>,
}

/// The denials of the present period.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    kinds: HashMap<Kind, Counted>,
}

impl Repeats {
    /// Whether the record is to be written now; else it is counted.
    pub(super) fn admit(&mut self, now: Instant, record: &Record) -> bool {
        if !record.is_early_denial() {
            return true;
        }
        let kind = Kind {
            direction: record.direction,
            cause: record.cause,
            source: record.source.address.map(|address| address.ip()),
            destination: record.destination.address,
        };
        if let Some(counted) = self.kinds.get_mut(&kind) {
            let before = counted.unwritten.take().map_or(0, |(_, count)| count);
            counted.unwritten = Some((record.clone(), before + 1));
            return false;
        }
        if self.kinds.len() < REPEATS_KINDS_MAX {
            self.kinds.insert(kind, Counted { ends: now + REPEATS_PERIOD, unwritten: None });
        }
        true
    }

    /// What was counted in periods that are over at `now`. A kind that was counted goes into its next period.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Record, u64)> {
        let mut due = Vec::new();
        self.kinds.retain(|_, counted| {
            if now < counted.ends {
                return true;
            }
            counted.ends = now + REPEATS_PERIOD;
            let goes_on = counted.unwritten.is_some();
            due.extend(counted.unwritten.take());
            goes_on
        });
        due
    }

    /// Everything that was counted: there will be no more periods.
    pub(super) fn take_all(&mut self) -> Vec<(Record, u64)> {
        std::mem::take(&mut self.kinds).into_values().filter_map(|counted| counted.unwritten).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::plain_record;
    use super::*;

    fn denied(port: u16) -> Record {
        let mut record = Record { cause: CloseCause::UnknownWorkload, ..plain_record() };
        record.source.address = Some(SocketAddr::from(([10, 0, 0, 1], port)));
        record
    }

    #[test]
    fn identical_denials_are_one_line_at_once_and_one_a_period_with_their_number() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        assert!(repeats.admit(start, &denied(1)));
        for port in 2..5 {
            assert!(!repeats.admit(start, &denied(port)));
        }
        assert!(repeats.take_due(start + REPEATS_PERIOD / 2).is_empty());
        let due = repeats.take_due(start + REPEATS_PERIOD);
        assert_eq!(
            due.iter().map(|(it, count)| (it.source.address.unwrap().port(), *count)).collect::<Vec<_>>(),
            [(4, 3)]
        );
        assert!(!repeats.admit(start + REPEATS_PERIOD, &denied(9)));
        assert_eq!(repeats.take_due(start + 2 * REPEATS_PERIOD).len(), 1);
        assert!(repeats.take_due(start + 3 * REPEATS_PERIOD).is_empty());
        assert!(repeats.kinds.is_empty());
        assert!(repeats.admit(start + 3 * REPEATS_PERIOD, &denied(1)));
        assert!(!repeats.admit(start, &denied(2)));
        assert_eq!(repeats.take_all().len(), 1);
    }

    #[test]
    fn what_differs_and_what_was_established_is_always_written() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        for third in 0..3 {
            let mut record = denied(1);
            record.destination.address = Some(SocketAddr::from(([10, 0, third, 2], 80)));
            assert!(repeats.admit(now, &record));
            assert!(repeats.admit(now, &plain_record()));
        }
    }

    #[test]
    fn beyond_the_bound_every_denial_is_written() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        let to = |number: usize| {
            let mut record = denied(1);
            let [.., high, low] = number.to_be_bytes();
            record.destination.address = Some(SocketAddr::from(([10, 0, high, low], 80)));
            record
        };
        assert!((0..REPEATS_KINDS_MAX).all(|number| repeats.admit(now, &to(number))));
        assert!(repeats.admit(now, &to(REPEATS_KINDS_MAX)) && repeats.admit(now, &to(REPEATS_KINDS_MAX)));
        assert_eq!(repeats.kinds.len(), REPEATS_KINDS_MAX);
    }
}
