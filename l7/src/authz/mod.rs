//! Authorization: one engine for connections (L4) and requests (L7), so that the two cannot drift apart.
//!
//! [`PolicySet::compile`] turns the policies that govern a workload into indexed tables; evaluation then borrows
//! everything, allocates nothing, and costs what the matching policies cost, not what all of them do. Order, as
//! Istio defines it: the authorizers of matching CUSTOM policies are asked ([`PolicySet::asks`]); a matching enforced DENY denies; without an enforced ALLOW policy everything else passes; a
//! matching ALLOW allows; the rest is denied. AUDIT and dry-run policies never change the verdict.
//!
//! Invariants: the rule reported is the first in the order given; when [`PolicySet::evaluate_connection`] allows or
//! denies, so does [`PolicySet::evaluate`] for every request that could follow on the connection; a set made by
//! [`PolicySet::deny_all`] never allows.

mod custom;
mod index;
#[cfg(test)]
mod naive;
mod rule;
mod subject;
mod test;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::ir;
use crate::jwt::Authenticator;
use custom::Custom;
use index::RuleTable;
use rule::Truth;
use subject::{Request, Subject};

pub use custom::Ask;
pub use rule::CompileError;

/// How a denied request is answered over HTTP; the words are Istio's, which scripts look for.
pub const DENIED_STATUS: u16 = 403;
pub const DENIED_BODY: &str = "RBAC: access denied";

/// The compiled policies of one workload.
#[derive(Debug)]
pub struct PolicySet {
    policies: Box<[Arc<ir::AuthorizationPolicy>]>,
    enforced: Layer,
    dry_run: Layer,
    audit: RuleTable,
    custom: Custom,
    /// Set when the set must deny whatever its policies say.
    closed: Option<Arc<str>>,
    needs_request: bool,
    tokens: Authenticator,
}

/// What is decided, and by which rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<'a> {
    /// `None` where no ALLOW policy governs the workload.
    Allow(Option<MatchedRule<'a>>),
    Deny(Denial<'a>),
}

/// What is decided of a connection before a request is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ConnectionVerdict<'a> {
    Allow(Option<MatchedRule<'a>>),
    Deny(Denial<'a>),
    /// It depends on the request: read its head, then [`PolicySet::evaluate`].
    NeedsRequest,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denial<'a> {
    /// This DENY rule holds, or this CUSTOM rule and its authorizer has not approved the request.
    Matched(MatchedRule<'a>),
    /// ALLOW policies govern the workload and none of their rules holds.
    NoAllowMatched,
    /// The policies are not known well enough to decide: the text says why.
    Closed(&'a str),
}

/// A rule that holds.
#[derive(Debug, Clone, Copy)]
pub struct MatchedRule<'a> {
    pub policy: &'a Arc<ir::AuthorizationPolicy>,
    /// Index into the policy's rules.
    pub rule: usize,
}

/// Position of a rule: index of its policy in the set, index of the rule in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RuleId {
    policy: u32,
    rule: u32,
}

/// Policies that are decided together.
#[derive(Debug, Default)]
struct Layer {
    deny: RuleTable,
    allow: RuleTable,
    /// Also true for an ALLOW policy without rules, which allows nothing.
    has_allow: bool,
    is_empty: bool,
}

// === impl PolicySet ===

impl PolicySet {
    /// Compiles the policies that govern a workload. Fails on anything that cannot be evaluated as written.
    pub fn compile(
        policies: impl IntoIterator<Item = Arc<ir::AuthorizationPolicy>>,
    ) -> Result<Self, CompileError> {
        let policies: Box<[_]> = policies.into_iter().collect();
        let with = |wanted: &dyn Fn(&ir::AuthorizationPolicy) -> bool| RuleTable::compile(&policies, wanted);
        let layer = |dry_run: bool| -> Result<Layer, CompileError> {
            let is = |policy: &ir::AuthorizationPolicy, action| {
                policy.action == action && policy.dry_run == dry_run
            };
            let has_allow = policies.iter().any(|policy| is(policy, ir::Action::Allow));
            let has_deny = policies.iter().any(|policy| is(policy, ir::Action::Deny));
            Ok(Layer {
                deny: with(&|policy| is(policy, ir::Action::Deny))?,
                allow: with(&|policy| is(policy, ir::Action::Allow))?,
                has_allow,
                is_empty: !has_allow && !has_deny,
            })
        };
        let (enforced, dry_run) = (layer(false)?, layer(true)?);
        let audit = with(&|policy| policy.action == ir::Action::Audit)?;
        let custom = Custom::compile(&policies)?;
        let needs_request = !custom.is_empty() || policies.iter().any(|policy| has_l7_condition(policy));
        let tokens = Authenticator::default();
        Ok(Self { enforced, dry_run, audit, custom, closed: None, needs_request, policies, tokens })
    }

    /// A set without policies: everything is allowed.
    pub fn allow_all() -> Self {
        Self {
            policies: Box::default(),
            enforced: Layer { is_empty: true, ..Layer::default() },
            dry_run: Layer { is_empty: true, ..Layer::default() },
            audit: RuleTable::default(),
            custom: Custom::default(),
            closed: None,
            needs_request: false,
            tokens: Authenticator::default(),
        }
    }

    /// The same set for a workload whose requests' tokens are verified first.
    #[must_use]
    pub fn with_tokens(self, tokens: Authenticator) -> Self {
        Self { needs_request: self.needs_request || !tokens.is_empty(), tokens, ..self }
    }

    /// What is done with the tokens of requests, before anything is evaluated.
    pub fn tokens(&self) -> &Authenticator {
        &self.tokens
    }

    /// A set that denies everything: for a workload that names a policy which is not held, or whose policies do
    /// not compile.
    pub fn deny_all(reason: impl Into<Arc<str>>) -> Self {
        Self { closed: Some(reason.into()), ..Self::allow_all() }
    }

    /// True if any policy, enforced or not, looks at requests, or if their tokens are verified: HTTP must then be
    /// parsed.
    pub fn needs_request(&self) -> bool {
        self.needs_request
    }

    /// True if somebody may have to be asked about requests.
    pub fn asks_somebody(&self) -> bool {
        !self.custom.is_empty()
    }

    /// The policies in the order given.
    pub fn policies(&self) -> &[Arc<ir::AuthorizationPolicy>] {
        &self.policies
    }

    /// Who is to be asked about a request before anything else is decided, in this order; each must allow it. Empty for a
    /// set that denies everything.
    pub fn asks(
        &self,
        connection: &ir::ConnectionAttributes<'_>,
        request: &ir::RequestHead<'_>,
    ) -> impl Iterator<Item = Ask<'_>> {
        let subject = Subject::new(connection, Some(request));
        let found = self
            .custom
            .asks(&subject)
            .filter_map(move |(authorizer, rule)| Some(Ask { authorizer, rule: self.matched(Some(rule))? }));
        // Collected, for the subject lives no longer than this call; one entry is the usual case.
        found.collect::<smallvec::SmallVec<[Ask<'_>; 1]>>().into_iter()
    }

    /// Decides where nobody has been asked: what a CUSTOM policy takes is denied. Without a request the traffic is not
    /// HTTP: what only requests have is absent.
    pub fn evaluate(
        &self,
        connection: &ir::ConnectionAttributes<'_>,
        request: Option<&ir::RequestHead<'_>>,
    ) -> Verdict<'_> {
        self.evaluate_asked(connection, request, &[])
    }

    /// Decides where these authorizers have approved the request.
    pub fn evaluate_asked(
        &self,
        connection: &ir::ConnectionAttributes<'_>,
        request: Option<&ir::RequestHead<'_>>,
        approved_by: &[Arc<ir::Authorizer>],
    ) -> Verdict<'_> {
        if let Some(reason) = &self.closed {
            return Verdict::Deny(Denial::Closed(reason));
        }
        let subject = Subject::new(connection, request);
        let has_approved =
            |authorizer: Option<&Arc<ir::Authorizer>>| authorizer.is_some_and(|it| approved_by.contains(it));
        let mut open = self.custom.asks(&subject).filter(|(authorizer, _)| !has_approved(*authorizer));
        if let Some(rule) = open.find_map(|(_, rule)| self.matched(Some(rule))) {
            return Verdict::Deny(Denial::Matched(rule));
        }
        self.decide(&self.enforced, &subject)
    }

    /// Decides as far as the connection alone allows, for when HTTP requests are expected on it. Only what is
    /// enforced is looked at: dry-run and AUDIT policies may want the request even where this gives a verdict.
    pub fn evaluate_connection(&self, connection: &ir::ConnectionAttributes<'_>) -> ConnectionVerdict<'_> {
        match self.decide_connection(connection) {
            // A token that is not valid is refused, whoever may connect.
            ConnectionVerdict::Allow(_) if !self.tokens.is_empty() => ConnectionVerdict::NeedsRequest,
            ConnectionVerdict::Allow(_) if self.custom.may_hold(connection) => {
                ConnectionVerdict::NeedsRequest
            }
            verdict => verdict,
        }
    }

    fn decide_connection(&self, connection: &ir::ConnectionAttributes<'_>) -> ConnectionVerdict<'_> {
        if let Some(reason) = &self.closed {
            return ConnectionVerdict::Deny(Denial::Closed(reason));
        }
        if !self.needs_request {
            return match self.decide(&self.enforced, &Subject::new(connection, None)) {
                Verdict::Allow(rule) => ConnectionVerdict::Allow(rule),
                Verdict::Deny(denial) => ConnectionVerdict::Deny(denial),
            };
        }
        let subject = Subject { connection, request: Request::Pending };
        match self.enforced.deny.certainty(&subject) {
            (Truth::True, rule) => match self.matched(rule) {
                Some(rule) => return ConnectionVerdict::Deny(Denial::Matched(rule)),
                None => return ConnectionVerdict::NeedsRequest,
            },
            (Truth::Unknown, _) => return ConnectionVerdict::NeedsRequest,
            (Truth::False, _) => {}
        }
        if !self.enforced.has_allow {
            return ConnectionVerdict::Allow(None);
        }
        match self.enforced.allow.certainty(&subject) {
            (Truth::True, rule) => ConnectionVerdict::Allow(self.matched(rule)),
            (Truth::Unknown, _) => ConnectionVerdict::NeedsRequest,
            (Truth::False, _) => ConnectionVerdict::Deny(Denial::NoAllowMatched),
        }
    }

    /// What the dry-run policies would decide if they alone were enforced; `None` if there are none.
    pub fn shadow(
        &self,
        connection: &ir::ConnectionAttributes<'_>,
        request: Option<&ir::RequestHead<'_>>,
    ) -> Option<Verdict<'_>> {
        if self.dry_run.is_empty {
            return None;
        }
        Some(self.decide(&self.dry_run, &Subject::new(connection, request)))
    }

    /// The first AUDIT rule that holds.
    pub fn audit(
        &self,
        connection: &ir::ConnectionAttributes<'_>,
        request: Option<&ir::RequestHead<'_>>,
    ) -> Option<MatchedRule<'_>> {
        self.matched(self.audit.first_match(&Subject::new(connection, request)))
    }

    fn decide(&self, layer: &Layer, subject: &Subject<'_>) -> Verdict<'_> {
        if let Some(rule) = self.matched(layer.deny.first_match(subject)) {
            return Verdict::Deny(Denial::Matched(rule));
        }
        if !layer.has_allow {
            return Verdict::Allow(None);
        }
        match self.matched(layer.allow.first_match(subject)) {
            Some(rule) => Verdict::Allow(Some(rule)),
            None => Verdict::Deny(Denial::NoAllowMatched),
        }
    }

    fn matched(&self, id: Option<RuleId>) -> Option<MatchedRule<'_>> {
        let id = id?;
        // Ids are indices into `policies`, which never changes after compilation.
        self.policies.get(id.policy as usize).map(|policy| MatchedRule { policy, rule: id.rule as usize })
    }
}

fn has_l7_condition(policy: &ir::AuthorizationPolicy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let conditions = clauses.flat_map(|clause| &clause.matches).flat_map(|entry| &entry.conditions);
    conditions.into_iter().any(|condition| condition.attribute.is_l7())
}

// === impl Verdict ===

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

// === impl MatchedRule ===

impl PartialEq for MatchedRule<'_> {
    /// The same rule of the same policy; policies are compared by address first, which is what differs rarely.
    fn eq(&self, other: &Self) -> bool {
        self.rule == other.rule && (Arc::ptr_eq(self.policy, other.policy) || self.policy == other.policy)
    }
}
