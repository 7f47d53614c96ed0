//! What an unmodified istiod tells a waypoint, made from what one was captured saying: the waypoint stands before one
//! service, `echo`, with one HTTP port.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use prost::Message;
use prost_types::Any;
use xds::proto::discovery::DeltaDiscoveryResponse;
use xds::proto::waypoint::{
    CidrRange, Cluster, FilterChain, HttpConnectionManager, HttpFilter, IpMatcher, Listener, LoadAssignment,
    Matcher, MatcherTree, NetworkFilter, OnMatch, Route, RouteAction, RouteMatch, TcpProxy, TypedExtension,
    address, ip_matcher, matcher_tree, on_match, route, route_match,
};
use xds::proto::workload::NetworkAddress;
use xds::proto::{CLUSTER_TYPE, LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE, WORKLOAD_TYPE};

use super::Bed;
use super::control::Resource;
use super::node::Node;
use super::resources::{bytes_of, gateway_of_service};
use super::waypoint::{WAYPOINT, resource};

/// The filter chain of the service's port, and its cluster.
pub const CHAIN: &str = "inbound-vip|80|http|echo.app.svc.cluster.local";
/// The same where the port carries no HTTP.
pub const TCP_CHAIN: &str = "inbound-vip|80|tcp|echo.app.svc.cluster.local";
const HBONE_PORT: u16 = 15008;

/// Where the service is.
pub fn service_address() -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 96, 0, 10]), 80)
}

/// A resource of a captured response of istiod.
fn captured<M: Message + Default>(file: &str, name: &str) -> M {
    let folder = "../xds/golden/02-waypoint-httproute/envoy-waypoint";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
    let response = DeltaDiscoveryResponse::decode(&*std::fs::read(path).unwrap()).unwrap();
    let found = response.resources.into_iter().find(|it| it.name == name).unwrap();
    M::decode(&*found.resource.unwrap().value).unwrap()
}

/// The cluster of the service.
pub fn cluster(change: impl FnOnce(&mut Cluster)) -> Resource {
    let mut cluster: Cluster = captured("004-00-initial-resp-CDS.pb", CHAIN);
    change(&mut cluster);
    resource(CHAIN, CLUSTER_TYPE, &cluster)
}

/// The same of a subset of its endpoints, with endpoints of its own.
pub fn subset(name: &str) -> Resource {
    let mut cluster: Cluster = captured("004-00-initial-resp-CDS.pb", CHAIN);
    cluster.name = subset_name(name);
    cluster.eds_cluster_config.as_mut().unwrap().service_name = subset_name(name);
    resource(&subset_name(name), CLUSTER_TYPE, &cluster)
}

/// The name of the cluster of a subset, where the port carries no HTTP.
pub fn subset_name(subset: &str) -> String {
    TCP_CHAIN.replace("|tcp|", &format!("|tcp/{subset}|"))
}

/// The main listener with one route, which takes everything to the service itself, and what `change` makes of it.
pub fn listener(change: impl FnOnce(&mut HttpConnectionManager)) -> Resource {
    let mut listener: Listener = captured("007-00-initial-resp-LDS.pb", "main_internal");
    let named = |bytes: &&mut bytes::Bytes| FilterChain::decode(&***bytes).unwrap().name == CHAIN;
    let bytes = listener.filter_chains.iter_mut().find(named).unwrap();
    let mut chain = FilterChain::decode(&**bytes).unwrap();
    let config = chain.filters.last_mut().unwrap().typed_config.as_mut().unwrap();
    let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
    manager.route_config.as_mut().unwrap().virtual_hosts[0].routes = vec![to_itself("/")];
    change(&mut manager);
    config.value = manager.encode_to_vec();
    *bytes = chain.encode_to_vec().into();
    resource("main_internal", LISTENER_TYPE, &listener)
}

/// The main listener with one filter chain for the service's port, of connections that carry no HTTP; its filters lead to
/// the service itself, and `change` makes more of them.
pub fn tcp_listener(change: impl FnOnce(&mut FilterChain)) -> Resource {
    let proxy = TcpProxy { cluster: TCP_CHAIN.into(), ..TcpProxy::default() };
    tcp_listener_of(&proxy, change)
}

/// The same with this at the end of the chain.
pub fn tcp_listener_of(proxy: &TcpProxy, change: impl FnOnce(&mut FilterChain)) -> Resource {
    let mut listener: Listener = captured("007-00-initial-resp-LDS.pb", "main_internal");
    let typed_config = Some(any("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy));
    let filters = vec![NetworkFilter { name: "envoy.filters.network.tcp_proxy".into(), typed_config }];
    let mut chain = FilterChain { name: TCP_CHAIN.into(), filters, ..FilterChain::default() };
    change(&mut chain);
    listener.filter_chains = vec![chain.encode_to_vec().into()];
    let action = extension(&any("google.protobuf.StringValue", &TCP_CHAIN.to_owned()));
    let by_port = [("80".to_owned(), OnMatch { on_match: Some(on_match::OnMatch::Action(action)) })];
    let port = MatcherTree {
        input: Some(extension(&input("DestinationPortInput"))),
        tree_type: Some(matcher_tree::TreeType::ExactMatchMap(matcher_tree::MatchMap {
            map: by_port.into(),
        })),
    };
    let port = Matcher { matcher_tree: Some(port), on_no_match: None };
    let address_prefix = service_address().ip().to_string();
    let range = ip_matcher::IpRangeMatcher {
        ranges: vec![CidrRange { address_prefix, prefix_len: Some(32) }],
        on_match: Some(OnMatch { on_match: Some(on_match::OnMatch::Matcher(Box::new(port))) }),
    };
    let ranges = any("xds.type.matcher.v3.IPMatcher", &IpMatcher { range_matchers: vec![range] });
    let tree = MatcherTree {
        input: Some(extension(&input("DestinationIPInput"))),
        tree_type: Some(matcher_tree::TreeType::CustomMatch(extension(&ranges))),
    };
    listener.filter_chain_matcher = Some(Matcher { matcher_tree: Some(tree), on_no_match: None });
    resource("main_internal", LISTENER_TYPE, &listener)
}

fn extension(config: &Any) -> TypedExtension {
    TypedExtension { name: "any".into(), typed_config: Some(config.clone()) }
}

fn input(name: &str) -> Any {
    any(&format!("envoy.extensions.matching.common_inputs.network.v3.{name}"), &())
}

/// A route of what begins with `prefix` to the service itself.
pub fn to_itself(prefix: &str) -> Route {
    let path_specifier = Some(route_match::PathSpecifier::Prefix(prefix.into()));
    Route {
        r#match: Some(RouteMatch { path_specifier, ..RouteMatch::default() }),
        action: Some(route::Action::Route(RouteAction { cluster: CHAIN.into(), ..RouteAction::default() })),
        ..Route::default()
    }
}

/// The routes of the service's chain.
pub fn routes(manager: &mut HttpConnectionManager) -> &mut Vec<Route> {
    &mut manager.route_config.as_mut().unwrap().virtual_hosts[0].routes
}

/// Any message of ours, under the name that it has in Envoy's API.
pub fn any(kind: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{kind}"), value: message.encode_to_vec() }
}

/// A filter for requests.
pub fn http_filter(name: &str, kind: &str, config: &impl Message) -> HttpFilter {
    HttpFilter { name: name.into(), typed_config: Some(any(kind, config)) }
}

impl Bed {
    /// The endpoints of the service: these two pods, on port 8080.
    pub fn endpoints_told_by_istiod(&self, servers: [&str; 2]) -> Resource {
        let mut assignment: LoadAssignment = captured("011-00-initial-resp-EDS.pb", CHAIN);
        for (group, pod) in assignment.endpoints.iter_mut().zip(servers) {
            let endpoint = &mut group.lb_endpoints[0];
            endpoint.metadata = None;
            let address = endpoint.endpoint.as_mut().unwrap().address.as_mut().unwrap();
            let Some(address::Address::EnvoyInternalAddress(own)) = &mut address.address else { panic!() };
            own.endpoint_id = format!("{}:8080", self.v4(pod));
        }
        resource(CHAIN, LOAD_ASSIGNMENT_TYPE, &assignment)
    }

    /// The endpoint of a subset of the service: this pod.
    pub fn endpoint_of_subset(&self, subset: &str, server: &str) -> Resource {
        let name = subset_name(subset);
        let own = self.endpoints_told_by_istiod([server; 2]);
        let mut assignment = LoadAssignment::decode(&*own.body.value).unwrap();
        assignment.endpoints.truncate(1);
        assignment.cluster_name.clone_from(&name);
        resource(&name, LOAD_ASSIGNMENT_TYPE, &assignment)
    }

    /// Starts a waypoint that is told these resources beside the endpoints, and leads the clients to it.
    pub fn waypoint_under_istiod(
        &mut self,
        servers: [&str; 2],
        resources: impl IntoIterator<Item = Resource>,
    ) {
        self.waypoint_under_istiod_with(servers, resources, |_| {});
    }

    /// The same, of a process that is prepared.
    pub fn waypoint_under_istiod_with(
        &mut self,
        servers: [&str; 2],
        resources: impl IntoIterator<Item = Resource>,
        prepare: impl FnOnce(&mut Node),
    ) {
        self.service("echo", &servers, 8080, false);
        let workloads = servers.map(|pod| {
            let workload = self.workload(pod);
            resource(&workload.uid, WORKLOAD_TYPE, &workload)
        });
        self.control.put(workloads);
        self.control.put([self.endpoints_told_by_istiod(servers)]);
        self.control.put(resources);
        self.waypoint(|node| {
            node.set("CORELANE_LAYER_7", false);
            prepare(node);
        });
        self.ready();
        self.change_service("echo", |service| {
            let address = bytes_of(service_address().ip());
            service.addresses = vec![NetworkAddress { address, ..NetworkAddress::default() }];
            service.waypoint = Some(gateway_of_service(WAYPOINT, HBONE_PORT));
        });
    }
}
