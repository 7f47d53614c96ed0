//! Gateway, GatewayClass and ReferenceGrant.

use std::sync::Arc;

use super::super::catalog::Meta;
use super::super::gateway::{
    AllowedNamespaces, Gateway, GatewayAddress, GatewayAddressKind, GatewayClass, GrantFrom, GrantTo,
    Listener, ReferenceGrant,
};
use super::super::reader::{Fields, Findings, Item};
use super::cluster::text_or_empty;
use super::names;

pub(super) fn gateway_class(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<GatewayClass> {
    let mut spec = fields.required(findings, "spec")?.fields(findings)?;
    let controller_name = spec.required(findings, "controllerName").and_then(|item| item.filled(findings));
    spec.ignore(&["description", "parametersRef"]);
    spec.finish(findings);
    Some(GatewayClass { meta, controller_name: Arc::from(controller_name?) })
}

pub(super) fn gateway(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<Gateway> {
    let mut spec = fields.required(findings, "spec")?.fields(findings)?;
    let class = spec.required(findings, "gatewayClassName").and_then(|item| item.filled(findings));
    let mut listeners: Vec<Listener> = Vec::new();
    if let Some(list) = spec.optional("listeners") {
        for item in list.list(findings) {
            let Some(listener) = listener(&item, findings) else {
                continue;
            };
            if listeners.iter().any(|other| other.name == listener.name) {
                let message = format!("the listener name {:?} stands twice", listener.name);
                item.error(findings, message, "rename one of the two");
            }
            listeners.push(listener);
        }
    }
    let requested_addresses =
        spec.optional("addresses").map_or_else(Vec::new, |list| addresses(&list, findings));
    spec.ignore(&["infrastructure", "allowedListeners", "tls", "backendTLS", "defaultScope"]);
    spec.finish(findings);
    // The status is written by controllers of any version: only its addresses are looked at.
    let assigned_addresses = fields
        .optional("status")
        .and_then(|status| status.fields(findings))
        .and_then(|mut status| status.optional("addresses"))
        .map_or_else(Vec::new, |list| addresses(&list, findings));
    Some(Gateway { meta, class: Arc::from(class?), listeners, requested_addresses, assigned_addresses })
}

fn listener(item: &Item<'_>, findings: &mut Findings) -> Option<Listener> {
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| names::subdomain(&item, findings));
    let port = fields.required(findings, "port").and_then(|item| item.port(findings));
    let protocol = fields.required(findings, "protocol").and_then(|item| item.filled(findings));
    let hostname = fields.optional("hostname").and_then(|item| names::hostname(&item, findings));
    let allowed = fields
        .optional("allowedRoutes")
        .map_or_else(AllowedNamespaces::default, |item| allowed_routes(&item, findings).unwrap_or_default());
    fields.ignore(&["tls"]);
    fields.finish(findings);
    Some(Listener { name: name?, port: port?, protocol: Arc::from(protocol?), hostname, allowed })
}

fn allowed_routes(item: &Item<'_>, findings: &mut Findings) -> Option<AllowedNamespaces> {
    #[derive(Clone, Copy)]
    enum From {
        Same,
        All,
        Selector,
        None,
    }
    const CHOICES: [(&str, From); 4] =
        [("Same", From::Same), ("All", From::All), ("Selector", From::Selector), ("None", From::None)];
    let mut fields = item.fields(findings)?;
    let namespaces = fields.optional("namespaces");
    fields.ignore(&["kinds"]);
    fields.finish(findings);
    let namespaces = namespaces?;
    let mut fields = namespaces.fields(findings)?;
    let from = fields.optional("from").and_then(|item| item.one_of(findings, &CHOICES)).unwrap_or(From::Same);
    let selector = fields.optional("selector");
    fields.finish(findings);
    match from {
        From::Same => Some(AllowedNamespaces::Same),
        From::All => Some(AllowedNamespaces::All),
        From::None => Some(AllowedNamespaces::None),
        From::Selector => {
            let Some(selector) = selector else {
                namespaces.error(findings, "from: Selector needs a selector", "add selector.matchLabels");
                return None;
            };
            names::match_labels(&selector, findings).map(AllowedNamespaces::Selector)
        }
    }
}

fn addresses(list: &Item<'_>, findings: &mut Findings) -> Vec<GatewayAddress> {
    let items = list.list(findings);
    items.iter().filter_map(|item| address(item, findings)).collect()
}

fn address(item: &Item<'_>, findings: &mut Findings) -> Option<GatewayAddress> {
    let mut fields = item.fields(findings)?;
    let kind = match fields.optional("type").and_then(|item| item.text(findings)) {
        None | Some("IPAddress") => GatewayAddressKind::IpAddress,
        Some("Hostname") => GatewayAddressKind::Hostname,
        Some(_) => GatewayAddressKind::Other,
    };
    let value = fields.optional("value");
    let value = match (&value, kind) {
        (Some(item), GatewayAddressKind::IpAddress) => item.ip(findings).map(|ip| Arc::from(ip.to_string())),
        (Some(item), GatewayAddressKind::Hostname) => names::hostname(item, findings),
        (Some(item), GatewayAddressKind::Other) => item.shared(findings),
        // An address without a value asks the controller to choose one.
        (None, _) => None,
    };
    fields.finish(findings);
    Some(GatewayAddress { kind, value: value? })
}

pub(super) fn reference_grant(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<ReferenceGrant> {
    let mut spec = fields.required(findings, "spec")?.fields(findings)?;
    let from = spec.required(findings, "from").map_or_else(Vec::new, |list| list.list(findings));
    let to = spec.required(findings, "to").map_or_else(Vec::new, |list| list.list(findings));
    spec.finish(findings);
    let mut grant = ReferenceGrant { meta, from: Vec::new(), to: Vec::new() };
    for item in from {
        let mut fields = item.fields(findings)?;
        let group = fields.required(findings, "group").and_then(|item| item.shared(findings));
        let kind = fields.required(findings, "kind").and_then(|item| item.filled(findings));
        let namespace =
            fields.required(findings, "namespace").and_then(|item| names::namespace(&item, findings));
        fields.finish(findings);
        if let (Some(group), Some(kind), Some(namespace)) = (group, kind, namespace) {
            grant.from.push(GrantFrom { group, kind: Arc::from(kind), namespace });
        }
    }
    for item in to {
        let mut fields = item.fields(findings)?;
        let group = text_or_empty(&mut fields, findings, "group");
        let kind = fields.required(findings, "kind").and_then(|item| item.filled(findings));
        let name = fields.optional("name").and_then(|item| item.shared(findings));
        fields.finish(findings);
        if let Some(kind) = kind {
            // An empty name is how some tools write an absent one.
            let name = name.filter(|name| !name.is_empty());
            grant.to.push(GrantTo { group, kind: Arc::from(kind), name });
        }
    }
    Some(grant)
}
