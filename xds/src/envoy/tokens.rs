//! The filter for tokens: RequestAuthentication as istiod writes it for Envoy.
//!
//! Envoy's requirements can say more than Istio's: here a request may always be without a token, and one that has a token
//! must have a valid one. Requirements of another meaning are refused.
//!
//! istiod writes the keys of an issuer into the rule, or leaves them to be fetched (`PILOT_JWT_ENABLE_REMOTE_JWKS`). Envoy
//! fetches by way of a cluster; ours are fetched from the address itself, which that cluster must lead to.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use l7::ir::{HeaderValue, RequestAuthentication, TokenRule};

use super::Refusal;
use super::names::{ClusterName, Direction};
use super::refusal::Within;
use super::text::{self, lower};
use crate::issuer::{Keys, Pace, Wanted};
use crate::kube::istio::KeySource;
use crate::proto::waypoint::data_source::Specifier;
use crate::proto::waypoint::jwt_provider::JwksSourceSpecifier;
use crate::proto::waypoint::jwt_requirement::RequiresType;
use crate::proto::waypoint::jwt_rule::RequirementType;
use crate::proto::waypoint::route_match::PathSpecifier;
use crate::proto::waypoint::{
    DataSource, JwtAuthentication, JwtProvider, JwtRequirement, JwtRule, RemoteJwks,
};

/// Where istiod has the claims kept.
const PAYLOAD: &str = "payload";
/// How long keys are taken where nothing is said (`RemoteJwks.cache_duration`), and at least, so that nobody is flooded.
const CACHED: Duration = Duration::from_mins(10);
const CACHED_MIN: Duration = Duration::from_secs(1);

/// The token rules of a filter chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tokens {
    rules: RequestAuthentication,
    /// For each rule whose keys are fetched: its place, and where they are.
    remote: Vec<(usize, KeySource)>,
    /// All that is to be fetched.
    pub(super) wanted: Wanted,
}

impl Tokens {
    /// The rules with the keys that are known. One without takes no token.
    pub(super) fn with(mut self, keys: &Keys) -> RequestAuthentication {
        for (place, source) in &self.remote {
            let known = keys.get(source).and_then(|known| known.keys.as_ref());
            if let (Some(rule), Some(known)) = (self.rules.rules.get_mut(*place), known) {
                rule.jwks = Arc::clone(known);
            }
        }
        self.rules
    }
}

pub(super) fn tokens(filter: &JwtAuthentication, chain: &str) -> Result<Tokens, Refusal> {
    let mut rules = Vec::with_capacity(filter.providers.len());
    let (mut remote, mut wanted) = (Vec::new(), Wanted::new());
    for (name, provider) in &filter.providers {
        let place = |refusal: Refusal| refusal.within(&format!("providers[{name:?}]"));
        if let Some(JwksSourceSpecifier::RemoteJwks(keys)) = &provider.jwks_source_specifier {
            let (source, pace) = key_source(keys).map_err(|refusal| place(refusal.within("remote_jwks")))?;
            remote.push((rules.len(), source.clone()));
            let held = wanted.entry(source).or_insert(pace);
            *held = held.for_both(pace);
        }
        rules.push(token_rule(provider).map_err(place)?);
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
    let rules = RequestAuthentication { namespace: "".into(), name: chain.into(), rules, source: None };
    Ok(Tokens { rules, remote, wanted })
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
    let jwks: Arc<str> = match &provider.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => inline(source).within("local_jwks")?.into(),
        Some(JwksSourceSpecifier::RemoteJwks(_)) | None => "".into(),
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

/// Where keys are, how long they are taken, and how long it may take to have them. The cluster of istiod's own making leads where the address does.
fn key_source(keys: &RemoteJwks) -> Result<(KeySource, Pace), Refusal> {
    let Some(from) = &keys.http_uri else { return Err(Refusal::at("http_uri", "there is none")) };
    let wrong = |reason: String| Refusal::at("http_uri.uri", format!("{:?} {reason}", from.uri));
    let uri: Uri = from.uri.parse().map_err(|error| wrong(format!("is no address: {error}")))?;
    let usual_port = match uri.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => return Err(wrong("is neither http nor https".to_owned())),
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(usual_port);
    let leads_there = ClusterName::parse(&from.cluster).is_some_and(|cluster| {
        let outward = cluster.direction == Direction::Outbound && cluster.subset.is_empty();
        outward && cluster.port == port && cluster.hostname.eq_ignore_ascii_case(host)
    });
    if !leads_there {
        let reason = format!("{:?} does not lead to {}", from.cluster, from.uri);
        return Err(Refusal::at("http_uri.cluster", reason));
    }
    let cached = keys.cache_duration.as_ref().map(text::milliseconds).transpose().within("cache_duration")?;
    let cached = cached.map_or(CACHED, |length| {
        length.map_or(CACHED_MIN, |length| Duration::from_millis(length.get().into()).max(CACHED_MIN))
    });
    let mut pace = Pace::every(cached);
    if let Some(timeout) = &from.timeout {
        let timeout = text::milliseconds(timeout).within("http_uri.timeout")?;
        let timeout = timeout.map_or(0, NonZeroU32::get);
        pace = pace.with_patience(Duration::from_millis(timeout.into()));
    }
    Ok((KeySource::Address(from.uri.as_str().into()), pace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::Known;
    use crate::proto::waypoint::remote_jwks::KeysUri;
    use crate::proto::waypoint::{JwtRequirements, RouteMatch};

    const CLUSTER: &str = "outbound|443||Idp.example";

    fn from(uri: &str, cluster: &str) -> RemoteJwks {
        let http_uri = Some(KeysUri { uri: uri.into(), cluster: cluster.into(), timeout: None });
        let cache_duration = Some(prost_types::Duration { seconds: 300, nanos: 0 });
        RemoteJwks { http_uri, cache_duration }
    }

    fn filter(keys: RemoteJwks) -> JwtAuthentication {
        let provider = JwtProvider {
            issuer: "me".into(),
            jwks_source_specifier: Some(JwksSourceSpecifier::RemoteJwks(keys)),
            ..JwtProvider::default()
        };
        let requires = |requires_type| JwtRequirement { requires_type: Some(requires_type) };
        let either = JwtRequirements {
            requirements: vec![
                requires(RequiresType::ProviderName("p".into())),
                requires(RequiresType::AllowMissing(())),
            ],
        };
        let path_specifier = Some(PathSpecifier::Prefix("/".into()));
        let rule = JwtRule {
            r#match: Some(RouteMatch { path_specifier, ..RouteMatch::default() }),
            requirement_type: Some(RequirementType::Requires(requires(RequiresType::RequiresAny(either)))),
        };
        let providers = [("p".to_owned(), provider)].into();
        JwtAuthentication { providers, rules: vec![rule], bypass_cors_preflight: true, ..<_>::default() }
    }

    #[test]
    fn keys_that_are_fetched_are_put_into_their_rules() {
        let read = tokens(&filter(from("https://idp.example/keys", CLUSTER)), "chain").unwrap();
        let source = KeySource::Address("https://idp.example/keys".into());
        let pace = Pace::every(Duration::from_mins(5));
        assert_eq!(read.wanted, Wanted::from([(source.clone(), pace)]));
        let of = |known: Option<Known>| {
            let keys = known.map(|known| (source.clone(), known)).into_iter().collect();
            read.clone().with(&keys).rules[0].jwks.to_string()
        };
        assert_eq!(of(None), "");
        assert_eq!(of(Some(Known { keys: None, failure: Some("away".into()) })), "");
        assert_eq!(of(Some(Known { keys: Some("keys".into()), failure: Some("away".into()) })), "keys");
    }

    #[test]
    fn keys_are_taken_for_a_second_at_least() {
        let cached = |cache_duration| {
            let keys = RemoteJwks { cache_duration, ..from("http://idp.example:443/", CLUSTER) };
            key_source(&keys).unwrap().1
        };
        let length = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!(cached(None), Pace::every(CACHED));
        assert_eq!(cached(length(0, 0)), Pace::every(CACHED_MIN));
        assert_eq!(cached(length(0, 5)), Pace::every(CACHED_MIN));
        assert_eq!(cached(length(90, 0)), Pace::every(Duration::from_secs(90)));
    }

    #[test]
    fn fetching_may_take_as_long_as_is_said() {
        let pace = |timeout: Option<prost_types::Duration>| {
            let mut keys = from("http://idp.example:443/", CLUSTER);
            keys.http_uri.as_mut().unwrap().timeout = timeout;
            key_source(&keys).map(|(_, pace)| pace)
        };
        let length = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let usual = Pace::every(Duration::from_mins(5));
        assert_eq!(pace(None), Ok(usual));
        assert_eq!(pace(length(2, 500_000_000)), Ok(usual.with_patience(Duration::from_millis(2500))));
        assert_eq!(pace(length(0, 0)), Ok(usual.with_patience(Duration::ZERO)));
        assert!(pace(length(-1, 0)).unwrap_err().to_string().starts_with("http_uri.timeout: "));
    }

    #[test]
    fn keys_are_fetched_only_from_where_the_cluster_leads() {
        let place = "providers[\"p\"].remote_jwks.";
        for (uri, cluster, complaint) in [
            ("https://idp.example/keys", "outbound|80||idp.example", "http_uri.cluster: "),
            ("https://idp.example:444/keys", CLUSTER, "http_uri.cluster: "),
            ("https://other.example/keys", CLUSTER, "http_uri.cluster: "),
            ("https://idp.example/keys", "outbound|443|v1|idp.example", "http_uri.cluster: "),
            ("https://idp.example/keys", "inbound-vip|443|http|idp.example", "http_uri.cluster: "),
            ("https://idp.example/keys", "own", "http_uri.cluster: "),
            ("ftp://idp.example/keys", CLUSTER, "http_uri.uri: "),
            ("not an address", CLUSTER, "http_uri.uri: "),
            ("/keys", CLUSTER, "http_uri.uri: "),
        ] {
            let refusal = tokens(&filter(from(uri, cluster)), "chain").unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("{place}{complaint}")), "{uri} {cluster}: {refusal}");
        }
        let refusal = tokens(&filter(RemoteJwks::default()), "chain").unwrap_err().to_string();
        assert_eq!(refusal, format!("{place}http_uri: there is none"));
    }
}
