//! Names that follow from what is held of another type, as endpoints follow clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;

const CLUSTERS: &str = "type.test/Cluster";
const ENDPOINTS: &str = "type.test/Endpoints";

/// Wants the endpoints that the bodies of its clusters name.
#[derive(Default)]
struct Clusters {
    clusters: BTreeMap<String, String>,
    endpoints: BTreeSet<String>,
}

impl Sink for Clusters {
    fn upsert(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), String> {
        if type_url == CLUSTERS {
            self.clusters.insert(name.to_owned(), String::from_utf8(body.value.clone()).unwrap());
        } else {
            self.endpoints.insert(name.to_owned());
        }
        Ok(())
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        if type_url == CLUSTERS {
            self.clusters.remove(name);
        } else {
            assert!(self.endpoints.remove(name), "{name} was removed without being held");
        }
    }

    fn followed(&self, type_url: &str) -> Option<BTreeSet<&str>> {
        (type_url == ENDPOINTS).then(|| self.clusters.values().map(String::as_str).collect())
    }
}

fn response(type_url: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |(name, body): &(&str, &str)| Resource {
        name: (*name).to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: body.as_bytes().to_vec() }),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: "n".to_owned(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn client() -> (Client, Clusters) {
    let subscriptions = vec![Subscription::wildcard(CLUSTERS), Subscription::followed(ENDPOINTS)];
    let mut client = Client::new(Node::default(), subscriptions, Instant::now());
    client.connecting();
    let first = client.opened();
    assert_eq!(first.iter().map(|it| &*it.type_url).collect::<Vec<_>>(), [CLUSTERS]);
    (client, Clusters::default())
}

/// Names subscribed to and given up by the only request.
fn followed(requests: &[DeltaDiscoveryRequest]) -> (Vec<&str>, Vec<&str>) {
    let [request] = requests else { panic!("{requests:?}") };
    assert!(request.node.is_none() && request.response_nonce.is_empty() && request.type_url == ENDPOINTS);
    let subscribe = request.resource_names_subscribe.iter().map(String::as_str).collect();
    (subscribe, request.resource_names_unsubscribe.iter().map(String::as_str).collect())
}

#[test]
fn subscriptions_follow_what_is_wanted() {
    let (mut client, mut sink) = client();
    assert_eq!(client.follow(&mut sink), []);
    client.response(&response(CLUSTERS, &[("one", "a"), ("two", "b")], &[]), &mut sink);
    assert_eq!(followed(&client.follow(&mut sink)), (vec!["a", "b"], Vec::new()));
    assert_eq!(client.follow(&mut sink), [], "nothing has changed since");
    client.response(&response(ENDPOINTS, &[("a", ""), ("b", "")], &[]), &mut sink);
    client.response(&response(CLUSTERS, &[("three", "c")], &["one"]), &mut sink);
    assert_eq!(followed(&client.follow(&mut sink)), (vec!["c"], vec!["a"]));
    assert_eq!(sink.endpoints, ["b".to_owned()].into(), "what is given up is dropped");
}

#[test]
fn a_new_stream_asks_for_what_was_followed() {
    let (mut client, mut sink) = client();
    client.response(&response(CLUSTERS, &[("one", "a"), ("two", "b")], &[]), &mut sink);
    client.follow(&mut sink);
    client.response(&response(ENDPOINTS, &[("a", "")], &[]), &mut sink);
    client.closed(Instant::now(), &End::Clean);
    // A change while the stream is away is made good by its first request.
    sink.clusters.insert("three".into(), "c".into());
    assert_eq!(client.follow(&mut sink), []);
    client.connecting();
    let requests = client.opened();
    let request = requests.iter().find(|it| it.type_url == ENDPOINTS).unwrap();
    assert_eq!(request.resource_names_subscribe, ["a", "b", "c"]);
    assert_eq!(request.initial_resource_versions.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn it_is_ready_when_what_is_followed_has_come_once() {
    let (mut client, mut sink) = client();
    client.response(&response(CLUSTERS, &[], &[]), &mut sink);
    client.follow(&mut sink);
    assert!(client.ready(), "nothing is wanted");
    client.response(&response(CLUSTERS, &[("one", "a")], &[]), &mut sink);
    client.follow(&mut sink);
    assert!(!client.ready());
    client.response(&response(ENDPOINTS, &[("a", "")], &[]), &mut sink);
    assert!(client.ready());
}
