//! RBAC filters: authorization policies as istiod writes them for Envoy.
//!
//! istiod names each rule `ns[NAMESPACE]-policy[NAME]-rule[INDEX]`, from which the policies are put together again, so that
//! a verdict names the policy and rule that its author knows.

mod condition;
mod expression;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use expression::Expression;
use l7::ir::{Action, AuthorizationPolicy, Clause, Match, Rule};

use super::Refusal;
use super::refusal::Within;
use crate::proto::waypoint::rbac::Action as WireAction;
use crate::proto::waypoint::{HttpRbac, NetworkRbac, Policy, Rbac};

/// Indices of rules up to this are kept; a policy has far fewer rules.
const RULE_INDEX_MAX: usize = 1024;
/// Results of shadow rules are kept under keys that begin so.
const DRY_RUN_PREFIXES: [&str; 2] = ["istio_dry_run_allow_", "istio_dry_run_deny_"];

/// The rules of a filter that others wait for: an external authorizer is asked about the requests that they take.
pub(super) const ASKED_PREFIX: &str = "istio_ext_authz_";

/// An RBAC filter, of requests or of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    enforced: Option<&'a Rbac>,
    shadow: Option<&'a Rbac>,
    prefix: &'a str,
}

impl<'a> From<&'a HttpRbac> for Rules<'a> {
    fn from(filter: &'a HttpRbac) -> Self {
        let (enforced, shadow) = (filter.rules.as_ref(), filter.shadow_rules.as_ref());
        Self { enforced, shadow, prefix: &filter.shadow_rules_stat_prefix }
    }
}

impl<'a> From<&'a NetworkRbac> for Rules<'a> {
    fn from(filter: &'a NetworkRbac) -> Self {
        let (enforced, shadow) = (filter.rules.as_ref(), filter.shadow_rules.as_ref());
        Self { enforced, shadow, prefix: &filter.shadow_rules_stat_prefix }
    }
}

impl Rules<'_> {
    /// The policies that choose what an external authorizer is asked about, if the filter is there for that. By whom they
    /// are decided the next filter says.
    pub(super) fn asked(&self) -> Result<Option<Vec<AuthorizationPolicy>>, Refusal> {
        let Some(rbac) = self.shadow.filter(|_| self.prefix == ASKED_PREFIX) else { return Ok(None) };
        if self.enforced.is_some() {
            return Err(Refusal::at("rules", "are not supported beside those of an external authorizer"));
        }
        policies(rbac, Action::Custom).within("shadow_rules").map(Some)
    }

    /// The policies of a filter that decides by itself.
    pub(super) fn policies(&self) -> Result<Vec<AuthorizationPolicy>, Refusal> {
        let mut policies = Vec::new();
        if let Some(rbac) = self.enforced {
            policies.extend(self::policies(rbac, own_action(rbac).within("rules")?).within("rules")?);
        }
        if let Some(rbac) = self.shadow {
            if !DRY_RUN_PREFIXES.contains(&self.prefix) {
                let reason = format!("{:?} is not supported", self.prefix);
                return Err(Refusal::at("shadow_rules_stat_prefix", reason));
            }
            let shadow =
                self::policies(rbac, own_action(rbac).within("shadow_rules")?).within("shadow_rules")?;
            policies.extend(shadow.into_iter().map(|policy| AuthorizationPolicy { dry_run: true, ..policy }));
        }
        Ok(policies)
    }
}

fn own_action(rbac: &Rbac) -> Result<Action, Refusal> {
    match WireAction::try_from(rbac.action) {
        Ok(WireAction::Allow) => Ok(Action::Allow),
        Ok(WireAction::Deny) => Ok(Action::Deny),
        Ok(WireAction::Log) => Ok(Action::Audit),
        Err(_) => Err(Refusal::at("action", format!("{} is not supported", rbac.action))),
    }
}

/// The policies of one set of rules, by namespace and name.
fn policies(rbac: &Rbac, action: Action) -> Result<Vec<AuthorizationPolicy>, Refusal> {
    let mut policies: BTreeMap<(&str, &str), Vec<Rule>> = BTreeMap::new();
    for (name, policy) in &rbac.policies {
        let (namespace, policy_name, index) = parse_name(name);
        let rule = rule(policy).map_err(|refusal| refusal.within(&format!("policies[{name:?}]")))?;
        let rules = policies.entry((namespace, policy_name)).or_default();
        match index {
            Some(index) if index <= RULE_INDEX_MAX => {
                // Rules that istiod left out hold for nothing.
                rules.resize_with(rules.len().max(index + 1), never);
                if let Some(place) = rules.get_mut(index) {
                    *place = rule;
                }
            }
            _ => rules.push(rule),
        }
    }
    if policies.is_empty() && action == Action::Allow {
        // Nothing is allowed where nothing says so.
        policies.insert(("", "istiod"), Vec::new());
    }
    let policy = |((namespace, name), rules): ((&str, &str), _)| AuthorizationPolicy {
        namespace: namespace.into(),
        name: name.into(),
        action,
        dry_run: false,
        rules,
        authorizer: None,
        source: None,
    };
    Ok(policies.into_iter().map(policy).collect())
}

fn rule(policy: &Policy) -> Result<Rule, Refusal> {
    let permissions = converted("permissions", &policy.permissions, condition::permission)?;
    let principals = converted("principals", &policy.principals, condition::principal)?;
    let permissions = Expression::clause(&permissions).within("permissions")?;
    let principals = Expression::clause(&principals).within("principals")?;
    Ok(Rule { clauses: principals.into_iter().chain(permissions).collect() })
}

fn converted<T>(
    field: &str,
    items: &[T],
    convert: impl Fn(&T) -> Result<Expression, Refusal>,
) -> Result<Vec<Expression>, Refusal> {
    if items.is_empty() {
        return Err(Refusal::at(field, "the list is empty"));
    }
    items.iter().enumerate().map(|(index, item)| convert(item).within_item(field, index)).collect()
}

/// A rule that holds for nothing.
fn never() -> Rule {
    Rule { clauses: vec![Clause { matches: vec![Match::default()] }] }
}

/// Namespace and name of the policy, and the index of its rule. A name of another form is that of a policy.
fn parse_name(name: &str) -> (&str, &str, Option<usize>) {
    let parsed = || {
        let (_, rest) = name.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let (index, _) = rest.split_once(']')?;
        Some((namespace, policy, Some(index.parse().ok()?)))
    };
    parsed().unwrap_or(("", name, None))
}

/// The policies as the workers share them.
pub(super) fn shared(policies: Vec<AuthorizationPolicy>) -> Vec<Arc<AuthorizationPolicy>> {
    policies.into_iter().map(Arc::new).collect()
}
