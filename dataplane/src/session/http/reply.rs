//! Answers of the proxy's own.

use std::borrow::Cow;

use l7::http1::Http1Error;
use l7::ir::Header;

use crate::access_log::cause::CloseCause;

/// An answer in the upstream's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::session) struct Reply {
    pub(in crate::session) status: u16,
    pub(in crate::session) body: Cow<'static, str>,
    /// Beside those that frame the body.
    pub(in crate::session) fields: Vec<(Cow<'static, str>, Vec<u8>)>,
    pub(in crate::session) cause: CloseCause,
}

/// The answer to a request that took longer than its route allows.
pub(super) const TIMED_OUT: Reply = Reply::text(504, "upstream request timeout", CloseCause::RequestTimeout);

impl Reply {
    /// A status and a line of text.
    pub(in crate::session) const fn text(status: u16, body: &'static str, cause: CloseCause) -> Self {
        Self { status, body: Cow::Borrowed(body), fields: Vec::new(), cause }
    }

    /// The same with another field. Its value holds no control characters.
    pub(in crate::session) fn with(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((Cow::Borrowed(name), value.into()));
        self
    }

    /// The fields as they are written.
    pub(super) fn headers(&self) -> Vec<Header<'_>> {
        self.fields.iter().map(|(name, value)| Header { name, value }).collect()
    }
}

/// The answer to a message that is no request.
pub(super) fn invalid(error: Http1Error) -> Reply {
    tracing::debug!(%error, label = error.label(), "a request is refused");
    Reply::text(error.status(), "malformed request", CloseCause::InvalidHttp)
}
