//! What can be asked about: Envoy's attributes, as far as a record of the access log knows them.

use super::check::Type;

/// One of [`ATTRIBUTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    RequestPath,
    RequestHost,
    RequestMethod,
    RequestUserAgent,
    RequestId,
    RequestDuration,
    RequestTotalSize,
    ResponseCode,
    ResponseGrpcStatus,
    ResponseTotalSize,
    ConnectionMtls,
    ConnectionTlsVersion,
    LocalIdentity,
    PeerIdentity,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    UpstreamAddress,
    UpstreamPort,
    ClusterName,
    RouteName,
}

/// Their names, and the types of their values.
pub(super) const ATTRIBUTES: [(&str, Attribute, Type); 23] = [
    ("request.path", Attribute::RequestPath, Type::Text),
    ("request.url_path", Attribute::RequestPath, Type::Text),
    ("request.host", Attribute::RequestHost, Type::Text),
    ("request.method", Attribute::RequestMethod, Type::Text),
    ("request.useragent", Attribute::RequestUserAgent, Type::Text),
    ("request.id", Attribute::RequestId, Type::Text),
    ("request.duration", Attribute::RequestDuration, Type::Duration),
    ("request.total_size", Attribute::RequestTotalSize, Type::Integer),
    ("response.code", Attribute::ResponseCode, Type::Integer),
    ("response.grpc_status", Attribute::ResponseGrpcStatus, Type::Integer),
    ("response.total_size", Attribute::ResponseTotalSize, Type::Integer),
    ("connection.mtls", Attribute::ConnectionMtls, Type::Boolean),
    ("connection.tls_version", Attribute::ConnectionTlsVersion, Type::Text),
    ("connection.uri_san_local_certificate", Attribute::LocalIdentity, Type::Text),
    ("connection.uri_san_peer_certificate", Attribute::PeerIdentity, Type::Text),
    ("source.address", Attribute::SourceAddress, Type::Text),
    ("source.port", Attribute::SourcePort, Type::Integer),
    ("destination.address", Attribute::DestinationAddress, Type::Text),
    ("destination.port", Attribute::DestinationPort, Type::Integer),
    ("upstream.address", Attribute::UpstreamAddress, Type::Text),
    ("upstream.port", Attribute::UpstreamPort, Type::Integer),
    ("xds.cluster_name", Attribute::ClusterName, Type::Text),
    ("xds.route_name", Attribute::RouteName, Type::Text),
];

/// The headers of the request.
pub(super) const HEADERS: &str = "request.headers";
/// The same as one of them.
pub(super) const REFERER: &str = "request.referer";
