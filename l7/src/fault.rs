//! Faults made on purpose: which requests they meet.

use std::time::Duration;

use crate::ir::{AbortWith, Fault};

/// What meets one request: first the delay, then the abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drawn {
    pub delay: Option<Duration>,
    pub abort: Option<AbortWith>,
}

impl Fault {
    /// Draws for one request, by two numbers drawn evenly from all: a delay and an abort do not depend on each other.
    pub fn draw(&self, for_delay: u64, for_abort: u64) -> Drawn {
        let delay = self.delay.filter(|delay| delay.share.takes(for_delay));
        let abort = self.abort.filter(|abort| abort.share.takes(for_abort));
        Drawn {
            delay: delay.map(|delay| Duration::from_millis(delay.delay_ms.get().into())),
            abort: abort.map(|abort| abort.with),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{FaultAbort, FaultDelay, Fraction};

    #[test]
    fn a_share_of_requests_is_met_and_each_fault_alone() {
        let fault = Fault {
            delay: Some(FaultDelay { delay_ms: 5.try_into().unwrap(), share: Fraction::percent(25) }),
            abort: Some(FaultAbort { with: AbortWith::Http(503), share: Fraction::percent(50) }),
        };
        let step = u64::MAX / 100;
        let mut counts = (0, 0, 0);
        for one in 0..100 {
            for other in 0..100 {
                let drawn = fault.draw(one * step, other * step);
                counts.0 += u32::from(drawn.delay.is_some());
                counts.1 += u32::from(drawn.abort.is_some());
                counts.2 += u32::from(drawn.delay.is_some() && drawn.abort.is_some());
            }
        }
        // Of ten thousand, within the rounding of the last step.
        assert!((2500..=2600).contains(&counts.0) && (5000..=5100).contains(&counts.1), "{counts:?}");
        assert!((1250..=1330).contains(&counts.2), "{counts:?}");
        let always = Fault {
            abort: Some(FaultAbort { with: AbortWith::Grpc(14), share: Fraction::ALL }),
            ..Fault::default()
        };
        assert_eq!(always.draw(u64::MAX, u64::MAX).abort, Some(AbortWith::Grpc(14)));
        assert_eq!(Fault::default().draw(0, 0), Drawn::default());
    }
}
