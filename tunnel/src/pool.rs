//! Which tunnel connection a new stream uses, and when a connection leaves. Decisions only: the shell opens,
//! keeps and closes connections, and names them by handles of its own.
//!
//! Invariants:
//! - For one key at most one connection takes new streams and at most one is being opened.
//! - A connection that was full once, was drained or was unused for too long is *retired*: it takes no new stream ever
//!   again, even after streams have ended, and is released when the last one has.
//! - Every waiter is answered exactly once: granted, told to open, failed, or cancelled by its owner.
//! - Keys and connections are forgotten as soon as nothing refers to them, so memory follows use.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Streams that one connection carries at most, whatever the peer allows.
    pub streams_per_connection_max: u32,
    /// After this long without a new stream a connection is retired.
    pub unused_release: Duration,
    /// Requests of one key that may wait for a connection being opened.
    pub waiters_per_key_max: usize,
}

impl PoolConfig {
    pub const DEFAULT: Self = Self {
        streams_per_connection_max: 100,
        unused_release: Duration::from_mins(5),
        waiters_per_key_max: 4_096,
    };
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a request for a stream gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired<H> {
    /// Open a stream on this connection; it is counted already.
    Use(H),
    /// Open a connection, then report [`Pool::opened`] or [`Pool::open_failed`]. The request waits meanwhile.
    Open,
    /// A connection is being opened by another request; this one waits.
    Wait,
    /// Too many wait already.
    Refused,
}

/// What a connection that was just opened, or could not be, means for those who waited.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<W> {
    /// Each may open one stream on the new connection; they are counted already.
    pub granted: Vec<W>,
    /// The peer allows no stream at all. Another connection to it would be no better, so these have failed.
    pub failed: Vec<W>,
    /// Some still wait: open another connection for the key.
    pub open_another: bool,
}

/// The connections of one workload's outbound tunnels. `K` is what must be equal for two requests to share a connection:
/// source identity, accepted destination identities, source address, next hop. `H` names a connection, `W` a waiter.
#[derive(Debug)]
pub struct Pool<K, H, W> {
    config: PoolConfig,
    keys: HashMap<K, Slot<H, W>, RandomState>,
    connections: HashMap<H, Connection<K>, RandomState>,
    /// No connection falls due before this.
    earliest_release: Option<Instant>,
}

#[derive(Debug)]
struct Slot<H, W> {
    usable: Option<H>,
    opening: bool,
    waiters: VecDeque<W>,
}

#[derive(Debug)]
struct Connection<K> {
    key: K,
    streams: u32,
    streams_max: u32,
    retired: bool,
    last_used: Instant,
}

impl<K: Hash + Eq + Clone, H: Hash + Eq + Copy, W: PartialEq> Pool<K, H, W> {
    pub fn new(config: PoolConfig) -> Self {
        Self { config, keys: HashMap::default(), connections: HashMap::default(), earliest_release: None }
    }

    /// Asks for a stream. `waiter` is kept unless the answer is `Use` or `Refused`.
    pub fn acquire(&mut self, key: &K, waiter: W, now: Instant) -> Acquired<H> {
        if let Some(slot) = self.keys.get_mut(key) {
            if let Some(handle) = slot.usable {
                self.take_stream(handle, now);
                return Acquired::Use(handle);
            }
            if slot.waiters.len() >= self.config.waiters_per_key_max {
                return Acquired::Refused;
            }
            slot.waiters.push_back(waiter);
            if slot.opening {
                return Acquired::Wait;
            }
            slot.opening = true;
            return Acquired::Open;
        }
        let slot = Slot { usable: None, opening: true, waiters: VecDeque::from([waiter]) };
        self.keys.insert(key.clone(), slot);
        Acquired::Open
    }

    /// The connection asked for by [`Acquired::Open`] is there; the peer allows `peer_streams_max` streams at once.
    pub fn opened(&mut self, key: &K, handle: H, peer_streams_max: u32, now: Instant) -> Opened<W> {
        let streams_max = peer_streams_max.min(self.config.streams_per_connection_max);
        let connection =
            Connection { key: key.clone(), streams: 0, streams_max, retired: false, last_used: now };
        self.connections.insert(handle, connection);
        let due = now + self.config.unused_release;
        self.earliest_release = Some(self.earliest_release.map_or(due, |earliest| earliest.min(due)));
        let slot = self.keys.entry(key.clone()).or_insert_with(|| Slot {
            usable: None,
            opening: false,
            waiters: VecDeque::new(),
        });
        slot.opening = false;
        let count = slot.waiters.len().min(streams_max as usize);
        let granted: Vec<W> = slot.waiters.drain(..count).collect();
        let failed = if streams_max == 0 { slot.waiters.drain(..).collect() } else { Vec::new() };
        let open_another = !slot.waiters.is_empty();
        slot.opening = open_another;
        slot.usable = (streams_max > 0).then_some(handle);
        for _ in 0..granted.len() {
            self.take_stream(handle, now);
        }
        if streams_max == 0 {
            self.retire(handle);
            self.forget_if_unused(key);
        }
        Opened { granted, failed, open_another }
    }

    /// The connection could not be opened. All who waited for it fail with it: each trying again by itself, one after
    /// the other, would make the last wait for the sum of all timeouts.
    pub fn open_failed(&mut self, key: &K) -> Vec<W> {
        let Some(slot) = self.keys.get_mut(key) else { return Vec::new() };
        slot.opening = false;
        let failed = slot.waiters.drain(..).collect();
        self.forget_if_unused(key);
        failed
    }

    /// A waiter no longer waits. An opening under way goes on, for the next one. Says whether it was waiting.
    pub fn cancel(&mut self, key: &K, waiter: &W) -> bool {
        let Some(slot) = self.keys.get_mut(key) else { return false };
        let before = slot.waiters.len();
        slot.waiters.retain(|other| other != waiter);
        slot.waiters.len() < before
    }

    /// A stream of the connection has ended. True: nothing uses the connection and nothing will, close it.
    pub fn stream_ended(&mut self, handle: H) -> bool {
        let Some(connection) = self.connections.get_mut(&handle) else { return false };
        connection.streams = connection.streams.saturating_sub(1);
        connection.retired && connection.streams == 0
    }

    /// The peer changed how many streams it allows at once.
    pub fn peer_streams_changed(&mut self, handle: H, peer_streams_max: u32) {
        let Some(connection) = self.connections.get_mut(&handle) else { return };
        connection.streams_max = peer_streams_max.min(self.config.streams_per_connection_max);
        if connection.streams >= connection.streams_max {
            self.retire(handle);
        }
    }

    /// The connection takes no new streams: GOAWAY, or our own drain. True: it has none left either, close it.
    pub fn drained(&mut self, handle: H) -> bool {
        self.retire(handle);
        self.connections.get(&handle).is_some_and(|connection| connection.streams == 0)
    }

    /// The connection is gone, with all its streams.
    pub fn closed(&mut self, handle: H) {
        self.retire(handle);
        self.connections.remove(&handle);
    }

    /// When [`Self::on_timer`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.earliest_release
    }

    /// Retires what was unused for too long. The returned connections have no stream: close them.
    pub fn on_timer(&mut self, now: Instant) -> Vec<H> {
        if self.earliest_release.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let (mut due, mut earliest): (Vec<H>, Option<Instant>) = (Vec::new(), None);
        for (handle, connection) in self.connections.iter().filter(|(_, connection)| !connection.retired) {
            let release = connection.last_used + self.config.unused_release;
            if release <= now {
                due.push(*handle);
            } else {
                earliest = Some(earliest.map_or(release, |earliest| earliest.min(release)));
            }
        }
        self.earliest_release = earliest;
        due.retain(|handle| self.drained(*handle));
        due
    }

    /// Connections known, retired ones included.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Requests that wait for a connection.
    pub fn waiter_count(&self) -> usize {
        self.keys.values().map(|slot| slot.waiters.len()).sum()
    }

    fn take_stream(&mut self, handle: H, now: Instant) {
        let Some(connection) = self.connections.get_mut(&handle) else { return };
        connection.streams += 1;
        connection.last_used = now;
        if connection.streams >= connection.streams_max {
            self.retire(handle);
        }
    }

    fn retire(&mut self, handle: H) {
        let Some(connection) = self.connections.get_mut(&handle) else { return };
        connection.retired = true;
        let key = connection.key.clone();
        if let Some(slot) = self.keys.get_mut(&key)
            && slot.usable == Some(handle)
        {
            slot.usable = None;
            self.forget_if_unused(&key);
        }
    }

    fn forget_if_unused(&mut self, key: &K) {
        if self
            .keys
            .get(key)
            .is_some_and(|slot| slot.usable.is_none() && !slot.opening && slot.waiters.is_empty())
        {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
