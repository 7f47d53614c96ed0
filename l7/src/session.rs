//! Sessions: requests that carry a reference to an endpoint go there as long as it lives (Gateway API,
//! SessionPersistence).
//!
//! A reference is opaque to clients and no secret. It is taken at its word for nothing: the caller follows it only to
//! an endpoint that a backend of the request's own rule has at that moment, so a forged one chooses among those that
//! chance could have chosen. The proxies of all nodes read each other's references.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::NamespacedHostname;

use crate::ir::{
    BackendTarget, Header, HeaderValue, HttpMatch, PathMatch, SessionCarrier, SessionPersistence,
};

/// Longest reference that is read: longer is no name that we have written.
const ENCODED_BYTES_MAX: usize = 2048;
/// The first part of a reference, to be changed with its form.
const VERSION: &str = "1";
/// References may be so much younger than our clock, which another node's clock has dated.
const SKEW_S: u64 = 300;
/// A reference is dated anew after this part of the idle timeout.
const REFRESH_PART: u64 = 4;

/// An endpoint that a session is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bond {
    pub service: NamespacedHostname,
    /// Of the service.
    pub port: u16,
    /// Unique name of the workload.
    pub endpoint: Arc<str>,
    /// Seconds since the epoch.
    pub began: u64,
    /// Seconds since the epoch; dated anew now and then only.
    pub used: u64,
}

impl Bond {
    pub fn encode(&self) -> String {
        let Self { service, port, endpoint, began, used } = self;
        let plain = format!(
            "{VERSION}\n{}\n{}\n{port}\n{endpoint}\n{began}\n{used}",
            service.namespace, service.hostname
        );
        URL_SAFE_NO_PAD.encode(plain)
    }

    /// `None` for what no [`Self::encode`] has written.
    pub fn decode(text: &[u8]) -> Option<Self> {
        if text.len() > ENCODED_BYTES_MAX {
            return None;
        }
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = plain.split('\n');
        let mut part = || parts.next();
        if part()? != VERSION {
            return None;
        }
        let service = NamespacedHostname::new(part()?, part()?);
        let (port, endpoint) = (part()?.parse().ok()?, Arc::from(part()?));
        let (began, used) = (part()?.parse().ok()?, part()?.parse().ok()?);
        parts.next().is_none().then_some(Self { service, port, endpoint, began, used })
    }

    /// Whether it is with an endpoint of this backend.
    pub fn is_to(&self, target: &BackendTarget) -> bool {
        match target {
            BackendTarget::Service { service, port } => *service == self.service && *port == self.port,
            BackendTarget::Invalid(_) => false,
        }
    }

    fn is_in_force(&self, policy: &SessionPersistence, now: u64) -> bool {
        let within = |limit: Option<std::num::NonZeroU32>, since: u64| {
            limit.is_none_or(|limit| now.saturating_sub(since) < u64::from(limit.get()))
        };
        let is_past = self.began <= self.used && self.used <= now.saturating_add(SKEW_S);
        is_past && within(policy.absolute_timeout_s, self.began) && within(policy.idle_timeout_s, self.used)
    }
}

/// The bond that a request carries, if it is in force. `now` in seconds since the epoch.
pub fn presented(policy: &SessionPersistence, headers: &[Header<'_>], now: u64) -> Option<Bond> {
    let named = |name: &'static str| move |header: &&Header<'_>| header.name.eq_ignore_ascii_case(name);
    let decoded = |text: &[u8]| Bond::decode(text).filter(|bond| bond.is_in_force(policy, now));
    match policy.carrier {
        SessionCarrier::Header => {
            let mut lines = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(&policy.name));
            lines.find_map(|line| decoded(line.value))
        }
        SessionCarrier::SessionCookie | SessionCarrier::PermanentCookie => {
            let lines = headers.iter().filter(named("cookie"));
            let pairs = lines.flat_map(|line| line.value.split(|byte| *byte == b';'));
            let values = pairs.filter_map(|pair| {
                let pair = pair.trim_ascii();
                let value = pair.strip_prefix(policy.name.as_bytes())?.strip_prefix(b"=")?;
                Some(value.strip_prefix(b"\"").and_then(|it| it.strip_suffix(b"\"")).unwrap_or(value))
            });
            values.into_iter().find_map(decoded)
        }
    }
}

/// Binds a session to the endpoint that a request has gone to: what the response says, if the client does not know it
/// yet. `carried` is the bond that the request carried, `matched` the match that took it.
pub fn bind(
    policy: &SessionPersistence,
    carried: Option<&Bond>,
    mut bond: Bond,
    matched: Option<&HttpMatch>,
    now: u64,
) -> Option<HeaderValue> {
    let known = carried
        .filter(|it| (&it.service, it.port, &it.endpoint) == (&bond.service, bond.port, &bond.endpoint));
    (bond.began, bond.used) = (known.map_or(now, |it| it.began), now);
    let is_fresh = known.is_some_and(|it| {
        let renewed = policy.idle_timeout_s.map(|limit| u64::from(limit.get()) / REFRESH_PART);
        renewed.is_none_or(|renewed| now.saturating_sub(it.used) < renewed)
    });
    match policy.carrier {
        SessionCarrier::Header => {
            Some(HeaderValue { name: policy.name.clone(), value: Arc::from(bond.encode()) })
        }
        _ if is_fresh => None,
        carrier => {
            let mut cookie = format!("{}={}", policy.name, bond.encode());
            if let Some(path) = cookie_path(matched) {
                cookie.extend(["; Path=", path]);
            }
            if let (SessionCarrier::PermanentCookie, Some(limit)) = (carrier, policy.absolute_timeout_s) {
                let left = u64::from(limit.get()).saturating_sub(now.saturating_sub(bond.began));
                cookie.extend(["; Max-Age=", &left.to_string()]);
            }
            cookie.push_str("; HttpOnly");
            Some(HeaderValue { name: Arc::from("set-cookie"), value: Arc::from(cookie) })
        }
    }
}

/// The path that was matched; `None` where the match does not name one, and for one that no attribute of a cookie can
/// hold (RFC 6265 section 4.1.1).
fn cookie_path(matched: Option<&HttpMatch>) -> Option<&str> {
    match &matched?.path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) if !path.contains(';') => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn policy(carrier: SessionCarrier, absolute: u32, idle: u32) -> SessionPersistence {
        SessionPersistence {
            name: "sid".into(),
            carrier,
            absolute_timeout_s: NonZeroU32::new(absolute),
            idle_timeout_s: NonZeroU32::new(idle),
        }
    }

    fn bond(endpoint: &str) -> Bond {
        Bond {
            service: NamespacedHostname::new("app", "web.app.svc.cluster.local"),
            port: 80,
            endpoint: endpoint.into(),
            began: 0,
            used: 0,
        }
    }

    fn exact(path: &str) -> HttpMatch {
        HttpMatch { path: PathMatch::Exact(path.into()), ..HttpMatch::default() }
    }

    /// What a browser sends back of a Set-Cookie.
    fn echoed(cookie: &HeaderValue) -> String {
        assert_eq!(&*cookie.name, "set-cookie");
        format!("other=1; {}; last=2", cookie.value.split(';').next().unwrap())
    }

    #[test]
    fn a_cookie_leads_back_until_it_expires() {
        let own = policy(SessionCarrier::PermanentCookie, 100, 0);
        let first = bind(&own, None, bond("w1"), Some(&exact("/a")), 1000).unwrap();
        assert!(first.value.ends_with("; Path=/a; Max-Age=100; HttpOnly"), "{}", first.value);
        let cookie = echoed(&first);
        let headers = [Header { name: "Cookie", value: cookie.as_bytes() }];
        let carried = presented(&own, &headers, 1099).unwrap();
        assert_eq!((&*carried.endpoint, carried.began), ("w1", 1000));
        assert_eq!(bind(&own, Some(&carried), bond("w1"), None, 1099), None, "the client knows");
        let moved = bind(&own, Some(&carried), bond("w2"), None, 1099).unwrap();
        assert!(moved.value.ends_with("; Max-Age=100; HttpOnly"), "a new session: {}", moved.value);
        assert_eq!(presented(&own, &headers, 1100), None);
    }

    #[test]
    fn an_idle_session_ends_and_a_used_one_is_dated_anew() {
        let own = policy(SessionCarrier::SessionCookie, 0, 40);
        let cookie = echoed(&bind(&own, None, bond("w1"), None, 1000).unwrap());
        let headers = [Header { name: "cookie", value: cookie.as_bytes() }];
        let carried = presented(&own, &headers, 1009).unwrap();
        assert_eq!(bind(&own, Some(&carried), bond("w1"), None, 1009), None);
        let renewed = bind(&own, Some(&carried), bond("w1"), None, 1010).unwrap();
        let cookie = echoed(&renewed);
        let headers = [Header { name: "cookie", value: cookie.as_bytes() }];
        assert_eq!(presented(&own, &headers, 1049).unwrap().began, 1000);
        assert_eq!(presented(&own, &headers, 1050), None);
    }

    #[test]
    fn a_header_carries_it_in_every_response() {
        let own = policy(SessionCarrier::Header, 0, 0);
        let first = bind(&own, None, bond("w1"), None, 7).unwrap();
        let headers = [Header { name: "SID", value: first.value.as_bytes() }];
        let carried = presented(&own, &headers, 8).unwrap();
        assert!(bind(&own, Some(&carried), bond("w1"), None, 8).is_some());
        assert_eq!(presented(&policy(SessionCarrier::SessionCookie, 0, 0), &headers, 8), None);
    }

    #[test]
    fn what_nobody_wrote_is_no_bond() {
        let own = policy(SessionCarrier::Header, 0, 0);
        let future = Bond { began: 10_000, used: 10_000, ..bond("w") }.encode();
        assert_eq!(presented(&own, &[Header { name: "sid", value: future.as_bytes() }], 1000), None);
        for text in ["", "x", "MQ", &"A".repeat(5000)] {
            assert_eq!(Bond::decode(text.as_bytes()), None, "{text}");
        }
        assert_eq!(cookie_path(Some(&exact("/a;b"))), None);
    }

    #[test]
    fn references_are_read_up_to_their_bound() {
        let of_length = |length: usize| {
            let own = (1..length).map(|count| bond(&"w".repeat(count)));
            own.into_iter().find(|own| own.encode().len() == length).unwrap()
        };
        let longest = of_length(ENCODED_BYTES_MAX);
        assert_eq!(Bond::decode(longest.encode().as_bytes()), Some(longest));
        assert_eq!(Bond::decode(of_length(ENCODED_BYTES_MAX + 2).encode().as_bytes()), None);
    }

    #[test]
    fn fuzz_references_survive_and_noise_does_not_panic() {
        bolero::check!().with_type::<(Vec<u8>, u16, u64, u64)>().for_each(|(noise, port, began, used)| {
            let name = String::from_utf8_lossy(noise).replace('\n', "");
            let own = Bond { port: *port, endpoint: name.into(), began: *began, used: *used, ..bond("") };
            let encoded = own.encode();
            if encoded.len() <= ENCODED_BYTES_MAX {
                assert_eq!(Bond::decode(encoded.as_bytes()), Some(own));
            }
            assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
            Bond::decode(noise);
            let headers = [Header { name: "cookie", value: noise }];
            presented(&policy(SessionCarrier::SessionCookie, 1, 1), &headers, *began);
        });
    }
}
