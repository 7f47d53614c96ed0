//! Authorization policies: `istio.security.Authorization` and `corelane.l7.v1.AuthorizationPolicy`.

use std::sync::Arc;

use ipnet::IpNet;
use l7::authz::PolicySet;
use l7::ir::{
    Action, Attribute, AuthorizationPolicy, Clause, Condition, Match, RequestAuthentication, Rule, Test,
};

use super::{DecodeError, ip, known, message, port, same_name, text};
use crate::proto::{l7 as l7_wire, security as wire};
use crate::snapshot::{Policy, PolicyScope, TokenRules};

/// Reads an `istio.security.Authorization`.
pub fn authorization(name: &str, bytes: &[u8]) -> Result<Policy, DecodeError> {
    let message: wire::Authorization = message(bytes)?;
    no_extensions("extensions", message.extensions.len())?;
    let policy = AuthorizationPolicy {
        namespace: text(&message.namespace),
        name: text(&message.name),
        action: match known("action", message.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        },
        dry_run: message.dry_run,
        rules: message
            .rules
            .iter()
            .enumerate()
            .map(|(index, it)| rule(&format!("rules[{index}]"), it))
            .collect::<Result<_, _>>()?,
        authorizer: None,
        source: None,
    };
    checked(name, scope(message.scope)?, policy)
}

/// Reads a `corelane.l7.v1.AuthorizationPolicy`.
pub fn authorization_policy(name: &str, bytes: &[u8]) -> Result<Policy, DecodeError> {
    let message: l7_wire::AuthorizationPolicy = message(bytes)?;
    let policy: AuthorizationPolicy = serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))?;
    checked(name, scope(message.scope)?, policy)
}

/// Reads a `corelane.l7.v1.RequestAuthentication`.
pub fn request_authentication(name: &str, bytes: &[u8]) -> Result<TokenRules, DecodeError> {
    let message: l7_wire::RequestAuthentication = message(bytes)?;
    let rules: RequestAuthentication = serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), super::route::SAME_VERSION))?;
    let expected = format!("{}/request_authentication/{}", rules.namespace, rules.name);
    same_name(name, "namespace and name", &expected)?;
    Ok(TokenRules { scope: scope(message.scope)?, rules: Arc::new(rules) })
}

fn scope(value: i32) -> Result<PolicyScope, DecodeError> {
    Ok(match known("scope", value)? {
        wire::Scope::Global => PolicyScope::Global,
        wire::Scope::Namespace => PolicyScope::Namespace,
        wire::Scope::WorkloadSelector => PolicyScope::Workload,
    })
}

/// A policy whose name is its key and whose tests all compile.
fn checked(name: &str, scope: PolicyScope, policy: AuthorizationPolicy) -> Result<Policy, DecodeError> {
    same_name(name, "namespace and name", &format!("{}/{}", policy.namespace, policy.name))?;
    let policy = Arc::new(policy);
    PolicySet::compile([Arc::clone(&policy)]).map_err(|error| {
        DecodeError::new("rules", error.to_string(), "write the condition in a supported form")
    })?;
    Ok(Policy { scope, policy })
}

fn no_extensions(path: impl Into<String>, count: usize) -> Result<(), DecodeError> {
    if count == 0 {
        return Ok(());
    }
    // A condition that is left out makes an ALLOW wider or a DENY narrower than what was written.
    let what = format!("{count} extensions, of which none is known");
    Err(DecodeError::new(path, what, "take them out: a policy is enforced whole or not at all"))
}

fn rule(path: &str, message: &wire::Rule) -> Result<Rule, DecodeError> {
    let mut clauses = Vec::with_capacity(message.clauses.len());
    for (index, it) in message.clauses.iter().enumerate() {
        let mut matches = Vec::with_capacity(it.matches.len());
        for (number, it) in it.matches.iter().enumerate() {
            matches.push(one_match(&format!("{path}.clauses[{index}].matches[{number}]"), it)?);
        }
        clauses.push(Clause { matches });
    }
    Ok(Rule { clauses })
}

fn one_match(path: &str, message: &wire::Match) -> Result<Match, DecodeError> {
    no_extensions(format!("{path}.extensions"), message.extensions.len())?;
    let field = |name: &str| format!("{path}.{name}");
    let mut conditions = Vec::new();
    let mut add = |attribute, any_of: Vec<Test>, none_of: Vec<Test>| {
        if !any_of.is_empty() || !none_of.is_empty() {
            conditions.push(Condition { attribute, any_of, none_of });
        }
    };
    add(
        Attribute::SourceNamespace,
        strings(&field("namespaces"), &message.namespaces)?,
        strings(&field("not_namespaces"), &message.not_namespaces)?,
    );
    add(
        Attribute::SourcePrincipal,
        strings(&field("principals"), &message.principals)?,
        strings(&field("not_principals"), &message.not_principals)?,
    );
    add(
        Attribute::SourceServiceAccount,
        service_accounts(&message.service_accounts),
        service_accounts(&message.not_service_accounts),
    );
    add(
        Attribute::SourceIp,
        addresses(&field("source_ips"), &message.source_ips)?,
        addresses(&field("not_source_ips"), &message.not_source_ips)?,
    );
    add(
        Attribute::DestinationIp,
        addresses(&field("destination_ips"), &message.destination_ips)?,
        addresses(&field("not_destination_ips"), &message.not_destination_ips)?,
    );
    add(
        Attribute::DestinationPort,
        ports(&field("destination_ports"), &message.destination_ports)?,
        ports(&field("not_destination_ports"), &message.not_destination_ports)?,
    );
    Ok(Match { conditions })
}

fn strings(path: &str, messages: &[wire::StringMatch]) -> Result<Vec<Test>, DecodeError> {
    use wire::string_match::MatchType;
    let decode = |(index, message): (usize, &wire::StringMatch)| match &message.match_type {
        Some(MatchType::Exact(value)) => Ok(Test::Exact(text(value))),
        Some(MatchType::Prefix(value)) => Ok(Test::Prefix(text(value))),
        Some(MatchType::Suffix(value)) => Ok(Test::Suffix(text(value))),
        Some(MatchType::Presence(())) => Ok(Test::Present),
        None => Err(DecodeError::new(
            format!("{path}[{index}].match_type"),
            "unset, or of a kind that is not known",
            "send exact, prefix, suffix or presence",
        )),
    };
    messages.iter().enumerate().map(decode).collect()
}

fn service_accounts(messages: &[wire::ServiceAccountMatch]) -> Vec<Test> {
    let key = |it: &wire::ServiceAccountMatch| format!("{}/{}", it.namespace, it.service_account);
    messages.iter().map(|it| Test::Exact(key(it).into())).collect()
}

fn addresses(path: &str, messages: &[wire::Address]) -> Result<Vec<Test>, DecodeError> {
    let decode = |(index, message): (usize, &wire::Address)| {
        let ip = ip(format_args!("{path}[{index}].address"), &message.address)?;
        let block = u8::try_from(message.length).ok().and_then(|length| IpNet::new(ip, length).ok());
        block.map(|block| Test::Ip(block.trunc())).ok_or_else(|| {
            let what = format!("a prefix of {} bits for {ip}", message.length);
            DecodeError::new(
                format!("{path}[{index}].length"),
                what,
                "send 0 to 32 for IPv4, 0 to 128 for IPv6",
            )
        })
    };
    messages.iter().enumerate().map(decode).collect()
}

fn ports(path: &str, numbers: &[u32]) -> Result<Vec<Test>, DecodeError> {
    let decode =
        |(index, number): (usize, &u32)| port(format_args!("{path}[{index}]"), *number).map(Test::Port);
    numbers.iter().enumerate().map(decode).collect()
}
