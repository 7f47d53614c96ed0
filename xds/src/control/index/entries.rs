//! WorkloadEntries and the endpoints of ServiceEntries as `istio.workload.Workload`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::pods::{canonical, with_labels};
use super::policies::publish_labels;
use super::services::{entry_ports, entry_target};
use super::{Context, wire_trust_domain};
use crate::control::desired::{DesiredState, ip_bytes};
use crate::kube::convert::ServiceRef;
use crate::kube::istio::{Resolution, ServiceEntry, WorkloadAddress, WorkloadEntry, WorkloadSpec};
use crate::kube::{Labels, Meta};
use crate::proto::workload;

const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

/// Adds all WorkloadEntries and ServiceEntry endpoints that can be reached.
pub(super) fn publish(context: &Context<'_>, desired: &mut DesiredState) {
    for entry in context.catalog.workload_entries.values() {
        desired_workload_entry(context, entry, desired);
    }
    for entry in context.catalog.service_entries.values() {
        service_entry_endpoints(context, entry, desired);
    }
}

fn desired_workload_entry(context: &Context<'_>, entry: &WorkloadEntry, desired: &mut DesiredState) {
    let meta = &entry.meta;
    let mut labels = meta.labels.clone();
    labels.extend(entry.spec.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    let mut services = BTreeMap::new();
    let mut targets = Vec::new();
    for service in context.services.selecting(&meta.namespace, &labels) {
        let ports = workload::PortList { ports: service.ports_of_entry(&entry.spec) };
        services.insert(service.key.to_string(), ports);
        targets.extend(service.target.clone());
    }
    let uid = format!(
        "{}/networking.istio.io/WorkloadEntry/{}/{}",
        context.settings.cluster_id, meta.namespace, meta.name
    );
    let endpoint =
        ExternalEndpoint { meta, spec: &entry.spec, labels: &labels, telemetry: &labels, targets: &targets };
    publish_labels(context, &uid, &labels, desired);
    desired.insert_workload(endpoint.workload(context, uid, services));
}

fn service_entry_endpoints(context: &Context<'_>, entry: &ServiceEntry, desired: &mut DesiredState) {
    if entry.workload_selector.is_some() || entry.resolution == Resolution::None {
        return;
    }
    let hosts: Vec<&Arc<str>> =
        entry.hosts.iter().filter(|host| context.services.serves(entry, host)).collect();
    let targets: Vec<ServiceRef> = entry_target(&context.waypoints, entry).into_iter().collect();
    let endpoint = |spec: &WorkloadSpec, hosts: &[&Arc<str>]| {
        let address = match &spec.address {
            WorkloadAddress::Ip(ip) => ip.to_string(),
            WorkloadAddress::Hostname(host) => host.to_string(),
            WorkloadAddress::Unix(_) | WorkloadAddress::Absent => return None,
        };
        let uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{address}",
            context.settings.cluster_id, entry.meta.namespace, entry.meta.name
        );
        let ports = workload::PortList { ports: entry_ports(&entry.ports, spec) };
        let services =
            hosts.iter().map(|host| (format!("{}/{host}", entry.meta.namespace), ports.clone())).collect();
        let endpoint = ExternalEndpoint {
            meta: &entry.meta,
            spec,
            labels: &spec.labels,
            telemetry: &entry.meta.labels,
            targets: &targets,
        };
        Some(endpoint.workload(context, uid, services))
    };
    if !entry.endpoints.is_empty() {
        for spec in &entry.endpoints {
            if let Some(workload) = endpoint(spec, &hosts) {
                publish_labels(context, &workload.uid, &spec.labels, desired);
                desired.insert_workload(workload);
            }
        }
    } else if entry.resolution != Resolution::Static {
        // Without endpoints each host is resolved itself.
        for host in &hosts {
            let spec = implied_endpoint(host);
            if let Some(workload) = endpoint(&spec, std::slice::from_ref(host)) {
                desired.insert_workload(workload);
            }
        }
    }
}

fn implied_endpoint(host: &Arc<str>) -> WorkloadSpec {
    WorkloadSpec {
        address: WorkloadAddress::Hostname(host.clone()),
        ports: BTreeMap::new(),
        labels: Labels::new(),
        network: Arc::from(""),
        locality: Arc::from(""),
        weight: 0,
        service_account: Arc::from(""),
    }
}

/// A workload that is no pod.
struct ExternalEndpoint<'a> {
    meta: &'a Meta,
    spec: &'a WorkloadSpec,
    /// What selectors look at.
    labels: &'a Labels,
    /// What telemetry is named after.
    telemetry: &'a Labels,
    /// The services whose policies it enforces itself.
    targets: &'a [ServiceRef],
}

impl ExternalEndpoint<'_> {
    fn workload(
        &self,
        context: &Context<'_>,
        uid: String,
        services: BTreeMap<String, workload::PortList>,
    ) -> workload::Workload {
        let Self { meta, spec, labels, telemetry, targets } = self;
        let (canonical_name, canonical_revision) = canonical(telemetry, &meta.name);
        let native_tunnel = labels.get(TUNNEL_LABEL).is_some_and(|tunnel| &**tunnel == "http");
        let (addresses, hostname) = match &spec.address {
            WorkloadAddress::Ip(ip) => (vec![ip_bytes(*ip)], String::new()),
            WorkloadAddress::Hostname(host) => match host.parse::<IpAddr>() {
                Ok(ip) => (vec![ip_bytes(ip)], String::new()),
                Err(_) => (Vec::new(), host.to_string()),
            },
            WorkloadAddress::Unix(_) | WorkloadAddress::Absent => (Vec::new(), String::new()),
        };
        workload::Workload {
            uid,
            name: meta.name.to_string(),
            namespace: meta.namespace.to_string(),
            addresses,
            hostname,
            network: spec.network.to_string(),
            tunnel_protocol: if native_tunnel {
                workload::TunnelProtocol::Hbone.into()
            } else {
                workload::TunnelProtocol::None.into()
            },
            native_tunnel,
            trust_domain: wire_trust_domain(context.settings),
            service_account: spec.service_account.to_string(),
            waypoint: context.waypoints.of_workload(&with_labels(meta, labels)),
            canonical_name,
            canonical_revision,
            workload_type: workload::WorkloadType::Pod.into(),
            workload_name: meta.name.to_string(),
            authorization_policies: context.policies.of_workload(&meta.namespace, labels, targets),
            services,
            status: workload::WorkloadStatus::Healthy.into(),
            cluster_id: context.settings.cluster_id.to_string(),
            locality: locality(&spec.locality),
            capacity: (spec.weight > 0).then_some(spec.weight),
            ..Default::default()
        }
    }
}

/// Reads `region/zone/subzone`.
fn locality(text: &str) -> Option<workload::Locality> {
    let mut parts = text.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = workload::Locality { region: next(), zone: next(), subzone: next() };
    (locality != workload::Locality::default()).then_some(locality)
}
