//! What requests are hashed by (`RouteAction.hash_policy`), for clusters that choose by hash.

use std::sync::Arc;

use l7::ir::HashOn;

use crate::envoy::Refusal;
use crate::envoy::refusal::Within;
use crate::envoy::text;
use crate::proto::waypoint::HashPolicy;
use crate::proto::waypoint::hash_policy::Specifier;

pub(super) fn on(policy: &HashPolicy) -> Result<HashOn, Refusal> {
    let name = |text: &str, place: &str| match text {
        "" => Err(Refusal::at(place, "there is none")),
        text => Ok(Arc::from(text)),
    };
    Ok(match &policy.specifier {
        Some(Specifier::Header(header)) => {
            HashOn::Header(name(&header.header_name.to_ascii_lowercase(), "header.header_name")?)
        }
        Some(Specifier::Cookie(cookie)) => {
            let lifetime = cookie.ttl.as_ref().map(text::milliseconds).transpose().within("cookie.ttl")?;
            if !cookie.name.bytes().all(l7::http1::is_token) || !cookie.path.bytes().all(is_of_path) {
                return Err(Refusal::at("cookie", "its name or its path is none of a cookie"));
            }
            HashOn::Cookie {
                name: name(&cookie.name, "cookie.name")?,
                path: Arc::from(&*cookie.path),
                // 0 is not told from what is too short to count: both are as long as the session.
                lifetime_s: lifetime.map(|length| length.map_or(0, |length| length.get() / 1000)),
            }
        }
        Some(Specifier::ConnectionProperties(connection)) if connection.source_ip => HashOn::SourceIp,
        Some(Specifier::QueryParameter(parameter)) => {
            HashOn::QueryParameter(name(&parameter.name, "query_parameter.name")?)
        }
        Some(Specifier::ConnectionProperties(_)) | None => {
            return Err(Refusal::new("it says nothing to be hashed by"));
        }
    })
}

fn is_of_path(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b";,\"\\".contains(&byte)
}
