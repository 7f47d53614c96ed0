//! Which requests have a span, and which one.

use std::time::SystemTime;

use super::context::{SpanId, TraceContext, TraceId};

/// Requests of a million that begin a trace, where their clients have not begun one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling(u32);

/// The span of a request at this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanFacts {
    pub trace: TraceId,
    pub span: SpanId,
    /// The client's; `None` where the trace begins here.
    pub parent: Option<SpanId>,
    pub began: SystemTime,
}

// === impl Sampling ===

impl Sampling {
    const WHOLE: u32 = 1_000_000;
    /// Istio's default: one of a hundred.
    pub const DEFAULT: Self = Self(Self::WHOLE / 100);

    /// Of a share from 0 to 1; `None` for what is none.
    pub fn of_ratio(ratio: f64) -> Option<Self> {
        // Within the range it fits.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (0.0..=1.0).contains(&ratio).then(|| Self((ratio * f64::from(Self::WHOLE)).round() as u32))
    }

    /// Of a share from 0 to 100.
    pub fn of_percent(percent: f64) -> Option<Self> {
        Self::of_ratio(percent / 100.0)
    }

    /// Of requests of a million.
    pub fn of_millionths(share: u32) -> Self {
        Self(share.min(Self::WHOLE))
    }

    /// The span of a request. Who has a span already decides for those whom it asks; who has none leaves it to the
    /// sampling. `random` gives numbers that are evenly spread.
    pub fn begin(
        self,
        caller: Option<TraceContext>,
        now: SystemTime,
        mut random: impl FnMut() -> u64,
    ) -> Option<SpanFacts> {
        let (trace, parent) = match caller {
            Some(caller) if !caller.sampled => return None,
            Some(caller) => (caller.trace, Some(caller.span)),
            None if random() % u64::from(Self::WHOLE) >= u64::from(self.0) => return None,
            None => (TraceId::of(random(), random()), None),
        };
        Some(SpanFacts { trace, span: SpanId::of(random()), parent, began: now })
    }
}

impl SpanFacts {
    /// What the upstream is told.
    pub fn context(&self) -> TraceContext {
        TraceContext { trace: self.trace, span: self.span, sampled: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> impl FnMut() -> u64 {
        let mut next = 0_u64;
        move || {
            next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            next
        }
    }

    #[test]
    fn a_caller_with_a_span_decides() {
        let caller = TraceContext { trace: TraceId::of(1, 2), span: SpanId::of(3), sampled: true };
        let never = Sampling::of_ratio(0.0).unwrap();
        let span = never.begin(Some(caller), SystemTime::UNIX_EPOCH, counter()).unwrap();
        assert_eq!((span.trace, span.parent), (caller.trace, Some(caller.span)));
        assert_ne!(span.span, caller.span);
        assert!(span.context().sampled);
        let always = Sampling::of_percent(100.0).unwrap();
        let unsampled = TraceContext { sampled: false, ..caller };
        assert_eq!(always.begin(Some(unsampled), SystemTime::UNIX_EPOCH, counter()), None);
    }

    #[test]
    fn without_one_the_share_is_kept() {
        let mut random = counter();
        for (percent, expected) in
            [(0.0, 0..=0), (1.0, 60..=140), (50.0, 4_800..=5_200), (100.0, 10_000..=10_000)]
        {
            let sampling = Sampling::of_percent(percent).unwrap();
            let sampled =
                (0..10_000).filter(|_| sampling.begin(None, SystemTime::UNIX_EPOCH, &mut random).is_some());
            let count = sampled.count();
            assert!(expected.contains(&count), "{percent}%: {count}");
        }
        assert_eq!(Sampling::of_percent(1.0), Some(Sampling::DEFAULT));
        assert_eq!(Sampling::of_millionths(10_000), Sampling::DEFAULT);
        assert_eq!(Some(Sampling::of_millionths(u32::MAX)), Sampling::of_percent(100.0));
        assert!(
            [-0.1, 100.1, f64::NAN, f64::INFINITY].into_iter().all(|it| Sampling::of_percent(it).is_none())
        );
    }
}
