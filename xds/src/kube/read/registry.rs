//! ServiceEntry and WorkloadEntry: services and workloads outside Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::catalog::{Labels, Meta};
use super::super::istio::{
    Location, Resolution, ServiceEntry, ServiceEntryPort, WorkloadAddress, WorkloadEntry, WorkloadSpec,
};
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::cluster::text_or_empty;
use super::names;
use crate::kube::convert::attribute::parse_network;

const RESOLUTIONS: [(&str, Resolution); 5] = [
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::DnsRoundRobin),
    ("DYNAMIC_DNS", Resolution::DynamicDns),
];
const LOCATIONS: [(&str, Location); 2] =
    [("MESH_EXTERNAL", Location::MeshExternal), ("MESH_INTERNAL", Location::MeshInternal)];
const PROTOCOLS: [&str; 10] =
    ["HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO", "MYSQL", "REDIS"];

pub(super) fn service_entry(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<ServiceEntry> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let mut hosts = Vec::new();
    if let Some(list) = fields.required(findings, "hosts") {
        let items = list.list(findings);
        if items.is_empty() {
            list.error(findings, "a ServiceEntry needs at least one host", "");
        }
        hosts.extend(items.iter().filter_map(|item| names::hostname(item, findings)));
    }
    let mut addresses = Vec::new();
    if let Some(list) = fields.optional("addresses") {
        addresses.extend(list.list(findings).iter().filter_map(|item| network(item, findings)));
    }
    let ports = ports(&mut fields, findings);
    let resolution = fields.optional("resolution").and_then(|item| item.one_of(findings, &RESOLUTIONS));
    let location = fields.optional("location").and_then(|item| item.one_of(findings, &LOCATIONS));
    let endpoints_item = fields.optional("endpoints");
    let mut endpoints = Vec::new();
    if let Some(list) = &endpoints_item {
        endpoints.extend(list.list(findings).iter().filter_map(|item| workload_spec(item, findings)));
    }
    let selector_item = fields.optional("workloadSelector");
    let workload_selector = selector_item.as_ref().and_then(|item| {
        let mut selector = item.fields(findings)?;
        let labels = selector.optional("labels").map_or_else(Labels::new, |item| item.labels(findings));
        selector.finish(findings);
        Some(labels)
    });
    if let (Some(selector), false) = (&selector_item, endpoints.is_empty()) {
        let message = "workloadSelector and endpoints exclude each other";
        selector.error(findings, message, "keep one of the two");
    }
    let resolution = resolution.unwrap_or_default();
    if let (Some(list), Resolution::None) = (&endpoints_item, resolution) {
        list.error(findings, "endpoints have no effect with resolution NONE", "write resolution: STATIC");
    }
    let subject_alt_names =
        fields.optional("subjectAltNames").map_or_else(Vec::new, |item| item.texts(findings));
    let export_to = fields.optional("exportTo").map_or_else(Vec::new, |item| item.texts(findings));
    fields.finish(findings);
    Some(ServiceEntry {
        meta,
        hosts,
        addresses,
        ports,
        resolution,
        location: location.unwrap_or_default(),
        endpoints,
        workload_selector,
        subject_alt_names,
        export_to,
    })
}

/// An address or a block of them.
pub(super) fn network(item: &Item<'_>, findings: &mut Findings) -> Option<IpNet> {
    let text = item.filled(findings)?;
    let parsed = parse_network(text);
    if parsed.is_none() {
        let fix = "write an address such as 10.0.0.1 or a block such as 10.0.0.0/8";
        item.error(findings, format!("{:?} is neither an IP address nor a block", shortened(text)), fix);
    }
    parsed
}

fn ports(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<ServiceEntryPort> {
    let Some(list) = fields.optional("ports") else {
        return Vec::new();
    };
    let mut ports: Vec<ServiceEntryPort> = Vec::new();
    for item in list.list(findings) {
        let Some(port) = port(&item, findings) else {
            continue;
        };
        if ports.iter().any(|other| other.number == port.number || other.name == port.name) {
            let message = format!("a port {} or a name {:?} stands twice", port.number, port.name);
            item.error(findings, message, "remove or rename one of the two");
        }
        ports.push(port);
    }
    ports
}

fn port(item: &Item<'_>, findings: &mut Findings) -> Option<ServiceEntryPort> {
    let mut fields = item.fields(findings)?;
    let number = fields.required(findings, "number").and_then(|item| item.port(findings));
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let target_port = fields.optional("targetPort").and_then(|item| item.port(findings));
    let protocol = match fields.optional("protocol") {
        Some(item) => {
            let text = item.text(findings)?.to_ascii_uppercase();
            if !PROTOCOLS.contains(&text.as_str()) {
                let fix = format!("write one of {}", PROTOCOLS.join(", "));
                item.error(findings, format!("{:?} is no protocol", shortened(&text)), fix);
            }
            text
        }
        None => String::from("TCP"),
    };
    fields.finish(findings);
    Some(ServiceEntryPort {
        number: number?,
        name: Arc::from(name?),
        protocol: Arc::from(protocol),
        target_port,
    })
}

pub(super) fn workload_entry(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<WorkloadEntry> {
    let spec = fields.required(findings, "spec")?;
    Some(WorkloadEntry { meta, spec: workload_spec(&spec, findings)? })
}

fn workload_spec(item: &Item<'_>, findings: &mut Findings) -> Option<WorkloadSpec> {
    let mut fields = item.fields(findings)?;
    let address = match fields.optional("address") {
        Some(item) => address(&item, findings)?,
        None => WorkloadAddress::Absent,
    };
    let mut ports = BTreeMap::new();
    if let Some(map) = fields.optional("ports").and_then(|item| item.fields(findings)) {
        for (name, item) in map.entries() {
            if let Some(port) = item.port(findings) {
                ports.insert(Arc::from(name), port);
            }
        }
    }
    let labels = fields.optional("labels").map_or_else(Labels::new, |item| item.labels(findings));
    let network = text_or_empty(&mut fields, findings, "network");
    let locality = text_or_empty(&mut fields, findings, "locality");
    let weight = fields.optional("weight").and_then(|item| item.integer(findings, 0, i64::from(u32::MAX)));
    let service_account = text_or_empty(&mut fields, findings, "serviceAccount");
    fields.finish(findings);
    if address == WorkloadAddress::Absent && network.is_empty() {
        item.error(findings, "a workload needs an address or a network", "add address");
    }
    Some(WorkloadSpec {
        address,
        ports,
        labels,
        network,
        locality,
        weight: weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0),
        service_account,
    })
}

fn address(item: &Item<'_>, findings: &mut Findings) -> Option<WorkloadAddress> {
    let text = item.filled(findings)?;
    if let Ok(ip) = text.parse() {
        return Some(WorkloadAddress::Ip(ip));
    }
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(WorkloadAddress::Unix(Arc::from(path)));
    }
    if names::is_subdomain(text) {
        return Some(WorkloadAddress::Hostname(Arc::from(text)));
    }
    item.error(findings, format!("{:?} is neither an IP address nor a host name", shortened(text)), "");
    None
}
