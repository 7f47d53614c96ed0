//! What filters may hold. A front end reports a fault where it was written; the router refuses the route.

use std::sync::Arc;

use crate::http1::{is_authority, is_token};
use crate::ir::{Cors, Filters, Fraction, HeaderEdits, HttpRule, PathMatch, PathRewrite, UrlAction};

/// Longest header name and value, and longest replacement of a path, of the Gateway API.
const NAME_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 4096;
const PATH_BYTES_MAX: usize = 1024;
/// Entries of one list of header edits, of the Gateway API.
const EDITS_MAX: usize = 16;

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// Fields that frame a message, that concern one connection, or that this proxy writes itself.
const RESERVED: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a filter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterFault {
    #[error("{0:?} cannot be a header name")]
    Name(Arc<str>),
    #[error(
        "header {0:?} belongs to the connection or to the framing of messages, which no filter may change"
    )]
    Reserved(Arc<str>),
    #[error("the value of header {0:?} is too long, begins or ends with a blank, or is not printable ASCII")]
    Value(Arc<str>),
    #[error("{0} header edits of one kind are more than {EDITS_MAX}")]
    TooMany(usize),
    #[error("query parameter {0:?} has a name or a value that is no text of a query")]
    Parameter(Arc<str>),
    #[error("path {0:?} cannot stand in for another: it must begin with a slash and be normalised")]
    Path(Arc<str>),
    #[error("a prefix can only be replaced where every match is one of a path prefix")]
    NoPrefix,
    #[error("host name {0:?} cannot stand in for another")]
    Hostname(Arc<str>),
    #[error("port 0 cannot be redirected to")]
    Port,
    #[error("status {0} is not one of 301, 302, 303, 307 and 308")]
    Status(u16),
    #[error("{0:?} cannot be a name or an origin of CORS")]
    Cors(Arc<str>),
    #[error("a copy of a request cannot be a share of {0}")]
    Share(String),
    #[error("a rule that redirects every request cannot have backends")]
    RedirectWithBackends,
}

/// Checks the filters of a rule and of its backends.
pub fn check(rule: &HttpRule) -> Result<(), FilterFault> {
    if let Some(filters) = &rule.filters {
        check_filters(filters, rule)?;
        if matches!(filters.url, Some(UrlAction::Redirect(_))) && !rule.backends.is_empty() {
            return Err(FilterFault::RedirectWithBackends);
        }
    }
    let of_backends = rule.backends.iter().filter_map(|backend| backend.filters.as_deref());
    of_backends.into_iter().try_for_each(|filters| check_filters(filters, rule))
}

fn check_filters(filters: &Filters, rule: &HttpRule) -> Result<(), FilterFault> {
    edits(&filters.request_headers)?;
    edits(&filters.response_headers)?;
    filters.query.set.iter().try_for_each(|(name, value)| query_parameter(name, value))?;
    filters.cors.as_ref().map_or(Ok(()), |it| cors(it))?;
    filters.mirrors.iter().try_for_each(|mirror| share(mirror.share))?;
    match &filters.url {
        None => Ok(()),
        Some(UrlAction::Rewrite(rewrite)) => {
            rewrite.hostname.as_ref().map_or(Ok(()), hostname)?;
            rewrite.path.as_ref().map_or(Ok(()), |path| path_rewrite(path, rule))
        }
        Some(UrlAction::Redirect(redirect)) => {
            redirect.hostname.as_ref().map_or(Ok(()), hostname)?;
            redirect.path.as_ref().map_or(Ok(()), |path| path_rewrite(path, rule))?;
            if redirect.port == Some(0) {
                return Err(FilterFault::Port);
            }
            if STATUSES.contains(&redirect.status) {
                Ok(())
            } else {
                Err(FilterFault::Status(redirect.status))
            }
        }
    }
}

/// Names are tokens (a star is one, too), and origins are written back as they came, so theirs need no check.
fn cors(cors: &Cors) -> Result<(), FilterFault> {
    let mut names = cors.methods.iter().chain(&cors.headers).chain(&cors.expose_headers);
    match names.find(|name| name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token)) {
        Some(name) => Err(FilterFault::Cors(name.clone())),
        None => Ok(()),
    }
}

fn share(share: Fraction) -> Result<(), FilterFault> {
    if share.numerator > share.denominator.get() {
        return Err(FilterFault::Share(format!("{}/{}", share.numerator, share.denominator)));
    }
    Ok(())
}

fn edits(edits: &HeaderEdits) -> Result<(), FilterFault> {
    let most = edits.remove.len().max(edits.set.len()).max(edits.add.len());
    if most > EDITS_MAX {
        return Err(FilterFault::TooMany(most));
    }
    edits.remove.iter().try_for_each(header_name)?;
    edits.set.iter().chain(&edits.add).try_for_each(|header| {
        header_name(&header.name)?;
        header_value(&header.name, &header.value)
    })
}

/// Checks the name of a header to be edited.
pub fn header_name(name: &Arc<str>) -> Result<(), FilterFault> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
        return Err(FilterFault::Name(name.clone()));
    }
    if RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
        return Err(FilterFault::Reserved(name.clone()));
    }
    Ok(())
}

/// Checks a value that header `name` is to have.
pub fn header_value(name: &Arc<str>, value: &str) -> Result<(), FilterFault> {
    let is_printable = value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let is_trimmed = value.trim_matches([' ', '\t']).len() == value.len();
    if value.is_empty() || value.len() > VALUE_BYTES_MAX || !is_printable || !is_trimmed {
        return Err(FilterFault::Value(name.clone()));
    }
    Ok(())
}

/// Checks a parameter that a query is to have: text of a query (RFC 3986 section 3.4) that ends neither the name, the
/// value nor the query.
pub fn query_parameter(name: &Arc<str>, value: &str) -> Result<(), FilterFault> {
    let is_text = |text: &str, without: &[u8]| {
        text.len() <= VALUE_BYTES_MAX
            && text.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !without.contains(&byte))
    };
    let is_good = !name.is_empty() && is_text(name, b"#&=\"<>\\^`{|}") && is_text(value, b"#&\"<>\\^`{|}");
    if is_good { Ok(()) } else { Err(FilterFault::Parameter(name.clone())) }
}

/// Checks what is to stand in for a path or a prefix of one.
pub fn replacement(rewrite: &PathRewrite) -> Result<(), FilterFault> {
    let (path, may_be_empty) = match rewrite {
        PathRewrite::Full(path) | PathRewrite::TextPrefix(path) => (path, false),
        PathRewrite::Prefix(path) => (path, true),
    };
    let is_good = (path.is_empty() && may_be_empty)
        || (path.len() <= PATH_BYTES_MAX && path.starts_with('/') && is_normal(path));
    if is_good { Ok(()) } else { Err(FilterFault::Path(path.clone())) }
}

/// The characters of RFC 3986 section 3.3 with complete escapes, no empty element, and nothing left to normalise.
fn is_normal(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let is_good = match byte {
            b'%' => [bytes.next(), bytes.next()]
                .into_iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !is_good {
            return false;
        }
    }
    let normal = crate::path::normalize(path, crate::path::Normalization::MergeSlashes);
    normal.is_ok_and(|normal| normal.path == path)
}

fn path_rewrite(rewrite: &PathRewrite, rule: &HttpRule) -> Result<(), FilterFault> {
    let fits = |path: &PathMatch| match rewrite {
        PathRewrite::Full(_) => true,
        PathRewrite::Prefix(_) => matches!(path, PathMatch::Prefix(_)),
        PathRewrite::TextPrefix(_) => matches!(path, PathMatch::Prefix(_) | PathMatch::TextPrefix(_)),
    };
    if !rule.matches.iter().all(|entry| fits(&entry.path)) {
        return Err(FilterFault::NoPrefix);
    }
    replacement(rewrite)
}

fn hostname(hostname: &Arc<str>) -> Result<(), FilterFault> {
    let is_good = !hostname.contains(':') && is_authority(hostname);
    if is_good { Ok(()) } else { Err(FilterFault::Hostname(hostname.clone())) }
}
