//! As the client's node decides: where the connection, or each request, goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use l7::authz::DENIED_STATUS;
use l7::filter::{Chain, Dialled};
use l7::ir::{self, BackendTarget, RouteKind, Scheme};
use l7::router::{MatchedRoute, RouteMatch, Router, Sender};
use model::{NamespacedHostname, TunnelProtocol, Workload};
use xds::control::PodView;
use xds::snapshot::resolve::{Candidate, Client, Destination, Transport};
use xds::snapshot::{self, ServiceEntry, Snapshot};

use super::report::{self, Backend, Decision, Endpoint, Explanation, Pod, Policy, Service, To, ToKind};
use super::request::Asked;
use super::server::Arrival;
use super::world::World;
use super::{ExplainError, Resolved, Source};
use crate::session::governed;

/// No route takes a request.
const NOT_FOUND: u16 = 404;
/// A backend that is not valid.
const NO_BACKEND: u16 = 500;
/// No endpoint, at a proxy that reads requests.
const NO_ENDPOINT: u16 = 503;

pub(super) struct Asking<'a> {
    pub(super) world: &'a World,
    /// What the proxy holds that decides: the one of the client's node, or a waypoint.
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) pod: &'a PodView,
    pub(super) ip: IpAddr,
    /// Whom the next policies take for the client.
    pub(super) source: &'a Source,
    /// What routes take for the client's address.
    pub(super) sender: IpAddr,
    /// Whether the proxy carries what it forwards in tunnels.
    pub(super) tunnels: bool,
    pub(super) destination: &'a Resolved,
    pub(super) asked: &'a Asked,
}

/// What was decided, before it is put beside who asked what.
pub(super) struct Said {
    pub(super) decision: Decision,
    pub(super) status: Option<u16>,
    pub(super) reason: String,
    pub(super) waypoint: Option<report::Waypoint>,
    pub(super) route: Option<report::Route>,
    pub(super) backends: Vec<Backend>,
}

/// Whether the proxy reads requests: then it answers where it cannot forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    Requests,
    Bytes,
}

/// What one backend takes.
pub(super) struct Share<'a> {
    pub(super) target: Option<report::Target>,
    pub(super) part: f64,
    /// The request as the backend gets it.
    pub(super) asked: &'a Asked,
    pub(super) reads: Reads,
}

impl Asking<'_> {
    pub(super) fn explain(&self) -> Result<Explanation, ExplainError> {
        let workload = self.snapshot.workload_by_uid(&self.pod.uid);
        let said = match workload {
            Some(workload) if self.pod.enrolled => self.captured(self.client(workload))?,
            _ => self.outside(workload)?,
        };
        let Said { decision, status, reason, waypoint, route, backends } = said;
        Ok(Explanation {
            decision,
            status,
            reason,
            from: self.from(),
            to: self.to(workload.map(|workload| self.client(workload))),
            request: self.asked.shown()?,
            waypoint,
            route,
            backends,
            problems: self.world.problems.iter().map(ToString::to_string).collect(),
        })
    }

    fn client<'w>(&self, workload: &'w Workload) -> Client<'w> {
        Client { workload, ip: self.ip }
    }

    // --- The connection ---

    fn captured(&self, client: Client<'_>) -> Result<Said, ExplainError> {
        let (snapshot, to) = (self.snapshot, self.destination.to);
        let destination = match snapshot.destination(client, to) {
            Ok(destination) => destination,
            Err(refusal) => return Ok(Said::refused(refusal.to_string())),
        };
        if let Some(entry) = governed(snapshot, client, &destination, to.port())
            && let Some(router) =
                snapshot.routes_for(entry.key(), to.port(), client.workload.identity.namespace())
        {
            return self.routed(client, router);
        }
        let route = match snapshot.resolve(client, to, 0) {
            Ok(route) => route,
            Err(refusal) => match self.candidates(client, &destination) {
                none if none.is_empty() => return Ok(Said::refused(refusal.to_string())),
                some => return Ok(Said::of(vec![self.backend(some, self.whole())?])),
            },
        };
        let kind = route.kind;
        let direct = Candidate {
            workload: Arc::clone(match &route.workload {
                Some(workload) => workload,
                None => return Ok(self.passed_through(&route)),
            }),
            way: Ok(route),
        };
        if kind == snapshot::RouteKind::Waypoint {
            return self.through_waypoint(client, direct);
        }
        let mut candidates = self.candidates(client, &destination);
        if candidates.is_empty() {
            candidates.push(direct);
        }
        Ok(Said::of(vec![self.backend(candidates, self.whole())?]))
    }

    fn candidates(&self, client: Client<'_>, destination: &Destination<'_>) -> Vec<Candidate> {
        let Destination::Service { entry, .. } = destination else { return Vec::new() };
        let to = self.destination.to;
        self.snapshot.candidates(client, entry.key(), to.port(), Some(to.ip()))
    }

    fn whole(&self) -> Share<'_> {
        Share { target: None, part: 1.0, asked: self.asked, reads: Reads::Bytes }
    }

    fn passed_through(&self, route: &snapshot::Route) -> Said {
        let reason = match &route.service {
            Some(entry) => {
                format!("{} is not balanced: the address is dialled as it is", entry.service.key.hostname)
            }
            None => format!(
                "nobody in the mesh has the address {}: it is passed on as it is",
                self.destination.to.ip()
            ),
        };
        Said { decision: Decision::Passthrough, reason, ..Said::of(Vec::new()) }
    }

    /// The mesh does not carry what this pod sends: the cluster's own load balancing picks an endpoint, in the clear.
    fn outside(&self, workload: Option<&Arc<Workload>>) -> Result<Said, ExplainError> {
        let Some(workload) = workload else {
            return Ok(Said::refused(String::from(
                "the pod has no address in the mesh's network: nothing is known of it",
            )));
        };
        let client = self.client(workload);
        let destination = match self.snapshot.destination(client, self.destination.to) {
            Ok(destination) => destination,
            Err(refusal) => return Ok(Said::refused(refusal.to_string())),
        };
        let mut candidates = self.candidates(client, &destination);
        if candidates.is_empty() {
            match self.snapshot.resolve(client, self.destination.to, 0) {
                Ok(route) => match route.workload.clone() {
                    Some(workload) => candidates.push(Candidate { workload, way: Ok(route) }),
                    None => return Ok(self.passed_through(&route)),
                },
                Err(refusal) => return Ok(Said::refused(refusal.to_string())),
            }
        }
        Ok(Said::of(vec![self.backend(candidates, self.whole())?]))
    }

    // --- The request ---

    pub(super) fn routed(&self, client: Client<'_>, router: &Router) -> Result<Said, ExplainError> {
        self.asked.view(|request| match router.route_from(request, self.sender(client)) {
            RouteMatch::NotFound => {
                let names: Vec<_> = router.routes().iter().map(|it| self.name_of(it)).collect();
                let reason =
                    format!("no rule takes the request; what governs the destination: {}", names.join(", "));
                let status = Some(NOT_FOUND);
                Ok(Said { decision: Decision::Answered, status, reason, ..Said::of(Vec::new()) })
            }
            RouteMatch::Matched(matched) => {
                let backends = self.backends(client, &matched, request)?;
                Ok(Said { route: Some(self.route(&matched)), ..Said::of(backends) })
            }
        })?
    }

    /// Whom routes take the client for: whoever has its address.
    fn sender(&self, client: Client<'_>) -> Sender<'_> {
        let snapshot = self.snapshot;
        let owner = snapshot.workload_by_address(&client.workload.network, self.sender.to_canonical());
        owner.map_or_else(Sender::default, |owner| Sender {
            namespace: owner.identity.namespace(),
            labels: snapshot.labels_of(owner).map(AsRef::as_ref),
        })
    }

    fn name_of(&self, route: &ir::HttpRoute) -> String {
        let source = self.world.source_of_route(route.kind, &route.namespace, &route.name);
        let source = source.map(|source| format!(" ({source})")).unwrap_or_default();
        format!("{} {}/{}{source}", kind_of(route.kind), route.namespace, route.name)
    }

    fn route(&self, matched: &MatchedRoute<'_>) -> report::Route {
        let MatchedRoute { route, rule, rule_index, match_index, .. } = matched;
        report::Route {
            kind: kind_of(route.kind),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            rule: *rule_index,
            rule_name: rule.name.clone(),
            matched: *match_index,
            condition: matched.matched().cloned(),
            filters: rule.filters.clone(),
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
            session: rule.session.clone(),
            fault: rule.fault.clone(),
            source: self.world.source_of_route(route.kind, &route.namespace, &route.name).cloned(),
        }
    }

    fn backends(
        &self,
        client: Client<'_>,
        matched: &MatchedRoute<'_>,
        request: &ir::RequestHead<'_>,
    ) -> Result<Vec<Backend>, ExplainError> {
        let chain = Chain::of_rule(matched.rule.filters.as_ref(), matched.matched());
        if chain.redirect().is_some() {
            return Ok(vec![self.redirected(&chain, None, 1.0, request)]);
        }
        let total: f64 = matched.rule.backends.iter().map(|it| f64::from(it.weight)).sum();
        if total == 0.0 {
            let reason = String::from("the rule has no backend with a weight");
            return Ok(vec![Backend::answered(None, 1.0, NO_BACKEND, reason)]);
        }
        let one = |backend| self.of_rule(client, matched, backend, total, request);
        matched.rule.backends.iter().map(one).collect()
    }

    fn of_rule(
        &self,
        client: Client<'_>,
        matched: &MatchedRoute<'_>,
        backend: &ir::Backend,
        total: f64,
        request: &ir::RequestHead<'_>,
    ) -> Result<Backend, ExplainError> {
        let share = f64::from(backend.weight) / total;
        let (service, port) = match &backend.target {
            BackendTarget::Service { service, port } => (service, *port),
            BackendTarget::Invalid(reason) => {
                let reason = format!("the backend is not valid: {reason}");
                return Ok(Backend::answered(None, share, NO_BACKEND, reason));
            }
        };
        let mut chain = Chain::of_rule(matched.rule.filters.as_ref(), matched.matched());
        chain.push_backend(backend, matched.matched());
        let target = Some(self.target(service, port, backend.weight));
        if chain.redirect().is_some() {
            return Ok(self.redirected(&chain, target, share, request));
        }
        let asked = self.asked.filtered(&chain)?;
        let candidates = self.snapshot.candidates(client, service, port, None);
        let taken = Share { target, part: share, asked: &asked, reads: Reads::Requests };
        let mut said = self.backend(candidates, taken)?;
        said.filters.clone_from(&backend.filters);
        said.forwarded = Some(asked.shown()?).filter(|_| !chain.is_empty());
        Ok(said)
    }

    fn target(&self, service: &NamespacedHostname, port: u16, weight: u32) -> report::Target {
        let entry = self.snapshot.service(&service.namespace, &service.hostname);
        let source = entry.and_then(|entry| self.source_of_service(entry));
        report::Target { service: service.hostname.clone(), port, weight, source }
    }

    fn redirected(
        &self,
        chain: &Chain,
        backend: Option<report::Target>,
        share: f64,
        request: &ir::RequestHead<'_>,
    ) -> Backend {
        let dialled = Dialled { scheme: Scheme::Http, port: self.destination.to.port() };
        let redirect = chain.redirect();
        let status = redirect.map_or(NO_BACKEND, |redirect| redirect.status);
        let location =
            redirect.map(|it| chain.location(it, dialled, request.authority, request.path, request.query));
        let reason = format!("the client is sent to {}", location.as_deref().unwrap_or_default());
        Backend {
            decision: Decision::Redirected,
            location,
            ..Backend::answered(backend, share, status, reason)
        }
    }

    // --- The endpoints ---

    pub(super) fn backend(
        &self,
        candidates: Vec<Candidate>,
        taken: Share<'_>,
    ) -> Result<Backend, ExplainError> {
        let Share { target, part, asked, reads } = taken;
        let mut endpoints = candidates
            .into_iter()
            .map(|candidate| self.endpoint(&candidate, asked))
            .collect::<Result<Vec<_>, _>>()?;
        endpoints.sort_by(|one, other| one.pod.name.cmp(&other.pod.name));
        let mut backend = Backend::answered(target, part, 0, String::new());
        (backend.decision, backend.status, backend.reason) = verdict(&endpoints, reads);
        backend.endpoints = endpoints;
        Ok(backend)
    }

    fn endpoint(&self, candidate: &Candidate, asked: &Asked) -> Result<Endpoint, ExplainError> {
        let workload = &candidate.workload;
        let mut endpoint = Endpoint {
            pod: self.pod_of(workload),
            eligible: false,
            why_not: None,
            transport: None,
            policy: None,
        };
        let route = match &candidate.way {
            Ok(route) => route,
            Err(reason) => {
                endpoint.why_not = Some(reason.to_string());
                return Ok(endpoint);
            }
        };
        endpoint.eligible = true;
        let (transport, arrives) = self.transport(&route.transport);
        endpoint.transport = Some(transport);
        if let Some(to) = arrives.filter(|_| workload.tunnel_protocol == TunnelProtocol::Hbone) {
            let Source { identity, ip } = self.source;
            let source = identity.as_ref();
            let arrival = Arrival { world: self.world, source, source_ip: *ip, to };
            endpoint.policy = Some(arrival.decide(workload, asked)?);
        }
        Ok(endpoint)
    }

    /// How it is carried, and to which address and port of the pod, if that is known here.
    pub(super) fn transport(&self, transport: &Transport) -> (report::Transport, Option<SocketAddr>) {
        let uris = |identities: &[model::Identity]| identities.iter().map(|it| it.uri().to_owned()).collect();
        match transport {
            // Who is not in the mesh does not tunnel.
            Transport::Hbone { authority, .. } if !self.tunnels => {
                (report::Transport::Tcp { to: authority.to_string() }, Some(*authority))
            }
            Transport::Hbone { next_hop, authority, identities } => {
                let (next_hop, identities) = (*next_hop, uris(identities));
                (
                    report::Transport::Hbone { next_hop, authority: authority.to_string(), identities },
                    Some(*authority),
                )
            }
            Transport::Tcp { to } => {
                let address = match to {
                    snapshot::Target::Address(address) => Some(*address),
                    snapshot::Target::Name { .. } => None,
                };
                (report::Transport::Tcp { to: to.to_string() }, address)
            }
            Transport::DoubleHbone { next_hop, hostname, port, identities, .. } => {
                let authority = format!("{hostname}:{port}");
                let (next_hop, identities) = (*next_hop, uris(identities));
                (report::Transport::DoubleHbone { next_hop, authority, identities }, None)
            }
        }
    }

    // --- Who is who ---

    fn from(&self) -> Pod {
        Pod {
            name: format!("{}/{}", self.pod.namespace, self.pod.name),
            address: Some(self.source.ip),
            in_mesh: self.pod.enrolled,
            identity: self.source.identity.as_ref().map(|identity| identity.uri().to_owned()),
            node: self.pod.node.clone(),
            source: Some(self.pod.source.clone()),
        }
    }

    pub(super) fn pod_of(&self, workload: &Workload) -> Pod {
        let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone;
        Pod {
            name: format!("{}/{}", workload.namespace, workload.name),
            address: workload.addresses.first().copied(),
            in_mesh,
            identity: in_mesh.then(|| workload.identity.uri().to_owned()),
            node: workload.node.clone(),
            source: self.world.source_of_pod(&workload.uid).cloned(),
        }
    }

    fn to(&self, client: Option<Client<'_>>) -> To {
        let Resolved { asked, to, how } = self.destination;
        let destination = client.and_then(|client| self.snapshot.destination(client, *to).ok());
        let (kind, service, pod) = match destination {
            Some(Destination::Service { entry, owner }) => {
                let service = Service {
                    namespace: entry.service.key.namespace.clone(),
                    hostname: entry.service.key.hostname.clone(),
                    source: self.source_of_service(entry),
                };
                (ToKind::Service, Some(service), owner.map(|owner| self.pod_of(owner)))
            }
            Some(Destination::Workload(workload)) => (ToKind::Workload, None, Some(self.pod_of(workload))),
            Some(Destination::Unknown) | None => (ToKind::Unknown, None, None),
        };
        To { asked: asked.clone(), address: *to, resolved: how.clone(), kind, service, pod }
    }

    fn source_of_service(&self, entry: &ServiceEntry) -> Option<model::SourceRef> {
        self.world.source_of_service(&entry.service.key.namespace, &entry.service.name).cloned()
    }
}

impl Said {
    pub(super) fn of(backends: Vec<Backend>) -> Self {
        let mut taken = backends.iter().filter(|it| it.share > 0.0);
        let (decision, status, reason) = match taken.next() {
            None => (Decision::Refused, None, String::new()),
            Some(first) if taken.all(|it| (it.decision, it.status) == (first.decision, first.status)) => {
                (first.decision, first.status, first.reason.clone())
            }
            Some(_) => (Decision::Mixed, None, String::from("it depends on the backend that is chosen")),
        };
        Self { decision, status, reason, waypoint: None, route: None, backends }
    }

    pub(super) fn refused(reason: String) -> Self {
        Self { decision: Decision::Refused, reason, ..Self::of(Vec::new()) }
    }
}

impl Backend {
    /// One that a proxy answers for.
    fn answered(target: Option<report::Target>, share: f64, status: u16, reason: String) -> Self {
        Self {
            target,
            share,
            decision: Decision::Answered,
            status: Some(status),
            reason,
            location: None,
            forwarded: None,
            filters: None,
            endpoints: Vec::new(),
        }
    }
}

/// What the endpoints come to.
fn verdict(endpoints: &[Endpoint], reads: Reads) -> (Decision, Option<u16>, String) {
    let mut eligible = endpoints.iter().filter(|it| it.eligible);
    let Some(first) = eligible.next() else {
        let status = (reads == Reads::Requests).then_some(NO_ENDPOINT);
        let reason = match endpoints.first() {
            None => String::from("the service has no endpoint"),
            Some(_) => String::from("no endpoint may be chosen"),
        };
        return (Decision::Refused, status, reason);
    };
    let said = outcome(first, reads);
    if eligible.all(|it| outcome(it, reads).0 == said.0) {
        return said;
    }
    (Decision::Mixed, None, String::from("it depends on the endpoint that is chosen"))
}

fn outcome(endpoint: &Endpoint, reads: Reads) -> (Decision, Option<u16>, String) {
    match &endpoint.policy {
        None if endpoint.pod.in_mesh => {
            (Decision::Allowed, None, String::from("what the other network's proxies say is not known here"))
        }
        None => {
            (Decision::Allowed, None, format!("{} is not in the mesh: no policy is asked", endpoint.pod.name))
        }
        Some(Policy { allowed: true, reason, .. }) => (Decision::Allowed, None, reason.clone()),
        Some(policy) => {
            // A connection that is denied is a request that is answered, where the client's proxy reads requests.
            let status = policy.status.or((reads == Reads::Requests).then_some(DENIED_STATUS));
            (Decision::Denied, status, policy.reason.clone())
        }
    }
}

fn kind_of(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
        RouteKind::Virtual => "VirtualService",
    }
}
