//! DestinationRule to the intermediate form: one policy per service and kind of client, everything merged; and the labels
//! that subsets and routes ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use l7::ir::{Labels, PortSettings, Subset, TrafficPolicy};
use model::NamespacedHostname;

use super::super::catalog::{Catalog, MeshSettings};
use super::super::traffic::{DestinationRule, WrittenPolicy, WrittenSettings};
use super::hosts::{consumers, services_of_host};

/// Whose traffic a rule governs. The root namespace's rules are for everybody whose service has none of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Consumer(Arc<str>),
    Everybody,
    Root,
}

/// All policies of a catalog, in the order of their services.
pub fn traffic_policies(catalog: &Catalog, mesh: &MeshSettings) -> Vec<TrafficPolicy> {
    let mut found: BTreeMap<(NamespacedHostname, Reach), Vec<&DestinationRule>> = BTreeMap::new();
    for rule in catalog.destination_rules.values() {
        let own = &rule.meta.namespace;
        for service in services_of_host(&rule.host, own, catalog, mesh) {
            let is_root = *own == mesh.root_namespace && *own != service.key.namespace;
            for consumer in consumers(&rule.export_to, own, &service.key.namespace) {
                let reach = match consumer {
                    _ if is_root => Reach::Root,
                    Some(namespace) => Reach::Consumer(namespace),
                    None => Reach::Everybody,
                };
                found.entry((service.key.clone(), reach)).or_default().push(rule);
            }
        }
    }
    let owned: BTreeSet<NamespacedHostname> = found
        .keys()
        .filter(|(_, reach)| *reach == Reach::Everybody)
        .map(|(service, _)| service.clone())
        .collect();
    let in_force =
        found.into_iter().filter(|((key, reach), _)| *reach != Reach::Root || !owned.contains(key));
    in_force.filter_map(|((service, reach), rules)| merge(service, reach, rules)).collect()
}

/// The rules whose host fits best, as one: the oldest one's settings, and all their subsets.
fn merge(
    service: NamespacedHostname,
    reach: Reach,
    mut rules: Vec<&DestinationRule>,
) -> Option<TrafficPolicy> {
    let fit = |rule: &DestinationRule| match rule.host.strip_prefix('*') {
        Some(suffix) => suffix.len(),
        None => usize::MAX,
    };
    let best = rules.iter().map(|rule| fit(rule)).max()?;
    rules.retain(|rule| fit(rule) == best);
    rules.sort_by(|one, other| {
        (one.meta.created, &one.meta.name).cmp(&(other.meta.created, &other.meta.name))
    });
    let first = *rules.first()?;
    let mut subsets: Vec<Subset> = Vec::new();
    for written in rules.iter().flat_map(|rule| &rule.subsets) {
        if subsets.iter().all(|other| other.name != written.name) {
            subsets.push(Subset {
                name: written.name.clone(),
                labels: written.labels.clone(),
                settings: overridden(&first.policy, &written.policy),
            });
        }
    }
    Some(TrafficPolicy {
        namespace: first.meta.namespace.clone(),
        name: first.meta.name.clone(),
        service,
        consumer_namespace: match reach {
            Reach::Consumer(namespace) => Some(namespace),
            Reach::Everybody | Reach::Root => None,
        },
        all: settled(&first.policy),
        subsets,
        source: Some(first.meta.source.clone()),
    })
}

fn settled(policy: &WrittenPolicy) -> PortSettings {
    PortSettings {
        others: policy.parts.settled(),
        ports: policy.ports.iter().map(|(port, settings)| (*port, settings.settled())).collect(),
    }
}

/// The parts of a subset in the place of the rule's, port by port; what a subset says of a port alone stands for itself.
fn overridden(rule: &WrittenPolicy, subset: &WrittenPolicy) -> PortSettings {
    let of_rule = rule.ports.iter().map(|(port, settings)| (*port, settings.overridden(&subset.parts)));
    let mut ports: BTreeMap<u16, WrittenSettings> = of_rule.collect();
    ports.extend(subset.ports.iter().map(|(port, settings)| (*port, settings.clone())));
    PortSettings {
        others: rule.parts.overridden(&subset.parts).settled(),
        ports: ports.into_iter().map(|(port, settings)| (port, settings.settled())).collect(),
    }
}

/// The keys of labels that subsets and routes ask for. Proxies are told no others.
pub fn label_keys(catalog: &Catalog) -> BTreeSet<Arc<str>> {
    let subsets = catalog.destination_rules.values().flat_map(|rule| &rule.subsets);
    let matches = catalog.virtual_services.values().flat_map(|object| &object.http);
    let sources = matches.flat_map(|route| &route.matches).filter_map(|entry| entry.entry.source.as_ref());
    let labels = subsets.map(|subset| &subset.labels).chain(sources.map(|source| &source.labels));
    labels.flat_map(|labels| labels.keys().cloned()).collect()
}

/// Those of a workload's labels that somebody asks for.
pub fn told_labels(labels: &Labels, keys: &BTreeSet<Arc<str>>) -> Labels {
    keys.iter().filter_map(|key| Some((key.clone(), labels.get(key)?.clone()))).collect()
}
