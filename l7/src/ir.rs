//! The intermediate form of routes and policies: what every front end (YAML, istiod's feeds) compiles to.
//!
//! Plain data, no lookups: [`crate::router`] and [`crate::authz`] compile it into tables. A front end that
//! meets something it cannot express here must refuse the object; it may never leave a condition out.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{NamespacedHostname, SourceRef};

// === Routes ===

/// One HTTPRoute, seen from one parent Service (a route with several parents yields several).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HttpRoute {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The Service whose traffic the route governs.
    pub parent: NamespacedHostname,
    /// `parentRef.port`; `None` governs every port of the Service.
    pub parent_port: Option<u16>,
    /// Set when the route lives in another namespace than its parent: it then governs only clients of this
    /// namespace (a consumer route).
    pub consumer_namespace: Option<Arc<str>>,
    /// Seconds since the epoch; older routes win ties. 0 where unknown.
    pub created: u64,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<HttpRule>,
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    pub name: Option<Arc<str>>,
    /// ORed, each ranked alone. A rule written without matches carries one match of prefix `/`.
    pub matches: Vec<HttpMatch>,
    /// Applied before those of the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<Filters>>,
    pub backends: Vec<Backend>,
    #[serde(default, skip_serializing_if = "Timeouts::is_off")]
    pub timeouts: Timeouts,
}

/// How long a request may take, in milliseconds; `None` for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// From the request's head to the end of the response.
    pub request_ms: Option<NonZeroU32>,
    /// The same for each try at a backend.
    pub backend_request_ms: Option<NonZeroU32>,
}

impl Timeouts {
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// The limit on a request that is tried once, which is all that is done.
    pub fn limit(&self) -> Option<Duration> {
        let limits = self.request_ms.into_iter().chain(self.backend_request_ms);
        limits.min().map(|limit| Duration::from_millis(limit.get().into()))
    }
}

/// All conditions must hold.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HttpMatch {
    pub path: PathMatch,
    pub method: Option<Arc<str>>,
    pub headers: Vec<ValueMatch>,
    pub query: Vec<ValueMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Compares path elements: `/v1` takes `/v1` and `/v1/x`, not `/v10`.
    Prefix(Arc<str>),
    /// Anchored at both ends.
    Regex(Arc<str>),
}

/// A condition on a header or a query parameter. Header names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ValueMatch {
    pub name: Arc<str>,
    pub value: ValueTest,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ValueTest {
    Exact(Arc<str>),
    /// Anchored at both ends.
    Regex(Arc<str>),
}

/// A weighted backend. An invalid one keeps its share of the traffic and answers 500 to it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    pub target: BackendTarget,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<Filters>>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum BackendTarget {
    Service {
        service: NamespacedHostname,
        port: u16,
    },
    /// Does not exist, may not be referred to, or is of an unknown kind: the text says which.
    Invalid(Arc<str>),
}

// === Filters ===

/// What is done to the requests that a rule or a backend takes, and to their responses. Executed by
/// [`crate::filter`]; each kind occurs at most once, so the order in which they were written does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlAction>,
}

/// Removed first, then set, then added.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderEdits {
    pub remove: Vec<Arc<str>>,
    /// In place of every value that the header had.
    pub set: Vec<HeaderValue>,
    /// After the values that the header had.
    pub add: Vec<HeaderValue>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderValue {
    pub name: Arc<str>,
    pub value: Arc<str>,
}

/// A request is either forwarded to another place or sent there by its client.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum UrlAction {
    Rewrite(UrlRewrite),
    Redirect(Redirect),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UrlRewrite {
    /// Becomes the authority, without a port.
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
}

/// The query is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathRewrite {
    Full(Arc<str>),
    /// In place of the prefix that matched; only for rules whose matches all are prefixes. Empty or starts with a
    /// slash.
    Prefix(Arc<str>),
}

/// What is `None` stays as it is in the request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    /// `None`: the well-known port of `scheme`, or without one the port that the client dialled.
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Scheme {
    Http,
    Https,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

// === Tokens ===

/// One RequestAuthentication: whose tokens are taken, and where they are looked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestAuthentication {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub rules: Vec<TokenRule>,
    pub source: Option<SourceRef>,
}

/// The tokens of one issuer (`JWTRule`).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRule {
    /// The claim `iss`.
    pub issuer: Arc<str>,
    /// One of these must be in `aud`; empty: any token of the issuer.
    pub audiences: Vec<Arc<str>>,
    /// The keys of the issuer, a JWKS (RFC 7517).
    pub jwks: Arc<str>,
    /// Header (lower case) and what stands before the token. Without any `from_`: Authorization and `access_token`.
    pub from_headers: Vec<HeaderValue>,
    pub from_parameters: Vec<Arc<str>>,
    pub from_cookies: Vec<Arc<str>>,
    /// The application gets the token, too.
    pub forward_original: bool,
    /// Header (lower case) that takes the claims in base64url.
    pub payload_to_header: Option<Arc<str>>,
    /// Header (lower case) and the claim that it takes.
    pub claims_to_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Claims that are lists written as one text, beside `scope` and `permission`.
    pub space_delimited_claims: Vec<Arc<str>>,
}

// === Policies ===

/// One authorization policy: L4 only (istiod's `Authorization`) or with L7 conditions (AuthorizationPolicy).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AuthorizationPolicy {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub action: Action,
    /// Evaluated and logged, never enforced.
    pub dry_run: bool,
    /// ORed; no rules: the policy never matches (so that an ALLOW without rules denies all).
    pub rules: Vec<Rule>,
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Action {
    Allow,
    Deny,
    /// Only recorded.
    Audit,
}

/// A rule holds if all its clauses hold; without clauses it always holds.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// A clause holds if any of its matches holds; without matches it always holds.
///
/// This is the shape of both sources: istiod's `Clause.matches`, and of AuthorizationPolicy `from` (one clause
/// whose matches are the sources), `to` (one clause of operations) and each entry of `when` (one clause).
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// A match holds if every condition holds; without conditions it never holds.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Match {
    pub conditions: Vec<Condition>,
}

/// `any_of` and `none_of` speak of the same attribute: if `any_of` is non-empty one of it must hold, and none of
/// `none_of` may hold.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Condition {
    pub attribute: Attribute,
    pub any_of: Vec<Test>,
    pub none_of: Vec<Test>,
}

/// What a condition looks at. An attribute that is absent (no identity, no such header, no HTTP request) satisfies
/// no positive test and passes every negative one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Attribute {
    // L4
    /// The peer identity without `spiffe://`.
    SourcePrincipal,
    /// The peer's namespace; the empty text where there is no identity.
    SourceNamespace,
    /// `namespace/account` of the peer.
    SourceServiceAccount,
    SourceTrustDomain,
    SourceIp,
    /// The client as forwarding headers tell it: last X-Forwarded-For entry, else the peer.
    RemoteIp,
    DestinationIp,
    DestinationPort,
    ConnectionSni,
    // L7
    /// `:authority`, port included; compared without case.
    RequestHost,
    RequestMethod,
    /// The normalised path without query.
    RequestPath,
    /// Lower-case name; each value of a repeated header is tested alone.
    RequestHeader(Arc<str>),
    // From a validated token; no token: absent.
    RequestPrincipal,
    RequestAudiences,
    RequestPresenter,
    /// Path into the claims.
    RequestClaim(Vec<Arc<str>>),
    /// Metadata that an Envoy filter would have set. No filter of this proxy sets any, so it is always absent, as it
    /// is in an Envoy without that filter.
    FilterMetadata(Arc<str>),
}

impl Attribute {
    /// True for what exists only once an HTTP request has been read.
    pub fn is_l7(&self) -> bool {
        matches!(
            self,
            Self::RemoteIp
                | Self::RequestHost
                | Self::RequestMethod
                | Self::RequestPath
                | Self::RequestHeader(_)
                | Self::RequestPrincipal
                | Self::RequestAudiences
                | Self::RequestPresenter
                | Self::RequestClaim(_)
                | Self::FilterMetadata(_)
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Test {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Present; for a header also when its value is empty, for anything else non-empty.
    Present,
    /// `*` anywhere, any number of characters (namespaces at L7).
    Glob(Arc<str>),
    /// A path template with `{*}` and `{**}`, already validated by [`crate::template`].
    Template(Arc<str>),
    Ip(IpNet),
    Port(u16),
}

/// What is known of a connection before its first byte is read.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionAttributes<'a> {
    /// Verified by mTLS; `None` for plaintext.
    pub source: Option<&'a model::Identity>,
    pub source_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub destination_port: u16,
    pub sni: Option<&'a str>,
}

/// A request head as the matchers see it, borrowed from the bytes that arrived.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    pub method: &'a str,
    /// `Host` or `:authority` as sent.
    pub authority: &'a str,
    /// Normalised path, without query and fragment.
    pub path: &'a str,
    /// Without the question mark.
    pub query: Option<&'a str>,
    pub headers: &'a [Header<'a>],
    /// Verified; `None` without one.
    pub token: Option<&'a crate::jwt::Token>,
}

/// One header line. The name keeps the spelling of the wire; matchers compare it without case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    pub name: &'a str,
    pub value: &'a [u8],
}
