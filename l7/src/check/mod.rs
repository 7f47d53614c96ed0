//! External authorization: what an authorizer is asked, and what its answer does to a request.
//!
//! The transport is the caller's. Over HTTP the question is a request like the one asked about ([`http_question`],
//! [`http_answer`]); over gRPC its message holds the same. [`rule`] then says what becomes of the request.
//!
//! Invariants:
//! - Only an answer that says so lets a request pass; no answer, an unreadable one and one that would write what no filter
//!   may write count as none, and that passes only where the authorizer is configured to fail open.
//! - What an answer adds to a message has passed the checks of [`crate::filter`].

mod http;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::filter::{self, FilterFault};
use crate::ir::{Authorizer, Filters, HeaderEdits, HeaderValue, QueryEdits};

pub use http::{Question, Shown, http_answer, http_question};

/// Largest body of a denial that is passed on.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The answer where a body is too large to be shown and may not be cut.
pub const BODY_TOO_LARGE_STATUS: u16 = 413;

/// Header that tells whether the body in the question was cut.
pub const PARTIAL_BODY_HEADER: &str = "x-envoy-auth-partial-body";

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Allowed(Approval),
    Denied(Denied),
    /// Nobody answered, or nothing that could be used: the text says why.
    Failed(&'static str),
}

/// What an authorizer adds to a request that it lets pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Approval {
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    pub query: QueryEdits,
}

/// The response to a request that an authorizer does not let pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Denied {
    pub status: u16,
    pub headers: Vec<HeaderValue>,
    pub body: Vec<u8>,
    /// Nobody said so: there was no answer.
    pub failed: Option<&'static str>,
}

/// What becomes of a request.
pub fn rule(authorizer: &Authorizer, answer: Answer) -> Result<Approval, Denied> {
    let answer = match answer {
        Answer::Allowed(approval) => match check(&approval) {
            Ok(()) => return Ok(approval),
            Err(_) => Answer::Failed("the answer holds a header or a parameter that cannot be passed on"),
        },
        other => other,
    };
    match answer {
        Answer::Allowed(approval) => Ok(approval),
        Answer::Denied(denied) => Err(denied),
        Answer::Failed(_) if authorizer.fail_open => Ok(Approval::default()),
        Answer::Failed(reason) => {
            Err(Denied { status: authorizer.status_on_error, failed: Some(reason), ..Denied::default() })
        }
    }
}

fn check(approval: &Approval) -> Result<(), FilterFault> {
    [&approval.request_headers, &approval.response_headers].into_iter().try_for_each(|edits| {
        edits.remove.iter().try_for_each(filter::header_name)?;
        edits.set.iter().chain(&edits.add).try_for_each(|header| {
            filter::header_name(&header.name)?;
            // An empty value is one that the check for written ones refuses.
            if header.value.is_empty() { Ok(()) } else { filter::header_value(&header.name, &header.value) }
        })
    })?;
    approval.query.set.iter().try_for_each(|(name, value)| filter::query_parameter(name, value))
}

impl Approval {
    pub fn is_empty(&self) -> bool {
        self.request_headers.is_empty() && self.response_headers.is_empty() && self.query.is_empty()
    }

    /// For the chain of the request.
    pub fn into_filters(self) -> Option<Arc<Filters>> {
        if self.is_empty() {
            return None;
        }
        let Self { request_headers, response_headers, query } = self;
        Some(Arc::new(Filters { request_headers, response_headers, query, ..Filters::default() }))
    }

    /// With what another authorizer adds after this one.
    #[must_use]
    pub fn and(mut self, later: Self) -> Self {
        let append = |edits: &mut HeaderEdits, later: HeaderEdits| {
            // What the later one sets or removes is gone from what the earlier one wrote.
            let is_free = |header: &HeaderValue| {
                let mut taken = later.remove.iter().chain(later.set.iter().map(|it| &it.name));
                !taken.any(|name| name.eq_ignore_ascii_case(&header.name))
            };
            edits.set.retain(is_free);
            edits.add.retain(is_free);
            edits.remove.extend(later.remove);
            edits.set.extend(later.set);
            edits.add.extend(later.add);
        };
        append(&mut self.request_headers, later.request_headers);
        append(&mut self.response_headers, later.response_headers);
        let QueryEdits { remove, set } = later.query;
        self.query.set.retain(|(name, _)| !remove.contains(name) && !set.iter().any(|(own, _)| own == name));
        self.query.remove.extend(remove);
        self.query.set.extend(set);
        self
    }
}
