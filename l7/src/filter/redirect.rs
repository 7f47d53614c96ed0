//! Where a redirect sends the client.

use crate::ir::{Redirect, Scheme};

/// How the client came: what a redirect leaves unset stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialled {
    pub scheme: Scheme,
    pub port: u16,
}

impl Scheme {
    fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// RFC 9110 sections 4.2.1 and 4.2.2.
    fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// `authority` and `query` are the request's, both free of anything that could end a field line.
pub(super) fn location(
    redirect: &Redirect,
    dialled: Dialled,
    authority: &str,
    path: &str,
    query: Option<&str>,
) -> String {
    let scheme = redirect.scheme.unwrap_or(dialled.scheme);
    let port = redirect.port.unwrap_or(match redirect.scheme {
        Some(scheme) => scheme.well_known_port(),
        None => dialled.port,
    });
    let host = redirect.hostname.as_deref().unwrap_or_else(|| host(authority));
    let mut location = String::with_capacity(16 + host.len() + path.len() + query.map_or(0, str::len));
    location.extend([scheme.text(), "://", host]);
    if port != scheme.well_known_port() {
        location.extend([":", &port.to_string()]);
    }
    // `*` of OPTIONS is no path: it asks about the server, which the empty path also does (RFC 9112 section 3.2.4).
    if path != "*" {
        location.push_str(path);
    }
    if let Some(query) = query {
        location.extend(["?", query]);
    }
    location
}

/// An authority without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unset_stays_as_the_client_dialled_it() {
        let none = Redirect { scheme: None, hostname: None, port: None, path: None, status: 302 };
        let http = |port| Dialled { scheme: Scheme::Http, port };
        let with_scheme = |scheme| Redirect { scheme: Some(scheme), ..none.clone() };
        let with_port = |port| Redirect { port: Some(port), ..none.clone() };
        let named = Redirect { hostname: Some("example.org".into()), ..none.clone() };
        for (redirect, dialled, authority, expected) in [
            (none.clone(), http(80), "echo", "http://echo/p?q=1"),
            (none.clone(), http(80), "echo:80", "http://echo/p?q=1"),
            (none.clone(), http(8080), "echo", "http://echo:8080/p?q=1"),
            (none.clone(), http(80), "[fd00::1]:80", "http://[fd00::1]/p?q=1"),
            (none.clone(), http(80), "[fd00::1]", "http://[fd00::1]/p?q=1"),
            (with_scheme(Scheme::Https), http(8080), "echo:8080", "https://echo/p?q=1"),
            (with_scheme(Scheme::Http), http(8080), "echo:8080", "http://echo/p?q=1"),
            (with_port(443), http(80), "echo", "http://echo:443/p?q=1"),
            (with_port(80), http(8080), "echo:8080", "http://echo/p?q=1"),
            (
                Redirect { port: Some(443), ..with_scheme(Scheme::Https) },
                http(80),
                "echo",
                "https://echo/p?q=1",
            ),
            (
                Redirect { port: Some(80), ..with_scheme(Scheme::Https) },
                http(80),
                "echo",
                "https://echo:80/p?q=1",
            ),
            (named.clone(), http(80), "echo:80", "http://example.org/p?q=1"),
            (named, http(8080), "echo", "http://example.org:8080/p?q=1"),
        ] {
            assert_eq!(location(&redirect, dialled, authority, "/p", Some("q=1")), expected, "{redirect:?}");
        }
        assert_eq!(location(&none, http(80), "echo", "*", None), "http://echo");
    }
}
