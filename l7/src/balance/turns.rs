//! Round robin.

/// Whose turn it is. Endpoints are walked round and round; one of half the weight of the heaviest is passed over every
/// other time, so that turns of each are spread evenly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turns {
    at: usize,
    round: u64,
}

/// Rounds in which nobody may have had a turn, before the caller is told that nobody has.
const ROUNDS_MAX: usize = 2;

impl Turns {
    /// Turns that begin with a random endpoint, so that proxies do not all begin with the same.
    pub fn begin(random: u64) -> Self {
        Self { at: usize::try_from(random >> 1).unwrap_or_default(), round: random & 0xff }
    }

    /// The next of `count` endpoints, by their weights; `None` is one that may not be taken. Nobody, if no turn comes soon.
    pub fn next(
        &mut self,
        count: usize,
        weight_max: u32,
        weight: impl Fn(usize) -> Option<u32>,
    ) -> Option<usize> {
        if self.at >= count {
            self.at = self.at.checked_rem(count).unwrap_or_default();
        }
        for _ in 0..count * ROUNDS_MAX {
            let (at, round) = (self.at, self.round);
            self.at += 1;
            if self.at == count {
                self.at = 0;
                self.round = self.round.wrapping_add(1) & u64::from(u32::MAX);
            }
            if weight(at).is_some_and(|weight| has_turn(round, weight, weight_max)) {
                return Some(at);
            }
        }
        None
    }
}

/// Whether the share that is due has grown by a whole turn in this round.
fn has_turn(round: u64, weight: u32, weight_max: u32) -> bool {
    let (weight, most) = (u64::from(weight), u64::from(weight_max.max(weight).max(1)));
    (round + 1) * weight / most > round * weight / most
}
