//! Where an admin page is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What stands before the path of a socket file.
const UNIX: &str = "unix:";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AdminAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return if path.is_empty() {
                Err("give a path after unix:".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let (host, port) = parts.ok_or("give HOST:PORT or unix:PATH")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        // IPv6 addresses stand in brackets, for they have colons of their own.
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bare.is_none() && host.contains(':') {
            return Err("put an IPv6 address in brackets".into());
        }
        Ok(Self::Tcp { host: bare.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["localhost:15000", "[::1]:15000", "10.0.0.1:1", "unix:/run/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        for text in ["", "localhost", ":15000", "localhost:x", "localhost:70000", "::1:15000", "unix:"] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn fuzz_addresses_are_read_without_failing() {
        bolero::check!().with_type::<String>().for_each(|text| {
            if let Ok(address) = text.parse::<AdminAddress>() {
                assert_eq!(address.to_string().parse::<AdminAddress>().unwrap(), address);
            }
        });
    }
}
