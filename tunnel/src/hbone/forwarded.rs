//! The `forwarded` header (RFC 7239) as HBONE uses it: who the original client was, and which service it asked for.

use std::fmt;
use std::net::SocketAddr;

/// One element of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's address, as its node proxy saw it.
    pub client: SocketAddr,
    /// Hostname of the service that the client dialled, if it dialled one.
    pub host: Option<Box<str>>,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 7239 section 6: an address with a port must be quoted.
        write!(f, "for=\"{}\"", self.client)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

impl Forwarded {
    /// The first element; none if it does not name an address and port.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let element = value.split(',').next()?;
        let (mut client, mut host) = (None, None);
        for pair in element.split(';') {
            let Some((name, value)) = pair.trim().split_once('=') else { continue };
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if name.eq_ignore_ascii_case("for") {
                client = value.parse().ok();
            } else if name.eq_ignore_ascii_case("host") {
                host = (!value.is_empty()).then(|| Box::from(value));
            }
        }
        Some(Self { client: client?, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_with_and_without_host_are_read_back() {
        for client in ["10.0.0.1:4000", "[2001:db8::1]:1"] {
            for host in [None, Some("web.app.svc.cluster.local")] {
                let forwarded = Forwarded { client: client.parse().unwrap(), host: host.map(Box::from) };
                let text = forwarded.to_string();
                assert!(text.starts_with(&format!("for=\"{client}\"")));
                assert_eq!(Forwarded::parse(text.as_bytes()), Some(forwarded));
            }
        }
    }

    #[test]
    fn what_names_no_address_is_none() {
        for value in ["", "for=unknown", "host=a", "for=\"10.0.0.1\"", "for=\"10.0.0.1:99999\"", ";=;"] {
            assert_eq!(Forwarded::parse(value.as_bytes()), None, "{value}");
        }
        assert_eq!(Forwarded::parse(b"\xff"), None);
    }
}
