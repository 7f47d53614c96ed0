//! CUSTOM policies: whom to ask.

use std::sync::Arc;

use super::MatchedRule;
use super::RuleId;
use super::index::RuleTable;
use super::rule::{CompileError, Truth};
use super::subject::{Request, Subject};
use crate::ir::{self, Action, AuthorizationPolicy, Authorizer};

/// Somebody to be asked about a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask<'a> {
    /// `None`: the policy names a provider that nobody knows, so the request is denied.
    pub authorizer: Option<&'a Arc<Authorizer>>,
    /// Why.
    pub rule: MatchedRule<'a>,
}

/// The CUSTOM policies of a workload, by whom they ask, in the order of the first policy of each.
#[derive(Debug, Default)]
pub(super) struct Custom {
    layers: Box<[(Option<Arc<Authorizer>>, RuleTable)]>,
}

impl Custom {
    pub(super) fn compile(policies: &[Arc<AuthorizationPolicy>]) -> Result<Self, CompileError> {
        let is_custom = |policy: &AuthorizationPolicy| policy.action == Action::Custom && !policy.dry_run;
        let mut authorizers: Vec<&Option<Arc<Authorizer>>> = Vec::new();
        for policy in policies.iter().filter(|policy| is_custom(policy)) {
            if !authorizers.contains(&&policy.authorizer) {
                authorizers.push(&policy.authorizer);
            }
        }
        let layer = |authorizer: &Option<Arc<Authorizer>>| {
            let wanted = |policy: &AuthorizationPolicy| is_custom(policy) && policy.authorizer == *authorizer;
            Ok((authorizer.clone(), RuleTable::compile(policies, &wanted)?))
        };
        Ok(Self { layers: authorizers.into_iter().map(layer).collect::<Result<_, _>>()? })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Each authorizer of which a rule holds, with the first such rule.
    pub(super) fn asks(
        &self,
        subject: &Subject<'_>,
    ) -> impl Iterator<Item = (Option<&Arc<Authorizer>>, RuleId)> {
        self.layers
            .iter()
            .filter_map(|(authorizer, rules)| Some((authorizer.as_ref(), rules.first_match(subject)?)))
    }

    /// Whether a request on the connection might have to be asked about.
    pub(super) fn may_hold(&self, connection: &ir::ConnectionAttributes<'_>) -> bool {
        let subject = Subject { connection, request: Request::Pending };
        self.layers.iter().any(|(_, rules)| rules.certainty(&subject).0 != Truth::False)
    }
}
