//! The pool's rules, by hand and against random histories.

use super::*;
use std::collections::BTreeMap;

type TestPool = Pool<&'static str, u32, u32>;

fn pool() -> (TestPool, Instant) {
    (Pool::new(PoolConfig::DEFAULT), Instant::now())
}

#[test]
fn only_one_connection_is_opened_and_the_others_wait_for_it() {
    let (mut pool, now) = pool();
    assert_eq!(pool.acquire(&"a", 1, now), Acquired::Open);
    assert_eq!(pool.acquire(&"a", 2, now), Acquired::Wait);
    assert_eq!(pool.acquire(&"b", 3, now), Acquired::Open);
    let opened = pool.opened(&"a", 10, 200, now);
    assert_eq!(opened, Opened { granted: vec![1, 2], failed: vec![], open_another: false });
    assert_eq!(pool.acquire(&"a", 4, now), Acquired::Use(10));
}

#[test]
fn a_connection_is_not_used_again_after_its_last_allowed_stream() {
    let (mut pool, now) = pool();
    pool.acquire(&"a", 0, now);
    pool.opened(&"a", 10, u32::MAX, now);
    for waiter in 1..100 {
        assert_eq!(pool.acquire(&"a", waiter, now), Acquired::Use(10));
    }
    assert_eq!(pool.acquire(&"a", 100, now), Acquired::Open);
    for _ in 0..99 {
        assert!(!pool.stream_ended(10));
    }
    assert!(pool.stream_ended(10), "the last stream of a retired connection releases it");
    assert_eq!(pool.acquire(&"a", 101, now), Acquired::Wait, "streams that ended make no room");
}

#[test]
fn the_smaller_of_both_limits_holds_and_the_rest_gets_another_connection() {
    let (mut pool, now) = pool();
    for waiter in 0..5 {
        pool.acquire(&"a", waiter, now);
    }
    let opened = pool.opened(&"a", 10, 2, now);
    assert_eq!(opened, Opened { granted: vec![0, 1], failed: vec![], open_another: true });
    assert_eq!(pool.acquire(&"a", 5, now), Acquired::Wait);
    let opened = pool.opened(&"a", 11, 100, now);
    assert_eq!(opened, Opened { granted: vec![2, 3, 4, 5], failed: vec![], open_another: false });
}

#[test]
fn a_peer_that_allows_no_stream_is_not_asked_for_ever() {
    let (mut pool, now) = pool();
    pool.acquire(&"a", 1, now);
    let opened = pool.opened(&"a", 10, 0, now);
    assert_eq!(opened, Opened { granted: vec![], failed: vec![1], open_another: false });
    assert_eq!(pool.acquire(&"a", 2, now), Acquired::Open);
}

#[test]
fn all_who_wait_fail_with_the_connection() {
    let (mut pool, now) = pool();
    pool.acquire(&"a", 1, now);
    pool.acquire(&"a", 2, now);
    assert!(pool.cancel(&"a", &1));
    assert!(!pool.cancel(&"a", &1));
    assert_eq!(pool.open_failed(&"a"), vec![2]);
    assert!(pool.keys.is_empty());
}

#[test]
fn waiters_are_bounded() {
    let now = Instant::now();
    let mut pool: TestPool = Pool::new(PoolConfig { waiters_per_key_max: 2, ..PoolConfig::DEFAULT });
    pool.acquire(&"a", 1, now);
    assert_eq!(pool.acquire(&"a", 2, now), Acquired::Wait);
    assert_eq!(pool.acquire(&"a", 3, now), Acquired::Refused);
    assert_eq!(pool.waiter_count(), 2);
}

#[test]
fn unused_connections_are_released_and_used_ones_end_with_their_streams() {
    let (mut pool, start) = pool();
    pool.acquire(&"a", 1, start);
    pool.opened(&"a", 10, 100, start);
    pool.acquire(&"b", 2, start);
    pool.opened(&"b", 11, 100, start);
    pool.stream_ended(10);
    let later = start + Duration::from_secs(200);
    assert_eq!(pool.on_timer(later), Vec::<u32>::new());
    pool.acquire(&"a", 3, later);
    pool.stream_ended(10);

    let due = pool.next_deadline().unwrap();
    assert_eq!(due, start + Duration::from_mins(5));
    assert_eq!(pool.on_timer(due), Vec::<u32>::new(), "11 still carries a stream");
    assert_eq!(pool.acquire(&"b", 4, due), Acquired::Open, "but takes no new one");
    assert!(pool.stream_ended(11));
    assert_eq!(pool.on_timer(pool.next_deadline().unwrap()), vec![10]);
    assert_eq!(pool.next_deadline(), None);
}

#[test]
fn drained_and_closed_connections_never_come_back() {
    let (mut pool, now) = pool();
    pool.acquire(&"a", 1, now);
    pool.opened(&"a", 10, 100, now);
    assert!(!pool.drained(10));
    assert_eq!(pool.acquire(&"a", 2, now), Acquired::Open);
    pool.opened(&"a", 11, 100, now);
    pool.closed(11);
    assert!(!pool.stream_ended(11), "a closed connection is unknown");
    assert_eq!(pool.acquire(&"a", 3, now), Acquired::Open);
    pool.closed(10);
    assert_eq!(pool.connection_count(), 0);
}

#[test]
fn a_lowered_peer_limit_retires_the_connection() {
    let (mut pool, now) = pool();
    pool.acquire(&"a", 1, now);
    pool.opened(&"a", 10, 100, now);
    pool.peer_streams_changed(10, 1);
    assert_eq!(pool.acquire(&"a", 2, now), Acquired::Open);
}

/// What a history may do to the pool.
#[derive(Debug, bolero::TypeGenerator)]
enum Act {
    Acquire(u8),
    Opened(u8, u8),
    Failed(u8),
    Ended(u8),
    Drained(u8),
    Closed(u8),
    Sleep(u16),
}

#[test]
fn fuzz_pool_histories_keep_the_invariants() {
    const KEYS: [&str; 3] = ["a", "b", "c"];
    bolero::check!().with_type::<Vec<Act>>().for_each(|acts| {
        let (mut pool, mut now) = pool();
        let mut opening: Vec<&'static str> = Vec::new();
        // Streams of each connection, as the shell would count them, and those that took their last one.
        let mut live: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
        let (mut waiter, mut handle) = (0, 0);
        let pick = |live: &BTreeMap<u32, (u32, bool)>, n: u8| {
            live.keys().nth(usize::from(n) % live.len().max(1)).copied()
        };
        for act in acts {
            match act {
                Act::Acquire(n) => {
                    let key = KEYS[usize::from(*n) % 3];
                    waiter += 1;
                    match pool.acquire(&key, waiter, now) {
                        Acquired::Use(handle) => {
                            let (streams, retired) = live.get_mut(&handle).unwrap();
                            assert!(!*retired);
                            *streams += 1;
                        }
                        Acquired::Open => {
                            assert!(!opening.contains(&key));
                            opening.push(key);
                        }
                        Acquired::Wait => assert!(opening.contains(&key)),
                        Acquired::Refused => unreachable!(),
                    }
                }
                Act::Opened(n, max) if !opening.is_empty() => {
                    let key = opening.remove(usize::from(*n) % opening.len());
                    handle += 1;
                    let opened = pool.opened(&key, handle, u32::from(*max), now);
                    let streams = u32::try_from(opened.granted.len()).unwrap();
                    assert!(streams <= u32::from(*max));
                    live.insert(handle, (streams, false));
                    assert!(opened.failed.is_empty() || *max == 0);
                    if opened.open_another {
                        opening.push(key);
                    }
                }
                Act::Failed(n) if !opening.is_empty() => {
                    let key = opening.remove(usize::from(*n) % opening.len());
                    assert!(!pool.open_failed(&key).is_empty());
                }
                Act::Ended(n) => {
                    if let Some((handle, (streams, _))) =
                        pick(&live, *n).and_then(|h| live.get_mut(&h).map(|c| (h, c)))
                        && *streams > 0
                    {
                        *streams -= 1;
                        if pool.stream_ended(handle) {
                            assert_eq!(live.remove(&handle).unwrap().0, 0);
                            pool.closed(handle);
                        }
                    }
                }
                Act::Drained(n) => {
                    if let Some(handle) = pick(&live, *n) {
                        let connection = live.get_mut(&handle).unwrap();
                        connection.1 = true;
                        assert_eq!(pool.drained(handle), connection.0 == 0);
                    }
                }
                Act::Closed(n) => {
                    if let Some(handle) = pick(&live, *n) {
                        live.remove(&handle);
                        pool.closed(handle);
                    }
                }
                Act::Sleep(seconds) => {
                    now += Duration::from_secs(u64::from(*seconds));
                    for handle in pool.on_timer(now) {
                        assert_eq!(live.remove(&handle).unwrap().0, 0);
                        pool.closed(handle);
                    }
                }
                Act::Opened(..) | Act::Failed(_) => {}
            }
            assert_eq!(pool.connection_count(), live.len());
            assert!(pool.waiter_count() == 0 || !opening.is_empty());
        }
    });
}
