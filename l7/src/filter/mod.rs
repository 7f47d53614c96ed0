//! Filters of HTTPRoute rules and backends, as pure functions: header edits, URL rewrites, redirects, copies, sharing
//! across origins.
//!
//! Invariants:
//! - What passed [`check`] can neither break the framing of a message nor add a line to its head: names are tokens,
//!   values hold no control characters, and the fields that frame a message or concern one connection are refused.
//! - Fields that a client names in Connection are left behind before the edits, so no client can strip what a
//!   filter adds.
//! - A request without filters costs nothing: a [`Chain`] of none is empty options and lists.

mod check;
mod cors;
mod fields;
mod path;
mod query;
mod redirect;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use crate::ir::{
    Backend, Filters, Header, HeaderEdits, HttpMatch, Mirror, PathMatch, Redirect, UrlAction, UrlRewrite,
};

pub use check::{FilterFault, check, header_name, header_value, query_parameter, replacement};
pub use cors::{CorsPolicy, CorsVerdict};
pub use fields::Fields;
pub use redirect::Dialled;

/// What applies to one request: what was said about it before it was routed, the filters of the rule, those of the
/// backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The last that was put here comes first.
    first: Vec<Arc<Filters>>,
    rule: Option<Arc<Filters>>,
    backend: Option<Arc<Filters>>,
    /// What the proxy says of itself: set last.
    own: Vec<OwnField>,
    /// The prefix that matched; only kept if there are filters.
    prefix: Option<Arc<str>>,
    /// What this one response is told beside: of sharing across origins, of the session.
    told: Option<Box<HeaderEdits>>,
}

/// A field that the proxy sets on what it forwards, in place of any of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnField {
    /// In lower case.
    pub name: &'static str,
    pub value: Box<str>,
}

impl Chain {
    /// The filters of a rule, for a request that `matched`. Counts references and copies nothing.
    pub fn of_rule(filters: Option<&Arc<Filters>>, matched: Option<&HttpMatch>) -> Self {
        let mut chain = Self { rule: filters.cloned(), ..Self::default() };
        if filters.is_some() {
            chain.note_prefix(matched);
        }
        chain
    }

    /// Adds the filters of the backend that was chosen.
    pub fn push_backend(&mut self, backend: &Backend, matched: Option<&HttpMatch>) {
        if backend.filters.is_some() {
            self.backend.clone_from(&backend.filters);
            self.note_prefix(matched);
        }
    }

    /// Puts filters before all others.
    pub fn put_first(&mut self, filters: Arc<Filters>) {
        self.first.push(filters);
    }

    /// Has these fields set on the request, whatever the filters do.
    pub fn put_own(&mut self, own: Vec<OwnField>) {
        self.own = own;
    }

    fn note_prefix(&mut self, matched: Option<&HttpMatch>) {
        if let Some(HttpMatch { path: PathMatch::Prefix(prefix) | PathMatch::TextPrefix(prefix), .. }) =
            matched
        {
            self.prefix = Some(Arc::clone(prefix));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
            && self.rule.is_none()
            && self.backend.is_none()
            && self.own.is_empty()
            && self.told.is_none()
    }

    fn filters(&self) -> impl DoubleEndedIterator<Item = &Filters> {
        self.first.iter().rev().chain(&self.rule).chain(&self.backend).map(AsRef::as_ref)
    }

    /// The redirect that answers the request, if one does.
    pub fn redirect(&self) -> Option<&Redirect> {
        self.filters().find_map(|filters| match &filters.url {
            Some(UrlAction::Redirect(redirect)) => Some(redirect),
            _ => None,
        })
    }

    /// `Location` of the redirect, an absolute URI (RFC 9110 section 10.2.2).
    pub fn location(
        &self,
        redirect: &Redirect,
        dialled: Dialled,
        authority: &str,
        path: &str,
        query: Option<&str>,
    ) -> String {
        let path = match &redirect.path {
            Some(rewrite) => path::rewritten(rewrite, self.prefix.as_deref(), path),
            None => Cow::Borrowed(path),
        };
        redirect::location(redirect, dialled, authority, &path, query)
    }

    /// Rewrites, the backend's first: they replace those of the rule.
    fn rewrites(&self) -> impl Iterator<Item = &UrlRewrite> {
        self.filters().rev().filter_map(|filters| match &filters.url {
            Some(UrlAction::Rewrite(rewrite)) => Some(rewrite),
            _ => None,
        })
    }

    /// The authority for the backend.
    pub fn authority<'a>(&'a self, authority: &'a str) -> &'a str {
        self.rewrites().find_map(|rewrite| rewrite.hostname.as_deref()).unwrap_or(authority)
    }

    /// The path for the backend; `path` is the normalised one that was matched.
    pub fn path<'a>(&'a self, path: &'a str) -> Cow<'a, str> {
        match self.rewrites().find_map(|rewrite| rewrite.path.as_ref()) {
            Some(rewrite) => path::rewritten(rewrite, self.prefix.as_deref(), path),
            None => Cow::Borrowed(path),
        }
    }

    /// The query for the backend.
    pub fn query<'a>(&self, query: Option<&'a str>) -> Option<Cow<'a, str>> {
        let edits = self.filters().map(|filters| &filters.query).filter(|edits| !edits.is_empty());
        edits.fold(query.map(Cow::Borrowed), |query, edits| {
            query::edited(query.as_deref(), edits).map(Cow::Owned)
        })
    }

    /// The fields for the backend.
    pub fn request_fields<'a>(&'a self, headers: &'a [Header<'a>]) -> Fields<'a> {
        let mut fields = Fields::received(headers);
        for filters in self.filters() {
            fields.edit(&filters.request_headers);
        }
        for field in &self.own {
            fields.set(field.name, field.value.as_bytes());
        }
        fields
    }

    /// Whoever gets a copy of the request, each decided alone: `random` draws evenly from all numbers.
    pub fn mirrors(&self, mut random: impl FnMut() -> u64) -> impl Iterator<Item = &Mirror> {
        self.filters().flat_map(|filters| &filters.mirrors).filter(move |mirror| mirror.share.takes(random()))
    }

    /// Edits the response, before the filters do.
    pub fn edit_response(&mut self, edits: HeaderEdits) {
        match &mut self.told {
            None => self.told = Some(Box::new(edits)),
            Some(told) => {
                told.remove.extend(edits.remove);
                told.set.extend(edits.set);
                told.add.extend(edits.add);
            }
        }
    }

    /// Whether the response must be written with [`Self::response_fields`].
    pub fn edits_response(&self) -> bool {
        self.told.is_some() || self.filters().any(|filters| !filters.response_headers.is_empty())
    }

    /// The fields for the client.
    pub fn response_fields<'a>(&'a self, headers: &'a [Header<'a>]) -> Fields<'a> {
        let mut fields = Fields::received(headers);
        if let Some(told) = &self.told {
            fields.edit(told);
        }
        for filters in self.filters() {
            fields.edit(&filters.response_headers);
        }
        fields
    }
}
