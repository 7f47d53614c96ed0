//! Conditions on metadata: what the filter for tokens has found out, and what filters that we do not have would say.

use std::sync::Arc;

use l7::ir::{Attribute, Test};

use super::expression::Expression;
use crate::envoy::Refusal;
use crate::envoy::refusal::Within;
use crate::envoy::text::{self, Case};
use crate::proto::waypoint::principal::Identifier;
use crate::proto::waypoint::value_matcher::Pattern;
use crate::proto::waypoint::{MetadataMatcher, Principal, ValueMatcher};

const TOKENS: &str = "envoy.filters.http.jwt_authn";
/// Under this key the filter keeps the claims.
const PAYLOAD: &str = "payload";

/// A condition on metadata.
pub(super) fn metadata(matcher: &MetadataMatcher) -> Result<Expression, Refusal> {
    let path: Vec<&str> = matcher.path.iter().map(|segment| segment.key.as_str()).collect();
    let tests = match &matcher.value {
        Some(value) => tests(value).within("value")?,
        None => return Err(Refusal::at("value", "there is none")),
    };
    let attribute = match (&*matcher.filter, &path[..]) {
        (TOKENS, [PAYLOAD, "aud"]) => Attribute::RequestAudiences,
        (TOKENS, [PAYLOAD, "azp"]) => Attribute::RequestPresenter,
        (TOKENS, [PAYLOAD, claim @ ..]) if !claim.is_empty() => {
            Attribute::RequestClaim(claim.iter().map(|it| Arc::from(*it)).collect())
        }
        (TOKENS, _) => return Err(Refusal::at("path", format!("{path:?} is not supported"))),
        (filter, _) => Attribute::FilterMetadata(filter.into()),
    };
    let tests = tests.into_iter().map(|test| Expression::Test(attribute.clone(), test)).collect();
    let expression = Expression::Any(tests);
    Ok(if matcher.invert { expression.not() } else { expression })
}

/// The tests of which one must hold, on the value or on one of its list.
fn tests(matcher: &ValueMatcher) -> Result<Vec<Test>, Refusal> {
    match &matcher.pattern {
        Some(Pattern::StringMatch(text)) => Ok(vec![text::test(text, Case::Heeded).within("string_match")?]),
        Some(Pattern::ListMatch(list)) => match &list.one_of {
            Some(one) => tests(one).within("list_match.one_of"),
            None => Err(Refusal::at("list_match.one_of", "there is none")),
        },
        Some(Pattern::OrMatch(any)) => {
            let mut all = Vec::new();
            for (index, value) in any.value_matchers.iter().enumerate() {
                for test in tests(value).within_item("or_match.value_matchers", index)? {
                    // A value is written once for the text and once for the list.
                    if !all.contains(&test) {
                        all.push(test);
                    }
                }
            }
            Ok(all)
        }
        Some(Pattern::PresentMatch(_)) | None => Err(Refusal::new("this kind of match is not supported")),
    }
}

/// Issuer and subject, which istiod writes as a pair of conditions. `None` if the principals are not that pair.
pub(super) fn request_principal(principals: &[Principal]) -> Option<Result<Test, Refusal>> {
    let [first, second] = principals else { return None };
    let (issuer, subject) = (claim(first, "iss")?, claim(second, "sub")?);
    Some(issuer.and_then(|issuer| pair(issuer, subject?)))
}

/// The test on a claim, if the principal is one.
fn claim(principal: &Principal, name: &str) -> Option<Result<Test, Refusal>> {
    let Some(Identifier::Metadata(matcher)) = &principal.identifier else { return None };
    let path: Vec<&str> = matcher.path.iter().map(|segment| segment.key.as_str()).collect();
    if matcher.filter != TOKENS || path[..] != [PAYLOAD, name] || matcher.invert {
        return None;
    }
    match matcher.value.as_ref()?.pattern.as_ref()? {
        Pattern::StringMatch(text) => Some(text::test(text, Case::Heeded).within(name)),
        _ => None,
    }
}

/// The test on `issuer/subject` that both tests together are.
fn pair(issuer: Test, subject: Test) -> Result<Test, Refusal> {
    Ok(match (issuer, subject) {
        (Test::Present, Test::Present) => Test::Present,
        (Test::Exact(issuer), Test::Exact(subject)) => Test::Exact(format!("{issuer}/{subject}").into()),
        (Test::Suffix(issuer), Test::Exact(subject)) => Test::Suffix(format!("{issuer}/{subject}").into()),
        (Test::Present, Test::Exact(subject)) => Test::Suffix(format!("/{subject}").into()),
        (Test::Present, Test::Suffix(subject)) => Test::Suffix(subject),
        (Test::Exact(issuer), Test::Present) => Test::Prefix(format!("{issuer}/").into()),
        (Test::Exact(issuer), Test::Prefix(subject)) => Test::Prefix(format!("{issuer}/{subject}").into()),
        (Test::Prefix(issuer), Test::Present) => Test::Prefix(issuer),
        _ => return Err(Refusal::new("this pair of tests on issuer and subject is not supported")),
    })
}
