//! `host [":" port]` as Host and the absolute form of a target carry it (RFC 3986 section 3.2).

/// True if `text` is a registered name, an IPv4 address or a bracketed IPv6 address, with or without a port. User
/// information is refused: nothing legitimate sends it, and it hides the host from a reader.
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((inside, after)) = rest.split_once(']') else { return false };
            if inside.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    host.is_none_or(is_registered_name) && port.is_none_or(is_port)
}

/// `unreserved / sub-delims / pct-encoded`, less the characters that no host name in use carries.
fn is_registered_name(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b'%'))
}

fn is_port(port: &str) -> bool {
    !port.is_empty()
        && port.len() <= 5
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_port() {
        for good in ["a", "a.example", "a.example:80", "10.0.0.1:8080", "[::1]", "[fd00::1]:15008", "x_y"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a/b", "u@h", "a:b", "a:", "a:99999", "[::1", "[::1]x", "[x]", "a:80:90", "a\0",
        ] {
            assert!(!is_authority(bad), "{bad:?}");
        }
    }
}
