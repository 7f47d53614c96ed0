//! The client in a pair with a small model of a server, on virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;

const WILD: &str = "type.test/Wild";
const ASKED: &str = "type.test/Asked";

/// Holds bodies; refuses those that begin with `bad`.
#[derive(Default)]
struct Table(BTreeMap<(String, String), Vec<u8>>);

impl Sink for Table {
    fn upsert(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), String> {
        if body.value.starts_with(b"bad") {
            return Err("the body is bad".to_owned());
        }
        self.0.insert((type_url.to_owned(), name.to_owned()), body.value.clone());
        Ok(())
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        let old = self.0.remove(&(type_url.to_owned(), name.to_owned()));
        assert!(old.is_some(), "{name} was removed without being held");
    }
}

impl Table {
    fn names(&self, type_url: &str) -> Vec<&str> {
        self.0.keys().filter(|key| key.0 == type_url).map(|key| &*key.1).collect()
    }
}

/// A server of one wildcard type and one on-demand type, that keeps to the rules seen on real servers.
#[derive(Default)]
struct Server {
    /// (type, name) to (version, body).
    world: BTreeMap<(String, String), (String, Vec<u8>)>,
    streams: BTreeMap<String, StreamType>,
    outbox: VecDeque<DeltaDiscoveryResponse>,
    nonce: u64,
    nacks: Vec<String>,
    acks: usize,
}

#[derive(Default)]
struct StreamType {
    wildcard: bool,
    demanded: BTreeSet<String>,
    sent: BTreeMap<String, String>,
}

impl Server {
    fn set(&mut self, type_url: &str, name: &str, version: u64, body: &[u8]) {
        let value = (version.to_string(), body.to_vec());
        self.world.insert((type_url.to_owned(), name.to_owned()), value);
    }

    fn unset(&mut self, type_url: &str, name: &str) {
        self.world.remove(&(type_url.to_owned(), name.to_owned()));
    }

    fn close(&mut self) {
        self.streams.clear();
        self.outbox.clear();
    }

    fn request(&mut self, request: &DeltaDiscoveryRequest) {
        if !request.response_nonce.is_empty() {
            assert!(request.resource_names_subscribe.is_empty());
            match &request.error_detail {
                Some(status) => self.nacks.push(status.message.clone()),
                None => self.acks += 1,
            }
            return;
        }
        let first = !self.streams.contains_key(&request.type_url);
        assert_eq!(first, request.node.is_some(), "the node comes with the first request of a type");
        let stream = self.streams.entry(request.type_url.clone()).or_default();
        let subscribe = &request.resource_names_subscribe;
        if first {
            stream.wildcard = subscribe.is_empty();
            stream.sent = request.initial_resource_versions.clone().into_iter().collect();
        }
        let mut absent = Vec::new();
        for name in subscribe.iter().filter(|name| *name != "*") {
            stream.demanded.insert(name.clone());
            if !self.world.contains_key(&(request.type_url.clone(), name.clone())) {
                absent.push(name.clone());
            }
        }
        self.push(&request.type_url, absent, first);
    }

    /// Sends what differs from what was sent. Nothing at all if nothing differs, but for the first response.
    fn push(&mut self, type_url: &str, mut removed: Vec<String>, always: bool) {
        let Some(stream) = self.streams.get_mut(type_url) else { return };
        let mut resources = Vec::new();
        for ((its_type, name), (version, body)) in &self.world {
            if its_type != type_url || !(stream.wildcard || stream.demanded.contains(name)) {
                continue;
            }
            if stream.sent.insert(name.clone(), version.clone()).as_ref() != Some(version) {
                resources.push(Resource {
                    name: name.clone(),
                    version: version.clone(),
                    resource: Some(Any { type_url: type_url.to_owned(), value: body.clone() }),
                    ..Resource::default()
                });
            }
        }
        let gone: Vec<_> = stream
            .sent
            .keys()
            .filter(|name| !self.world.contains_key(&(type_url.to_owned(), (*name).clone())))
            .cloned()
            .collect();
        for name in gone {
            stream.sent.remove(&name);
            removed.push(name);
        }
        if resources.is_empty() && removed.is_empty() && !always {
            return;
        }
        self.nonce += 1;
        self.outbox.push_back(DeltaDiscoveryResponse {
            resources,
            removed_resources: removed,
            type_url: type_url.to_owned(),
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        });
    }
}

struct Pair {
    client: Client,
    server: Server,
    table: Table,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let subscriptions = vec![
            Subscription { type_url: WILD.into(), mode: Mode::Wildcard },
            Subscription { type_url: ASKED.into(), mode: Mode::OnDemand },
        ];
        let node = Node { id: "node".into(), ..Node::default() };
        let client = Client::new(node, subscriptions, now);
        Self { client, server: Server::default(), table: Table::default(), now }
    }

    fn connect(&mut self) {
        self.now = self.client.connect_at().expect("the client wants to connect");
        self.client.connecting();
        assert_eq!(self.client.connect_at(), None);
        for request in self.client.opened() {
            self.server.request(&request);
        }
    }

    fn drain(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(response) = self.server.outbox.pop_front() {
            let (reply, outcome) = self.client.response(&response, &mut self.table);
            assert_eq!(reply.response_nonce, response.nonce);
            assert_eq!(reply.type_url, response.type_url);
            assert_eq!(reply.error_detail.is_some(), matches!(outcome, Outcome::Rejected { .. }));
            self.server.request(&reply);
            outcomes.push(outcome);
        }
        outcomes
    }

    fn push(&mut self) -> Vec<Outcome> {
        self.server.push(WILD, Vec::new(), false);
        self.server.push(ASKED, Vec::new(), false);
        self.drain()
    }

    fn cut(&mut self, end: &End) {
        self.server.close();
        self.client.closed(self.now, end);
    }

    fn demand(&mut self, key: &str) -> Demand {
        let demand = self.client.demand(ASKED, key);
        if let Demand::Request(request) = &demand {
            self.server.request(request);
        }
        demand
    }
}

#[test]
fn it_is_ready_once_each_wildcard_type_was_accepted_even_empty() {
    let mut pair = Pair::new();
    assert!(!pair.client.ready());
    pair.connect();
    assert!(!pair.client.ready());
    assert_eq!(pair.drain().len(), 2);
    assert!(pair.client.ready());
    pair.cut(&End::Clean);
    assert!(pair.client.ready(), "what is held stays usable while the server is away");
}

#[test]
fn it_is_not_ready_after_a_rejected_first_response() {
    let mut pair = Pair::new();
    pair.server.set(WILD, "a", 1, b"bad");
    pair.connect();
    pair.drain();
    assert!(!pair.client.ready());
    pair.server.set(WILD, "a", 2, b"good");
    pair.push();
    assert!(pair.client.ready());
}

#[test]
fn a_rejected_resource_is_named_and_the_good_ones_of_its_response_stay() {
    let mut pair = Pair::new();
    pair.server.set(WILD, "a", 1, b"one");
    pair.connect();
    pair.drain();
    pair.server.set(WILD, "a", 2, b"bad");
    pair.server.set(WILD, "b", 1, b"bad");
    pair.server.set(WILD, "c", 1, b"three");
    let reason = "a: the body is bad; b: the body is bad".to_owned();
    assert_eq!(pair.push(), [Outcome::Rejected { reason: reason.clone() }]);
    assert_eq!(pair.server.nacks, [reason]);
    assert_eq!(pair.table.0[&(WILD.into(), "a".into())], b"one", "what was in force stays");
    // The versions are those of what is in force, so that a server that asks knows what to send or remove.
    assert_eq!(pair.client.held(WILD), BTreeMap::from([("a", "1".to_owned()), ("c", "1".to_owned())]));
}

#[test]
fn on_reconnect_only_what_changed_meanwhile_travels() {
    let mut pair = Pair::new();
    for name in ["changed", "gone", "kept"] {
        pair.server.set(WILD, name, 1, b"x");
    }
    pair.connect();
    pair.drain();
    pair.cut(&End::Clean);
    pair.server.set(WILD, "changed", 2, b"y");
    pair.server.set(WILD, "new", 1, b"z");
    pair.server.unset(WILD, "gone");
    pair.connect();
    assert_eq!(pair.drain()[0], Outcome::Accepted { upserts: 2, removals: 1 });
    assert_eq!(pair.table.names(WILD), ["changed", "kept", "new"]);
}

#[test]
fn updates_go_before_removals() {
    #[derive(Default)]
    struct Order(Vec<String>);
    impl Sink for Order {
        fn upsert(&mut self, _: &str, name: &str, _: &Any) -> Result<(), String> {
            self.0.push(format!("+{name}"));
            Ok(())
        }
        fn remove(&mut self, _: &str, name: &str) {
            self.0.push(format!("-{name}"));
        }
    }
    let mut pair = Pair::new();
    pair.server.set(WILD, "a", 1, b"");
    pair.connect();
    let mut order = Order::default();
    let first = pair.server.outbox.pop_front().unwrap();
    pair.client.response(&first, &mut order);
    pair.server.set(WILD, "b", 1, b"");
    pair.server.unset(WILD, "a");
    pair.server.push(WILD, vec!["never-sent".into()], false);
    let second = pair.server.outbox.pop_back().unwrap();
    let (_, outcome) = pair.client.response(&second, &mut order);
    assert_eq!(order.0, ["+a", "+b", "-a"]);
    assert_eq!(outcome, Outcome::Accepted { upserts: 1, removals: 1 });
}

#[test]
fn a_type_that_was_not_asked_for_is_acknowledged_and_ignored() {
    let mut pair = Pair::new();
    pair.connect();
    pair.drain();
    let response = DeltaDiscoveryResponse {
        type_url: "type.test/Other".into(),
        nonce: "n".into(),
        resources: vec![Resource { name: "x".into(), ..Resource::default() }],
        ..DeltaDiscoveryResponse::default()
    };
    let (reply, outcome) = pair.client.response(&response, &mut pair.table);
    assert_eq!(outcome, Outcome::Ignored);
    assert_eq!((&*reply.type_url, &*reply.response_nonce), ("type.test/Other", "n"));
    assert_eq!(reply.error_detail, None);
    assert!(pair.table.0.is_empty());
}

#[test]
fn a_body_missing_or_of_another_type_is_rejected() {
    let mut pair = Pair::new();
    pair.connect();
    pair.drain();
    let other = Any { type_url: ASKED.into(), value: Vec::new() };
    let response = DeltaDiscoveryResponse {
        type_url: WILD.into(),
        resources: vec![
            Resource { name: "empty".into(), ..Resource::default() },
            Resource { name: "other".into(), resource: Some(other), ..Resource::default() },
        ],
        ..DeltaDiscoveryResponse::default()
    };
    let (reply, _) = pair.client.response(&response, &mut pair.table);
    let message = reply.error_detail.unwrap().message;
    assert_eq!(
        message,
        "empty: the resource has no body; \
         other: the body is of type \"type.test/Asked\" in a response for type.test/Wild"
    );
}

#[test]
fn the_text_of_a_rejection_is_bounded() {
    let mut pair = Pair::new();
    for number in 0..1000 {
        pair.server.set(WILD, &format!("resource-{number}"), 1, b"bad");
    }
    pair.connect();
    let Outcome::Rejected { reason } = pair.drain().remove(0) else { panic!("must be rejected") };
    assert!(reason.len() < REASONS_BYTES_MAX + 64);
    assert!(reason.ends_with(" more"), "{reason}");
}

#[test]
fn on_demand_nothing_comes_unasked_and_what_is_asked_for_comes() {
    let mut pair = Pair::new();
    pair.server.set(ASKED, "a", 1, b"x");
    pair.connect();
    pair.drain();
    assert!(pair.table.0.is_empty());
    assert!(matches!(pair.demand("a"), Demand::Request(_)));
    assert_eq!(pair.demand("a"), Demand::Pending);
    pair.drain();
    assert_eq!(pair.table.names(ASKED), ["a"]);
}

#[test]
fn on_demand_an_absent_key_is_remembered_until_it_comes_to_be() {
    let mut pair = Pair::new();
    pair.connect();
    pair.drain();
    pair.demand("late");
    assert_eq!(pair.drain(), [Outcome::Accepted { upserts: 0, removals: 0 }]);
    assert_eq!(pair.demand("late"), Demand::Absent);
    pair.server.set(ASKED, "late", 1, b"x");
    pair.push();
    assert_eq!(pair.demand("late"), Demand::Pending);
    assert_eq!(pair.table.names(ASKED), ["late"]);
}

#[test]
fn on_demand_keys_survive_a_reconnect_and_a_demand_while_away_is_made_good() {
    let mut pair = Pair::new();
    pair.server.set(ASKED, "a", 1, b"x");
    pair.server.set(ASKED, "b", 1, b"x");
    pair.connect();
    pair.drain();
    pair.demand("a");
    pair.drain();
    pair.cut(&End::Clean);
    assert_eq!(pair.demand("b"), Demand::Pending);
    pair.server.set(ASKED, "a", 2, b"y");
    pair.connect();
    pair.drain();
    assert_eq!(pair.table.names(ASKED), ["a", "b"]);
    assert_eq!(pair.table.0[&(ASKED.into(), "a".into())], b"y");
}

#[test]
fn demands_are_bounded_and_only_for_the_type_that_takes_them() {
    let mut pair = Pair::new();
    for number in 0..DEMANDS_MAX {
        assert_eq!(pair.client.demand(ASKED, &number.to_string()), Demand::Pending);
    }
    assert_eq!(pair.client.demand(ASKED, "one more"), Demand::Full);
    assert_eq!(pair.client.demand(ASKED, "0"), Demand::Pending);
    assert_eq!(pair.client.demand(WILD, "a"), Demand::NotOnDemand);
    assert_eq!(pair.client.demand("type.test/Other", "a"), Demand::NotOnDemand);
}

#[test]
fn reconnects_wait_as_the_end_of_the_stream_demands() {
    let mut pair = Pair::new();
    let start = pair.now;
    for wait in [20, 40, 80] {
        pair.client.connecting();
        pair.client.closed(start, &End::ConnectFailed);
        assert_eq!(pair.client.connect_at(), Some(start + Duration::from_millis(wait)));
    }
    pair.connect();
    pair.drain();
    let now = pair.now;
    pair.cut(&End::Clean);
    assert_eq!(pair.client.connect_at(), Some(now));
    pair.connect();
    pair.drain();
    pair.cut(&End::Status { code: tonic::Code::PermissionDenied, message: String::new() });
    assert_eq!(pair.client.connect_at(), Some(now + Duration::from_millis(20)));
}

#[test]
fn a_hundred_reconnects_lose_nothing_and_double_nothing() {
    let mut pair = Pair::new();
    for name in 0..20 {
        pair.server.set(WILD, &format!("n{name}"), 0, b"x");
        pair.server.set(ASKED, &format!("n{name}"), 0, b"x");
    }
    pair.connect();
    pair.drain();
    pair.demand("n3");
    pair.drain();
    for round in 1..=100_u64 {
        // Some end in the middle of a response that was not taken.
        if round % 3 == 0 {
            pair.server.push(WILD, vec!["never-there".to_owned()], true);
        }
        pair.cut(&End::Status { code: tonic::Code::Unavailable, message: "transport is closing".to_owned() });
        pair.server.set(WILD, &format!("n{}", round % 20), round, b"y");
        pair.server.unset(WILD, &format!("n{}", (round + 7) % 20));
        pair.server.set(ASKED, "n3", round, b"z");
        pair.connect();
        let outcomes = pair.drain();
        assert!(
            outcomes.iter().all(|it| matches!(it, Outcome::Accepted { upserts: 0..=1, .. })),
            "{outcomes:?}"
        );
        let world = pair.server.world.iter().filter(|((type_url, _), _)| type_url == WILD);
        assert_eq!(pair.table.names(WILD), world.map(|((_, name), _)| &**name).collect::<Vec<_>>());
        assert_eq!(pair.table.names(ASKED), ["n3"]);
    }
    assert!(pair.server.nacks.is_empty());
}

#[test]
fn a_response_that_comes_twice_is_answered_twice_and_changes_nothing_the_second_time() {
    let mut pair = Pair::new();
    pair.server.set(WILD, "a", 1, b"x");
    pair.connect();
    let first = pair.server.outbox.pop_front().unwrap();
    for _ in 0..2 {
        let (reply, outcome) = pair.client.response(&first, &mut pair.table);
        assert_eq!(
            (&reply.response_nonce, outcome),
            (&first.nonce, Outcome::Accepted { upserts: 1, removals: 0 })
        );
    }
    let gone = DeltaDiscoveryResponse {
        type_url: WILD.to_owned(),
        nonce: "same".to_owned(),
        removed_resources: vec!["a".to_owned(), "a".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    assert_eq!(pair.client.response(&gone, &mut pair.table).1, Outcome::Accepted { upserts: 0, removals: 1 });
    assert_eq!(pair.client.response(&gone, &mut pair.table).1, Outcome::Accepted { upserts: 0, removals: 0 });
}

#[test]
fn a_refused_resource_is_no_answer_to_a_demand() {
    #[derive(Default)]
    struct Answers(Vec<String>);
    impl Sink for Answers {
        fn upsert(&mut self, _: &str, _: &str, body: &Any) -> Result<(), String> {
            if body.value == b"bad" { Err("bad".to_owned()) } else { Ok(()) }
        }
        fn remove(&mut self, _: &str, _: &str) {}
        fn answered(&mut self, _: &str, key: &str) {
            self.0.push(key.to_owned());
        }
    }
    let mut pair = Pair::new();
    pair.connect();
    let mut answers = Answers::default();
    for key in ["a", "/10.0.0.1", "none"] {
        pair.client.demand(ASKED, key);
    }
    let response = |body: &[u8]| DeltaDiscoveryResponse {
        type_url: ASKED.to_owned(),
        resources: vec![Resource {
            name: "a".to_owned(),
            aliases: vec!["/10.0.0.1".to_owned()],
            resource: Some(Any { type_url: ASKED.to_owned(), value: body.to_vec() }),
            ..Resource::default()
        }],
        removed_resources: vec!["none".to_owned(), "nobody asked".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    pair.client.response(&response(b"bad"), &mut answers);
    assert_eq!(answers.0, ["none"]);
    pair.client.response(&response(b"good"), &mut answers);
    assert_eq!(answers.0, ["none", "a", "/10.0.0.1", "none"]);
}

#[test]
fn what_is_held_from_an_earlier_life_is_named_to_the_server_and_goes_if_it_is_gone() {
    let mut pair = Pair::new();
    for name in ["kept", "changed"] {
        pair.server.set(WILD, name, 1, b"x");
    }
    for name in ["kept", "changed", "gone"] {
        pair.table.0.insert((WILD.to_owned(), name.to_owned()), b"x".to_vec());
        pair.client.hold(WILD, name.into(), "1");
    }
    pair.table.0.insert((ASKED.to_owned(), "old".to_owned()), b"x".to_vec());
    pair.client.hold(ASKED, "old".into(), "1");
    pair.server.set(WILD, "changed", 2, b"y");
    pair.connect();
    assert_eq!(pair.drain()[0], Outcome::Accepted { upserts: 1, removals: 1 });
    assert_eq!(pair.table.names(WILD), ["changed", "kept"]);
    assert_eq!(pair.table.names(ASKED), [""; 0], "what was asked for in an earlier life is asked for again");
}

#[derive(Debug, Clone, Copy, bolero::generator::TypeGenerator)]
enum Step {
    Set { name: u8, body: u8, bad: bool },
    Unset { name: u8 },
    Demand { name: u8 },
    Push,
    Drain,
    Cut,
    Connect,
}

#[test]
fn fuzz_whatever_happens_the_client_ends_with_what_the_server_has() {
    bolero::check!().with_type::<Vec<Step>>().for_each(|steps| {
        let mut pair = Pair::new();
        let mut open = false;
        let mut version = 0;
        for step in steps {
            version += 1;
            match *step {
                Step::Set { name, body, bad } => {
                    let text = if bad { vec![b'b', b'a', b'd', body] } else { vec![body] };
                    for type_url in [WILD, ASKED] {
                        pair.server.set(type_url, &(name % 8).to_string(), version, &text);
                    }
                }
                Step::Unset { name } => {
                    for type_url in [WILD, ASKED] {
                        pair.server.unset(type_url, &(name % 8).to_string());
                    }
                }
                Step::Demand { name } => drop(pair.demand(&(name % 8).to_string())),
                Step::Push if open => {
                    pair.server.push(WILD, Vec::new(), false);
                    pair.server.push(ASKED, Vec::new(), false);
                }
                Step::Drain if open => drop(pair.drain()),
                Step::Cut if open => {
                    pair.cut(&End::Clean);
                    open = false;
                }
                Step::Connect if !open => {
                    pair.connect();
                    open = true;
                }
                Step::Push | Step::Drain | Step::Cut | Step::Connect => {}
            }
        }
        if !open {
            pair.connect();
        }
        pair.drain();
        pair.push();
        for type_url in [WILD, ASKED] {
            let demanded = |name: &str| type_url == WILD || pair.client.types[1].demands.contains_key(name);
            let key = |name: &str| (type_url.to_owned(), name.to_owned());
            for name in (0..8).map(|number| number.to_string()).filter(|name| demanded(name)) {
                let (theirs, ours) = (pair.server.world.get(&key(&name)), pair.table.0.get(&key(&name)));
                match theirs {
                    None => assert_eq!(ours, None, "{name} is gone"),
                    Some((_, body)) if body.starts_with(b"bad") => {}
                    Some((_, body)) => assert_eq!(ours, Some(body), "{name}"),
                }
            }
            let held: Vec<_> = pair.client.held(type_url).into_keys().map(str::to_owned).collect();
            assert_eq!(held, pair.table.names(type_url), "the versions are those of what is held");
        }
    });
}
