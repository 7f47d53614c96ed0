//! Who waits for a connection, who gets it, and what a worker's share of a limit is.

use std::future::{Future, ready};
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;

use futures::FutureExt;
use l7::ir::{ConnectionLimits, TrafficSettings};

use super::*;

fn cluster(limits: ConnectionLimits, workers: u32) -> Rc<Cluster> {
    let service = NamespacedHostname::new("app", "web");
    let name = ClusterName { service, port: 80, subset: None, consumer: None };
    let settings = TrafficSettings { limits, ..TrafficSettings::default() };
    Rc::new(Cluster::new(name, settings, NonZeroU32::new(workers).unwrap()))
}

fn one_connection() -> Rc<Cluster> {
    cluster(ConnectionLimits { connections: Some(1), ..ConnectionLimits::default() }, 1)
}

/// A connection that takes no time to be made.
async fn connect(cluster: &Rc<Cluster>) -> Result<Rc<Ticket>, Overflow> {
    cluster.connect(ready(Ok(()))).await.map(|((), ticket)| ticket)
}

fn now<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    future.now_or_never()
}

#[test]
fn connections_are_waited_for_in_turn() {
    let cluster = one_connection();
    let first = now(pin!(connect(&cluster))).unwrap().unwrap();
    let mut second = pin!(connect(&cluster));
    let mut third = pin!(connect(&cluster));
    assert!(now(second.as_mut()).is_none() && now(third.as_mut()).is_none());
    assert!(first.is_wanted());
    drop(first);
    // Whoever comes now stands behind them.
    assert!(now(pin!(connect(&cluster))).is_none());
    let second = now(second.as_mut()).unwrap().unwrap();
    assert!(now(third.as_mut()).is_none());
    drop(second);
    assert!(now(third.as_mut()).unwrap().is_ok());
}

#[test]
fn one_that_gives_up_waiting_hands_its_turn_on() {
    let cluster = one_connection();
    let first = now(pin!(connect(&cluster))).unwrap().unwrap();
    let mut second = Box::pin(connect(&cluster));
    let mut third = Box::pin(connect(&cluster));
    let mut fourth = Box::pin(connect(&cluster));
    assert!([&mut second, &mut third, &mut fourth].into_iter().all(|it| now(it.as_mut()).is_none()));
    drop(third);
    drop(first);
    // It was its turn.
    drop(second);
    assert!(now(fourth.as_mut()).unwrap().is_ok());
    drop(fourth);
    assert!(now(pin!(connect(&cluster))).unwrap().is_ok(), "nothing is left of those that waited");
}

#[test]
fn a_connection_that_is_not_made_leaves_room_for_another() {
    let cluster = one_connection();
    let failed = now(pin!(cluster.connect::<(), Overflow>(ready(Err(Overflow))))).unwrap();
    assert!(failed.is_err());
    let shared = now(pin!(cluster.connect_shared::<_, Overflow>(ready(Ok(()))))).unwrap();
    let own = now(pin!(connect(&cluster))).unwrap();
    assert!(shared.is_ok() && own.is_ok(), "those that requests share are not counted");
}

#[test]
fn those_that_wait_are_bounded_and_requests_and_tries_are_shared_out() {
    let limits = ConnectionLimits {
        connections: Some(1),
        pending_requests: Some(1),
        requests: Some(5),
        retries: Some(1),
        ..ConnectionLimits::default()
    };
    let cluster = cluster(limits, 4);
    let _first = now(pin!(connect(&cluster))).unwrap().unwrap();
    let mut second = pin!(connect(&cluster));
    assert!(now(second.as_mut()).is_none());
    assert_eq!(now(pin!(connect(&cluster))).unwrap().err(), Some(Overflow));
    // A fourth of five, rounded up; and no worker is left with nothing.
    let running = [cluster.begin(None).unwrap(), cluster.begin(None).unwrap()];
    assert!(cluster.begin(None).is_err());
    drop(running);
    assert!(cluster.begin(None).is_ok());
    let tried = cluster.try_again().unwrap();
    assert!(cluster.try_again().is_err());
    drop(tried);
    assert!(cluster.try_again().is_ok());
}
