//! The folder as a node proxy sees it, and where its objects are written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use l7::ir::RouteKind;
use model::{SourceRef, Workload};
use xds::control::desired::{DesiredState, ResourceKind, View};
use xds::control::index::{Indexed, Indexer};
use xds::control::last_good::InForce;
use xds::control::{ClusterView, ControlConfig, PodView, WaypointPods};
use xds::delta::Sink;
use xds::kube::{Catalog, MeshSettings, ObjectName, Problem, convert, load_dir};
use xds::snapshot::{ServiceEntry, Snapshot};
use xds::store::Store;

use super::{ExplainError, Resolved};
use crate::session::names::{candidates, cluster_search_domains, with_wildcards};

/// Pods that are named in an error.
const NAMED_MAX: usize = 8;

/// Where policies and routes are written, by what a snapshot knows of them.
#[derive(Debug, Default)]
struct Sources {
    /// By `NAMESPACE/NAME` of the policy as it is decided.
    policies: BTreeMap<(Arc<str>, Arc<str>), SourceRef>,
    routes: BTreeMap<(RouteKind, Arc<str>, Arc<str>), SourceRef>,
}

pub(super) struct World {
    /// What node proxies hold.
    pub(super) snapshot: Arc<Snapshot>,
    desired: DesiredState,
    pub(super) view: ClusterView,
    pub(super) problems: Vec<Problem>,
    catalog: Catalog,
    domain: String,
    sources: Sources,
}

impl World {
    pub(super) fn read(folder: &Path, mesh: &MeshSettings) -> Result<Self, ExplainError> {
        let mut in_force = InForce::default();
        let mut problems = in_force.update(load_dir(folder), folder);
        let catalog = in_force.catalog();
        if catalog.pods.is_empty()
            && let Some(problem) = problems.first()
        {
            let (folder, problem) = (folder.to_owned(), Box::new(problem.clone()));
            return Err(ExplainError::Folder { folder, problem });
        }
        let config = ControlConfig {
            mesh: mesh.clone(),
            // As `corelane mesh` has it.
            waypoints: WaypointPods::Made,
            ..ControlConfig::new(folder, folder, "node")
        };
        let Indexed { desired, view, problems: later } = Indexer::new(&config).build(catalog, 1);
        problems.extend(later);
        Ok(Self {
            snapshot: snapshot_of(View::of_node_proxy(&desired, ""))?,
            desired,
            view,
            problems,
            domain: config.mesh.cluster_domain.to_string(),
            sources: Sources::of(catalog, mesh),
            catalog: catalog.clone(),
        })
    }

    /// What an instance of a waypoint holds; `None` where its waypoint is not one of the folder's.
    pub(super) fn snapshot_of_waypoint(
        &self,
        instance: &Workload,
    ) -> Result<Option<Arc<Snapshot>>, ExplainError> {
        let name = ObjectName::new(instance.namespace.clone(), instance.name.clone());
        if self.view.pods.get(&name).is_none_or(|pod| pod.waypoint.is_none()) {
            return Ok(None);
        }
        let pod = format!("{}/{}", instance.namespace, instance.name);
        snapshot_of(View::of_waypoint(&self.desired, &instance.node, &pod)).map(Some)
    }

    // --- Who asks ---

    /// The pod of `NAMESPACE/NAME`, or of a name that no other has.
    pub(super) fn pod(&self, written: &str) -> Result<&PodView, ExplainError> {
        let fits = |pod: &&PodView| match written.split_once('/') {
            Some((namespace, name)) => *pod.namespace == *namespace && *pod.name == *name,
            None => *pod.name == *written,
        };
        let mut found = self.view.pods.values().filter(fits);
        match (found.next(), found.next()) {
            (Some(pod), None) => Ok(pod),
            (None, _) => Err(ExplainError::UnknownPod(written.to_owned(), self.some_pods())),
            (Some(_), Some(_)) => Err(ExplainError::AmbiguousPod(
                written.to_owned(),
                list(self.view.pods.values().filter(fits)),
            )),
        }
    }

    fn some_pods(&self) -> String {
        match list(self.view.pods.values()) {
            none if none.is_empty() => String::new(),
            some => format!(", such as {some}"),
        }
    }

    // --- Where to ---

    /// What the pod would connect to, having asked its name server.
    pub(super) fn destination(&self, pod: &PodView, asked: &str) -> Result<Resolved, ExplainError> {
        let malformed = || ExplainError::Destination(asked.to_owned());
        let resolved =
            |ip, port, how| Resolved { asked: asked.to_owned(), to: SocketAddr::new(ip, port), how };
        if let Ok(to) = asked.parse::<SocketAddr>() {
            return Ok(resolved(to.ip(), to.port(), String::from("an address")));
        }
        let (host, port) = asked.rsplit_once(':').ok_or_else(malformed)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(malformed)?;
        if host.is_empty() || host.contains([':', '[', ']']) {
            return Err(malformed());
        }
        if let Some(name) = host.strip_prefix("pod/") {
            let target = self.pod(name)?;
            let ip = alike(&target.ips, pod).ok_or_else(|| ExplainError::NoAddress(name.to_owned()))?;
            return Ok(resolved(ip, port, format!("the address of pod {name}")));
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let (name, entry) = self
            .named(pod, &host)
            .map_err(|tried| ExplainError::UnknownHost { asked: asked.to_owned(), tried })?;
        let (ip, how) = address_of(entry, pod, &name)
            .ok_or_else(|| ExplainError::Unreachable(asked.to_owned(), name.clone()))?;
        Ok(resolved(ip, port, how))
    }

    /// The service of a name as the pod's name server finds it; else what was looked for.
    fn named(&self, pod: &PodView, host: &str) -> Result<(String, &Arc<ServiceEntry>), String> {
        let search = cluster_search_domains(&pod.namespace, &self.domain);
        let names = candidates(host, &pod.namespace, &self.domain, &search);
        for candidate in &names {
            let find = |name: &str| {
                let entry = self.snapshot.service_by_host(name, &pod.namespace)?;
                Some((name.to_owned(), entry))
            };
            if let Some((found, _)) = with_wildcards(&candidate.name, find) {
                return Ok(found);
            }
        }
        let tried: Vec<_> = names.into_iter().map(|it| it.name).collect();
        Err(tried.join(", "))
    }

    // --- Where it is written ---

    pub(super) fn source_of_policy(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&SourceRef> {
        self.sources.policies.get(&(namespace.clone(), name.clone()))
    }

    pub(super) fn source_of_route(
        &self,
        kind: RouteKind,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> Option<&SourceRef> {
        self.sources.routes.get(&(kind, namespace.clone(), name.clone()))
    }

    /// Of a Service, by its namespace and short name.
    pub(super) fn source_of_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&SourceRef> {
        let name = ObjectName::new(namespace.clone(), name.clone());
        self.catalog.services.get(&name).map(|service| &service.meta.source)
    }

    pub(super) fn source_of_pod(&self, uid: &str) -> Option<&SourceRef> {
        self.view.pods.values().find(|pod| &*pod.uid == uid).map(|pod| &pod.source)
    }
}

/// The resources of a view as its client's store has them in the end.
fn snapshot_of(view: View<'_>) -> Result<Arc<Snapshot>, ExplainError> {
    let mut store = Store::new();
    for kind in ResourceKind::ALL {
        for (name, resource) in view.resources(kind) {
            let accepted = store.upsert(kind.type_url(), name, &resource.to_any(kind));
            accepted.map_err(ExplainError::Store)?;
        }
    }
    Ok(store.snapshot().unwrap_or_default())
}

impl Sources {
    fn of(catalog: &Catalog, mesh: &MeshSettings) -> Self {
        let mut sources = Self::default();
        for it in convert::policies(catalog, mesh).0 {
            if let Some(source) = it.policy.source {
                sources.policies.insert((it.policy.namespace, it.policy.name), source);
            }
        }
        for route in convert::routes(catalog, mesh) {
            if let Some(source) = route.source {
                sources.routes.insert((route.kind, route.namespace, route.name), source);
            }
        }
        sources
    }
}

/// The first few of the pods.
fn list<'a>(pods: impl Iterator<Item = &'a PodView>) -> String {
    let names: Vec<_> = pods.take(NAMED_MAX).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    names.join(", ")
}

/// The address that a client would take: of its own family where there is one.
fn alike(addresses: &[IpAddr], client: &PodView) -> Option<IpAddr> {
    let own = client.ips.first()?;
    let same = addresses.iter().find(|ip| ip.is_ipv4() == own.is_ipv4());
    same.or(addresses.first()).copied()
}

/// What a name server answers for a service: its virtual address, or without one those of its endpoints.
fn address_of(entry: &ServiceEntry, client: &PodView, name: &str) -> Option<(IpAddr, String)> {
    let vips: Vec<_> = entry.service.vips.iter().filter(|vip| vip.is_single()).map(|vip| vip.ip).collect();
    if let Some(ip) = alike(&vips, client) {
        return Some((ip, format!("the virtual address of {name}")));
    }
    let mut addresses: Vec<_> =
        entry.endpoints.iter().flat_map(|endpoint| endpoint.workload.addresses.iter().copied()).collect();
    addresses.sort_unstable();
    let ip = alike(&addresses, client)?;
    Some((
        ip,
        format!("one of the {} addresses of the endpoints of {name}, which has none itself", addresses.len()),
    ))
}
