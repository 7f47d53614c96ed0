//! AuthorizationPolicy to the intermediate form, complete or reduced to the connection.
//!
//! Each `from`, each `to` and each entry of `when` becomes one clause; each source and each operation one match;
//! each field with its negated twin one condition.

use std::sync::Arc;

use l7::ir::{self, Attribute, Clause, Condition, Match, Rule, Test};

use super::super::catalog::MeshSettings;
use super::super::istio::{
    AuthorizationPolicy, Operation, PolicyAction, PolicyRule, PolicyTarget, Source, Values, When,
};
use super::Carrier;
use super::attribute::{
    namespace_test, network_test, parse_key, path_test, port_test, service_account_test, text_test,
};
use super::trust_domain::expand;

/// A value that no reader of this crate lets pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("AuthorizationPolicy {policy}: {value:?} is no value of {attribute:?}")]
pub struct ConvertError {
    pub policy: String,
    pub attribute: Option<Attribute>,
    pub value: String,
}

/// Why a rule is left out of the reduced form.
enum Reduced {
    Kept(Rule),
    Dropped,
}

/// The complete policy, for a proxy that sees requests. Whom it asks is for the caller to look up.
pub fn convert(
    policy: &AuthorizationPolicy,
    mesh: &MeshSettings,
) -> Result<ir::AuthorizationPolicy, ConvertError> {
    let converter = Converter { policy, mesh: Some(mesh) };
    let rules = policy.rules.iter().map(|rule| converter.rule(rule));
    Ok(converter.policy(rules.collect::<Result<_, _>>()?))
}

/// What istiod sends a proxy that sees only connections; `None` where it sends nothing: AUDIT, CUSTOM, dry-run, and
/// policies that target a Service or a Gateway.
///
/// Conditions on requests are left out. An ALLOW rule that held one is dropped; in a DENY rule what remains is
/// enforced, and an entry of which nothing remains never matches. Trust domain aliases are not applied, a star in
/// the middle of a namespace stands for itself.
pub fn convert_reduced(
    policy: &AuthorizationPolicy,
) -> Result<Option<ir::AuthorizationPolicy>, ConvertError> {
    let has_references = matches!(policy.target, PolicyTarget::References(_));
    let is_sent = matches!(policy.action, PolicyAction::Allow | PolicyAction::Deny);
    if !is_sent || policy.dry_run || has_references {
        return Ok(None);
    }
    let converter = Converter { policy, mesh: None };
    let mut rules = Vec::new();
    for rule in &policy.rules {
        if let Reduced::Kept(rule) = reduce(converter.rule(rule)?, rule, policy.action) {
            rules.push(rule);
        }
    }
    Ok(Some(converter.policy(rules)))
}

fn reduce(mut rule: Rule, written: &PolicyRule, action: PolicyAction) -> Reduced {
    let mut has_dropped = false;
    // Clauses of `from` and `to` come first; those of `when` follow, and know fewer attributes.
    let when_start = usize::from(!written.from.is_empty()) + usize::from(!written.to.is_empty());
    for (index, clause) in rule.clauses.iter_mut().enumerate() {
        for entry in &mut clause.matches {
            let before = entry.conditions.len();
            entry.conditions.retain(|condition| match condition.attribute {
                Attribute::SourceServiceAccount => index < when_start,
                ref attribute => is_of_connection(attribute),
            });
            has_dropped |= entry.conditions.len() != before;
        }
    }
    if has_dropped && action == PolicyAction::Allow { Reduced::Dropped } else { Reduced::Kept(rule) }
}

/// What `istio.security.Match` has a field for.
fn is_of_connection(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceIp
            | Attribute::DestinationIp
            | Attribute::DestinationPort
    )
}

/// Which resource can carry a policy without loss.
pub fn carrier(policy: &ir::AuthorizationPolicy) -> Carrier {
    let conditions = policy
        .rules
        .iter()
        .flat_map(|rule| &rule.clauses)
        .flat_map(|clause| &clause.matches)
        .flat_map(|entry| &entry.conditions);
    let has_glob = |condition: &Condition| {
        condition.any_of.iter().chain(&condition.none_of).any(|test| matches!(test, Test::Glob(_)))
    };
    let mut conditions = conditions;
    let is_of_request = matches!(policy.action, ir::Action::Audit | ir::Action::Custom)
        || conditions.any(|condition| !is_of_connection(&condition.attribute) || has_glob(condition));
    if is_of_request { Carrier::Request } else { Carrier::Connection }
}

struct Converter<'a> {
    policy: &'a AuthorizationPolicy,
    /// `None` for the reduced form, which knows neither trust domain aliases nor inner stars.
    mesh: Option<&'a MeshSettings>,
}

impl Converter<'_> {
    fn policy(&self, rules: Vec<Rule>) -> ir::AuthorizationPolicy {
        let meta = &self.policy.meta;
        ir::AuthorizationPolicy {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            action: match self.policy.action {
                PolicyAction::Allow => ir::Action::Allow,
                PolicyAction::Deny => ir::Action::Deny,
                PolicyAction::Audit => ir::Action::Audit,
                PolicyAction::Custom => ir::Action::Custom,
            },
            dry_run: self.policy.dry_run,
            rules,
            authorizer: None,
            source: Some(meta.source.clone()),
        }
    }

    fn rule(&self, rule: &PolicyRule) -> Result<Rule, ConvertError> {
        let mut clauses = Vec::new();
        if !rule.from.is_empty() {
            let matches = rule.from.iter().map(|source| self.source(source)).collect::<Result<_, _>>()?;
            clauses.push(Clause { matches });
        }
        if !rule.to.is_empty() {
            let matches =
                rule.to.iter().map(|operation| self.operation(operation)).collect::<Result<_, _>>()?;
            clauses.push(Clause { matches });
        }
        for when in &rule.when {
            clauses.push(Clause { matches: vec![self.when(when)?] });
        }
        Ok(Rule { clauses })
    }

    fn source(&self, source: &Source) -> Result<Match, ConvertError> {
        self.entry(&[
            (Attribute::SourcePrincipal, &source.principals),
            (Attribute::RequestPrincipal, &source.request_principals),
            (Attribute::SourceNamespace, &source.namespaces),
            (Attribute::SourceServiceAccount, &source.service_accounts),
            (Attribute::SourceTrustDomain, &source.trust_domains),
            (Attribute::SourceIp, &source.ip_blocks),
            (Attribute::RemoteIp, &source.remote_ip_blocks),
        ])
    }

    fn operation(&self, operation: &Operation) -> Result<Match, ConvertError> {
        self.entry(&[
            (Attribute::RequestHost, &operation.hosts),
            (Attribute::DestinationPort, &operation.ports),
            (Attribute::RequestMethod, &operation.methods),
            (Attribute::RequestPath, &operation.paths),
        ])
    }

    fn when(&self, when: &When) -> Result<Match, ConvertError> {
        let attribute = parse_key(&when.key).map_err(|_| self.error(None, &when.key))?;
        self.entry(&[(attribute, &when.values)])
    }

    fn entry(&self, fields: &[(Attribute, &Values)]) -> Result<Match, ConvertError> {
        let mut conditions = Vec::new();
        for (attribute, values) in fields.iter().filter(|(_, values)| !values.is_empty()) {
            conditions.push(Condition {
                attribute: attribute.clone(),
                any_of: self.tests(attribute, &values.any_of)?,
                none_of: self.tests(attribute, &values.none_of)?,
            });
        }
        Ok(Match { conditions })
    }

    fn tests(&self, attribute: &Attribute, values: &[Arc<str>]) -> Result<Vec<Test>, ConvertError> {
        let mut tests = Vec::with_capacity(values.len());
        for value in values {
            if let (Attribute::SourcePrincipal, Some(mesh)) = (attribute, self.mesh) {
                tests.extend(expand(value, mesh).iter().map(|principal| text_test(principal)));
                continue;
            }
            let test = self.test(attribute, value);
            tests.push(test.ok_or_else(|| self.error(Some(attribute), value))?);
        }
        Ok(tests)
    }

    fn test(&self, attribute: &Attribute, value: &str) -> Option<Test> {
        match attribute {
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => network_test(value),
            Attribute::DestinationPort => port_test(value),
            Attribute::SourceServiceAccount => Some(service_account_test(value, &self.policy.meta.namespace)),
            Attribute::SourceNamespace if self.mesh.is_some() => Some(namespace_test(value)),
            Attribute::RequestPath => Some(path_test(value)),
            _ => Some(text_test(value)),
        }
    }

    fn error(&self, attribute: Option<&Attribute>, value: &str) -> ConvertError {
        ConvertError {
            policy: self.policy.meta.object_name().to_string(),
            attribute: attribute.cloned(),
            value: value.to_owned(),
        }
    }
}
