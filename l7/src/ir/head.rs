//! What is matched: connections and request heads.

use std::net::IpAddr;

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
