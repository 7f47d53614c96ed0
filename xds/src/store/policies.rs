//! Policies in the store, and the compiled sets that govern the workloads.

use std::collections::HashSet;
use std::sync::Arc;

use l7::authz::PolicySet;
use l7::ir::AuthorizationPolicy;

use super::Store;
use crate::snapshot::{Policy, PolicyEntry, PolicyScope, PolicySetEntry, PolicySetKey};

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
            self.soil(name, old);
        }
        self.soil(name, &policy);
        self.state.policies.insert(self.interner.text(name), entry.with(kind, Some(Arc::new(policy))));
    }

    pub(super) fn remove_policy(&mut self, kind: PolicyKind, name: &str) {
        let Some(entry) = self.state.policies.get(name).cloned() else { return };
        let Some(old) = entry.of(kind).cloned() else { return };
        self.changed = true;
        self.soil(name, &old);
        let entry = entry.with(kind, None);
        if entry.connection.is_none() && entry.request.is_none() {
            self.state.policies.remove(name);
        } else {
            self.state.policies.insert(self.interner.text(name), entry);
        }
    }

    /// Marks the sets that a policy reaches. A set that names it is reached whatever its scope: the policy being
    /// there or not decides whether the set fails closed.
    fn soil(&mut self, name: &str, policy: &Policy) {
        let namespace = &policy.policy.namespace;
        for key in self.state.policy_sets.keys() {
            let in_scope = match policy.scope {
                PolicyScope::Global => true,
                PolicyScope::Namespace => key.namespace == *namespace,
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
        if let Some(missing) = key.names.iter().find(|name| !self.state.policies.contains_key(*name)) {
            let reason = format!("policy {missing} selects the workload and has not arrived");
            return Arc::new(PolicySet::deny_all(reason));
        }
        let governs = |name: &Arc<str>, policy: &Policy| match policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => policy.policy.namespace == key.namespace || key.names.contains(name),
            PolicyScope::Workload => key.names.contains(name),
        };
        let mut governing: Vec<Arc<AuthorizationPolicy>> = self
            .state
            .policies
            .iter()
            .flat_map(|(name, entry)| entry.iter().map(move |policy| (name, policy)))
            .filter(|(name, policy)| governs(name, policy))
            .map(|(_, policy)| Arc::clone(&policy.policy))
            .collect();
        if governing.is_empty() {
            return Arc::clone(self.policies.empty.get_or_insert_with(|| Arc::new(PolicySet::allow_all())));
        }
        // So that every proxy names the same rule for the same decision.
        governing.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        let set = PolicySet::compile(governing)
            .unwrap_or_else(|error| PolicySet::deny_all(format!("the policies do not compile: {error}")));
        Arc::new(set)
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
