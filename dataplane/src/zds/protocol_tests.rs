//! Every rule, and arbitrary packets.

use bolero::TypeGenerator;
use xds::proto::zds::{AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo};

use super::*;

fn bytes(payload: Payload) -> Vec<u8> {
    WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

fn info() -> WorkloadInfo {
    WorkloadInfo { name: "web".into(), namespace: "app".into(), service_account: "web".into() }
}

fn add(uid: &str) -> Vec<u8> {
    bytes(Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(info()) }))
}

fn keep(uid: &str) -> Vec<u8> {
    bytes(Payload::Keep(KeepWorkload { uid: uid.into() }))
}

fn del(uid: &str) -> Vec<u8> {
    bytes(Payload::Del(DelWorkload { uid: uid.into() }))
}

fn snapshot_sent() -> Vec<u8> {
    bytes(Payload::SnapshotSent(SnapshotSent {}))
}

fn packet(bytes: &[u8], descriptors: usize) -> Packet<'_, usize> {
    let descriptors = (0..descriptors).collect();
    Packet { bytes, is_cut: false, descriptors, has_more_descriptors: false }
}

fn set(uids: &[&str]) -> BTreeSet<Arc<str>> {
    uids.iter().map(|uid| Arc::from(*uid)).collect()
}

#[test]
fn the_hello_says_version_one() {
    assert_eq!(hello(), [0x08, 0x01]);
}

#[test]
fn an_add_names_the_pod_and_brings_its_network() {
    let mut conversation = Conversation::default();
    let order = conversation.receive(packet(&add("u1"), 1)).unwrap();
    let pod = PodName {
        uid: "u1".into(),
        name: "web".into(),
        namespace: "app".into(),
        service_account: "web".into(),
    };
    assert_eq!(order, Order::Start { pod, network: 0 });
}

#[test]
fn the_end_of_the_snapshot_tells_what_was_named() {
    let mut conversation = Conversation::default();
    for (bytes, descriptors) in [(add("a"), 1), (keep("b"), 0), (add("c"), 1), (del("c"), 0)] {
        conversation.receive(packet(&bytes, descriptors)).unwrap();
    }
    let order = conversation.receive(packet(&snapshot_sent(), 0)).unwrap();
    assert_eq!(order, Order::StopAllBut(set(&["a", "b"])));
    assert!(matches!(conversation.receive(packet(&add("d"), 1)), Ok(Order::Start { .. })));
    assert_eq!(conversation.receive(packet(&del("a"), 0)), Ok(Order::Stop { uid: "a".into() }));
}

#[test]
fn an_empty_snapshot_stops_everything() {
    let order = Conversation::default().receive(packet(&snapshot_sent(), 0)).unwrap();
    assert_eq!(order, Order::StopAllBut(set(&[])));
}

#[test]
fn descriptors_come_with_an_add_and_only_there() {
    let fails = |bytes: &[u8], count| Conversation::default().receive(packet(bytes, count)).unwrap_err();
    for count in [0, 2] {
        let error = fails(&add("u"), count);
        let count = DescriptorCount::Exactly(count);
        assert_eq!(error, ProtocolError::Descriptors { uid: "u".into(), count });
    }
    let cut = Packet { has_more_descriptors: true, ..packet(&[], 1) };
    let error = Conversation::default().receive(Packet { bytes: &add("u"), ..cut }).unwrap_err();
    assert!(error.to_string().contains("more than 1"), "{error}");
    assert_eq!(fails(&keep("u"), 1), ProtocolError::UnexpectedDescriptor("keep"));
    assert_eq!(fails(&del("u"), 1), ProtocolError::UnexpectedDescriptor("del"));
    assert_eq!(fails(&snapshot_sent(), 1), ProtocolError::UnexpectedDescriptor("snapshot_sent"));
}

#[test]
fn an_add_without_info_is_an_error_that_names_the_pod() {
    let bytes = bytes(Payload::Add(AddWorkload { uid: "u7".into(), workload_info: None }));
    let error = Conversation::default().receive(packet(&bytes, 1)).unwrap_err();
    assert!(error.to_string().contains("u7"), "{error}");
}

#[test]
fn what_belongs_to_the_snapshot_is_refused_after_it() {
    let mut conversation = Conversation::default();
    conversation.receive(packet(&snapshot_sent(), 0)).unwrap();
    let late = conversation.receive(packet(&keep("k"), 0)).unwrap_err();
    assert_eq!(late, ProtocolError::LateKeep("k".into()));
    let second = conversation.receive(packet(&snapshot_sent(), 0)).unwrap_err();
    assert_eq!(second, ProtocolError::SecondSnapshot);
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let fails = |bytes: &[u8]| Conversation::default().receive(packet(bytes, 0)).unwrap_err();
    assert!(matches!(fails(&[0xff]), ProtocolError::Undecodable(_)));
    assert_eq!(fails(&[]), ProtocolError::UnknownRequest);
    // Field 9, which no version has today.
    assert_eq!(fails(&[0x4a, 0x00]), ProtocolError::UnknownRequest);
    let cut = Packet { is_cut: true, ..packet(&[], 0) };
    assert_eq!(Conversation::default().receive(cut).unwrap_err(), ProtocolError::TooLong);
}

#[test]
fn more_pods_than_the_bound_are_refused() {
    let mut conversation = Conversation::default();
    for number in 0..PODS_MAX {
        conversation.receive(packet(&keep(&number.to_string()), 0)).unwrap();
    }
    conversation.receive(packet(&keep("7"), 0)).unwrap();
    let error = conversation.receive(packet(&keep("one more"), 0)).unwrap_err();
    assert_eq!(error, ProtocolError::TooManyPods);
}

#[test]
fn a_failure_never_looks_like_success_and_fits_into_a_packet() {
    let error_of = |bytes: &[u8]| match WorkloadResponse::decode(bytes).unwrap().payload.unwrap() {
        workload_response::Payload::Ack(ack) => ack.error,
    };
    assert_eq!(error_of(&answer(Ok(()))), "");
    assert_ne!(error_of(&answer(Err(String::new()))), "");
    let long = answer(Err("ü".repeat(PACKET_BYTES_MAX)));
    assert!(long.len() <= PACKET_BYTES_MAX, "{}", long.len());
    assert!(error_of(&long).starts_with("üü"));
}

/// A packet that is often a real request.
#[derive(Debug, TypeGenerator)]
enum Step {
    Add(u8, u8),
    Keep(u8, u8),
    Del(u8),
    SnapshotSent,
    Anything(Vec<u8>, u8),
}

#[test]
fn fuzz_a_conversation_orders_what_was_asked_or_fails() {
    bolero::check!().with_type::<Vec<Step>>().for_each(|steps| {
        let mut conversation = Conversation::default();
        let mut named = BTreeSet::new();
        let mut complete = false;
        for step in steps {
            let (bytes, descriptors) = match step {
                Step::Add(uid, count) => (add(&uid.to_string()), usize::from(count % 3)),
                Step::Keep(uid, count) => (keep(&uid.to_string()), usize::from(count % 2)),
                Step::Del(uid) => (del(&uid.to_string()), 0),
                Step::SnapshotSent => (snapshot_sent(), 0),
                Step::Anything(bytes, count) => (bytes.clone(), usize::from(count % 3)),
            };
            let Ok(order) = conversation.receive(packet(&bytes, descriptors)) else { return };
            match order {
                Order::Start { pod, .. } => {
                    assert_eq!(descriptors, 1);
                    named.insert(pod.uid);
                }
                Order::Keep { uid } => {
                    assert!(!complete && descriptors == 0);
                    named.insert(uid);
                }
                Order::Stop { uid } => {
                    assert_eq!(descriptors, 0);
                    named.remove(&uid);
                }
                Order::StopAllBut(told) => {
                    assert!(!complete && descriptors == 0);
                    assert_eq!(told, named);
                    complete = true;
                }
            }
        }
    });
}
