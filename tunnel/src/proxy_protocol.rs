//! The PROXY protocol, version 2: tells an application behind a tunnel who connected, and as whom.
//!
//! Only what the application tunnel needs: TCP over IPv4 or IPv6, and the peer's identity as an extension.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const FAMILY_TCP4: u8 = 0x11;
const FAMILY_TCP6: u8 = 0x21;
const TLV_IDENTITY: u8 = 0xD0;
const FIXED_BYTES: usize = 16;
const ADDRESSES_TCP6_BYTES: usize = 36;
/// Identities have at most 2048 bytes (SPIFFE-ID section 2.3), so every header's length fits its 16 bits.
const IDENTITY_BYTES_MAX: usize = 2_048;
const _: () = assert!(ADDRESSES_TCP6_BYTES + 3 + IDENTITY_BYTES_MAX < u16::MAX as usize);

/// A PROXY header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The peer's SPIFFE URI, if it proved one.
    pub identity: Option<Box<str>>,
}

/// Why bytes are no header that this module writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("the header is not complete")]
    Incomplete,
    #[error("not a PROXY version 2 header for TCP")]
    Kind,
    #[error("the header's length does not agree with its parts")]
    Length,
    #[error("the identity is no text")]
    Identity,
}

impl ProxyHeader {
    /// The header's bytes. Addresses of different families are both written as IPv6, IPv4 ones mapped.
    pub fn encode(&self) -> Vec<u8> {
        let mut addresses = Vec::with_capacity(ADDRESSES_TCP6_BYTES);
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        let family = if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
            addresses.extend_from_slice(&source.octets());
            addresses.extend_from_slice(&destination.octets());
            FAMILY_TCP4
        } else {
            addresses.extend_from_slice(&as_v6(source).octets());
            addresses.extend_from_slice(&as_v6(destination).octets());
            FAMILY_TCP6
        };
        addresses.extend_from_slice(&self.source.port().to_be_bytes());
        addresses.extend_from_slice(&self.destination.port().to_be_bytes());
        let identity = self.identity.as_deref().filter(|identity| identity.len() <= IDENTITY_BYTES_MAX);
        let extension = identity.map_or(0, |identity| 3 + identity.len());
        let length = u16::try_from(addresses.len() + extension).unwrap_or(u16::MAX);

        let mut header = Vec::with_capacity(FIXED_BYTES + usize::from(length));
        header.extend_from_slice(&SIGNATURE);
        header.extend_from_slice(&[VERSION_2_PROXY, family]);
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&addresses);
        if let Some(identity) = identity {
            header.push(TLV_IDENTITY);
            header.extend_from_slice(&u16::try_from(identity.len()).unwrap_or(u16::MAX).to_be_bytes());
            header.extend_from_slice(identity.as_bytes());
        }
        header
    }

    /// Reads a header and says how long it is. Extensions of other kinds are passed over.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), ProxyHeaderError> {
        let known = bytes.len().min(SIGNATURE.len());
        if bytes.get(..known) != SIGNATURE.get(..known) {
            return Err(ProxyHeaderError::Kind);
        }
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>().ok_or(ProxyHeaderError::Incomplete)?;
        let [.., kind, family, high, low] = *fixed;
        if kind != VERSION_2_PROXY {
            return Err(ProxyHeaderError::Kind);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = rest.get(..length).ok_or(ProxyHeaderError::Incomplete)?;
        let (source, destination, mut extensions) = match family {
            FAMILY_TCP4 => addresses::<4>(body)?,
            FAMILY_TCP6 => addresses::<16>(body)?,
            _ => return Err(ProxyHeaderError::Kind),
        };
        let mut identity = None;
        while let [kind, high, low, rest @ ..] = extensions {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, rest) = rest.split_at_checked(length).ok_or(ProxyHeaderError::Length)?;
            if *kind == TLV_IDENTITY {
                let text = std::str::from_utf8(value).map_err(|_| ProxyHeaderError::Identity)?;
                identity = Some(Box::from(text));
            }
            extensions = rest;
        }
        if !extensions.is_empty() {
            return Err(ProxyHeaderError::Length);
        }
        Ok((Self { source, destination, identity }, FIXED_BYTES + length))
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Source and destination, and what lies behind them.
fn addresses<const N: usize>(body: &[u8]) -> Result<(SocketAddr, SocketAddr, &[u8]), ProxyHeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let length = ProxyHeaderError::Length;
    let (source, rest) = body.split_first_chunk::<N>().ok_or(length)?;
    let (destination, rest) = rest.split_first_chunk::<N>().ok_or(length)?;
    let (source_port, rest) = rest.split_first_chunk::<2>().ok_or(length)?;
    let (destination_port, rest) = rest.split_first_chunk::<2>().ok_or(length)?;
    let address = |ip: [u8; N], port: [u8; 2]| {
        SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_be_bytes(port))
    };
    Ok((address(*source, *source_port), address(*destination, *destination_port), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str, identity: Option<&str>) -> ProxyHeader {
        ProxyHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: identity.map(Box::from),
        }
    }

    #[test]
    fn ipv4_header_has_the_bytes_of_the_specification() {
        let bytes = header("1.2.3.4:256", "5.6.7.8:80", Some("spiffe://t")).encode();
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x19\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        expected.extend_from_slice(b"\x01\x00\0\x50\xD0\0\x0aspiffe://t");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn all_address_pairs_are_read_back() {
        for source in ["1.2.3.4:5", "[2001:db8::1]:5"] {
            for destination in ["5.6.7.8:65535", "[::1]:1"] {
                for identity in [None, Some("spiffe://cluster.local/ns/a/sa/b")] {
                    let header = header(source, destination, identity);
                    let bytes = header.encode();
                    let length = bytes.len();
                    assert_eq!(ProxyHeader::parse(&bytes), Ok((header, length)));
                    for cut in 0..length {
                        assert_eq!(ProxyHeader::parse(&bytes[..cut]), Err(ProxyHeaderError::Incomplete));
                    }
                }
            }
        }
    }

    #[test]
    fn fuzz_proxy_v2_never_reads_past_its_length() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut framed = [SIGNATURE.as_slice(), &[VERSION_2_PROXY]].concat();
            framed.extend_from_slice(bytes);
            for bytes in [bytes, &framed] {
                if let Ok((header, length)) = ProxyHeader::parse(bytes) {
                    assert!(length <= bytes.len());
                    let again = header.encode();
                    if header.identity.as_ref().is_none_or(|identity| identity.len() <= IDENTITY_BYTES_MAX) {
                        assert_eq!(ProxyHeader::parse(&again), Ok((header, again.len())));
                    }
                }
            }
        });
    }
}
