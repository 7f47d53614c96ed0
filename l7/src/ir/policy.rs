//! Policies: who may ask what.

use std::sync::Arc;

use ipnet::IpNet;
use model::SourceRef;

use super::Authorizer;

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
    /// Who is asked about requests that a CUSTOM policy takes; `None` denies them, for its provider is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorizer: Option<Arc<Authorizer>>,
    pub source: Option<SourceRef>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Action {
    Allow,
    Deny,
    /// Only recorded.
    Audit,
    /// Somebody else decides first.
    Custom,
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
