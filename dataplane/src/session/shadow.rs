//! What policies say that decide nothing: those on trial (dry run), and those of action AUDIT.

use std::sync::Arc;

use l7::authz::{Denial, MatchedRule, PolicySet, Verdict};
use l7::ir::{ConnectionAttributes, RequestHead};

use crate::access_log::record::{DryRun, Observed};
use crate::metrics::{ShadowVerdict, WorkerMetrics};

/// Asks them about a connection, or about a request of it, and counts what they say; `None` where there is nothing to tell.
pub(super) fn observe(
    metrics: &WorkerMetrics,
    policies: &PolicySet,
    connection: &ConnectionAttributes<'_>,
    request: Option<&RequestHead<'_>>,
) -> Option<Box<Observed>> {
    let name = |rule: MatchedRule<'_>| policy_name(&rule.policy.namespace, &rule.policy.name);
    let dry_run = policies.shadow(connection, request).map(|verdict| match verdict {
        Verdict::Allow(rule) => DryRun { allowed: true, policy: rule.map(name) },
        Verdict::Deny(Denial::Matched(rule)) => DryRun { allowed: false, policy: Some(name(rule)) },
        Verdict::Deny(Denial::NoAllowMatched | Denial::Closed(_)) => DryRun { allowed: false, policy: None },
    });
    let audit = policies.audit(connection, request).map(name);
    if let Some(DryRun { allowed, policy }) = &dry_run {
        let verdict = if *allowed { ShadowVerdict::Allowed } else { ShadowVerdict::Denied };
        metrics.policy_shadow(policy.clone(), verdict);
    }
    if let Some(policy) = &audit {
        metrics.policy_shadow(Some(Arc::clone(policy)), ShadowVerdict::Audited);
    }
    (dry_run.is_some() || audit.is_some()).then(|| Box::new(Observed { dry_run, audit }))
}

pub(super) fn policy_name(namespace: &str, name: &str) -> Arc<str> {
    Arc::from(format!("{namespace}/{name}"))
}
