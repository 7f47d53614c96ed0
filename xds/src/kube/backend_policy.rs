//! Policies that say how backends are reached: BackendTLSPolicy, XBackendTrafficPolicy.

use std::sync::Arc;

use l7::ir::{CertificateName, RetryBudget, SessionPersistence};

use super::catalog::{Meta, Position};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTlsPolicy {
    pub meta: Meta,
    pub targets: Vec<PolicyTargetRef>,
    pub hostname: Arc<str>,
    pub names: Vec<CertificateName>,
    pub authorities: Authorities,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorities {
    System,
    /// Never empty.
    References(Vec<AuthorityRef>),
}

/// Of the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRef {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    /// Path of the reference within its object.
    pub field: Arc<str>,
    pub at: Position,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTrafficPolicy {
    pub meta: Meta,
    pub targets: Vec<PolicyTargetRef>,
    pub retry_budget: Option<RetryBudget>,
    /// Its name may be empty.
    pub session: Option<Arc<SessionPersistence>>,
}

/// Of the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTargetRef {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    /// Of a Service the name of a port; `None` for all.
    pub section_name: Option<Arc<str>>,
    /// Path of the reference within its object.
    pub field: Arc<str>,
    pub at: Position,
}
