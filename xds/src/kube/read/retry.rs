//! Retries and session persistence of route rules.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{Retry, RetryOn, SessionCarrier, SessionPersistence};

use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::timeouts;

/// Further tries where a route does not say how many.
const ATTEMPTS: u32 = 1;
/// Most further tries: each waits twice as long as the one before.
const ATTEMPTS_MAX: i64 = 100;
pub(super) const SESSION_NAME_BYTES_MAX: usize = 128;
/// Of cookies and headers, where a route does not say.
pub(super) const SESSION_NAME: &str = "corelane-session";

/// `retry` (HTTPRouteRetry): beside the codes, every failure to get a response at all is tried again, as the API
/// recommends.
pub(super) fn retry(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Arc<Retry>> {
    let item = fields.optional("retry")?;
    let mut fields = item.fields(findings)?;
    let mut statuses: Vec<u16> = Vec::new();
    if let Some(list) = fields.optional("codes") {
        for item in list.list(findings) {
            let status = item.integer(findings, 400, 599).and_then(|code| u16::try_from(code).ok());
            if status.is_some_and(|status| statuses.contains(&status)) {
                item.error(findings, "this code is named twice", "remove one of the two");
            }
            statuses.extend(status);
        }
    }
    let attempts = fields.optional("attempts").and_then(|item| item.integer(findings, 0, ATTEMPTS_MAX));
    let backoff_ms = fields.optional("backoff").and_then(|item| timeouts::limit(&item, findings));
    fields.finish(findings);
    Some(Arc::new(Retry {
        attempts: attempts.map_or(ATTEMPTS, |attempts| u32::try_from(attempts).unwrap_or(ATTEMPTS)),
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset: true,
            timeout: true,
            statuses,
            ..RetryOn::default()
        },
        backoff_ms,
        backoff_max_ms: None,
    }))
}

/// `sessionPersistence`; `unnamed` is the name of a session that has none.
pub(super) fn session(
    fields: &mut Fields<'_>,
    unnamed: &str,
    findings: &mut Findings,
) -> Option<Arc<SessionPersistence>> {
    const TYPES: [(&str, bool); 2] = [("Cookie", true), ("Header", false)];
    const LIFETIMES: [(&str, SessionCarrier); 2] =
        [("Session", SessionCarrier::SessionCookie), ("Permanent", SessionCarrier::PermanentCookie)];
    let item = fields.optional("sessionPersistence")?;
    let mut fields = item.fields(findings)?;
    let is_cookie = fields.optional("type").and_then(|item| item.one_of(findings, &TYPES)).unwrap_or(true);
    let name = match fields.optional("sessionName") {
        Some(item) => session_name(&item, is_cookie, findings)?,
        None => Arc::from(unnamed),
    };
    let absolute = fields.optional("absoluteTimeout").and_then(|item| seconds(&item, findings));
    let idle = fields.optional("idleTimeout").and_then(|item| seconds(&item, findings));
    let cookie = fields.optional("cookieConfig");
    let mut lifetime = SessionCarrier::SessionCookie;
    if let Some(cookie) = &cookie {
        if !is_cookie {
            cookie.error(findings, "a session of a header has no cookie", "remove cookieConfig");
        }
        let mut fields = cookie.fields(findings)?;
        if let Some(item) = fields.optional("lifetimeType") {
            lifetime = item.one_of(findings, &LIFETIMES)?;
        }
        fields.finish(findings);
    }
    fields.finish(findings);
    if lifetime == SessionCarrier::PermanentCookie && absolute.is_none() {
        item.error(findings, "a permanent cookie needs a time to live", "add absoluteTimeout");
    }
    Some(Arc::new(SessionPersistence {
        name,
        carrier: if is_cookie { lifetime } else { SessionCarrier::Header },
        absolute_timeout_s: absolute,
        idle_timeout_s: idle,
    }))
}

fn session_name(item: &Item<'_>, is_cookie: bool, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    let name: Arc<str> = if is_cookie { Arc::from(text) } else { Arc::from(text.to_ascii_lowercase()) };
    // A name that no filter may set, no session may set either.
    if text.len() > SESSION_NAME_BYTES_MAX || l7::filter::header_name(&name).is_err() {
        let fix = "use at most 128 letters, digits or one of !#$%&'*+-.^_`|~, and no name of the framing";
        item.error(findings, format!("{:?} cannot name a session", shortened(text)), fix);
        return None;
    }
    Some(name)
}

/// Whole seconds, of which a cookie's age is made; less than one counts as one.
fn seconds(item: &Item<'_>, findings: &mut Findings) -> Option<NonZeroU32> {
    let milliseconds = timeouts::limit(item, findings)?;
    NonZeroU32::new(milliseconds.get().div_ceil(1000))
}
