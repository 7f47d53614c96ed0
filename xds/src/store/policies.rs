//! Policies and token rules in the store, and the compiled sets that govern the workloads.

use std::collections::HashSet;
use std::sync::Arc;

use l7::authz::PolicySet;
use l7::ir::AuthorizationPolicy;
use l7::jwt::Authenticator;

use super::Store;
use crate::snapshot::{Policy, PolicyEntry, PolicyScope, PolicySetEntry, PolicySetKey, TokenRules};

/// The two ways in which a policy travels. One that gains or loses its last L7 condition changes the way, and for a
/// moment both may be held: then both are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyKind {
    /// `istio.security.Authorization`.
    Connection,
    /// `corelane.l7.v1.AuthorizationPolicy`.
    Request,
}

/// Sets to compile anew before the next snapshot.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    sets: HashSet<PolicySetKey, foldhash::fast::RandomState>,
    /// Shared by all workloads that no policy governs.
    empty: Option<Arc<PolicySet>>,
}

impl Store {
    pub(super) fn upsert_policy(&mut self, kind: PolicyKind, name: &str, policy: Policy) {
        let entry = self.state.policies.get(name).cloned().unwrap_or_default();
        let old = entry.of(kind).cloned();
        if old.as_deref() == Some(&policy) {
            return;
        }
        self.changed = true;
        // The old scope may have reached others than the new one does.
        if let Some(old) = &old {
            self.soil(name, old.scope, &old.policy.namespace);
        }
        self.soil(name, policy.scope, &policy.policy.namespace);
        self.state.policies.insert(self.interner.text(name), entry.with(kind, Some(Arc::new(policy))));
    }

    pub(super) fn remove_policy(&mut self, kind: PolicyKind, name: &str) {
        let Some(entry) = self.state.policies.get(name).cloned() else { return };
        let Some(old) = entry.of(kind).cloned() else { return };
        self.changed = true;
        self.soil(name, old.scope, &old.policy.namespace);
        let entry = entry.with(kind, None);
        if entry.connection.is_none() && entry.request.is_none() {
            self.state.policies.remove(name);
        } else {
            self.state.policies.insert(self.interner.text(name), entry);
        }
    }

    pub(super) fn upsert_token_rules(&mut self, name: &str, rules: TokenRules) {
        let old = self.state.token_rules.get(name).cloned();
        if old.as_deref() == Some(&rules) {
            return;
        }
        self.changed = true;
        if let Some(old) = &old {
            self.soil(name, old.scope, &old.rules.namespace);
        }
        self.soil(name, rules.scope, &rules.rules.namespace);
        self.state.token_rules.insert(self.interner.text(name), Arc::new(rules));
    }

    pub(super) fn remove_token_rules(&mut self, name: &str) {
        let Some(old) = self.state.token_rules.remove(name) else { return };
        self.changed = true;
        self.soil(name, old.scope, &old.rules.namespace);
    }

    /// Marks the sets that a policy or token rule reaches. A set that names it is reached whatever its scope: the policy being
    /// there or not decides whether the set fails closed.
    fn soil(&mut self, name: &str, scope: PolicyScope, namespace: &str) {
        for key in self.state.policy_sets.keys() {
            let in_scope = match scope {
                PolicyScope::Global => true,
                PolicyScope::Namespace => *key.namespace == *namespace,
                PolicyScope::Workload => false,
            };
            if in_scope || key.names.iter().any(|it| &**it == name) {
                self.policies.sets.insert(key.clone());
            }
        }
    }

    pub(super) fn use_policy_set(&mut self, key: PolicySetKey) {
        if let Some(entry) = self.state.policy_sets.get_mut(&key) {
            entry.users += 1;
            return;
        }
        self.policies.sets.insert(key.clone());
        let set = Arc::new(PolicySet::deny_all("the policies are not compiled yet"));
        self.state.policy_sets.insert(key, PolicySetEntry { set, users: 1 });
    }

    pub(super) fn release_policy_set(&mut self, key: &PolicySetKey) {
        let Some(entry) = self.state.policy_sets.get_mut(key) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            self.state.policy_sets.remove(key);
        }
    }

    pub(super) fn compile_policies(&mut self) {
        for key in std::mem::take(&mut self.policies.sets) {
            if self.state.policy_sets.contains_key(&key) {
                let set = self.compile_set(&key);
                if let Some(entry) = self.state.policy_sets.get_mut(&key) {
                    entry.set = set;
                }
            }
        }
    }

    fn compile_set(&mut self, key: &PolicySetKey) -> Arc<PolicySet> {
        let is_held =
            |name: &str| self.state.policies.contains_key(name) || self.state.token_rules.contains_key(name);
        if let Some(missing) = key.names.iter().find(|name| !is_held(name)) {
            let reason = format!("policy {missing} selects the workload and has not arrived");
            return Arc::new(PolicySet::deny_all(reason));
        }
        let governs = |name: &Arc<str>, scope: PolicyScope, namespace: &Arc<str>| match scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => *namespace == key.namespace || key.names.contains(name),
            PolicyScope::Workload => key.names.contains(name),
        };
        let mut governing: Vec<Arc<AuthorizationPolicy>> = self
            .state
            .policies
            .iter()
            .flat_map(|(name, entry)| entry.iter().map(move |policy| (name, policy)))
            .filter(|(name, it)| governs(name, it.scope, &it.policy.namespace))
            .map(|(_, policy)| Arc::clone(&policy.policy))
            .collect();
        let rules = self.state.token_rules.iter();
        let mut rules: Vec<_> =
            rules.filter(|(name, it)| governs(name, it.scope, &it.rules.namespace)).collect();
        if governing.is_empty() && rules.is_empty() {
            return Arc::clone(self.policies.empty.get_or_insert_with(|| Arc::new(PolicySet::allow_all())));
        }
        // So that every proxy names the same rule for the same decision.
        governing.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        rules.sort_by_key(|(name, _)| *name);
        let tokens = Authenticator::compile(rules.into_iter().map(|(_, it)| &*it.rules));
        Arc::new(match PolicySet::compile(governing) {
            Ok(set) => set.with_tokens(tokens),
            Err(error) => PolicySet::deny_all(format!("the policies do not compile: {error}")),
        })
    }
}

impl PolicyEntry {
    fn of(&self, kind: PolicyKind) -> Option<&Arc<Policy>> {
        match kind {
            PolicyKind::Connection => self.connection.as_ref(),
            PolicyKind::Request => self.request.as_ref(),
        }
    }

    fn with(mut self, kind: PolicyKind, policy: Option<Arc<Policy>>) -> Self {
        match kind {
            PolicyKind::Connection => self.connection = policy,
            PolicyKind::Request => self.request = policy,
        }
        self
    }
}
