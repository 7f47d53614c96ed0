//! What a port speaks, told from `appProtocol`, from the port's name, or from a ServiceEntry's `protocol`.

use crate::kube::cluster::{ServicePort, TransportProtocol};
use crate::proto::workload::AppProtocol;

/// `appProtocol` wins over the name; the part of the name before the first hyphen is what counts.
pub(super) fn of_service_port(port: &ServicePort) -> AppProtocol {
    if port.protocol == TransportProtocol::Udp {
        return AppProtocol::Unknown;
    }
    match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => AppProtocol::Http2,
        Some("kubernetes.io/ws") => AppProtocol::Http11,
        Some("kubernetes.io/wss") => AppProtocol::Tls,
        Some(name) => of_name(name),
        None => of_name(port.name.split('-').next().unwrap_or_default()),
    }
}

pub(super) fn of_name(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::cluster::TargetPort;

    #[test]
    fn declaration_wins_over_name_and_name_over_nothing() {
        let port = |name: &str, app_protocol: Option<&str>, protocol| {
            of_service_port(&ServicePort {
                name: name.into(),
                port: 80,
                target: TargetPort::Number(80),
                protocol,
                app_protocol: app_protocol.map(Into::into),
            })
        };
        let tcp = TransportProtocol::Tcp;
        assert_eq!(port("http", None, tcp), AppProtocol::Http11);
        assert_eq!(port("http-admin", None, tcp), AppProtocol::Http11);
        assert_eq!(port("httpadmin", None, tcp), AppProtocol::Unknown);
        assert_eq!(port("http", Some("grpc"), tcp), AppProtocol::Grpc);
        assert_eq!(port("x", Some("kubernetes.io/h2c"), tcp), AppProtocol::Http2);
        assert_eq!(port("mesh", Some("hbone"), tcp), AppProtocol::Unknown);
        assert_eq!(port("https", None, tcp), AppProtocol::Tls);
        assert_eq!(port("http", None, TransportProtocol::Udp), AppProtocol::Unknown);
    }
}
