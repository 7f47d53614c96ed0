//! What is judged: a connection and, where there is one, a request; and how each attribute is read from them.

use std::net::IpAddr;

use smallvec::SmallVec;

use crate::ir::{Attribute, ConnectionAttributes, RequestHead};
use crate::jwt::Token;

/// A connection with what is known of the request on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) connection: &'a ConnectionAttributes<'a>,
    pub(super) request: Request<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    /// The traffic is not HTTP.
    Absent,
    /// A request is expected and not read yet: its attributes are unknown.
    Pending,
    Read(&'a RequestHead<'a>),
}

/// `namespace/account` fits inline: each part is a Kubernetes name of at most 253 bytes.
pub(super) type AccountText = SmallVec<[u8; 512]>;

impl<'a> Subject<'a> {
    pub(super) fn new(
        connection: &'a ConnectionAttributes<'a>,
        request: Option<&'a RequestHead<'a>>,
    ) -> Self {
        Self { connection, request: request.map_or(Request::Absent, Request::Read) }
    }

    pub(super) fn head(&self) -> Option<&'a RequestHead<'a>> {
        match self.request {
            Request::Read(head) => Some(head),
            Request::Absent | Request::Pending => None,
        }
    }

    /// True if only the request, which is still to come, tells the attribute.
    pub(super) fn is_unknown(&self, attribute: &Attribute) -> bool {
        matches!(self.request, Request::Pending) && attribute.is_l7()
    }

    pub(super) fn token(&self) -> Option<&'a Token> {
        self.head()?.token
    }

    /// The value of an attribute that has at most one textual value; headers are read by [`Self::header_values`], the
    /// lists of a token by [`Self::token`], the service account, which no text holds as it is compared, by
    /// [`Self::account`].
    pub(super) fn text(&self, attribute: &Attribute) -> Option<&'a [u8]> {
        let source = self.connection.source;
        let head = self.head();
        let value = match attribute {
            Attribute::SourcePrincipal => source.map(model::Identity::principal),
            // Without an identity the namespace is the empty text, not absent.
            Attribute::SourceNamespace => Some(source.map_or("", model::Identity::namespace)),
            Attribute::SourceTrustDomain => source.map(model::Identity::trust_domain),
            Attribute::ConnectionSni => self.connection.sni,
            Attribute::RequestHost => head.map(|head| head.authority),
            Attribute::RequestMethod => head.map(|head| head.method),
            Attribute::RequestPath => head.map(|head| head.path),
            Attribute::RequestPrincipal => self.token().and_then(Token::principal),
            Attribute::RequestPresenter => self.token().and_then(Token::presenter),
            Attribute::FilterMetadata(_)
            | Attribute::RequestAudiences
            | Attribute::RequestClaim(_)
            | Attribute::RequestHeader(_)
            | Attribute::SourceIp
            | Attribute::RemoteIp
            | Attribute::DestinationIp
            | Attribute::SourceServiceAccount
            | Attribute::DestinationPort => None,
        };
        value.map(str::as_bytes)
    }

    /// Each value of a header, the lines of a repeated one alone: a value hidden behind a second line is seen.
    pub(super) fn header_values(&self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let headers = self.head().map_or(&[][..], |head| head.headers);
        headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of an address attribute, IPv4 in its own form even if it came mapped into IPv6.
    pub(super) fn address(&self, attribute: &Attribute) -> Option<IpAddr> {
        let address = match attribute {
            Attribute::SourceIp => self.connection.source_ip,
            Attribute::DestinationIp => self.connection.destination_ip,
            Attribute::RemoteIp => self.forwarded_for().unwrap_or(self.connection.source_ip),
            _ => return None,
        };
        Some(address.to_canonical())
    }

    /// `namespace/account` of the peer.
    pub(super) fn account(&self) -> Option<AccountText> {
        let identity = self.connection.source?;
        let mut text = AccountText::from_slice(identity.namespace().as_bytes());
        text.push(b'/');
        text.extend_from_slice(identity.service_account().as_bytes());
        Some(text)
    }

    /// The last entry of X-Forwarded-For: the only one that the peer itself has not merely passed on.
    fn forwarded_for(&self) -> Option<IpAddr> {
        let last_line = self.header_values("x-forwarded-for").last()?;
        let entry = last_line.rsplit(|byte| *byte == b',').next()?;
        std::str::from_utf8(entry).ok()?.trim().parse().ok()
    }
}
