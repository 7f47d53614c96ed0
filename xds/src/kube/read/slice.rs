//! EndpointSlice.

use super::super::catalog::{Meta, ObjectName};
use super::super::cluster::{Endpoint, EndpointPort, EndpointSlice};
use super::super::reader::{Fields, Findings, Item};
use super::cluster::{flag, protocol, text_or_empty};

#[derive(Clone, Copy, PartialEq, Eq)]
enum AddressType {
    Ip,
    Fqdn,
}

pub(super) fn endpoint_slice(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<EndpointSlice> {
    const TYPES: [(&str, AddressType); 3] =
        [("IPv4", AddressType::Ip), ("IPv6", AddressType::Ip), ("FQDN", AddressType::Fqdn)];
    let address_type =
        fields.required(findings, "addressType").and_then(|item| item.one_of(findings, &TYPES))?;
    let service = meta
        .label("kubernetes.io/service-name")
        .map(|service| ObjectName::new(meta.namespace.clone(), service));
    let mut ports = Vec::new();
    if let Some(list) = fields.optional("ports") {
        for item in list.list(findings) {
            ports.extend(endpoint_port(&item, findings));
        }
    }
    let mut endpoints = Vec::new();
    if let Some(list) = fields.optional("endpoints") {
        for item in list.list(findings) {
            endpoints.extend(endpoint(&item, address_type, &meta, findings));
        }
    }
    Some(EndpointSlice { meta, service, ports, endpoints })
}

fn endpoint_port(item: &Item<'_>, findings: &mut Findings) -> Option<EndpointPort> {
    let mut fields = item.fields(findings)?;
    let name = text_or_empty(&mut fields, findings, "name");
    let protocol = protocol(&mut fields, findings);
    let app_protocol = fields.optional("appProtocol").and_then(|item| item.shared(findings));
    let port = match fields.optional("port") {
        Some(item) => Some(item.port(findings)?),
        None => None,
    };
    fields.finish(findings);
    Some(EndpointPort { name, port, protocol, app_protocol })
}

fn endpoint(
    item: &Item<'_>,
    address_type: AddressType,
    meta: &Meta,
    findings: &mut Findings,
) -> Option<Endpoint> {
    let mut fields = item.fields(findings)?;
    let mut addresses = Vec::new();
    if let Some(list) = fields.required(findings, "addresses") {
        let items = list.list(findings);
        if address_type == AddressType::Ip {
            addresses.extend(items.iter().filter_map(|item| item.ip(findings)));
        } else {
            list.warning(findings, "endpoints given by host name are left out", "write IP addresses");
        }
    }
    let mut endpoint = Endpoint {
        addresses,
        ready: true,
        serving: true,
        terminating: false,
        node_name: text_or_empty(&mut fields, findings, "nodeName"),
        zone: text_or_empty(&mut fields, findings, "zone"),
        target_pod: None,
    };
    if let Some(mut conditions) = fields.optional("conditions").and_then(|item| item.fields(findings)) {
        endpoint.ready = flag(&mut conditions, findings, "ready").unwrap_or(true);
        endpoint.serving = flag(&mut conditions, findings, "serving").unwrap_or(endpoint.ready);
        endpoint.terminating = flag(&mut conditions, findings, "terminating").unwrap_or(false);
    }
    if let Some(mut target) = fields.optional("targetRef").and_then(|item| item.fields(findings)) {
        let kind = text_or_empty(&mut target, findings, "kind");
        let name = text_or_empty(&mut target, findings, "name");
        let namespace = text_or_empty(&mut target, findings, "namespace");
        let namespace = if namespace.is_empty() { meta.namespace.clone() } else { namespace };
        if kind.as_ref() == "Pod" && !name.is_empty() {
            endpoint.target_pod = Some(ObjectName { namespace, name });
        }
    }
    fields.finish(findings);
    Some(endpoint)
}
