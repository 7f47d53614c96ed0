//! The `:authority` of an HBONE request: an address or a hostname, and always a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest hostname, RFC 1035 section 2.3.4, without the dot at its end.
const HOSTNAME_BYTES_MAX: usize = 253;

/// Where a request wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    pub host: Host,
    pub port: u16,
}

/// The host of an [`Authority`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// Never an IPv4-mapped IPv6 address: those are made IPv4 on reading, so that one address has one spelling.
    Ip(IpAddr),
    /// In lower case, without a dot at its end.
    Name(Box<str>),
}

/// Why a text is no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority has no port, or one that is not 1 to 65535")]
    Port,
    #[error("the authority's host is neither an IP address nor a hostname")]
    Host,
}

impl Authority {
    pub fn from_ip(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }

    /// A hostname and its port; the name is checked and brought into the one form that is compared.
    pub fn from_name(name: &str, port: u16) -> Result<Self, AuthorityError> {
        if port == 0 {
            return Err(AuthorityError::Port);
        }
        Ok(Self { host: Host::Name(hostname(name)?), port })
    }

    pub fn parse(text: &[u8]) -> Result<Self, AuthorityError> {
        std::str::from_utf8(text).map_err(|_| AuthorityError::Host)?.parse()
    }

    /// The address, if it is not a hostname.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        // `u16::from_str` would take a plus sign and any number of zeros.
        if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AuthorityError::Port);
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(AuthorityError::Port)?;
        if let Some(bracketed) = host.strip_prefix('[') {
            let ip: Ipv6Addr = bracketed
                .strip_suffix(']')
                .and_then(|inner| inner.parse().ok())
                .ok_or(AuthorityError::Host)?;
            return Ok(Self { host: Host::Ip(IpAddr::V6(ip).to_canonical()), port });
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self { host: Host::Ip(IpAddr::V4(ip)), port });
        }
        Ok(Self { host: Host::Name(hostname(host)?), port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

fn hostname(text: &str) -> Result<Box<str>, AuthorityError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_valid = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A name whose last label is a number could be read as an IPv4 address by someone else (WHATWG URL 3.5).
    let last_is_number =
        name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > HOSTNAME_BYTES_MAX || last_is_number || !name.split('.').all(label_is_valid) {
        return Err(AuthorityError::Host);
    }
    Ok(name.to_ascii_lowercase().into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read_and_printed() {
        for (text, printed) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("web.app.svc.cluster.local:8080", "web.app.svc.cluster.local:8080"),
            ("Web.App.:1", "web.app:1"),
            ("my_svc:1", "my_svc:1"),
        ] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, error) in [
            ("", AuthorityError::Port),
            ("10.0.0.1", AuthorityError::Port),
            ("10.0.0.1:", AuthorityError::Port),
            ("10.0.0.1:0", AuthorityError::Port),
            ("10.0.0.1:+80", AuthorityError::Port),
            ("10.0.0.1:65536", AuthorityError::Port),
            ("10.0.0.1:000080", AuthorityError::Port),
            (":80", AuthorityError::Host),
            ("10.0.0.256:80", AuthorityError::Host),
            ("10.0.0.01:80", AuthorityError::Host),
            ("2001:db8::1:80", AuthorityError::Host),
            ("[10.0.0.1]:80", AuthorityError::Host),
            ("[fe80::1%eth0]:80", AuthorityError::Host),
            ("user@host:80", AuthorityError::Host),
            ("a..b:80", AuthorityError::Host),
            ("a b:80", AuthorityError::Host),
            ("127.1:80", AuthorityError::Host),
            ("a/b:80", AuthorityError::Host),
            (".:80", AuthorityError::Host),
        ] {
            assert_eq!(text.parse::<Authority>(), Err(error), "{text:?}");
        }
        assert_eq!(Authority::parse(b"\xff:80"), Err(AuthorityError::Host));
        assert!(format!("{}:80", "a.".repeat(128)).parse::<Authority>().is_err());
    }
}
