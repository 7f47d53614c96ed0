//! Against captures of a running istiod: from the same objects we make the same resources, field by field, after the
//! initial load and after every live step.
//!
//! Deliberate differences, each undone or checked on its own below:
//! - Addresses of a ServiceEntry that writes none: istiod counts up from the start of its block and adds IPv6, ours
//!   follow from the name.
//! - Dry-run policies: istiod keeps them from node proxies, ours evaluate and log them.
//! - Policies with conditions on requests: istiod cuts them down to what connections show, ours carry them whole in
//!   another type. The cut-down form is compared all the same.
//! - Order of the clauses of a rule, which are ANDed.

mod held;
mod waypoint;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

use super::authorization::authorization;
use super::*;
use crate::control::desired::ResourceKind;
use crate::kube::istio::AuthorizationPolicy;
use crate::kube::load_documents;
use crate::kube::{Kind, convert};
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::proto::workload::{Address, address};
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security};

const SCENARIOS: [&str; 8] = [
    "01-plain-ambient",
    "02-waypoint-httproute",
    "03-authz-l4",
    "04-authz-l7-templates",
    "05-serviceentry",
    "06-headless-multiport",
    "07-optout-use-waypoint",
    "09-l7-extras",
];

/// What the captured client holds.
#[derive(Default)]
struct Captured {
    addresses: BTreeMap<String, Address>,
    authorizations: BTreeMap<String, security::Authorization>,
}

impl Captured {
    fn apply(&mut self, file: &Path) {
        let response = DeltaDiscoveryResponse::decode(&*fs::read(file).unwrap()).unwrap();
        for resource in response.resources {
            let body = resource.resource.unwrap().value;
            if response.type_url == ADDRESS_TYPE {
                self.addresses.insert(resource.name, Address::decode(&*body).unwrap());
            } else {
                assert_eq!(response.type_url, AUTHORIZATION_TYPE);
                let policy = security::Authorization::decode(&*body).unwrap();
                self.authorizations.insert(resource.name, sorted(policy));
            }
        }
        for name in response.removed_resources {
            self.addresses.remove(&name);
            self.authorizations.remove(&name);
        }
    }
}

fn sorted(mut policy: security::Authorization) -> security::Authorization {
    for rule in &mut policy.rules {
        rule.clauses.sort_by_key(Message::encode_to_vec);
    }
    policy
}

/// Files of a folder in order, those of one extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// The objects of the cluster as texts, by kind, namespace and name.
#[derive(Default)]
struct Cluster(BTreeMap<[String; 3], String>);

impl Cluster {
    /// What a scenario begins with.
    fn input(scenario: &Path) -> Self {
        let mut cluster = Self::default();
        for file in files(&scenario.join("input"), "yaml") {
            cluster.apply(&file);
        }
        cluster
    }

    /// A live change.
    fn step(&mut self, file: &Path) {
        if file.file_name().unwrap().to_string_lossy().contains("-delete-") {
            self.delete(file);
        } else {
            self.apply(file);
        }
    }

    fn each(file: &Path, mut visit: impl FnMut([String; 3], &str)) {
        let text = fs::read_to_string(file).unwrap();
        for document in text.split("\n---\n").filter(|document| document.contains("kind:")) {
            let field = |prefix: &str| {
                let line = document.lines().find_map(|line| line.strip_prefix(prefix));
                line.map(|value| value.trim().to_owned()).unwrap_or_default()
            };
            visit([field("kind: "), field("  namespace: "), field("  name: ")], document);
        }
    }

    fn apply(&mut self, file: &Path) {
        Self::each(file, |key, document| {
            self.0.insert(key, document.to_owned());
        });
    }

    fn delete(&mut self, file: &Path) {
        Self::each(file, |key, _| {
            assert!(self.0.remove(&key).is_some(), "{key:?} is deleted but unknown");
        });
    }

    fn catalog(&self) -> Catalog {
        let texts = self.0.iter().map(|([kind, namespace, name], text)| {
            (format!("{kind}/{namespace}/{name}.yaml"), text.as_str())
        });
        let loaded = load_documents(texts.collect());
        for (kind, name) in &loaded.refused {
            // Routes never reach this client, and some of these use filters that are not served yet.
            if *kind == Kind::HttpRoute {
                continue;
            }
            panic!("{kind} {name} is refused: {:?}", loaded.problems);
        }
        loaded.catalog
    }
}

fn compare(scenario: &str, step: &str, catalog: &Catalog, indexed: &Indexed, captured: &Captured) {
    let place = format!("{scenario} after {step}");
    assert_eq!(indexed.problems, [], "{place}");
    let mut ours: BTreeMap<String, Address> = indexed
        .desired
        .resources(ResourceKind::Address)
        .iter()
        .map(|(name, resource)| (name.to_string(), Address::decode(&*resource.body).unwrap()))
        .collect();
    for (name, address) in &mut ours {
        undo_address_differences(name, address, catalog, captured);
    }
    let names = |addresses: &BTreeMap<String, Address>| addresses.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&captured.addresses), "{place}");
    for (name, address) in &ours {
        assert_eq!(*address, captured.addresses[name], "{place}: {name}");
    }
    compare_authorizations(&place, catalog, indexed, captured);
}

fn undo_address_differences(name: &str, ours: &mut Address, catalog: &Catalog, captured: &Captured) {
    match ours.r#type.as_mut().unwrap() {
        address::Type::Service(service) => {
            let writes_none = catalog
                .service_entries
                .values()
                .any(|entry| entry.addresses.is_empty() && *entry.hosts[0] == *service.hostname);
            if writes_none {
                assert_eq!(service.addresses.len(), 1, "{name}");
                assert_eq!(service.addresses[0].address[..2], [240, 240], "{name}");
                let Some(address::Type::Service(theirs)) = &captured.addresses[name].r#type else {
                    panic!("{name} is a service");
                };
                service.addresses.clone_from(&theirs.addresses);
            }
        }
        address::Type::Workload(workload) => {
            let is_dry = |key: &String| {
                let (namespace, policy) = key.split_once('/').unwrap();
                let name = crate::kube::ObjectName::new(namespace, policy);
                catalog.authorization_policies.get(&name).is_some_and(|policy| policy.dry_run)
            };
            workload.authorization_policies.retain(|key| !is_dry(key));
        }
    }
}

fn authorizations(indexed: &Indexed) -> BTreeMap<String, security::Authorization> {
    let ours = indexed.desired.resources(ResourceKind::Authorization).iter();
    ours.map(|(name, resource)| {
        (name.to_string(), sorted(security::Authorization::decode(&*resource.body).unwrap()))
    })
    .collect()
}

/// What istiod sends of a policy, made by the same converters from the cut-down form.
fn reduced(policy: &AuthorizationPolicy) -> Option<security::Authorization> {
    let reduced = convert::authorization::convert_reduced(policy).unwrap();
    let scope = convert::attachment::scope(policy, &MeshSettings::default());
    reduced.map(|reduced| sorted(authorization(&reduced, scope).unwrap()))
}

fn compare_authorizations(place: &str, catalog: &Catalog, indexed: &Indexed, captured: &Captured) {
    let ours = authorizations(indexed);
    let whole = indexed.desired.resources(ResourceKind::AuthorizationPolicy);
    for policy in catalog.authorization_policies.values() {
        let key = policy.meta.object_name().to_string();
        let travels = (ours.contains_key(&key), whole.contains_key(&*key));
        assert!(travels.0 ^ travels.1, "{place}: {key} travels in exactly one type");
        let reduced = reduced(policy);
        assert_eq!(reduced.as_ref(), captured.authorizations.get(&key), "{place}: {key}");
        if let (Some(ours), Some(theirs)) = (ours.get(&key), captured.authorizations.get(&key)) {
            assert_eq!(ours, theirs, "{place}: {key}");
        }
    }
    for key in captured.authorizations.keys() {
        let known = ours.contains_key(key) || whole.contains_key(key.as_str());
        assert!(known, "{place}: istiod also sends {key}");
    }
}

#[test]
fn same_objects_make_the_same_resources_as_istiod_at_every_step() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for scenario in SCENARIOS {
        let folder = root.join(scenario);
        let mut cluster = Cluster::input(&folder);
        let config = ControlConfig::new("unused", "unused", "node1");
        let mut indexer = Indexer::new(&config);
        let mut captured = Captured::default();
        let responses: Vec<PathBuf> = files(&folder.join("ztunnel"), "pb")
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("-resp-"))
            .collect();
        let mut steps = vec![(String::from("00-initial"), None)];
        steps.extend(
            files(&folder.join("steps"), "yaml")
                .into_iter()
                .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), Some(path))),
        );
        for (generation, (step, file)) in steps.into_iter().enumerate() {
            if let Some(file) = file {
                cluster.step(&file);
            }
            // `NNN-STEP-resp-TYPE.pb`, where STEP is `NN-what`.
            let number = format!("-{}-", &step[..2]);
            for response in &responses {
                if response.file_name().unwrap().to_string_lossy()[3..].starts_with(&number) {
                    captured.apply(response);
                }
            }
            assert!(!captured.addresses.is_empty());
            let catalog = cluster.catalog();
            let indexed = indexer.build(&catalog, generation as u64);
            compare(scenario, &step, &catalog, &indexed, &captured);
        }
    }
}
