//! Cases of the Gateway API: which backend a request goes to, and what filters make of it and of its response.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use l7::ir::HttpRoute;
use l7::router::{Router, governs};
use serde_json::Value;
use xds::kube::{MeshSettings, convert};

use super::effect::{self, Expectations};
use super::request::Headers;
use super::stand_in::{Listener, Replaced, kind, replace_gateways};
use super::way::{Behaviour, Way, Went, duration};
use super::{Outcome, objects};

/// A file of the suite, or one of groups that were derived from the text of the API.
#[derive(Debug, serde::Deserialize)]
pub(super) struct File {
    pub(super) base: Option<String>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    groups: Vec<Group>,
    #[serde(flatten)]
    group: Group,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Mesh,
    Gateway,
}

#[derive(Debug, serde::Deserialize)]
struct Group {
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    base_objects: Vec<Value>,
    #[serde(default)]
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    id: String,
    request: Request,
    #[serde(default)]
    backend_behaviour: Behaviour,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Request {
    /// `APP.NAMESPACE` of the client.
    from: Option<String>,
    /// `SERVICE[.NAMESPACE][:PORT]`.
    connect_to: Option<String>,
    /// `NAMESPACE/NAME`.
    gateway: Option<String>,
    listener_port: Option<u16>,
    pub(super) authority: String,
    protocol: String,
    sni: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: Option<Headers>,
    pub(super) backend_sets_response_headers: Option<Headers>,
    /// Also written as a query parameter `delay` in the path.
    backend_delay: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    #[serde(default)]
    status: Vec<u16>,
    grpc_status: Option<u16>,
    backend: Option<String>,
    #[serde(default)]
    backend_any_of: Vec<String>,
    backend_namespace: Option<String>,
    #[serde(flatten)]
    effects: Expectations,
    mirrored_to: Option<Vec<Mirrored>>,
    distribution: Option<Distribution>,
}

/// A Service that gets copies.
#[derive(Debug, serde::Deserialize)]
struct Mirrored {
    name: String,
    namespace: String,
    percent: Option<f64>,
}

#[derive(Debug, serde::Deserialize)]
struct Distribution {
    requests: u32,
    weights: BTreeMap<String, f64>,
    tolerance_abs: f64,
}

/// What the routes of a group became.
struct Mesh<'a> {
    routes: Vec<Arc<HttpRoute>>,
    objects: &'a [Value],
    listeners: Vec<Listener>,
    settings: MeshSettings,
    mode: Mode,
}

const MESH_NAMESPACE: &str = "gateway-conformance-mesh";
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
/// Requests of which the copies are counted.
const MIRRORED_REQUESTS: u32 = 500;
/// Cases before which the suite deletes the ReferenceGrants, which its case format has no word for.
const AFTER_REVOCATION: [&str; 1] = ["HTTPRouteReferenceGrant/01"];

impl File {
    pub(super) fn is_mesh(&self) -> bool {
        self.mode == Mode::Mesh
    }
}

pub(super) fn run(file: &File, base: &[Value], sink: &mut dyn FnMut(&str, Outcome)) {
    let groups = file.groups.iter().chain(std::iter::once(&file.group));
    for group in groups.filter(|group| !group.cases.is_empty()) {
        let objects: Vec<Value> =
            base.iter().chain(&group.base_objects).chain(&group.objects).cloned().collect();
        let mesh = read(&objects, file.mode);
        let ungranted: Vec<Value> =
            objects.iter().filter(|object| kind(object) != "ReferenceGrant").cloned().collect();
        for case in &group.cases {
            let judged = if AFTER_REVOCATION.contains(&case.id.as_str()) {
                read(&ungranted, file.mode).and_then(|mesh| mesh.judge(case))
            } else {
                mesh.as_ref().map_err(String::clone).and_then(|mesh| mesh.judge(case))
            };
            sink(&case.id, judged.unwrap_or_else(Outcome::Skipped));
        }
    }
}

fn read(objects: &[Value], mode: Mode) -> Result<Mesh<'_>, String> {
    let has = |wanted: &str| objects.iter().any(|object| kind(object) == wanted);
    if has("BackendTLSPolicy") && has("GRPCRoute") {
        return Err(String::from(
            "gRPC over TLS of the backend's own needs sockets; run by session_backend_tls",
        ));
    }
    if has("BackendTLSPolicy") {
        return Err(String::from("TLS to the backend needs sockets; run by session_cases"));
    }
    let readable = match mode {
        Mode::Mesh => Replaced { objects: objects.to_vec(), ..Replaced::default() },
        Mode::Gateway => replace_gateways(objects)?,
    };
    let catalog =
        objects::read(&readable.objects).map_err(|reason| format!("an object is refused: {reason}"))?;
    let settings = MeshSettings::default();
    let mut routes = convert::routes(&catalog, &settings);
    if mode == Mode::Gateway {
        routes.retain_mut(|route| attach(route, &readable.listeners));
    }
    let routes = routes.into_iter().map(Arc::new).collect();
    Ok(Mesh { routes, objects, listeners: readable.listeners, settings, mode })
}

/// Gives a route the host names that it shares with its listener; `false` if there are none.
fn attach(route: &mut HttpRoute, listeners: &[Listener]) -> bool {
    // A gateway serves routes of other namespaces to every client.
    route.consumer_namespace = None;
    let stand_in = route.parent.hostname.split('.').next();
    let Some(listener) = listeners.iter().find(|listener| Some(&*listener.service) == stand_in) else {
        return true;
    };
    let shared = listener.intersect(&route.hostnames);
    route.hostnames = shared.clone().unwrap_or_default();
    shared.is_some()
}

// === impl Request ===

impl Request {
    fn delay(&self) -> Result<Duration, String> {
        let in_path = self.path.split_once("delay=").map(|(_, delay)| delay);
        let Some(text) = self.backend_delay.as_deref().or(in_path) else {
            return Ok(Duration::ZERO);
        };
        duration(text)
    }

    fn has_tls(&self) -> bool {
        matches!(self.protocol.as_str(), "https" | "h2")
    }
}

// === impl Mesh ===

impl Mesh<'_> {
    fn judge(&self, case: &Case) -> Result<Outcome, String> {
        let (request, expect) = (&case.request, &case.expect);
        if !matches!(request.protocol.as_str(), "http" | "grpc") && !request.has_tls() {
            return Err(format!("protocol {} needs sockets; run by session_http2", request.protocol));
        }
        if let Some(beyond) = expect.effects.beyond() {
            return Err(beyond.to_owned());
        }
        let (namespace, service, port) = match self.destination(request)? {
            Destination::Service(namespace, service, port) => (namespace, service, port),
            Destination::Refused(status) => return self.compare(case, &Went::Refused(status)),
        };
        let hostname = self.settings.service_hostname(&namespace, &service);
        if self.mode == Mode::Mesh && self.has_hostnames(&hostname) {
            return Err(String::from(
                "hostnames of a route of a Service: implementations differ, ours obeys them",
            ));
        }
        let delay = request.delay()?;
        let client = request.from.as_deref().and_then(|from| from.split_once('.'));
        let client_namespace = client.map_or(MESH_NAMESPACE, |(_, namespace)| namespace);
        let governing = self
            .routes
            .iter()
            .filter(|route| route.parent.hostname == hostname && governs(route, port, client_namespace));
        let router = Router::compile(governing.cloned()).map_err(|error| error.to_string())?;
        let behaviour = case.backend_behaviour.clone();
        let way = Way {
            router,
            plain: (self.mode == Mode::Mesh).then_some((namespace, service)),
            port,
            has_tls: request.has_tls(),
            delay,
            behaviour,
        };
        if let Some(distribution) = &expect.distribution {
            return distribute(request, &way, distribution);
        }
        let (went, _) = way.send(request, 0)?;
        let compared = self.compare(case, &went)?;
        match (&expect.mirrored_to, compared) {
            (Some(wanted), Outcome::Compared { got, want }) if got == want => mirror(request, &way, wanted),
            (_, compared) => Ok(compared),
        }
    }

    /// What the client dials.
    fn destination(&self, request: &Request) -> Result<Destination, String> {
        if self.mode == Mode::Gateway {
            return self.listener(request);
        }
        let dialled = request.connect_to.as_deref().ok_or("the case dials nothing")?;
        if dialled.starts_with('{') {
            return Err(String::from(
                "a request to an address of a pod is under no route; run by session_tcp",
            ));
        }
        let (host, port) = dialled.split_once(':').unwrap_or((dialled, "80"));
        let (name, namespace) = host.split_once('.').unwrap_or((host, MESH_NAMESPACE));
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        Ok(Destination::Service(namespace.to_owned(), name.to_owned(), port))
    }

    /// The listener that a request belongs to: within TLS the one of the server name, and then the host must be its,
    /// too (RFC 9110 section 15.5.20).
    fn listener(&self, request: &Request) -> Result<Destination, String> {
        let gateway = match &request.gateway {
            Some(gateway) => gateway.as_str(),
            None => self.only_gateway(request)?,
        };
        let port = request.listener_port.unwrap_or(if request.has_tls() { HTTPS_PORT } else { HTTP_PORT });
        let host = request.authority.rsplit_once(':').map_or(request.authority.as_str(), |(host, _)| host);
        let listeners = self.listeners.iter().filter(|listener| {
            listener.gateway == gateway && listener.port == port && listener.has_tls == request.has_tls()
        });
        let best = |name: &str| {
            let ranked = listeners.clone().filter_map(|listener| Some((listener.rank(name)?, listener)));
            ranked.max_by_key(|(rank, _)| *rank).map(|(_, listener)| listener)
        };
        let Some(listener) = best(host) else { return Ok(Destination::Refused(404)) };
        if let Some(sni) = &request.sni
            && request.has_tls()
            && best(sni) != Some(listener)
        {
            return Ok(Destination::Refused(421));
        }
        let namespace = gateway.split_once('/').map_or("", |(namespace, _)| namespace);
        Ok(Destination::Service(namespace.to_owned(), listener.service.clone(), port))
    }

    /// The gateway that all routes name; of several the one that has such listeners.
    fn only_gateway(&self, request: &Request) -> Result<&str, String> {
        let mut gateways: Vec<&str> = self
            .listeners
            .iter()
            .filter(|listener| listener.has_tls == request.has_tls())
            .filter(|listener| {
                let stand_in = |route: &Arc<HttpRoute>| {
                    route.parent.hostname.split('.').next() == Some(&listener.service)
                };
                self.routes.iter().any(stand_in)
            })
            .map(|listener| listener.gateway.as_str())
            .collect();
        gateways.dedup();
        match gateways.as_slice() {
            [gateway] => Ok(gateway),
            [] => Err(String::from("the case has no route of a gateway")),
            _ => Err(String::from("the case does not say which gateway it means")),
        }
    }

    fn has_hostnames(&self, parent: &str) -> bool {
        self.routes.iter().any(|route| *route.parent.hostname == *parent && !route.hostnames.is_empty())
    }

    fn compare(&self, case: &Case, went: &Went) -> Result<Outcome, String> {
        let expect = &case.expect;
        let wanted = expect.statuses();
        let statuses = wanted.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
        let backends: Vec<&String> = expect.backend.iter().chain(&expect.backend_any_of).collect();
        let want = match (&expect.backend_namespace, backends.as_slice()) {
            (_, []) => statuses,
            (namespace, backends) => format!("{statuses} from {backends:?} in {namespace:?}"),
        };
        let holds = match went {
            Went::Refused(status) => wanted.contains(status),
            Went::Redirected(seen) | Went::Answered(seen) => wanted.contains(&seen.status),
            Went::To(namespace, service, _) => {
                let pods = self.pods(namespace, service)?;
                let serves = backends.is_empty()
                    || backends.iter().any(|wanted| pods.iter().any(|pod| pod.starts_with(wanted.as_str())));
                let is_near = expect.backend_namespace.as_ref().is_none_or(|wanted| wanted == namespace);
                wanted.contains(&200) && serves && is_near
            }
        };
        let got = match went {
            _ if holds => want.clone(),
            Went::Refused(status) => status.to_string(),
            Went::Redirected(seen) => format!("{} to {:?}", seen.status, seen.location()),
            Went::Answered(seen) => format!("{} of the proxy", seen.status),
            Went::To(namespace, service, _) => format!("200 from {service} in {namespace}"),
        };
        let differences = match went {
            Went::Answered(seen) => effect::response_differences(&expect.effects, seen),
            Went::To(_, _, seen) | Went::Redirected(seen) => {
                // The suite compares the path at a backend of a gateway even where a case does not name it.
                let as_sent = (self.mode == Mode::Gateway).then_some(case.request.path.as_str());
                effect::differences(&expect.effects, seen, &case.request.path, as_sent)
            }
            Went::Refused(_) => Vec::new(),
        };
        Ok(Outcome::Compared { got: [vec![got], differences].concat().join("; "), want })
    }

    /// Names of what the pods behind a Service belong to: its deployments, or where the case shows none the `app`
    /// that the Service selects, which the suite names its deployments by.
    fn pods(&self, namespace: &str, service: &str) -> Result<Vec<String>, String> {
        let text = |object: &Value, path: &str| {
            object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let of_kind = |wanted: &'static str| {
            self.objects.iter().filter(move |object| {
                kind(object) == wanted && text(object, "/metadata/namespace") == namespace
            })
        };
        let selector = of_kind("Service")
            .find(|object| text(object, "/metadata/name") == service)
            .and_then(|object| object.pointer("/spec/selector"))
            .and_then(Value::as_object)
            .ok_or("endpoints written by hand need sockets; run by session_cases")?;
        let selects = |object: &&Value| {
            let labels = object.pointer("/spec/template/metadata/labels");
            selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        let pods: Vec<_> =
            of_kind("Deployment").filter(selects).map(|object| text(object, "/metadata/name")).collect();
        let app = selector.get("app").and_then(Value::as_str).map(str::to_owned);
        Ok(if pods.is_empty() { app.into_iter().collect() } else { pods })
    }
}

// === impl Expected ===

impl Expected {
    /// A gRPC status stands for the HTTP status of which it would be made.
    fn statuses(&self) -> Vec<u16> {
        match self.grpc_status {
            None => self.status.clone(),
            Some(0) => vec![200],
            Some(GRPC_UNIMPLEMENTED) => vec![404],
            Some(_) => Vec::new(),
        }
    }
}

/// Of a method that nobody serves.
const GRPC_UNIMPLEMENTED: u16 = 12;

/// What a client dials.
enum Destination {
    /// Namespace and name, and the port.
    Service(String, String, u16),
    /// There is nothing for the request.
    Refused(u16),
}

/// Counts the copies of many requests, for each of which chance is drawn as a proxy draws it.
fn mirror(request: &Request, way: &Way, wanted: &[Mirrored]) -> Result<Outcome, String> {
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for number in 0..MIRRORED_REQUESTS {
        let (_, mirrored) = way.send(request, u64::MAX / u64::from(MIRRORED_REQUESTS) * u64::from(number))?;
        for copy in mirrored {
            *counts.entry(copy).or_default() += 1;
        }
    }
    let want: Vec<_> =
        wanted.iter().map(|it| (it.namespace.as_str(), it.name.as_str(), it.percent)).collect();
    let is_near = |wanted: &Mirrored| {
        let count = counts.get(&(wanted.namespace.clone(), wanted.name.clone())).copied().unwrap_or_default();
        let share = wanted.percent.unwrap_or(100.0) / 100.0;
        (f64::from(count) / f64::from(MIRRORED_REQUESTS) - share).abs() <= 1.5 / f64::from(MIRRORED_REQUESTS)
    };
    let want = format!("copies for {want:?}");
    let holds = counts.len() == wanted.len() && wanted.iter().all(is_near);
    Ok(Outcome::Compared { got: if holds { want.clone() } else { format!("{counts:?}") }, want })
}

/// Routes many requests, evenly spread, and compares the shares of the backends.
fn distribute(request: &Request, way: &Way, wanted: &Distribution) -> Result<Outcome, String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..wanted.requests {
        // Evenly spread in place of random: what is tested is the shares, not luck.
        let point = u64::MAX / u64::from(wanted.requests) * u64::from(number) + 1;
        let name = match way.send(request, point)?.0 {
            Went::To(_, name, _) => name,
            Went::Redirected(seen) | Went::Answered(seen) => seen.status.to_string(),
            Went::Refused(status) => status.to_string(),
        };
        *counts.entry(name).or_default() += 1;
    }
    let share =
        |name: &String| f64::from(counts.get(name).copied().unwrap_or_default()) / f64::from(wanted.requests);
    // A share of one request is the least that can be told.
    let tolerance = wanted.tolerance_abs + 1.0 / f64::from(wanted.requests);
    let near = wanted.weights.iter().all(|(name, weight)| (share(name) - weight).abs() <= tolerance);
    let known = counts.keys().all(|name| wanted.weights.contains_key(name));
    let want = format!("shares of {:?}", wanted.weights);
    Ok(Outcome::Compared { got: if near && known { want.clone() } else { format!("{counts:?}") }, want })
}
