//! As policies decide: those of the endpoint at the server's node, those of the destination at a waypoint.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use l7::authz::{ConnectionVerdict, DENIED_STATUS, Denial, MatchedRule, PolicySet, Verdict};
use l7::ir::{Action, AuthorizationPolicy, ConnectionAttributes, RequestHead};
use model::{Identity, Workload};

use super::ExplainError;
use super::report::{DecidedBy, Policy, Rule};
use super::request::Asked;
use super::world::World;
use crate::session::{Admission, judge};

/// A connection that arrives where policies are enforced.
pub(super) struct Arrival<'a> {
    pub(super) world: &'a World,
    /// Proved by the tunnel; `None` in the clear.
    pub(super) source: Option<&'a Identity>,
    pub(super) source_ip: IpAddr,
    /// At an endpoint the pod's own address and the port of the application; at a waypoint what it was asked for.
    pub(super) to: SocketAddr,
}

impl Arrival<'_> {
    /// The policies of an endpoint.
    pub(super) fn decide(&self, workload: &Workload, asked: &Asked) -> Result<Policy, ExplainError> {
        let policies = self.world.snapshot.policies_for(workload);
        let attributes = self.attributes();
        if judge(&self.world.snapshot, workload, &policies, &attributes) == Some(Admission::ByRequest) {
            return self.decide_request(&policies, asked);
        }
        let verdict = match policies.evaluate_connection(&attributes) {
            ConnectionVerdict::Allow(rule) => Verdict::Allow(rule),
            ConnectionVerdict::Deny(denial) => Verdict::Deny(denial),
            // The port is declared not to be HTTP.
            ConnectionVerdict::NeedsRequest => policies.evaluate(&attributes, None),
        };
        Ok(self.told_of_connection(&policies, &verdict))
    }

    /// Policies, where requests are read.
    pub(super) fn decide_request(&self, policies: &PolicySet, asked: &Asked) -> Result<Policy, ExplainError> {
        asked.view(|request| self.by_request(policies, &self.attributes(), request))
    }

    /// Policies, where no requests are read.
    pub(super) fn decide_connection(&self, policies: &PolicySet) -> Policy {
        self.told_of_connection(policies, &policies.evaluate(&self.attributes(), None))
    }

    fn told_of_connection(&self, policies: &PolicySet, verdict: &Verdict<'_>) -> Policy {
        let dry_run = policies.shadow(&self.attributes(), None).map(|it| self.words(&it));
        self.told(policies, verdict, DecidedBy::Connection, dry_run)
    }

    fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source: self.source,
            source_ip: self.source_ip,
            destination_ip: self.to.ip(),
            destination_port: self.to.port(),
            sni: None,
        }
    }

    fn by_request(
        &self,
        policies: &PolicySet,
        attributes: &ConnectionAttributes<'_>,
        request: &RequestHead<'_>,
    ) -> Policy {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let authenticated = match policies.tokens().authenticate(request, now) {
            Ok(authenticated) => authenticated,
            Err(rejection) => {
                return Policy {
                    allowed: false,
                    status: Some(rejection.status()),
                    decided_by: DecidedBy::Request,
                    reason: format!("its token is refused: {}", rejection.body()),
                    rule: None,
                    asks: Vec::new(),
                    unmatched: Vec::new(),
                    dry_run: None,
                };
            }
        };
        let request = RequestHead { token: authenticated.token.as_ref(), ..*request };
        let dry_run = policies.shadow(attributes, Some(&request)).map(|it| self.words(&it));
        // Nobody is asked here; the verdict is the one if everybody approves.
        let asks: Vec<_> = policies.asks(attributes, &request).collect();
        let approved: Vec<_> = asks.iter().filter_map(|ask| ask.authorizer.cloned()).collect();
        let verdict = policies.evaluate_asked(attributes, Some(&request), &approved);
        let asks =
            asks.iter().filter(|ask| ask.authorizer.is_some()).map(|ask| self.rule(&ask.rule)).collect();
        Policy { asks, ..self.told(policies, &verdict, DecidedBy::Request, dry_run) }
    }

    fn told(
        &self,
        policies: &PolicySet,
        verdict: &Verdict<'_>,
        decided_by: DecidedBy,
        dry_run: Option<String>,
    ) -> Policy {
        let (rule, unmatched) = match verdict {
            Verdict::Allow(rule) => (rule.map(|rule| self.rule(&rule)), Vec::new()),
            Verdict::Deny(Denial::Matched(rule)) => (Some(self.rule(rule)), Vec::new()),
            Verdict::Deny(Denial::NoAllowMatched) => {
                let allow = policies.policies().iter().filter(|it| it.action == Action::Allow && !it.dry_run);
                (None, allow.map(|policy| self.policy(policy, None)).collect())
            }
            Verdict::Deny(Denial::Closed(_)) => (None, Vec::new()),
        };
        let allowed = verdict.is_allowed();
        let answered = !allowed && decided_by == DecidedBy::Request;
        Policy {
            allowed,
            status: answered.then_some(DENIED_STATUS),
            decided_by,
            reason: self.words(verdict),
            rule,
            asks: Vec::new(),
            unmatched,
            dry_run,
        }
    }

    fn words(&self, verdict: &Verdict<'_>) -> String {
        match verdict {
            Verdict::Allow(None) => {
                String::from("no ALLOW policy governs the destination, and no DENY rule holds")
            }
            Verdict::Allow(Some(rule)) => format!("{} holds", self.rule(rule)),
            Verdict::Deny(Denial::Matched(rule)) => format!("{} holds", self.rule(rule)),
            Verdict::Deny(Denial::NoAllowMatched) => {
                String::from("ALLOW policies govern the destination, and none of their rules holds")
            }
            Verdict::Deny(Denial::Closed(reason)) => format!("everything is denied: {reason}"),
        }
    }

    fn rule(&self, matched: &MatchedRule<'_>) -> Rule {
        self.policy(matched.policy, Some(matched.rule))
    }

    fn policy(&self, policy: &Arc<AuthorizationPolicy>, rule: Option<usize>) -> Rule {
        Rule {
            action: match policy.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
                Action::Audit => "AUDIT",
                Action::Custom => "CUSTOM",
            },
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            index: rule,
            source: self.world.source_of_policy(&policy.namespace, &policy.name).cloned(),
        }
    }
}
