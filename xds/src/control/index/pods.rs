//! Pods as `istio.workload.Workload`, and who of them is in the mesh.

use std::collections::BTreeMap;

use model::Identity;

use super::addresses::object_problem;
use super::policies::publish_labels;
use super::telemetry::publish_of_workload;
use super::{Context, DATAPLANE_MODE, REDIRECTION, waypoint_pods, wire_trust_domain};
use crate::control::desired::{DesiredState, ip_bytes};
use crate::control::view::{ClusterView, PodView};
use crate::kube::cluster::{Pod, PodPhase};
use crate::kube::convert::ServiceRef;
use crate::kube::{Labels, Meta, Problem, Severity};
use crate::proto::workload;

/// A sidecar already carries this pod's traffic.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// `http`: the pod terminates the tunnel itself.
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// Adds all pods that have not come to their end.
pub(super) fn publish(
    context: &Context<'_>,
    desired: &mut DesiredState,
    view: &mut ClusterView,
    problems: &mut Vec<Problem>,
) {
    for (name, pod) in &context.catalog.pods {
        if matches!(pod.phase, Some(PodPhase::Succeeded | PodPhase::Failed)) {
            continue;
        }
        let mesh = &context.settings.mesh;
        let identity = match Identity::new(&mesh.trust_domain, &pod.meta.namespace, &pod.service_account) {
            Ok(identity) => identity,
            Err(error) => {
                problems.push(object_problem(
                    Severity::Error,
                    "Pod",
                    &pod.meta,
                    "spec.serviceAccountName",
                    format!("the pod is left out, because it cannot have an identity: {error}"),
                    "use a name of letters, digits and hyphens",
                ));
                continue;
            }
        };
        let pod_view = pod_view(context, pod, identity);
        // A pod without address cannot be reached: the kubelet has not started it yet.
        if !pod_view.ips.is_empty() {
            desired.insert_workload(workload(context, pod, &pod_view));
            publish_labels(context, &pod_view.uid, &pod.meta.labels, desired);
            // Who stands behind which service is asked only where anything is said of anybody.
            if !context.catalog.telemetries.is_empty() {
                let (_, services) = services(context, pod);
                publish_of_workload(context, &pod_view.uid, &pod.meta, &services, desired, problems);
            }
        }
        view.pods.insert(name.clone(), pod_view);
    }
}

fn pod_view(context: &Context<'_>, pod: &Pod, identity: Identity) -> PodView {
    let meta = &pod.meta;
    PodView {
        uid: format!("{}//Pod/{}/{}", context.settings.cluster_id, meta.namespace, meta.name).into(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        node: if pod.node_name.is_empty() {
            context.settings.default_node.clone()
        } else {
            pod.node_name.clone()
        },
        ips: context.assigned.pod(pod),
        enrolled: is_enrolled(context, pod),
        host_network: pod.host_network,
        ready: is_ready(pod),
        service_account: pod.service_account.clone(),
        identity,
        containers: pod.containers.clone(),
        labels: meta.labels.clone(),
        annotations: meta.annotations.clone(),
        waypoint: waypoint_pods::gateway_of(context.catalog, context.settings, meta),
        source: meta.source.clone(),
    }
}

/// The pod's own label decides; without one, the node agent's annotation or the namespace's label.
fn is_enrolled(context: &Context<'_>, pod: &Pod) -> bool {
    if pod.host_network || pod.meta.annotation(SIDECAR_STATUS).is_some() {
        return false;
    }
    match pod.meta.label(DATAPLANE_MODE) {
        Some("none") => return false,
        Some("ambient") => return true,
        _ => {}
    }
    let namespace = crate::kube::ObjectName::new("", pod.meta.namespace.clone());
    let namespace = context.catalog.namespaces.get(&namespace);
    pod.meta.annotation(REDIRECTION) == Some("enabled")
        || namespace.and_then(|namespace| namespace.meta.label(DATAPLANE_MODE)) == Some("ambient")
}

/// A pod without any status has no kubelet that could tell: it counts as ready.
fn is_ready(pod: &Pod) -> bool {
    match (pod.ready, pod.phase) {
        (Some(ready), _) => ready,
        (None, None) => true,
        (None, Some(_)) => false,
    }
}

fn workload(context: &Context<'_>, pod: &Pod, view: &PodView) -> workload::Workload {
    let meta = &pod.meta;
    let native_tunnel = meta.label(TUNNEL_LABEL) == Some("http");
    let (services, targets) = services(context, pod);
    let (workload_type, workload_name) = controller(pod);
    let (canonical_name, canonical_revision) = canonical(&meta.labels, &workload_name);
    workload::Workload {
        uid: view.uid.to_string(),
        name: meta.name.to_string(),
        namespace: meta.namespace.to_string(),
        addresses: view.ips.iter().map(|ip| ip_bytes(*ip)).collect(),
        tunnel_protocol: if view.enrolled || native_tunnel {
            workload::TunnelProtocol::Hbone.into()
        } else {
            workload::TunnelProtocol::None.into()
        },
        native_tunnel,
        trust_domain: wire_trust_domain(context.settings),
        service_account: view.service_account.to_string(),
        waypoint: context.waypoints.of_workload(meta),
        application_tunnel: context.waypoints.application_tunnel(meta),
        node: view.node.to_string(),
        canonical_name,
        canonical_revision,
        workload_type: workload_type.into(),
        workload_name,
        authorization_policies: context.policies.of_workload(&meta.namespace, &meta.labels, &targets),
        services,
        status: if view.ready {
            workload::WorkloadStatus::Healthy.into()
        } else {
            workload::WorkloadStatus::Unhealthy.into()
        },
        cluster_id: context.settings.cluster_id.to_string(),
        locality: locality_of_node(context, &view.node),
        network_mode: if pod.host_network {
            workload::NetworkMode::HostNetwork.into()
        } else {
            workload::NetworkMode::Standard.into()
        },
        ..Default::default()
    }
}

/// The services that the pod stands behind, and those among them whose policies it enforces itself.
fn services(context: &Context<'_>, pod: &Pod) -> (BTreeMap<String, workload::PortList>, Vec<ServiceRef>) {
    let mut services = BTreeMap::new();
    let mut targets = Vec::new();
    for service in context.services.selecting(&pod.meta.namespace, &pod.meta.labels) {
        services.insert(service.key.to_string(), workload::PortList { ports: service.ports_of_pod(pod) });
        targets.extend(service.target.clone());
    }
    for membership in context.memberships.of_pod(&pod.meta.object_name()) {
        let ports = membership.ports.clone();
        services.insert(membership.key.to_string(), workload::PortList { ports });
        targets.extend(membership.target.clone());
    }
    (services, targets)
}

fn locality_of_node(context: &Context<'_>, node: &str) -> Option<workload::Locality> {
    let node = context.catalog.nodes.get(&crate::kube::ObjectName::new("", node))?;
    let label = |key: &str| node.meta.label(key).unwrap_or_default().to_owned();
    let locality = workload::Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) };
    (locality != workload::Locality::default()).then_some(locality)
}

/// Kind and name of what made the pod: the Deployment behind a ReplicaSet, the CronJob behind a Job.
fn controller(pod: &Pod) -> (workload::WorkloadType, String) {
    let own = pod.meta.name.to_string();
    let Some((kind, name)) = &pod.owner else { return (workload::WorkloadType::Pod, own) };
    match &**kind {
        "ReplicaSet" => {
            let hash = pod.meta.label("pod-template-hash").unwrap_or_default();
            let deployment = name.strip_suffix(hash).and_then(|name| name.strip_suffix('-'));
            match deployment {
                Some(deployment) if !hash.is_empty() => {
                    (workload::WorkloadType::Deployment, deployment.to_owned())
                }
                _ => (workload::WorkloadType::Pod, name.to_string()),
            }
        }
        "Deployment" => (workload::WorkloadType::Deployment, name.to_string()),
        "CronJob" => (workload::WorkloadType::Cronjob, name.to_string()),
        "Job" => match name.rsplit_once('-') {
            // The controller of CronJobs appends the scheduled time in minutes.
            Some((cron_job, time))
                if (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                (workload::WorkloadType::Cronjob, cron_job.to_owned())
            }
            _ => (workload::WorkloadType::Job, name.to_string()),
        },
        _ => (workload::WorkloadType::Pod, name.to_string()),
    }
}

/// Name and revision for telemetry, from the labels that people put on pods.
pub(super) fn canonical(labels: &Labels, fallback: &str) -> (String, String) {
    let first = |keys: [&str; 3], fallback: &str| {
        let found = keys.into_iter().find_map(|key| labels.get(key)).map(ToString::to_string);
        found.filter(|text| !text.is_empty()).unwrap_or_else(|| fallback.to_owned())
    };
    (
        first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], fallback),
        first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], "latest"),
    )
}

/// Metadata under which an endpoint that is no object of its own is looked at.
pub(super) fn with_labels(meta: &Meta, labels: &Labels) -> Meta {
    Meta { labels: labels.clone(), ..meta.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(owner: Option<(&str, &str)>, labels: &[(&str, &str)]) -> Pod {
        Pod {
            meta: Meta {
                name: "web-abc12-x".into(),
                namespace: "app".into(),
                labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
                annotations: Labels::new(),
                created: 0,
                uid: "".into(),
                source: model::SourceRef { file: "a.yaml".into(), line: 1 },
            },
            node_name: "".into(),
            service_account: "default".into(),
            host_network: false,
            containers: Vec::new(),
            owner: owner.map(|(kind, name)| (kind.into(), name.into())),
            phase: None,
            ips: Vec::new(),
            host_ip: None,
            ready: None,
            deleting: false,
        }
    }

    #[test]
    fn workload_name_is_that_of_the_controller_people_know() {
        use workload::WorkloadType::{Cronjob, Deployment, Job, Pod as PodType};
        let hash: &[(&str, &str)] = &[("pod-template-hash", "abc12")];
        for (owner, labels, kind, name) in [
            (None, hash, PodType, "web-abc12-x"),
            (Some(("ReplicaSet", "web-abc12")), hash, Deployment, "web"),
            (Some(("ReplicaSet", "web-abc12")), &[][..], PodType, "web-abc12"),
            (Some(("Job", "backup-28123456")), &[], Cronjob, "backup"),
            (Some(("Job", "backup-1")), &[], Job, "backup-1"),
            (Some(("StatefulSet", "db")), &[], PodType, "db"),
        ] {
            assert_eq!(controller(&pod(owner, labels)), (kind, name.to_owned()), "{owner:?}");
        }
    }

    #[test]
    fn canonical_name_follows_the_labels_in_their_order() {
        let labels = |pairs: &[(&str, &str)]| pod(None, pairs).meta.labels;
        let both = labels(&[("app", "a"), ("app.kubernetes.io/name", "b"), ("version", "v2")]);
        assert_eq!(canonical(&both, "w"), ("b".to_owned(), "v2".to_owned()));
        assert_eq!(canonical(&Labels::new(), "w"), ("w".to_owned(), "latest".to_owned()));
    }

    #[test]
    fn readiness_is_what_the_kubelet_says_and_true_without_one() {
        let mut pod = pod(None, &[]);
        assert!(is_ready(&pod));
        pod.phase = Some(PodPhase::Running);
        assert!(!is_ready(&pod));
        pod.ready = Some(true);
        assert!(is_ready(&pod));
    }
}
