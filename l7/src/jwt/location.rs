//! Where a request may carry a token.

use std::sync::Arc;

use crate::ir::{Header, RequestHead, TokenRule};

/// The scheme of RFC 6750 section 2.1, compared without case as RFC 9110 section 11.1 asks.
const BEARER: &str = "Bearer ";
/// RFC 6750 section 2.3.
const QUERY_PARAMETER: &str = "access_token";

/// Where the tokens of a rule are.
#[derive(Debug)]
pub(super) struct Locations {
    headers: Box<[(Arc<str>, Arc<str>)]>,
    cookies: Box<[Arc<str>]>,
    parameters: Box<[Arc<str>]>,
    /// The header is `authorization` with its scheme.
    is_default: bool,
}

/// A token in a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) text: &'a str,
    pub(super) holder: Holder<'a>,
}

/// What holds a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder<'a> {
    /// This header, which holds nothing else.
    Header(&'a str),
    /// This parameter of the query.
    Parameter(&'a str),
    Cookie,
}

impl Locations {
    /// Those that are written; if none is, the usual ones.
    pub(super) fn of(rule: &TokenRule) -> Self {
        let is_default =
            rule.from_headers.is_empty() && rule.from_parameters.is_empty() && rule.from_cookies.is_empty();
        if is_default {
            return Self {
                headers: Box::new([(Arc::from("authorization"), Arc::from(BEARER))]),
                cookies: Box::default(),
                parameters: Box::new([Arc::from(QUERY_PARAMETER)]),
                is_default,
            };
        }
        Self {
            headers: rule.from_headers.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
            cookies: rule.from_cookies.clone().into(),
            parameters: rule.from_parameters.clone().into(),
            is_default,
        }
    }

    pub(super) fn tokens<'a>(&'a self, request: &'a RequestHead<'a>) -> impl Iterator<Item = Found<'a>> {
        let headers = self.headers.iter().flat_map(|(name, prefix)| {
            lines(request, name).filter_map(|line| {
                let text = self.after_prefix(line.trim(), prefix)?.trim();
                Some(Found { text, holder: Holder::Header(name) })
            })
        });
        let cookies = self.cookies.iter().flat_map(|name| {
            let pairs = lines(request, "cookie").flat_map(|line| line.split(';'));
            pairs
                .filter_map(move |pair| value_of(pair.trim(), name))
                .map(|text| Found { text, holder: Holder::Cookie })
        });
        let parameters = self.parameters.iter().flat_map(|name| {
            let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
            pairs.filter_map(move |pair| {
                Some(Found { text: value_of(pair, name)?, holder: Holder::Parameter(name) })
            })
        });
        headers.chain(cookies).chain(parameters)
    }

    fn after_prefix<'a>(&self, line: &'a str, prefix: &str) -> Option<&'a str> {
        let (start, rest) = line.split_at_checked(prefix.len())?;
        let same = if self.is_default { start.eq_ignore_ascii_case(prefix) } else { start == prefix };
        same.then_some(rest)
    }
}

/// Lines of a header that are text; what is not cannot be a token.
fn lines<'a>(request: &'a RequestHead<'a>, name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = move |header: &&Header<'a>| header.name.eq_ignore_ascii_case(name);
    request.headers.iter().filter(named).filter_map(|header| std::str::from_utf8(header.value).ok())
}

fn value_of<'a>(pair: &'a str, name: &str) -> Option<&'a str> {
    pair.strip_prefix(name)?.strip_prefix('=')
}
