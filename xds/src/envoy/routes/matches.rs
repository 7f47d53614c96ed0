//! What a route asks of a request.

use std::sync::Arc;

use l7::ir::{HttpMatch, PathMatch, ValueMatch, ValueTest};

use crate::envoy::Refusal;
use crate::envoy::refusal::Within;
use crate::envoy::text::lower;
use crate::proto::waypoint::header_matcher::Specifier;
use crate::proto::waypoint::query_parameter_matcher::Specifier as QuerySpecifier;
use crate::proto::waypoint::route_match::PathSpecifier;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::{HeaderMatcher, QueryParameterMatcher, RouteMatch, StringMatcher};

pub(super) fn http_match(wire: &RouteMatch) -> Result<HttpMatch, Refusal> {
    let mut entry = HttpMatch { path: path(wire)?, ..HttpMatch::default() };
    for (index, matcher) in wire.headers.iter().enumerate() {
        header(matcher, &mut entry).within_item("headers", index)?;
    }
    for (index, matcher) in wire.query_parameters.iter().enumerate() {
        let condition = query(matcher).within_item("query_parameters", index)?;
        unique(&entry.query, &condition.name).within_item("query_parameters", index)?;
        entry.query.push(condition);
    }
    Ok(entry)
}

/// Of conditions with one name the router heeds the first only, so there may be no second one.
fn unique(conditions: &[ValueMatch], name: &str) -> Result<(), Refusal> {
    if conditions.iter().any(|own| &*own.name == name) {
        return Err(Refusal::at("name", format!("a second condition on {name} is not supported")));
    }
    Ok(())
}

fn path(wire: &RouteMatch) -> Result<PathMatch, Refusal> {
    let any_case = wire.case_sensitive == Some(false);
    let Some(specifier) = &wire.path_specifier else { return Err(Refusal::new("no path is given")) };
    Ok(match specifier {
        PathSpecifier::Prefix(prefix) if prefix == "/" => PathMatch::Prefix("/".into()),
        PathSpecifier::Prefix(prefix) if any_case => regex(&["(?is)", &escaped(prefix), ".*"]),
        PathSpecifier::Prefix(prefix) => PathMatch::TextPrefix(prefix.as_str().into()),
        PathSpecifier::Path(path) if any_case => regex(&["(?is)", &escaped(path)]),
        PathSpecifier::Path(path) => PathMatch::Exact(path.as_str().into()),
        PathSpecifier::PathSeparatedPrefix(prefix) if any_case => {
            regex(&["(?is)", &escaped(prefix), "(?:/.*)?"])
        }
        PathSpecifier::PathSeparatedPrefix(prefix) => PathMatch::Prefix(prefix.as_str().into()),
        // The case of letters is for the expression itself to say.
        PathSpecifier::SafeRegex(own) => PathMatch::Regex(own.regex.as_str().into()),
        PathSpecifier::ConnectMatcher(_) => {
            return Err(Refusal::at("connect_matcher", "is not supported here"));
        }
    })
}

fn regex(parts: &[&str]) -> PathMatch {
    PathMatch::Regex(parts.concat().into())
}

/// The expression that a text alone matches.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii() && !letter.is_ascii_alphanumeric() {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

fn header(matcher: &HeaderMatcher, entry: &mut HttpMatch) -> Result<(), Refusal> {
    let name = lower(&matcher.name);
    if name.starts_with(':') && ![":authority", ":method", ":scheme"].contains(&&*name) {
        return Err(Refusal::at("name", format!("{name} is not supported")));
    }
    // Whether the header has to be there at all, whatever it says.
    let (test, present) = match &matcher.specifier {
        None => (ValueTest::Present, !matcher.invert_match),
        Some(Specifier::PresentMatch(present)) => (ValueTest::Present, *present != matcher.invert_match),
        Some(specifier) => (value(specifier)?, true),
    };
    let is_presence = test == ValueTest::Present;
    let inverted = if is_presence { !present } else { matcher.invert_match };
    let condition = ValueMatch { name: Arc::clone(&name), value: test };
    if matcher.treat_missing_header_as_empty && !(inverted && !is_presence && !takes_empty(&condition.value))
    {
        return Err(Refusal::at("treat_missing_header_as_empty", "is not supported with this match"));
    }
    if !inverted {
        unique(&entry.headers, &name)?;
        match (&*name, condition.value) {
            (":method", ValueTest::Exact(method)) if entry.method.is_none() => entry.method = Some(method),
            (_, value) => entry.headers.push(ValueMatch { name, value }),
        }
        return Ok(());
    }
    if !is_presence && !matcher.treat_missing_header_as_empty {
        // A header that is not there satisfies no inverted match but that on presence.
        unique(&entry.headers, &name)?;
        entry.headers.push(ValueMatch { name, value: ValueTest::Present });
    }
    entry.without_headers.push(condition);
    Ok(())
}

/// Whether a test that is not an expression takes the empty text. Expressions are not looked into: one that takes it is
/// treated as if a header that is missing were none, as the same condition of a VirtualService is.
fn takes_empty(test: &ValueTest) -> bool {
    match test {
        ValueTest::Exact(text) | ValueTest::Prefix(text) | ValueTest::Suffix(text) => text.is_empty(),
        ValueTest::Present | ValueTest::Regex(_) => false,
    }
}

fn value(specifier: &Specifier) -> Result<ValueTest, Refusal> {
    Ok(match specifier {
        Specifier::StringMatch(matcher) => text(matcher).within("string_match")?,
        Specifier::ExactMatch(text) => ValueTest::Exact(text.as_str().into()),
        Specifier::PrefixMatch(text) => ValueTest::Prefix(text.as_str().into()),
        Specifier::SuffixMatch(text) => ValueTest::Suffix(text.as_str().into()),
        Specifier::SafeRegexMatch(own) => ValueTest::Regex(own.regex.as_str().into()),
        Specifier::ContainsMatch(text) => expression(&["(?s).*", &escaped(text), ".*"]),
        Specifier::PresentMatch(_) => ValueTest::Present,
    })
}

fn query(matcher: &QueryParameterMatcher) -> Result<ValueMatch, Refusal> {
    let value = match &matcher.specifier {
        Some(QuerySpecifier::StringMatch(matcher)) => text(matcher).within("string_match")?,
        Some(QuerySpecifier::PresentMatch(true)) | None => ValueTest::Present,
        Some(QuerySpecifier::PresentMatch(false)) => {
            return Err(Refusal::at("present_match", "false is not supported"));
        }
    };
    Ok(ValueMatch { name: matcher.name.as_str().into(), value })
}

fn text(matcher: &StringMatcher) -> Result<ValueTest, Refusal> {
    let Some(pattern) = &matcher.pattern else { return Err(Refusal::new("the matcher has no pattern")) };
    Ok(match (pattern, matcher.ignore_case) {
        (Pattern::Exact(text), false) => ValueTest::Exact(text.as_str().into()),
        (Pattern::Prefix(text), false) => ValueTest::Prefix(text.as_str().into()),
        (Pattern::Suffix(text), false) => ValueTest::Suffix(text.as_str().into()),
        (Pattern::Contains(text), false) => expression(&["(?s).*", &escaped(text), ".*"]),
        (Pattern::Exact(text), true) => expression(&["(?is)", &escaped(text)]),
        (Pattern::Prefix(text), true) => expression(&["(?is)", &escaped(text), ".*"]),
        (Pattern::Suffix(text), true) => expression(&["(?is).*", &escaped(text)]),
        (Pattern::Contains(text), true) => expression(&["(?is).*", &escaped(text), ".*"]),
        // The case of letters is for the expression itself to say.
        (Pattern::SafeRegex(own), _) => ValueTest::Regex(own.regex.as_str().into()),
    })
}

fn expression(parts: &[&str]) -> ValueTest {
    ValueTest::Regex(parts.concat().into())
}
