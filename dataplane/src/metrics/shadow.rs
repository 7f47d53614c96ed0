//! What policies say that decide nothing: those on trial, and those of action AUDIT.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use model::Workload;

use super::labels::{LabelValues, Named, UNKNOWN};

/// What such a policy says of a request, or of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShadowVerdict {
    /// The policies on trial would have allowed it.
    Allowed,
    /// They would have denied it.
    Denied,
    /// An AUDIT policy holds.
    Audited,
}

/// The names of the values of [`ShadowLabels::values`].
pub(super) const SHADOW_LABEL_NAMES: [&str; 2] = ["policy", "verdict"];

/// What distinguishes one series from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShadowLabels {
    /// `namespace/name` of the policy that says so; none where no ALLOW policy holds, or no DENY policy does.
    pub policy: Option<Arc<str>>,
    /// None where no series of its own could be made.
    pub verdict: Option<ShadowVerdict>,
}

/// Counter of such verdicts.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct ShadowCells {
    pub(super) labels: ShadowLabels,
    pub(super) count: AtomicU64,
}

impl ShadowVerdict {
    const fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Audited => "audited",
        }
    }
}

impl ShadowLabels {
    /// The labels of what no series of its own could be made for.
    pub(super) fn overflow() -> Self {
        Self { policy: Some(UNKNOWN.into()), verdict: None }
    }

    /// The values in the order of [`SHADOW_LABEL_NAMES`].
    pub(super) fn values(&self) -> LabelValues {
        let policy = self.policy.as_deref().unwrap_or("none");
        let verdict = self.verdict.map_or(UNKNOWN, ShadowVerdict::label);
        [policy, verdict].into_iter().map(Into::into).collect()
    }
}

impl ShadowCells {
    pub(super) fn new(labels: ShadowLabels) -> Self {
        Self { labels, count: AtomicU64::new(0) }
    }
}

impl Named for ShadowLabels {
    fn all_known(&self, _known: &dyn Fn(&Workload) -> bool) -> bool {
        true
    }
}
