//! A waypoint that an unmodified istiod tells what to do, in Envoy's resources: what requests then meet.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use node_support::istiod::{
    TCP_CHAIN, any, cluster, http_filter, listener, routes, service_address, subset, subset_name,
    tcp_listener, tcp_listener_of,
};
use node_support::raw::RawClient;
use node_support::resources::identity;
use node_support::waypoint::{Answer, WAYPOINT, ask, read_head};
use node_support::{Bed, PATIENCE, inside, traffic};
use prost_types::Duration;
use serde_json::{Value, json};
use tunnel::h2::Headers;
use xds::proto::waypoint::cluster::LbPolicy;
use xds::proto::waypoint::jwt_provider::JwksSourceSpecifier;
use xds::proto::waypoint::jwt_requirement::RequiresType;
use xds::proto::waypoint::jwt_rule::RequirementType;
use xds::proto::waypoint::remote_jwks::KeysUri;
use xds::proto::waypoint::route_match::PathSpecifier;
use xds::proto::waypoint::tcp_hash_policy::SourceIp;
use xds::proto::waypoint::tcp_weighted_clusters::Share;
use xds::proto::waypoint::{
    HttpFilter, JwtAuthentication, JwtProvider, JwtRequirement, JwtRequirements, JwtRule, NetworkFilter,
    RemoteJwks, RouteMatch, TcpHashPolicy, TcpProxy, TcpWeightedClusters,
};

const SERVERS: [&str; 2] = ["server", "second"];
const TOKENS: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";

/// A client on node `a`, two servers on node `b`.
fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("b", "server"), ("b", "second")] {
        bed.pod(node, pod);
    }
    for pod in SERVERS {
        bed.http_echo(pod, 8080);
    }
    bed
}

/// Asks until the answer has this status. What is under way when policies change may be cut.
fn until(bed: &Bed, headers: &[(&str, &str)], status: u16) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = bed.http("client", service_address(), "/", headers);
        if let Ok(answer) = &answer
            && answer.status == status
        {
            return answer.clone();
        }
        assert!(Instant::now() < deadline, "{answer:?} is not {status}\n{}", bed.nodes[WAYPOINT].log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

// === Filter chains that are closed ===

/// What the waypoint answers to CONNECT for the service.
fn connected(bed: &Bed) -> u16 {
    let client = RawClient {
        from: bed.network("client").clone(),
        credentials: bed.control.authority.credentials(&identity("client")),
        to: SocketAddr::new(bed.v4(WAYPOINT), 15008),
        expected: identity(WAYPOINT).parse().unwrap(),
    };
    client.ask(vec![Headers::connect(service_address().to_string()).unwrap()])[0]
}

#[test]
fn what_is_not_understood_refuses_requests_with_403_and_connections_with_401() {
    inside("what_is_not_understood_refuses_requests_with_403_and_connections_with_401", || {
        let mut bed = bed();
        bed.waypoint_under_istiod(SERVERS, [cluster(|_| {}), listener(|_| {})]);
        assert_eq!(until(&bed, &[], 200).status, 200);
        // A connection that is closed for its requests is open for other ones, and each is answered.
        let lua = listener(|manager| {
            manager
                .http_filters
                .insert(0, http_filter("lua", "envoy.extensions.filters.http.lua.v3.Lua", &()));
        });
        bed.apply([lua]);
        let socket = bed.connect("client", service_address()).unwrap();
        for path in ["/", "/other"] {
            let denied = ask(&socket, "GET", path, &[]).unwrap();
            assert_eq!((denied.status, &*denied.body), (403, "RBAC: access denied"), "{denied:?}");
        }
        bed.nodes[WAYPOINT]
            .until_logged(&["http_filters[0] (lua): envoy.extensions.filters.http.lua.v3.Lua is not"]);
        // So is one whose routes tell a filter what we do not execute.
        let kind = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
        let told = listener(|manager| {
            let route = &mut routes(manager)[0];
            route.typed_per_filter_config.insert("envoy.filters.http.rbac".into(), any(kind, &()));
        });
        bed.apply([told]);
        assert_eq!(ask(&socket, "GET", "/", &[]).unwrap().status, 403);
        bed.nodes[WAYPOINT].until_logged(&["typed_per_filter_config", "envoy.filters.http.rbac"]);

        bed.apply([listener(|_| {})]);
        assert_eq!(ask(&socket, "GET", "/", &[]).unwrap().status, 200);
        bed.nodes[WAYPOINT].until_logged(&["problems are gone"]);

        bed.apply([tcp_listener(|_| {})]);
        assert_eq!(connected(&bed), 200);
        let wasm = "envoy.extensions.filters.network.wasm.v3.Wasm";
        bed.apply([tcp_listener(|chain| {
            let typed_config = Some(any(wasm, &()));
            chain.filters.insert(0, NetworkFilter { name: "wasm".into(), typed_config });
        })]);
        assert_eq!(connected(&bed), 401);
        bed.nodes[WAYPOINT]
            .until_logged(&["|tcp|", "envoy.extensions.filters.network.wasm.v3.Wasm is not supported"]);
    });
}

// === Where connections without requests go ===

/// Waits until these servers, and no others, take a client's connections; of forty each gets at least one.
fn until_taken_by(bed: &Bed, servers: &[&str]) {
    let ask = |_| {
        let answer = bed.http("client", service_address(), "/", &[]);
        answer.map_or_else(
            |error| error.to_string(),
            |answer| answer.body.split(' ').next().unwrap_or_default().to_owned(),
        )
    };
    let expected: BTreeSet<String> = servers.iter().map(ToString::to_string).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken: BTreeSet<String> = (0..40).map(ask).collect();
        if taken == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{taken:?} is not {expected:?}\n{}", bed.nodes[WAYPOINT].log());
    }
}

/// A chain that gives each subset its share.
fn shared_out(shares: &[(&str, u32)]) -> TcpProxy {
    let share = |(subset, weight): &(&str, u32)| Share { name: subset_name(subset), weight: *weight };
    let clusters = shares.iter().map(share).collect();
    TcpProxy { weighted_clusters: Some(TcpWeightedClusters { clusters }), ..TcpProxy::default() }
}

#[test]
fn connections_are_shared_out_by_weight_and_hashed_by_their_client_where_that_is_said() {
    inside("connections_are_shared_out_by_weight_and_hashed_by_their_client_where_that_is_said", || {
        let mut bed = bed();
        let endpoints = [bed.endpoint_of_subset("v1", "server"), bed.endpoint_of_subset("v2", "second")];
        let to = |proxy: &TcpProxy| tcp_listener_of(proxy, |_| {});
        let own = TcpProxy { cluster: TCP_CHAIN.into(), ..TcpProxy::default() };
        let told = [cluster(|_| {}), subset("v1"), subset("v2"), to(&own)];
        bed.waypoint_under_istiod(SERVERS, told.into_iter().chain(endpoints));
        until_taken_by(&bed, &SERVERS);
        bed.apply([to(&shared_out(&[("v1", 1), ("v2", 0)]))]);
        until_taken_by(&bed, &["server"]);
        bed.apply([to(&shared_out(&[("v1", 0), ("v2", 5)]))]);
        until_taken_by(&bed, &["second"]);
        bed.apply([to(&shared_out(&[("v1", 1), ("v2", 1)]))]);
        until_taken_by(&bed, &SERVERS);
        bed.apply([to(&TcpProxy { cluster: subset_name("v1"), ..TcpProxy::default() })]);
        until_taken_by(&bed, &["server"]);

        // Of a cluster that chooses by hash, connections that are hashed by nothing go anywhere.
        bed.apply([cluster(|it| it.lb_policy = LbPolicy::Maglev.into()), to(&own)]);
        until_taken_by(&bed, &SERVERS);
        let hash_policy = vec![TcpHashPolicy { source_ip: Some(SourceIp {}) }];
        bed.apply([to(&TcpProxy { hash_policy, ..own })]);
        let bound = || bed.http("client", service_address(), "/", &[]).unwrap().body;
        let first = bound().split(' ').next().unwrap().to_owned();
        until_taken_by(&bed, &[&first]);
    });
}

// === Tokens whose keys are fetched ===

const KEY: &[u8] = b"the key that the issuer of this test signs with";
const LATER_KEY: &[u8] = b"the key that the issuer signs with afterwards..";

fn jwks(key: &[u8]) -> String {
    json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(key) }] }).to_string()
}

fn token(key: &[u8], claims: &Value) -> String {
    let signed = jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(key));
    format!("Bearer {}", signed.unwrap())
}

/// An issuer's server of keys.
#[derive(Clone)]
struct Issuer {
    address: SocketAddr,
    /// What it answers with; keys only with 200.
    status: Arc<AtomicU16>,
    later: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    /// In a pod outside the mesh.
    fn start(bed: &mut Bed) -> Self {
        let pod = bed.plain_pod("issuer");
        let address = SocketAddr::new(pod.ips[0], 9000);
        let (status, later) = (Arc::new(AtomicU16::new(500)), Arc::default());
        let issuer = Self { address, status, later, asked: Arc::default() };
        let serving = issuer.clone();
        traffic::serve(&pod.network, 9000, move |mut socket, _| {
            let Ok(Some(head)) = read_head(&socket) else { return };
            assert!(head.starts_with("get /keys?of=me http/1.1\r\n"), "{head}");
            serving.asked.fetch_add(1, Ordering::SeqCst);
            let status = serving.status.load(Ordering::SeqCst);
            let keys = jwks(if serving.later.load(Ordering::SeqCst) == 0 { KEY } else { LATER_KEY });
            // Who asked may have gone.
            drop(write!(socket, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{keys}", keys.len()));
        });
        issuer
    }

    /// The filter that istiod writes for it.
    fn filter(&self, cluster: &str) -> HttpFilter {
        let uri = format!("http://{}/keys?of=me", self.address);
        let http_uri = KeysUri { uri, cluster: cluster.into(), ..KeysUri::default() };
        let cache_duration = Some(Duration { seconds: 1, nanos: 0 });
        let keys = RemoteJwks { http_uri: Some(http_uri), cache_duration };
        let provider = JwtProvider {
            issuer: "me".into(),
            jwks_source_specifier: Some(JwksSourceSpecifier::RemoteJwks(keys)),
            payload_in_metadata: "payload".into(),
            ..JwtProvider::default()
        };
        let requires = |requires_type| JwtRequirement { requires_type: Some(requires_type) };
        let either = JwtRequirements {
            requirements: vec![
                requires(RequiresType::ProviderName("origins-0".into())),
                requires(RequiresType::AllowMissing(())),
            ],
        };
        let rule = JwtRule {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".into())),
                ..RouteMatch::default()
            }),
            requirement_type: Some(RequirementType::Requires(requires(RequiresType::RequiresAny(either)))),
        };
        let filter = JwtAuthentication {
            providers: BTreeMap::from([("origins-0".to_owned(), provider)]),
            rules: vec![rule],
            bypass_cors_preflight: true,
            ..JwtAuthentication::default()
        };
        http_filter("envoy.filters.http.jwt_authn", TOKENS, &filter)
    }
}

#[test]
fn keys_that_istiod_leaves_to_the_waypoint_are_fetched_and_until_then_no_token_is_taken() {
    inside("keys_that_istiod_leaves_to_the_waypoint_are_fetched_and_until_then_no_token_is_taken", || {
        let mut bed = bed();
        let issuer = Issuer::start(&mut bed);
        let there = format!("outbound|9000||{}", issuer.address.ip());
        let tokens =
            |cluster: &str| listener(|manager| manager.http_filters.insert(0, issuer.filter(cluster)));
        bed.waypoint_under_istiod(SERVERS, [cluster(|_| {}), tokens(&there)]);
        let good = token(KEY, &json!({ "iss": "me", "sub": "ann" }));
        let good = [("authorization", &*good)];
        // The issuer fails: there are no keys.
        let refused = until(&bed, &good, 401);
        assert!(refused.body.starts_with("Jwks"), "{refused:?}");
        until(&bed, &[], 200);
        let problem =
            format!("keys cannot be fetched from http://{}/keys?of=me: the answer is 500", issuer.address);
        bed.nodes[WAYPOINT].until_logged(&[&problem, "every token of this issuer is refused"]);

        issuer.status.store(200, Ordering::SeqCst);
        let taken = until(&bed, &good, 200);
        assert!(taken.body.contains("get / http/1.1") && !taken.body.contains("authorization"), "{taken:?}");
        let forged = token(b"another key, which is as long as those above are", &json!({ "iss": "me" }));
        until(&bed, &[("authorization", &forged)], 401);
        until(&bed, &[("authorization", &token(KEY, &json!({ "iss": "you" })))], 401);

        // Keys are asked for again when their time is over; those of an issuer that fails stay.
        issuer.later.store(1, Ordering::SeqCst);
        until(&bed, &good, 401);
        let newer = token(LATER_KEY, &json!({ "iss": "me" }));
        until(&bed, &[("authorization", &newer)], 200);
        issuer.status.store(503, Ordering::SeqCst);
        bed.nodes[WAYPOINT].until_logged(&["the answer is 503", "the keys fetched before stay in force"]);
        until(&bed, &[("authorization", &newer)], 200);

        // A cluster that leads elsewhere is not of istiod's making.
        bed.apply([tokens(&format!("outbound|9001||{}", issuer.address.ip()))]);
        let answer = until(&bed, &[], 403);
        assert!(answer.body.contains("denied"), "{answer:?}");
        bed.nodes[WAYPOINT]
            .until_logged(&["http_filters[0] (envoy.filters.http.jwt_authn)", "http_uri.cluster: "]);
    });
}
