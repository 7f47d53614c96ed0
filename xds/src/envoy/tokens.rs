//! The filter for tokens: RequestAuthentication as istiod writes it for Envoy.
//!
//! Envoy's requirements can say more than Istio's: here a request may always be without a token, and one that has a token
//! must have a valid one. Requirements of another meaning are refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use l7::ir::{HeaderValue, RequestAuthentication, TokenRule};

use super::Refusal;
use super::refusal::Within;
use super::text::lower;
use crate::proto::waypoint::data_source::Specifier;
use crate::proto::waypoint::jwt_requirement::RequiresType;
use crate::proto::waypoint::jwt_rule::RequirementType;
use crate::proto::waypoint::route_match::PathSpecifier;
use crate::proto::waypoint::{DataSource, JwtAuthentication, JwtProvider, JwtRequirement, JwtRule};

/// Where istiod has the claims kept.
const PAYLOAD: &str = "payload";

/// The token rules of a filter chain.
pub(super) fn request_authentication(
    filter: &JwtAuthentication,
    chain: &str,
) -> Result<RequestAuthentication, Refusal> {
    let mut rules = Vec::with_capacity(filter.providers.len());
    for (name, provider) in &filter.providers {
        rules.push(token_rule(provider).map_err(|refusal| refusal.within(&format!("providers[{name:?}]")))?);
    }
    let [rule] = &filter.rules[..] else {
        return Err(Refusal::at(
            "rules",
            format!("{} rules are not supported, only one is", filter.rules.len()),
        ));
    };
    governs_all(rule).within("rules")?;
    let requirement = match &rule.requirement_type {
        Some(RequirementType::Requires(requirement)) => requirement,
        Some(RequirementType::RequirementName(name)) => filter
            .requirement_map
            .get(name)
            .ok_or_else(|| Refusal::at("rules.requirement_name", format!("{name:?} is not known")))?,
        None => return Err(Refusal::at("rules", "nothing is required")),
    };
    let providers = filter.providers.keys().map(String::as_str).collect();
    check_requirement(requirement, &providers).within("rules.requires")?;
    if !filter.bypass_cors_preflight {
        return Err(Refusal::at("bypass_cors_preflight", "false is not supported"));
    }
    Ok(RequestAuthentication { namespace: "".into(), name: chain.into(), rules, source: None })
}

fn governs_all(rule: &JwtRule) -> Result<(), Refusal> {
    let all = rule.r#match.as_ref().is_some_and(|it| {
        let any_path = matches!(&it.path_specifier, Some(PathSpecifier::Prefix(prefix)) if prefix == "/");
        any_path && it.headers.is_empty() && it.query_parameters.is_empty()
    });
    if all { Ok(()) } else { Err(Refusal::at("match", "only a match of every request is supported")) }
}

/// Holds where every token must be a valid one of some provider, and none need be there: for one provider "it or
/// missing"; for several "one of them, or each of them or missing".
fn check_requirement(requirement: &JwtRequirement, providers: &BTreeSet<&str>) -> Result<(), Refusal> {
    let wrong = || Refusal::new("only tokens that may be missing and must be valid are supported");
    let Some(RequiresType::RequiresAny(any)) = &requirement.requires_type else { return Err(wrong()) };
    let (mut named, mut may_be_missing) = (BTreeSet::new(), false);
    for part in &any.requirements {
        match &part.requires_type {
            Some(RequiresType::ProviderName(name)) => drop(named.insert(name.as_str())),
            Some(RequiresType::AllowMissing(())) if providers.len() == 1 => may_be_missing = true,
            Some(RequiresType::RequiresAll(all)) => {
                let each: Option<BTreeSet<&str>> = all.requirements.iter().map(or_missing).collect();
                may_be_missing = each.as_ref() == Some(providers);
            }
            _ => return Err(wrong()),
        }
    }
    if named == *providers && may_be_missing { Ok(()) } else { Err(wrong()) }
}

/// The provider of "it or missing".
fn or_missing(requirement: &JwtRequirement) -> Option<&str> {
    let Some(RequiresType::RequiresAny(any)) = &requirement.requires_type else { return None };
    let [first, second] = &any.requirements[..] else { return None };
    match (&first.requires_type, &second.requires_type) {
        (Some(RequiresType::ProviderName(name)), Some(RequiresType::AllowMissing(()))) => Some(name),
        _ => None,
    }
}

fn token_rule(provider: &JwtProvider) -> Result<TokenRule, Refusal> {
    if !["", PAYLOAD].contains(&&*provider.payload_in_metadata) {
        let reason = format!("{:?} is not supported", provider.payload_in_metadata);
        return Err(Refusal::at("payload_in_metadata", reason));
    }
    if provider.issuer.is_empty() {
        return Err(Refusal::at("issuer", "tokens of any issuer are not supported"));
    }
    // Without keys that can be read every token of the issuer is refused, which is what is meant.
    let jwks: Arc<str> = match &provider.local_jwks {
        Some(source) => inline(source).within("local_jwks")?.into(),
        None => "".into(),
    };
    let header = |it: &crate::proto::waypoint::JwtHeader| HeaderValue {
        name: lower(&it.name),
        value: it.value_prefix.as_str().into(),
    };
    let texts = |texts: &[String]| texts.iter().map(|it| it.as_str().into()).collect();
    let to_header = Some(lower(&provider.forward_payload_header)).filter(|name| !name.is_empty());
    let claims = provider.claim_to_headers.iter();
    let normalized = provider.normalize_payload_in_metadata.as_ref();
    Ok(TokenRule {
        issuer: provider.issuer.as_str().into(),
        audiences: texts(&provider.audiences),
        jwks,
        from_headers: provider.from_headers.iter().map(header).collect(),
        from_parameters: texts(&provider.from_params),
        from_cookies: texts(&provider.from_cookies),
        forward_original: provider.forward,
        payload_to_header: to_header,
        claims_to_headers: claims.map(|it| (lower(&it.header_name), it.claim_name.as_str().into())).collect(),
        space_delimited_claims: normalized.map_or(Vec::new(), |it| {
            let own = it.space_delimited_claims.iter().map(String::as_str);
            own.filter(|claim| !["scope", "permission"].contains(claim)).map(Arc::from).collect()
        }),
    })
}

fn inline(source: &DataSource) -> Result<String, Refusal> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.clone()).map_err(|error| Refusal::at("inline_bytes", error.to_string()))
        }
        None => Err(Refusal::new("nothing is given inline")),
    }
}
