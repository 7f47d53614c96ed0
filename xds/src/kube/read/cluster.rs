//! Pod and Service. Lenient: fields that do not concern the mesh are passed over.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::catalog::{Labels, Meta};
use super::super::cluster::{
    Container, ContainerPort, IpFamily, IpFamilyPolicy, Pod, PodPhase, Service, ServicePort, ServiceType,
    TargetPort, TransportProtocol,
};
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::Value;

const PROTOCOLS: [(&str, TransportProtocol); 3] =
    [("TCP", TransportProtocol::Tcp), ("UDP", TransportProtocol::Udp), ("SCTP", TransportProtocol::Sctp)];

pub(super) fn protocol(fields: &mut Fields<'_>, findings: &mut Findings) -> TransportProtocol {
    fields.optional("protocol").and_then(|item| item.one_of(findings, &PROTOCOLS)).unwrap_or_default()
}

/// A text that counts as empty where it is absent.
pub(super) fn text_or_empty(
    fields: &mut Fields<'_>,
    findings: &mut Findings,
    name: &'static str,
) -> Arc<str> {
    fields.optional(name).and_then(|item| item.shared(findings)).unwrap_or_default()
}

pub(super) fn flag(fields: &mut Fields<'_>, findings: &mut Findings, name: &'static str) -> Option<bool> {
    fields.optional(name).and_then(|item| item.boolean(findings))
}

// === Pod ===

pub(super) fn pod(
    root: &Item<'_>,
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<Pod> {
    let metadata = root.node.get("metadata");
    let deleting = metadata
        .and_then(|metadata| metadata.get("deletionTimestamp"))
        .is_some_and(|time| time.value != Value::Null);
    let owner = metadata.and_then(|metadata| metadata.get("ownerReferences")).and_then(controller);
    let mut pod = Pod {
        meta,
        node_name: Arc::default(),
        service_account: Arc::from("default"),
        host_network: false,
        containers: Vec::new(),
        owner,
        phase: None,
        ips: Vec::new(),
        host_ip: None,
        ready: None,
        deleting,
    };
    let spec = fields.required(findings, "spec")?;
    pod_spec(&spec, &mut pod, findings);
    if let Some(status) = fields.optional("status") {
        pod_status(&status, &mut pod, findings);
    }
    Some(pod)
}

/// Kind and name of the reference that is marked as controller.
fn controller(references: &super::super::yaml::Node) -> Option<(Arc<str>, Arc<str>)> {
    let Value::List(references) = &references.value else {
        return None;
    };
    let reference = references
        .iter()
        .find(|one| one.get("controller").is_some_and(|flag| flag.value == Value::Bool(true)))?;
    let text = |field: &str| reference.get(field).and_then(|node| node.as_text()).map(Arc::from);
    Some((text("kind")?, text("name")?))
}

fn pod_spec(spec: &Item<'_>, pod: &mut Pod, findings: &mut Findings) {
    let Some(mut fields) = spec.fields(findings) else {
        return;
    };
    pod.node_name = text_or_empty(&mut fields, findings, "nodeName");
    let account = text_or_empty(&mut fields, findings, "serviceAccountName");
    // `serviceAccount` is the older spelling of the same field.
    let older = text_or_empty(&mut fields, findings, "serviceAccount");
    let account = if account.is_empty() { older } else { account };
    if !account.is_empty() {
        pod.service_account = account;
    }
    pod.host_network = flag(&mut fields, findings, "hostNetwork").unwrap_or(false);
    if let Some(containers) = fields.optional("containers") {
        for item in containers.list(findings) {
            pod.containers.extend(container(&item, findings));
        }
    }
    fields.finish(findings);
}

fn container(item: &Item<'_>, findings: &mut Findings) -> Option<Container> {
    let mut fields = item.fields(findings)?;
    let name = text_or_empty(&mut fields, findings, "name");
    let image = text_or_empty(&mut fields, findings, "image");
    let words = |item: Item<'_>, findings: &mut Findings| {
        item.list(findings).iter().filter_map(|word| word.shared(findings)).collect()
    };
    let command = fields.optional("command").map_or_else(Vec::new, |item| words(item, findings));
    let args = fields.optional("args").map_or_else(Vec::new, |item| words(item, findings));
    let mut ports = Vec::new();
    if let Some(list) = fields.optional("ports") {
        for item in list.list(findings) {
            ports.extend(container_port(&item, findings));
        }
    }
    fields.finish(findings);
    Some(Container { name, image, command, args, ports })
}

fn container_port(item: &Item<'_>, findings: &mut Findings) -> Option<ContainerPort> {
    let mut fields = item.fields(findings)?;
    let name = text_or_empty(&mut fields, findings, "name");
    let protocol = protocol(&mut fields, findings);
    let port = fields.required(findings, "containerPort").and_then(|item| item.port(findings));
    fields.finish(findings);
    Some(ContainerPort { name, port: port?, protocol })
}

fn pod_status(status: &Item<'_>, pod: &mut Pod, findings: &mut Findings) {
    const PHASES: [(&str, PodPhase); 5] = [
        ("Pending", PodPhase::Pending),
        ("Running", PodPhase::Running),
        ("Succeeded", PodPhase::Succeeded),
        ("Failed", PodPhase::Failed),
        ("Unknown", PodPhase::Unknown),
    ];
    let Some(mut fields) = status.fields(findings) else {
        return;
    };
    pod.phase = fields.optional("phase").and_then(|item| item.one_of(findings, &PHASES));
    pod.host_ip = fields.optional("hostIP").and_then(|item| item.ip(findings));
    let single = fields.optional("podIP").and_then(|item| item.ip(findings));
    if let Some(list) = fields.optional("podIPs") {
        for item in list.list(findings) {
            if let Some(mut fields) = item.fields(findings) {
                pod.ips.extend(fields.required(findings, "ip").and_then(|item| item.ip(findings)));
            }
        }
    }
    if pod.ips.is_empty() {
        pod.ips.extend(single);
    }
    if let Some(list) = fields.optional("conditions") {
        for item in list.list(findings) {
            let text = |field: &str| item.node.get(field).and_then(|node| node.as_text());
            if text("type") == Some("Ready") {
                pod.ready = Some(text("status") == Some("True"));
            }
        }
    }
}

// === Service ===

const SERVICE_TYPES: [(&str, ServiceType); 4] = [
    ("ClusterIP", ServiceType::ClusterIp),
    ("NodePort", ServiceType::NodePort),
    ("LoadBalancer", ServiceType::LoadBalancer),
    ("ExternalName", ServiceType::ExternalName),
];
const IP_FAMILIES: [(&str, IpFamily); 2] = [("IPv4", IpFamily::Ipv4), ("IPv6", IpFamily::Ipv6)];
const IP_FAMILY_POLICIES: [(&str, IpFamilyPolicy); 3] = [
    ("SingleStack", IpFamilyPolicy::SingleStack),
    ("PreferDualStack", IpFamilyPolicy::PreferDualStack),
    ("RequireDualStack", IpFamilyPolicy::RequireDualStack),
];

pub(super) fn service(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<Service> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let service_type =
        fields.optional("type").and_then(|item| item.one_of(findings, &SERVICE_TYPES)).unwrap_or_default();
    let (cluster_ips, headless) = cluster_ips(&mut fields, findings);
    let ports = service_ports(&mut fields, service_type, findings);
    let selector = fields.optional("selector").map_or_else(Labels::new, |item| item.labels(findings));
    let local = [("Local", true), ("Cluster", false)];
    let internal_traffic_local = fields
        .optional("internalTrafficPolicy")
        .and_then(|item| item.one_of(findings, &local))
        .unwrap_or(false);
    let traffic_distribution = fields.optional("trafficDistribution").and_then(|item| item.shared(findings));
    let publish_not_ready_addresses =
        flag(&mut fields, findings, "publishNotReadyAddresses").unwrap_or(false);
    let mut ip_families = Vec::new();
    if let Some(list) = fields.optional("ipFamilies") {
        let items = list.list(findings);
        ip_families.extend(items.iter().filter_map(|item| item.one_of(findings, &IP_FAMILIES)));
    }
    let ip_family_policy =
        fields.optional("ipFamilyPolicy").and_then(|item| item.one_of(findings, &IP_FAMILY_POLICIES));
    fields.ignore(&["externalName", "externalIPs", "externalTrafficPolicy"]);
    fields.finish(findings);
    Some(Service {
        meta,
        service_type,
        cluster_ips,
        headless,
        ports,
        selector,
        internal_traffic_local,
        traffic_distribution,
        publish_not_ready_addresses,
        ip_families,
        ip_family_policy,
    })
}

/// The addresses, and whether the service is headless (`None` in the place of an address).
fn cluster_ips(fields: &mut Fields<'_>, findings: &mut Findings) -> (Vec<IpAddr>, bool) {
    let single = fields.optional("clusterIP");
    let items = match fields.optional("clusterIPs") {
        Some(list) => list.list(findings),
        None => single.into_iter().collect(),
    };
    let mut headless = false;
    let mut addresses = Vec::new();
    for item in items {
        match item.node.as_text() {
            Some("None") => headless = true,
            Some("") => {}
            _ => addresses.extend(item.ip(findings)),
        }
    }
    (addresses, headless)
}

fn service_ports(
    fields: &mut Fields<'_>,
    service_type: ServiceType,
    findings: &mut Findings,
) -> Vec<ServicePort> {
    let Some(list) = fields.optional("ports") else {
        return Vec::new();
    };
    let items = list.list(findings);
    let mut ports: Vec<ServicePort> = Vec::new();
    for item in &items {
        let Some(port) = service_port(item, findings) else {
            continue;
        };
        if items.len() > 1 && port.name.is_empty() && service_type != ServiceType::ExternalName {
            item.error(findings, "a Service with several ports must name each", "add a name");
        }
        if ports.iter().any(|other| other.port == port.port && other.protocol == port.protocol) {
            item.error(findings, format!("port {} stands twice", port.port), "remove one of the two");
        }
        if ports.iter().any(|other| !port.name.is_empty() && other.name == port.name) {
            item.error(
                findings,
                format!("the port name {:?} stands twice", port.name),
                "rename one of the two",
            );
        }
        ports.push(port);
    }
    ports
}

fn service_port(item: &Item<'_>, findings: &mut Findings) -> Option<ServicePort> {
    let mut fields = item.fields(findings)?;
    let name = text_or_empty(&mut fields, findings, "name");
    let protocol = protocol(&mut fields, findings);
    let app_protocol = fields.optional("appProtocol").and_then(|item| item.shared(findings));
    let port = fields.required(findings, "port").and_then(|item| item.port(findings));
    let target = match fields.optional("targetPort") {
        Some(item) => match &item.node.value {
            Value::Integer(_) => item.port(findings).map(TargetPort::Number),
            _ => item.filled(findings).map(|text| TargetPort::Name(Arc::from(text))),
        },
        None => port.map(TargetPort::Number),
    };
    fields.finish(findings);
    Some(ServicePort { name, port: port?, target: target?, protocol, app_protocol })
}
