//! Cases of the Gateway API: which backend a request goes to, and what filters make of it and of its response.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use l7::filter::Chain;
use l7::ir::{HttpRoute, RequestHead};
use l7::path::Normalization;
use l7::router::{RouteMatch, Router, Taken, governs};
use serde_json::Value;
use xds::kube::{MeshSettings, convert};

use super::effect::{self, Expectations, Seen};
use super::request::{Headers, Sent};
use super::stand_in::{Replaced, kind, replace_gateways};
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
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
struct Request {
    /// `APP.NAMESPACE` of the client.
    from: Option<String>,
    /// `SERVICE[.NAMESPACE][:PORT]`.
    connect_to: Option<String>,
    /// `NAMESPACE/NAME`.
    gateway: Option<String>,
    listener_port: Option<u16>,
    authority: String,
    protocol: String,
    method: String,
    path: String,
    #[serde(default)]
    query: BTreeMap<String, String>,
    headers: Option<Headers>,
    backend_sets_response_headers: Option<Headers>,
    /// Also written as a query parameter `delay` in the path.
    backend_delay: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    #[serde(default)]
    status: Vec<u16>,
    backend: Option<String>,
    #[serde(default)]
    backend_any_of: Vec<String>,
    backend_namespace: Option<String>,
    #[serde(flatten)]
    effects: Expectations,
    mirrored_to: Option<Value>,
    distribution: Option<Distribution>,
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
    /// Gateways that are not modelled, and why.
    left_out: BTreeMap<String, String>,
    settings: MeshSettings,
    mode: Mode,
}

/// Where a request went.
#[derive(Debug, Clone, PartialEq)]
enum Went {
    /// Pods of this Service: namespace and name; and what filters made of the messages.
    To(String, String, Seen),
    /// The client is sent elsewhere.
    Redirected(Seen),
    Refused(u16),
}

const MESH_NAMESPACE: &str = "gateway-conformance-mesh";
const HTTP_PORT: u16 = 80;
/// Those that are served.
const FILTERS: [&str; 4] =
    ["RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite", "RequestRedirect"];
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
    let routes = || objects.iter().filter(|object| matches!(kind(object), "HTTPRoute" | "GRPCRoute"));
    if let Some(other) =
        objects.iter().map(kind).find(|kind| matches!(*kind, "GRPCRoute" | "BackendTLSPolicy"))
    {
        return Err(format!("{other} is not supported"));
    }
    if let Some(feature) = routes().find_map(unsupported) {
        return Err(feature);
    }
    let readable = match mode {
        Mode::Mesh => Replaced { objects: objects.to_vec(), ..Replaced::default() },
        Mode::Gateway => replace_gateways(objects),
    };
    let catalog =
        objects::read(&readable.objects).map_err(|reason| format!("an object is refused: {reason}"))?;
    let settings = MeshSettings::default();
    let mut routes = convert::routes(&catalog, &settings);
    if mode == Mode::Gateway {
        // A gateway serves routes of other namespaces to every client.
        for route in &mut routes {
            route.consumer_namespace = None;
        }
    }
    let routes = routes.into_iter().map(Arc::new).collect();
    Ok(Mesh { routes, objects, left_out: readable.left_out, settings, mode })
}

/// The first thing of a route that the engine does not do.
fn unsupported(route: &Value) -> Option<String> {
    let rules = route.pointer("/spec/rules").and_then(Value::as_array)?;
    let filter = |holder: &Value| {
        let filters = holder.get("filters")?.as_array()?;
        let mut types = filters.iter().filter_map(|filter| filter.get("type")?.as_str());
        let filter = types.find(|filter| !FILTERS.contains(filter))?;
        Some(format!("filter {filter} is not supported"))
    };
    rules.iter().find_map(|rule| {
        let backends = rule.get("backendRefs").and_then(Value::as_array);
        let feature = ["retry", "sessionPersistence"]
            .into_iter()
            .find(|feature| rule.get(feature).is_some())
            .map(|feature| format!("{feature} is not supported"));
        filter(rule).or_else(|| backends.into_iter().flatten().find_map(filter)).or(feature)
    })
}

// === impl Request ===

impl Request {
    fn delay(&self) -> Result<Duration, String> {
        let in_path = self.path.split_once("delay=").map(|(_, delay)| delay);
        let Some(text) = self.backend_delay.as_deref().or(in_path) else {
            return Ok(Duration::ZERO);
        };
        let milliseconds = match text.strip_suffix("ms") {
            Some(number) => number.parse().ok(),
            None => text.strip_suffix('s').and_then(|number| number.parse::<u64>().ok()).map(|it| it * 1000),
        };
        milliseconds.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is no delay"))
    }
}

// === impl Mesh ===

impl Mesh<'_> {
    fn judge(&self, case: &Case) -> Result<Outcome, String> {
        let (request, expect) = (&case.request, &case.expect);
        if request.protocol != "http" {
            return Err(format!("protocol {} needs sockets", request.protocol));
        }
        if expect.mirrored_to.is_some() {
            return Err(String::from("mirrors are not supported"));
        }
        if let Some(beyond) = expect.effects.beyond() {
            return Err(beyond.to_owned());
        }
        let (namespace, service, port) = self.destination(request)?;
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
        let way = Way { router, plain: (namespace, service), port, delay };
        if let Some(distribution) = &expect.distribution {
            return distribute(request, &way, distribution);
        }
        let went = send(request, &way, 0)?;
        self.compare(case, &went)
    }

    /// Namespace and name of the Service that the client dials, and the port.
    fn destination(&self, request: &Request) -> Result<(String, String, u16), String> {
        if self.mode == Mode::Gateway {
            let (namespace, name) = match &request.gateway {
                Some(gateway) => {
                    if let Some(reason) = self.left_out.get(gateway) {
                        return Err(reason.clone());
                    }
                    gateway.split_once('/').ok_or("the gateway has no namespace")?
                }
                // The case may mean any of them.
                None if !self.left_out.is_empty() => {
                    return Err(self.left_out.values().next().cloned().unwrap_or_default());
                }
                None => self.only_gateway()?,
            };
            return Ok((namespace.to_owned(), name.to_owned(), request.listener_port.unwrap_or(HTTP_PORT)));
        }
        let dialled = request.connect_to.as_deref().ok_or("the case dials nothing")?;
        if dialled.starts_with('{') {
            return Err(String::from("a request to an address of a pod needs sockets"));
        }
        let (host, port) = dialled.split_once(':').unwrap_or((dialled, "80"));
        let (name, namespace) = host.split_once('.').unwrap_or((host, MESH_NAMESPACE));
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        Ok((namespace.to_owned(), name.to_owned(), port))
    }

    /// The gateway that all routes name.
    fn only_gateway(&self) -> Result<(&str, &str), String> {
        let mut parents = self.routes.iter().map(|route| &route.parent);
        let first = parents.next().ok_or("the case has no route of a gateway")?;
        if parents.any(|parent| parent != first) {
            return Err(String::from("the case does not say which gateway it means"));
        }
        let name = first.hostname.split('.').next().unwrap_or_default();
        Ok((&first.namespace, name))
    }

    fn has_hostnames(&self, parent: &str) -> bool {
        self.routes.iter().any(|route| *route.parent.hostname == *parent && !route.hostnames.is_empty())
    }

    fn compare(&self, case: &Case, went: &Went) -> Result<Outcome, String> {
        let expect = &case.expect;
        let statuses = expect.status.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
        let backends: Vec<&String> = expect.backend.iter().chain(&expect.backend_any_of).collect();
        let want = match (&expect.backend_namespace, backends.as_slice()) {
            (_, []) => statuses,
            (namespace, backends) => format!("{statuses} from {backends:?} in {namespace:?}"),
        };
        let holds = match went {
            Went::Refused(status) => expect.status.contains(status),
            Went::Redirected(seen) => expect.status.contains(&seen.status),
            Went::To(namespace, service, _) => {
                let pods = self.pods(namespace, service)?;
                let serves = backends.is_empty()
                    || backends.iter().any(|wanted| pods.iter().any(|pod| pod.starts_with(wanted.as_str())));
                let is_near = expect.backend_namespace.as_ref().is_none_or(|wanted| wanted == namespace);
                expect.status.contains(&200) && serves && is_near
            }
        };
        let got = match went {
            _ if holds => want.clone(),
            Went::Refused(status) => status.to_string(),
            Went::Redirected(seen) => format!("{} to {:?}", seen.status, seen.location()),
            Went::To(namespace, service, _) => format!("200 from {service} in {namespace}"),
        };
        let differences = match went {
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
            .ok_or("endpoints written by hand need sockets")?;
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

/// What the client's proxy knows of a connection.
struct Way {
    router: Router,
    /// Namespace and name of the Service, where a request goes if no route governs it.
    plain: (String, String),
    port: u16,
    /// How long the backend waits before it answers.
    delay: Duration,
}

/// Routes many requests, evenly spread, and compares the shares of the backends.
fn distribute(request: &Request, way: &Way, wanted: &Distribution) -> Result<Outcome, String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..wanted.requests {
        // Evenly spread in place of random: what is tested is the shares, not luck.
        let point = u64::MAX / u64::from(wanted.requests) * u64::from(number) + 1;
        let name = match send(request, way, point)? {
            Went::To(_, name, _) => name,
            Went::Redirected(seen) => seen.status.to_string(),
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

/// Routes one request.
fn send(request: &Request, way: &Way, random: u64) -> Result<Went, String> {
    let query: Vec<_> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let target = match query.as_slice() {
        [] => request.path.clone(),
        pairs => format!("{}?{}", request.path, pairs.join("&")),
    };
    let authority = request.authority.replace("{GATEWAY_ADDRESS}", "gateway.test");
    let sent = Sent {
        method: &request.method,
        target: &target,
        authority: &authority,
        headers: request.headers.as_ref(),
        token: None,
    };
    let answer = request.backend_sets_response_headers.as_ref();
    sent.receive(Normalization::Base, |received, head| route(received, head, way, random, answer))
        .unwrap_or_else(|status| Ok(Went::Refused(status)))
}

fn route(
    received: &l7::http1::Request<'_, '_>,
    head: &RequestHead<'_>,
    way: &Way,
    random: u64,
    answer: Option<&Headers>,
) -> Result<Went, String> {
    if way.router.is_empty() {
        let (namespace, name) = way.plain.clone();
        let seen = effect::forwarded(received, head, &Chain::default(), answer)?;
        return Ok(Went::To(namespace, name, seen));
    }
    let RouteMatch::Matched(found) = way.router.route(head) else {
        return Ok(Went::Refused(404));
    };
    Ok(match found.take(random) {
        Taken::Failed(_) => Went::Refused(500),
        Taken::Redirected(filters) => Went::Redirected(effect::redirected(head, &filters, way.port)?),
        // That the limit is kept on sockets is shown elsewhere; here, that it is the right one.
        Taken::Forwarded { .. } if found.rule.timeouts.limit().is_some_and(|limit| way.delay > limit) => {
            Went::Refused(504)
        }
        Taken::Forwarded { service, filters, .. } => {
            let name = service.hostname.split('.').next().unwrap_or_default().to_owned();
            let seen = effect::forwarded(received, head, &filters, answer)?;
            Went::To(service.namespace.to_string(), name, seen)
        }
    })
}
