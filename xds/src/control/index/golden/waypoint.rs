//! What a captured istiod tells a waypoint in Envoy's resources means what the same objects mean to us: the same services
//! are fronted, by the same endpoints, and each request is decided alike.
//!
//! Deliberate differences:
//! - The waypoint of another class has a Service, too, which istiod puts behind a waypoint of its namespace.
//! - Rules that stand behind one that takes everything are dropped by istiod: what a regular expression takes by the objects
//!   has to be served by that one. So the tries and timeouts written in such a rule are in no capture.
//! - istiod adds the mesh's tries to each rule that has none: exactly those are expected there.
//! - A VirtualService that says nothing of tries has ours with `reset-before-request`, which the captured istiod does not write.

use l7::authz::PolicySet;
use l7::ir::{ConnectionAttributes, Header, PathMatch, RequestHead, Retry, RetryOn, UrlAction};
use l7::router::{MatchedRoute, RouteMatch, Router};
use prost_types::Any;

use super::*;
use crate::control::desired::View;
use crate::delta::{Client, Sink, Subscription};
use crate::proto::{CLUSTER_TYPE, LISTENER_TYPE, LOAD_ASSIGNMENT_TYPE, WORKLOAD_TYPE};
use crate::snapshot::{Asked, Snapshot};
use crate::store::Store;

/// Scenario, the waypoint, and on which node it runs.
const WAYPOINTS: [(&str, &str); 4] = [
    ("02-waypoint-httproute", "app/waypoint"),
    ("04-authz-l7-templates", "app/waypoint"),
    ("07-optout-use-waypoint", "app/waypoint"),
    ("09-l7-extras", "app/waypoint"),
];

/// What a rule without tries of its own has by istiod: the mesh's.
fn tries_of_mesh() -> Retry {
    let on = RetryOn {
        connect_failure: true,
        refused_stream: true,
        grpc_codes: vec![1, 14],
        statuses: Vec::new(),
        ..RetryOn::default()
    };
    Retry { attempts: 2, on, backoff_ms: None, backoff_max_ms: None }
}

/// The objects, and whether routes were left out that we do not read.
fn objects(cluster: &Cluster) -> (Catalog, bool) {
    let texts = cluster
        .0
        .iter()
        .map(|([kind, namespace, name], text)| (format!("{kind}/{namespace}/{name}.yaml"), text.clone()));
    let texts: Vec<_> = texts.collect();
    let loaded = load_documents(texts.iter().map(|(file, text)| (file.clone(), text.as_str())).collect());
    let complete = loaded.refused.is_empty();
    (loaded.catalog, complete)
}

/// What our own waypoint holds.
fn ours(
    catalog: &Catalog,
    indexer: &mut Indexer,
    waypoint: &str,
    generation: u64,
) -> (Snapshot, Vec<String>) {
    let indexed = indexer.build(catalog, generation);
    let (namespace, _) = waypoint.split_once('/').unwrap();
    let pod = format!("{namespace}/waypoint-0");
    let view = View::of_waypoint(&indexed.desired, "node1", &pod);
    let mut store = Store::new();
    for kind in ResourceKind::ALL {
        for (name, resource) in view.resources(kind) {
            let body = Any { type_url: kind.type_url().to_owned(), value: resource.body.to_vec() };
            store.upsert(kind.type_url(), name, &body).unwrap();
        }
    }
    let destinations = view.resources(ResourceKind::WaypointPolicies).keys();
    let fronted = destinations.filter(|name| &***name != "/").map(ToString::to_string).collect();
    (Snapshot::clone(&store.snapshot().unwrap()), fronted)
}

/// A client that is fed with what was captured.
struct Theirs {
    client: Client,
    store: Store,
    snapshot: Arc<Snapshot>,
}

impl Theirs {
    fn new() -> Self {
        let subscriptions = vec![
            Subscription::wildcard(CLUSTER_TYPE),
            Subscription::followed(LOAD_ASSIGNMENT_TYPE),
            Subscription::wildcard(LISTENER_TYPE),
            Subscription::wildcard(WORKLOAD_TYPE),
        ];
        let client = Client::new(<_>::default(), subscriptions, std::time::Instant::now());
        Self { client, store: Store::new(), snapshot: Arc::default() }
    }

    fn apply(&mut self, file: &Path) {
        let response = DeltaDiscoveryResponse::decode(&*fs::read(file).unwrap()).unwrap();
        let (reply, _) = self.client.response(&response, &mut self.store);
        assert_eq!(reply.error_detail, None, "{}", file.display());
        self.client.follow(&mut self.store);
        if let Some(snapshot) = self.store.snapshot() {
            self.snapshot = snapshot;
        }
    }
}

const PATHS: [&str; 27] = [
    "/",
    "/v1",
    "/v1/x",
    "/v10",
    "/v2",
    "/v2/",
    "/old",
    "/old/a",
    "/older",
    "/redir/x",
    "/mirror/x",
    "/re/12",
    "/vs",
    "/vsx",
    "/vs/a",
    "/exact",
    "/pre",
    "/prefix",
    "/a/suf",
    "/api/x/items/y",
    "/api/x/items",
    "/one/two",
    "/v1/users",
    "/x/users",
    "/users",
    "/x/admin",
    "/v1/admin",
];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const HOSTS: [&str; 3] = ["echo.app", "ECHO.app.svc:80", "other"];
const QUERIES: [Option<&str>; 3] = [None, Some("canary=1"), Some("a=b&canary=2")];
const HEADERS: [Option<(&str, &[u8])>; 5] = [
    None,
    Some(("x-user", b"beta")),
    Some(("X-User", b"other")),
    Some(("x-token", b"admin-1")),
    Some(("x-token", b"user")),
];
const PEERS: [Option<&str>; 3] =
    [None, Some("spiffe://cluster.local/ns/app/sa/client"), Some("spiffe://cluster.local/ns/plain/sa/other")];

fn each_request(mut visit: impl FnMut(&RequestHead<'_>)) {
    for path in PATHS {
        for method in METHODS {
            for authority in HOSTS {
                for query in QUERIES {
                    for header in HEADERS {
                        let header = header.map(|(name, value)| Header { name, value });
                        let headers = header.as_slice();
                        visit(&RequestHead { method, authority, path, query, headers, token: None });
                    }
                }
            }
        }
    }
}

fn compare_policies(place: &str, ours: &PolicySet, theirs: &PolicySet) -> usize {
    let mut allowed = 0;
    assert_eq!(ours.tokens().is_empty(), theirs.tokens().is_empty(), "{place}: tokens");
    for peer in PEERS {
        let identity = peer.map(|uri| uri.parse::<model::Identity>().unwrap());
        let connection = ConnectionAttributes {
            source: identity.as_ref(),
            source_ip: [10, 244, 1, 10].into(),
            destination_ip: [10, 96, 0, 10].into(),
            destination_port: 80,
            sni: None,
        };
        each_request(|head| {
            let [ours, theirs] = [ours, theirs].map(|set| set.evaluate(&connection, Some(head)).is_allowed());
            assert_eq!(ours, theirs, "{place}: {peer:?} {head:?}");
            allowed += usize::from(ours);
        });
    }
    allowed
}

/// Where a request goes and what is done to it, as far as both sides write it.
fn outcome(found: &MatchedRoute<'_>) -> String {
    let mut backends: Vec<_> = found
        .rule
        .backends
        .iter()
        .filter(|backend| backend.weight > 0)
        .map(|backend| {
            (format!("{:?} {:?} {:?}", backend.target, backend.subset, backend.filters), backend.weight)
        })
        .collect();
    // Only the shares matter.
    let total: u32 = backends.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in &mut backends {
        *weight = *weight * 1000 / total;
    }
    backends.sort();
    let mut filters = found.rule.filters.as_deref().cloned().unwrap_or_default();
    let copies: Vec<_> = std::mem::take(&mut filters.mirrors)
        .into_iter()
        .map(|mirror| {
            let share =
                u64::from(mirror.share.numerator) * 1_000_000 / u64::from(mirror.share.denominator.get());
            format!("{:?} {:?} {share}", mirror.target, mirror.subset)
        })
        .collect();
    format!("{backends:?} {filters:?} {copies:?} {:?} {:?}", found.rule.timeouts, found.rule.fault)
}

/// The tries of a rule of the objects, as the captured istiod says them.
fn tries(found: &MatchedRoute<'_>) -> Option<Retry> {
    let filters = found.rule.filters.as_deref();
    let redirects = filters.is_some_and(|it| matches!(it.url, Some(UrlAction::Redirect(_))));
    let written = found.rule.retry.as_deref().cloned();
    if redirects || found.rule.direct.is_some() {
        return written;
    }
    let mut tries = written.unwrap_or_else(tries_of_mesh);
    let mut of_mesh = tries_of_mesh();
    of_mesh.on.reset_before_request = true;
    if tries == of_mesh {
        tries = tries_of_mesh();
    }
    Some(tries)
}

/// The order of codes means nothing, and `5xx` has within it what our reader of VirtualServices spells out.
fn plain(tries: Option<&Retry>) -> Option<Retry> {
    let mut tries = tries?.clone();
    let on = &mut tries.on;
    if on.server_error {
        (on.connect_failure, on.refused_stream, on.reset) = (true, true, true);
    }
    on.grpc_codes.sort_unstable();
    on.statuses.sort_unstable();
    Some(tries)
}

fn compare_routes(
    place: &str,
    own: Option<&Router>,
    theirs: &Router,
    service: &model::NamespacedHostname,
) -> usize {
    let mut compared = 0;
    each_request(|head| {
        let RouteMatch::Matched(theirs) = theirs.route(head) else { panic!("{place}: {head:?} is routed") };
        match own.map(|router| router.route(head)) {
            None => {
                let target = l7::ir::BackendTarget::Service { service: service.clone(), port: 80 };
                assert_eq!(theirs.rule.backends[0].target, target, "{place}: {head:?}");
            }
            Some(RouteMatch::Matched(ours)) => {
                let is_dropped = matches!(&ours.matched().unwrap().path, PathMatch::Regex(_));
                let catch_all = RequestHead { path: "/", ..*head };
                let ours = match own.map(|router| router.route(&catch_all)) {
                    Some(RouteMatch::Matched(other)) if is_dropped => other,
                    _ => ours,
                };
                assert_eq!(outcome(&ours), outcome(&theirs), "{place}: {head:?}");
                assert_eq!(
                    plain(tries(&ours).as_ref()),
                    plain(theirs.rule.retry.as_deref()),
                    "{place}: {head:?}"
                );
                compared += 1;
            }
            Some(RouteMatch::NotFound) => panic!("{place}: {head:?} is not routed by ours"),
        }
    });
    compared
}

/// Uid and port of each endpoint.
fn endpoints(entry: &crate::snapshot::ServiceEntry, port: u16) -> Vec<(String, u16)> {
    let ports = |endpoint: &crate::snapshot::Endpoint| {
        endpoint.ports.iter().find(|own| own.service_port == port).map_or(0, |own| own.target_port)
    };
    let endpoints = entry.endpoints.iter();
    let mut endpoints: Vec<_> = endpoints.map(|it| (it.workload.uid.to_string(), ports(it))).collect();
    endpoints.sort();
    endpoints
}

#[derive(Default)]
struct Compared {
    services: usize,
    allowed: usize,
    routed: usize,
}

fn compare(
    place: &str,
    ours: &Snapshot,
    fronted: &[String],
    theirs: &Snapshot,
    routes: bool,
    sum: &mut Compared,
) {
    let config = theirs.waypoint_config().unwrap();
    assert_eq!(config.problems(), [""; 0], "{place}");
    let own_of_another = |key: &String| key.contains("/agwp.");
    let named: Vec<_> = theirs.services().map(|entry| entry.key().to_string()).collect();
    let mut named: Vec<_> = named.into_iter().filter(|key| !own_of_another(key)).collect();
    named.sort();
    let fronted: Vec<_> = fronted.iter().filter(|key| !own_of_another(key)).cloned().collect();
    assert_eq!(named, fronted, "{place}");
    for entry in theirs.services().filter(|entry| named.contains(&entry.key().to_string())) {
        let key = entry.key();
        let place = format!("{place}: {key}");
        let vip = entry.service.vips[0].ip;
        let served = theirs.served(Asked::Address((vip, 80).into())).unwrap();
        assert_eq!((served.service.as_ref(), served.port), (Some(key), 80), "{place}");
        let http = served.http.unwrap();
        sum.services += 1;
        sum.allowed += compare_policies(&place, ours.waypoint_policies(Some(key)).unwrap(), &http.policies);
        let own = ours.service(&key.namespace, &key.hostname).unwrap();
        let levels = config.levels(&key.hostname, 80, None);
        let mut theirs_of_levels: Vec<_> = levels.iter().flat_map(|level| endpoints(level, 80)).collect();
        theirs_of_levels.sort();
        assert_eq!(endpoints(own, 80), theirs_of_levels, "{place}");
        if routes {
            let own = ours.routes_for(key, 80, &key.namespace);
            sum.routed +=
                compare_routes(&place, own.map(|router| &**router), http.router.as_ref().unwrap(), key);
        }
    }
    if let Some(served) = theirs.served(Asked::Address(([10, 244, 1, 11], 8080).into())) {
        let place = format!("{place}: workloads");
        let http = served.http.unwrap();
        assert!(served.service.is_none() && http.router.is_none() && served.tcp.is_some(), "{place}");
        compare_policies(&place, ours.waypoint_policies(None).unwrap(), &http.policies);
    }
}

#[test]
fn what_a_waypoint_is_told_by_istiod_means_what_its_objects_mean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for (scenario, waypoint) in WAYPOINTS {
        let folder = root.join(scenario);
        let mut cluster = Cluster::input(&folder);
        let mut indexer = Indexer::new(&ControlConfig::new("unused", "unused", "node1"));
        let mut theirs = Theirs::new();
        let responses: Vec<PathBuf> = files(&folder.join("envoy-waypoint"), "pb")
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("-resp-"))
            .collect();
        let mut steps = vec![(String::from("00-initial"), None)];
        steps.extend(
            files(&folder.join("steps"), "yaml")
                .into_iter()
                .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), Some(path))),
        );
        let mut sum = Compared::default();
        for (generation, (step, file)) in steps.into_iter().enumerate() {
            if let Some(file) = file {
                cluster.step(&file);
            }
            let number = format!("-{}-", &step[..2]);
            for response in &responses {
                if response.file_name().unwrap().to_string_lossy()[3..].starts_with(&number) {
                    theirs.apply(response);
                }
            }
            let (catalog, complete) = objects(&cluster);
            let (ours, fronted) = ours(&catalog, &mut indexer, waypoint, generation as u64);
            let place = format!("{scenario} after {step}");
            compare(&place, &ours, &fronted, &theirs.snapshot, complete, &mut sum);
        }
        assert!(sum.services > 0, "{scenario}");
        let has_routes = scenario.starts_with("02") || scenario.starts_with("09");
        assert!(!has_routes || sum.routed > 1000, "{scenario}: {} requests are compared", sum.routed);
        println!("{scenario}: {} services, {} allowed, {} routed", sum.services, sum.allowed, sum.routed);
    }
}
