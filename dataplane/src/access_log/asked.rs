//! A record, as the expressions of telemetry ask about it.

use std::borrow::Cow;
use std::net::SocketAddr;

use l7::cel::{Attribute, Facts, Value};

use super::record::{Authority, Direction, HttpFacts, Record};
use crate::trace::cluster;

/// What is known of a connection or request that is over.
pub(super) struct Asked<'a>(pub(super) &'a Record);

impl Facts for Asked<'_> {
    fn attribute(&self, attribute: Attribute) -> Option<Value<'_>> {
        let record = self.0;
        match attribute {
            Attribute::RequestPath
            | Attribute::RequestHost
            | Attribute::RequestMethod
            | Attribute::RequestUserAgent
            | Attribute::RequestId
            | Attribute::ResponseCode
            | Attribute::ResponseGrpcStatus
            | Attribute::RouteName => of_request(record.http.as_deref()?, attribute),
            Attribute::RequestDuration => {
                Some(Value::Duration(i64::try_from(record.duration.as_nanos()).unwrap_or(i64::MAX)))
            }
            Attribute::RequestTotalSize => Some(size(record.request_bytes())),
            Attribute::ResponseTotalSize => Some(size(record.response_bytes())),
            Attribute::ConnectionMtls => Some(Value::Boolean(record.tls.is_some())),
            Attribute::ConnectionTlsVersion => record.tls.map(|tls| text(tls.version_name())),
            Attribute::LocalIdentity | Attribute::PeerIdentity => {
                let is_source =
                    (attribute == Attribute::LocalIdentity) == (record.direction == Direction::Outbound);
                let party = if is_source { &record.source } else { &record.destination };
                party.identity.as_ref().map(|identity| text(identity.uri()))
            }
            Attribute::SourceAddress => record.source.address.map(address),
            Attribute::SourcePort => record.source.address.map(port),
            Attribute::DestinationAddress => addressed(record).map(address),
            Attribute::DestinationPort => addressed(record).map(port),
            Attribute::UpstreamAddress => record.destination.address.map(address),
            Attribute::UpstreamPort => record.destination.address.map(port),
            Attribute::ClusterName => Some(Value::Text(cluster(record).into())),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let headers = &self.0.http.as_ref()?.headers;
        headers.iter().find(|(header, _)| **header == *name).map(|(_, value)| &**value)
    }
}

fn of_request(http: &HttpFacts, attribute: Attribute) -> Option<Value<'_>> {
    let filled = |value: &'_ str| !value.is_empty();
    match attribute {
        Attribute::RequestPath => Some(text(http.path.as_str())),
        Attribute::RequestHost => Some(text(&http.authority)),
        Attribute::RequestMethod => Some(text(&http.method)),
        Attribute::RequestUserAgent => filled(&http.user_agent).then(|| text(&http.user_agent)),
        Attribute::RequestId => filled(&http.request_id).then(|| text(&http.request_id)),
        // Of a request that was not answered there is none.
        Attribute::ResponseCode => (http.status != 0).then(|| Value::Integer(http.status.into())),
        Attribute::ResponseGrpcStatus => http.grpc_status.map(|status| Value::Integer(status.code().into())),
        Attribute::RouteName => {
            http.route.as_ref().map(|(route, rule)| Value::Text(Cow::Owned(format!("{route}/{rule}"))))
        }
        _ => None,
    }
}

/// What the client's proxy asked for, or what was dialled.
fn addressed(record: &Record) -> Option<SocketAddr> {
    match record.hbone_authority {
        Some(Authority::Address(address)) => Some(address),
        _ => record.destination.address,
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn address(address: SocketAddr) -> Value<'static> {
    Value::Text(Cow::Owned(address.to_string()))
}

fn port(address: SocketAddr) -> Value<'static> {
    Value::Integer(address.port().into())
}

fn size(bytes: u64) -> Value<'static> {
    Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use l7::cel::Filter;

    use super::*;
    use crate::access_log::format::tests::{plain_record, tunnel_record};
    use crate::access_log::record::{Path, method};

    fn request() -> Record {
        let mut http = HttpFacts { status: 404, ..HttpFacts::default() };
        http.method = method("GET");
        http.path = Path::new("/v1/a");
        http.authority.push_str("web.app:8080");
        http.route = Some(("app/web".into(), 2));
        http.headers = vec![("x-user".into(), "u".into())];
        Record { http: Some(Box::new(http)), ..tunnel_record() }
    }

    #[test]
    fn a_record_answers_for_what_it_knows() {
        let record = request();
        for expression in [
            "response.code == 404 && request.method == 'GET'",
            "request.path == '/v1/a' && request.url_path.startsWith('/v1')",
            "request.host == 'web.app:8080'",
            "!has(request.useragent) && !has(request.id) && !has(response.grpc_status)",
            "request.headers['x-user'] == 'u' && !('x-other' in request.headers)",
            "request.duration == duration('3ms')",
            "connection.mtls && connection.tls_version == 'TLSv1.3'",
            "connection.uri_san_peer_certificate == 'spiffe://cluster.local/ns/app/sa/web'",
            "upstream.address == '10.0.0.2:15008' && upstream.port == 15008",
            "destination.address == '10.0.0.2:8080' && destination.port == 8080",
            "source.port > 0 && source.address.startsWith('10.')",
            "xds.cluster_name == 'outbound|15008||web.app.svc.cluster.local'",
            "xds.route_name == 'app/web/2'",
        ] {
            assert!(Filter::compile(expression).unwrap().holds(&Asked(&record)), "{expression}");
        }
        let connection = plain_record();
        for expression in
            ["!has(response.code) && !has(request.path)", "!connection.mtls", "request.total_size >= 0"]
        {
            assert!(Filter::compile(expression).unwrap().holds(&Asked(&connection)), "{expression}");
        }
    }

    #[test]
    fn its_telemetry_decides_whether_it_is_told() {
        let telemetry = |disabled, filter: Option<&str>| {
            let log = l7::ir::LogRule { disabled, filter: filter.map(Into::into) };
            Some(Arc::new(
                l7::telemetry::Side::compile(l7::ir::TelemetrySide { log, ..Default::default() }).unwrap(),
            ))
        };
        let with = |telemetry| Record { telemetry, ..request() };
        assert!(with(None).is_told() && !with(None).is_silenced());
        assert!(with(telemetry(false, Some("response.code >= 400"))).is_told());
        assert!(!with(telemetry(false, Some("response.code >= 500"))).is_told());
        let silenced = with(telemetry(true, None));
        assert!(!silenced.is_told() && silenced.is_silenced());
    }
}
