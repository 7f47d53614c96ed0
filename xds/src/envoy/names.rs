//! Names of clusters and filter chains: `inbound-vip|PORT|PROTOCOL/SUBSET|HOST` and `outbound|PORT|SUBSET|HOST`.

use std::sync::Arc;

use model::NamespacedHostname;

/// What the name of a cluster, or of the filter chain in front of it, says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ClusterName {
    pub(super) direction: Direction,
    pub(super) hostname: Arc<str>,
    pub(super) port: u16,
    /// Empty: the whole service.
    pub(super) subset: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Direction {
    /// A service that the waypoint fronts; which of these is served where both exist does not matter for endpoints.
    FrontedHttp,
    FrontedTcp,
    /// Any service.
    Outbound,
}

impl ClusterName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let (direction, port, subset, hostname) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let (protocol, inner) = subset.split_once('/').unwrap_or((subset, ""));
        let (direction, subset) = match (direction, protocol) {
            ("inbound-vip", "http") => (Direction::FrontedHttp, inner),
            ("inbound-vip", "tcp") => (Direction::FrontedTcp, inner),
            ("outbound", _) => (Direction::Outbound, subset),
            _ => return None,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        if hostname.is_empty() {
            return None;
        }
        Some(Self { direction, hostname: hostname.to_ascii_lowercase().into(), port, subset: subset.into() })
    }

    pub(super) fn carries_http(&self) -> bool {
        self.direction == Direction::FrontedHttp
    }

    /// Whether this is the same port of the same service, as a whole.
    pub(super) fn is_port_of(&self, service: &Self) -> bool {
        self.hostname == service.hostname && self.port == service.port && self.subset.is_empty()
    }

    /// The names of the clusters that hold the endpoints of this port, in the order in which they are preferred.
    pub(super) fn candidates(&self) -> [String; 3] {
        let Self { hostname, port, subset, .. } = self;
        let slash = if subset.is_empty() { "" } else { "/" };
        [
            format!("inbound-vip|{port}|http{slash}{subset}|{hostname}"),
            format!("inbound-vip|{port}|tcp{slash}{subset}|{hostname}"),
            format!("outbound|{port}|{subset}|{hostname}"),
        ]
    }

    /// The service as routes name it. Clusters are found by host name and port alone, so the namespace, which these
    /// names do not tell, is only what people are shown: that of a Kubernetes host name, else empty.
    pub(super) fn service(&self) -> NamespacedHostname {
        let mut labels = self.hostname.split('.');
        let namespace = match (labels.next(), labels.next(), labels.next()) {
            (Some(_), Some(namespace), Some("svc")) => namespace,
            _ => "",
        };
        NamespacedHostname { namespace: namespace.into(), hostname: Arc::clone(&self.hostname) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_istiod_are_understood() {
        let of = |name: &str| {
            let name = ClusterName::parse(name)?;
            Some((name.direction, name.service().to_string(), name.port, name.subset.to_string()))
        };
        let echo = "app/echo.app.svc.cluster.local".to_owned();
        for (name, expected) in [
            (
                "inbound-vip|80|http|echo.app.svc.cluster.local",
                Some((Direction::FrontedHttp, echo.clone(), 80, "")),
            ),
            (
                "inbound-vip|80|tcp|Echo.app.svc.cluster.local",
                Some((Direction::FrontedTcp, echo.clone(), 80, "")),
            ),
            (
                "inbound-vip|8|http/v1|echo.app.svc.cluster.local",
                Some((Direction::FrontedHttp, echo.clone(), 8, "v1")),
            ),
            ("outbound|80|v2|echo.app.svc.cluster.local", Some((Direction::Outbound, echo, 80, "v2"))),
            (
                "outbound|443||api.example.com",
                Some((Direction::Outbound, "/api.example.com".to_owned(), 443, "")),
            ),
            ("outbound|0||api.example.com", None),
            ("outbound|80||", None),
            ("inbound|80||x", None),
            ("inbound-vip|80|udp|x", None),
            ("encap", None),
            ("UnknownService", None),
        ] {
            let expected = expected
                .map(|(direction, service, port, subset)| (direction, service, port, subset.to_owned()));
            assert_eq!(of(name), expected, "{name}");
        }
    }
}
