//! The end of a chain for plain connections: where they go, what they are hashed by, and their log.

use l7::ir::Backend;
use prost_types::Any;

use super::Refusal;
use super::chain::{ENCAP, Target};
use super::names::ClusterName;
use super::refusal::{Within, unpack};
use super::routes;
use super::telemetry::{self, Told};
use crate::proto::waypoint::tcp_weighted_clusters::Share;
use crate::proto::waypoint::{TcpProxy, TcpWeightedClusters};
use crate::snapshot::TcpWay;

const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// What is done with the connections of a chain.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) way: TcpWay,
    pub(super) told: Told,
}

pub(super) fn connections(config: &Any, target: &Target) -> Result<Connections, Refusal> {
    let proxy: TcpProxy = unpack(config, TCP_PROXY)?;
    if !proxy.tunneling_config.is_empty() {
        return Err(Refusal::at("tunneling_config", "is not supported here"));
    }
    for (index, policy) in proxy.hash_policy.iter().enumerate() {
        if policy.source_ip.is_none() {
            return Err(Refusal::new("it says nothing to be hashed by").within_item("hash_policy", index));
        }
    }
    let way = TcpWay { backends: backends(&proxy, target)?, by_client: !proxy.hash_policy.is_empty() };
    Ok(Connections { way, told: telemetry::of_connections(&proxy.access_log) })
}

/// None where the chain's own service or workload is meant.
fn backends(proxy: &TcpProxy, target: &Target) -> Result<Vec<Backend>, Refusal> {
    match (&*proxy.cluster, &proxy.weighted_clusters, target) {
        ("", Some(weighted), Target::Service(_)) => shares(weighted).within("weighted_clusters"),
        (ENCAP, None, Target::Workloads) => Ok(Vec::new()),
        (cluster, None, Target::Service(own)) => {
            let is_own = ClusterName::parse(cluster).is_some_and(|cluster| cluster.is_port_of(own));
            if is_own { Ok(Vec::new()) } else { Ok(vec![backend(cluster, 1).within("cluster")?]) }
        }
        (_, Some(_), _) => {
            Err(Refusal::at("weighted_clusters", "are not supported for workloads or beside a cluster"))
        }
        (cluster, None, Target::Workloads) => {
            Err(Refusal::at("cluster", format!("{cluster:?} is not supported here")))
        }
    }
}

fn shares(weighted: &TcpWeightedClusters) -> Result<Vec<Backend>, Refusal> {
    let one = |share: &Share| backend(&share.name, share.weight).within("name");
    let shares = weighted.clusters.iter().enumerate();
    let shares: Vec<_> =
        shares.map(|(index, share)| one(share).within_item("clusters", index)).collect::<Result<_, _>>()?;
    if shares.iter().all(|share| share.weight == 0) {
        return Err(Refusal::at("clusters", "none has a weight"));
    }
    Ok(shares)
}

fn backend(cluster: &str, weight: u32) -> Result<Backend, Refusal> {
    let (target, subset) = routes::target(cluster)?;
    Ok(Backend { target, subset, weight, tls: None, filters: None, retry_budget: None, session: None })
}

#[cfg(test)]
mod tests {
    use l7::ir::BackendTarget;
    use prost::Message;

    use super::*;
    use crate::proto::waypoint::{AccessLog, TcpHashPolicy, tcp_hash_policy};

    const OWN: &str = "inbound-vip|80|tcp|echo.app.svc.cluster.local";
    const OTHER: &str = "outbound|81|v1|other.app.svc.cluster.local";

    fn read(proxy: &TcpProxy, target: &Target) -> Result<Connections, String> {
        let config =
            Any { type_url: format!("type.googleapis.com/{TCP_PROXY}"), value: proxy.encode_to_vec() };
        connections(&config, target).map_err(|refusal| refusal.to_string())
    }

    fn of_service(proxy: &TcpProxy) -> Result<Connections, String> {
        read(proxy, &Target::Service(ClusterName::parse(OWN).unwrap()))
    }

    fn to(cluster: &str) -> TcpProxy {
        TcpProxy { cluster: cluster.into(), ..TcpProxy::default() }
    }

    fn weighted(shares: &[(&str, u32)]) -> TcpProxy {
        let clusters = shares.iter().map(|(name, weight)| Share { name: (*name).into(), weight: *weight });
        let clusters = clusters.collect();
        TcpProxy { weighted_clusters: Some(TcpWeightedClusters { clusters }), ..TcpProxy::default() }
    }

    #[test]
    fn a_chain_leads_to_its_own_service_or_to_the_shares_of_others() {
        let way = |proxy: &TcpProxy| of_service(proxy).unwrap().way;
        assert_eq!(way(&to(OWN)), TcpWay { backends: Vec::new(), by_client: false });
        let shown = |backend: &Backend| match &backend.target {
            BackendTarget::Service { service, port } => {
                format!("{service}:{port} {:?} {}", backend.subset, backend.weight)
            }
            BackendTarget::Invalid(reason) => format!("{reason} {}", backend.weight),
        };
        let shown = |proxy: &TcpProxy| way(proxy).backends.iter().map(shown).collect::<Vec<_>>();
        let other = "app/other.app.svc.cluster.local:81 Some(\"v1\")";
        assert_eq!(shown(&to(OTHER)), [format!("{other} 1")]);
        assert_eq!(
            shown(&weighted(&[(OWN, 70), (OTHER, 20), ("UnknownService", 10)])),
            [
                "app/echo.app.svc.cluster.local:80 None 70".to_owned(),
                format!("{other} 20"),
                "the backend does not exist or may not be referred to 10".to_owned(),
            ]
        );
    }

    #[test]
    fn connections_are_hashed_by_their_client_where_it_is_said_and_have_their_own_log() {
        let hash_policy = vec![TcpHashPolicy { source_ip: Some(tcp_hash_policy::SourceIp {}) }];
        let log = AccessLog { filter: None }.encode_to_vec();
        let read = of_service(&TcpProxy { hash_policy, access_log: vec![log], ..to(OWN) }).unwrap();
        assert!(read.way.by_client && read.told.has_log);
        assert!(!of_service(&to(OWN)).unwrap().told.has_log);
        let odd = of_service(&TcpProxy { access_log: vec![vec![0x12, 2, 0x4a, 0]], ..to(OWN) }).unwrap();
        assert!(odd.told.left_out[0].to_string().starts_with("access_log.filter: field 9"));
    }

    #[test]
    fn whatever_else_is_said_closes_the_chain() {
        let by_nothing = TcpProxy { hash_policy: vec![TcpHashPolicy::default()], ..to(OWN) };
        let both = TcpProxy { cluster: OWN.into(), ..weighted(&[(OTHER, 1)]) };
        for (proxy, complaint) in [
            (by_nothing, "hash_policy: it says nothing to be hashed by"),
            (both, "weighted_clusters: are not supported"),
            (weighted(&[]), "weighted_clusters.clusters: none has a weight"),
            (weighted(&[(OWN, 0)]), "weighted_clusters.clusters: none has a weight"),
            (
                weighted(&[(OWN, 1), ("encap", 1)]),
                "weighted_clusters.clusters[1].name: \"encap\" names no port",
            ),
            (to("encap"), "cluster: \"encap\" names no port"),
            (TcpProxy { tunneling_config: vec![1], ..to(OWN) }, "tunneling_config: "),
        ] {
            let refusal = of_service(&proxy).unwrap_err();
            assert!(refusal.starts_with(complaint), "{refusal}");
        }
        assert!(read(&to(ENCAP), &Target::Workloads).unwrap().way.backends.is_empty());
        for (proxy, complaint) in [(to(OTHER), "cluster: "), (weighted(&[(OTHER, 1)]), "weighted_clusters: ")]
        {
            assert!(read(&proxy, &Target::Workloads).unwrap_err().starts_with(complaint));
        }
        // Hashed by a filter's state: field 2.
        let config = TcpProxy { hash_policy: vec![TcpHashPolicy::default()], ..to(OWN) };
        let mut value = config.encode_to_vec();
        let place = value.len() - 1;
        value.splice(place.., [2, 0x12, 0]);
        let config = Any { type_url: format!("type.googleapis.com/{TCP_PROXY}"), value };
        let refusal = connections(&config, &Target::Workloads).unwrap_err().to_string();
        assert_eq!(refusal, "hash_policy: field 2 of TcpHashPolicy is not supported");
    }
}
