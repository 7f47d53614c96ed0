//! What a node holds after a captured session, against what the objects of the scenario's YAML mean once all its live
//! steps have been applied: read by the same store, compared field by field. The deliberate differences are those of
//! the parent, undone in the same way.

use model::{Service, Workload};
use prost_types::Any;
use serde_json::Value;

use crate::delta::Sink;
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::replay::replay;
use crate::snapshot::{Snapshot, dump};
use crate::store::Store;

use super::*;

/// What of a state can be compared: all that connections are decided from, and all that `/config_dump` shows.
#[derive(Debug, PartialEq)]
struct Held {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
    /// Each list of the dump by the key of its elements. A service's element has its endpoints, with their ports.
    dump: BTreeMap<&'static str, BTreeMap<String, Value>>,
}

impl Held {
    fn of(snapshot: &Snapshot) -> Self {
        let policies = snapshot.policies().map(|it| {
            let mut dumped = dump::policy(it);
            // Clauses are ANDed.
            for rule in dumped["rules"].as_array_mut().unwrap() {
                rule.as_array_mut().unwrap().sort_by_key(Value::to_string);
            }
            (format!("{}/{}", it.policy.namespace, it.policy.name), dumped)
        });
        let workloads = snapshot.workloads().map(|it| (it.uid.to_string(), dump::workload(it)));
        let services = snapshot.services().map(|it| (it.key().to_string(), dump::service(it)));
        Self {
            workloads: snapshot.workloads().map(|it| (it.uid.to_string(), Workload::clone(it))).collect(),
            services: snapshot
                .services()
                .map(|it| (it.key().to_string(), Service::clone(&it.service)))
                .collect(),
            dump: BTreeMap::from([
                ("workloads", workloads.collect()),
                ("services", services.collect()),
                ("policies", policies.collect()),
            ]),
        }
    }

    /// What another state holds under the same names.
    fn part_of(mut self, part: &Self) -> Self {
        self.workloads.retain(|uid, _| part.workloads.contains_key(uid));
        self.services.retain(|key, _| part.services.contains_key(key));
        for (kind, list) in &mut self.dump {
            list.retain(|name, _| part.dump[kind].contains_key(name));
        }
        self
    }
}

/// One difference at a time: a whole state is hundreds of lines.
fn assert_same(place: &str, got: &Held, want: &Held) {
    let names =
        |held: &Held| held.dump.values().map(|it| it.keys().cloned().collect()).collect::<Vec<Vec<_>>>();
    assert_eq!(names(got), names(want), "{place}");
    for (kind, list) in &want.dump {
        for (name, value) in list {
            assert_eq!(got.dump[kind][name], *value, "{place}: {name} of {kind}");
        }
    }
    for (uid, workload) in &want.workloads {
        assert_eq!(got.workloads[uid], *workload, "{place}");
    }
    for (key, service) in &want.services {
        assert_eq!(got.services[key], *service, "{place}");
    }
    assert_eq!(got, want, "{place}");
}

/// Every message that the captured client was sent.
fn captured(client: &Path) -> Captured {
    let mut captured = Captured::default();
    for file in files(client, "pb").iter().filter(|file| file.to_string_lossy().contains("-resp-")) {
        captured.apply(file);
    }
    captured
}

/// What the scenario's YAML means to a node, by our own control plane, after all live steps.
fn meant(scenario: &Path) -> Held {
    let mut cluster = Cluster::input(scenario);
    for file in files(&scenario.join("steps"), "yaml") {
        cluster.step(&file);
    }
    let catalog = cluster.catalog();
    let indexed = Indexer::new(&ControlConfig::new("unused", "unused", "node1")).build(&catalog, 0);
    let captured = captured(&scenario.join("ztunnel"));
    let mut store = Store::new();
    for (name, resource) in indexed.desired.resources(ResourceKind::Address) {
        let mut address = Address::decode(&*resource.body).unwrap();
        undo_address_differences(name, &mut address, &catalog, &captured);
        upsert(&mut store, ADDRESS_TYPE, name, &address);
    }
    let mut policies = authorizations(&indexed);
    for policy in catalog.authorization_policies.values() {
        let key = policy.meta.object_name().to_string();
        policies.remove(&key);
        policies.extend(reduced(policy).map(|reduced| (key, reduced)));
    }
    for (name, policy) in &policies {
        upsert(&mut store, AUTHORIZATION_TYPE, name, policy);
    }
    Held::of(&store.snapshot().unwrap())
}

fn upsert(store: &mut Store, type_url: &str, name: &str, message: &impl Message) {
    let body = Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    store.upsert(type_url, name, &body).unwrap();
}

/// The keys that a captured session asked for by name, in all its streams.
fn demanded(client: &Path) -> Vec<String> {
    let requests = files(client, "pb").into_iter().filter(|it| it.to_string_lossy().contains("-req-Address"));
    let mut keys: Vec<_> = requests
        .flat_map(|file| {
            let request = DeltaDiscoveryRequest::decode(&*fs::read(file).unwrap()).unwrap();
            request.resource_names_subscribe
        })
        .filter(|key| key != "*")
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether something of this key is held: `namespace/hostname`, a uid, or `network/IP`.
fn holds(snapshot: &Snapshot, key: &str) -> bool {
    let by_name = snapshot.services().any(|it| it.key().to_string() == key);
    let by_address = key.split_once('/').and_then(|(network, ip)| Some((network, ip.parse().ok()?)));
    by_name
        || snapshot.workload_by_uid(key).is_some()
        || by_address.is_some_and(|(network, ip)| {
            snapshot.has_vip(network, ip) || snapshot.workload_by_address(network, ip).is_some()
        })
}

#[test]
fn a_replayed_session_ends_with_what_the_yaml_means() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    assert_eq!(
        fs::read_dir(&root).unwrap().filter(|it| it.as_ref().unwrap().path().is_dir()).count(),
        SCENARIOS.len()
    );
    for scenario in SCENARIOS {
        let replayed = Held::of(&replay(&root.join(scenario).join("ztunnel")).unwrap().snapshot);
        assert!(!replayed.workloads.is_empty() && !replayed.services.is_empty(), "{scenario}");
        assert_same(scenario, &replayed, &meant(&root.join(scenario)));
    }
}

#[test]
fn an_on_demand_session_ends_with_its_part_of_what_the_yaml_means_and_nothing_that_it_asked_for_is_missing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let (mut services, mut absent) = (0, 0);
    for scenario in SCENARIOS {
        let client = root.join(scenario).join("ztunnel-ondemand");
        let snapshot = replay(&client).unwrap().snapshot;
        let whole = replay(&root.join(scenario).join("ztunnel")).unwrap().snapshot;
        let held = Held::of(&snapshot);
        assert!(!held.workloads.is_empty(), "{scenario}");
        services += held.services.len();
        let meant = meant(&root.join(scenario));
        // Policies are not on demand.
        assert_eq!(held.dump["policies"], meant.dump["policies"], "{scenario}");
        assert_same(scenario, &held, &meant.part_of(&held));
        let demanded = demanded(&client);
        assert!(!demanded.is_empty(), "{scenario}");
        for key in demanded {
            // What exists is held; of the rest it is known that it does not.
            assert_eq!(holds(&snapshot, &key), holds(&whole, &key), "{scenario}: {key}");
            if !holds(&snapshot, &key) {
                assert!(snapshot.is_answered(&key), "{scenario}: no answer for {key}");
                absent += 1;
            }
        }
    }
    assert!(
        services >= SCENARIOS.len() && absent > 0,
        "{services} services are held, {absent} keys are absent"
    );
}
