//! Addresses of host names for as long as their name servers let them be kept. Owns no clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData};

use super::message::{Family, Header};

/// Names kept by one worker, each family by itself.
const NAMES_MAX: usize = 4_096;
/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 64;
/// Aliases that are followed within one answer.
const ALIASES_MAX: usize = 16;
/// However long a server lets an address be kept.
const TTL_MAX: Duration = Duration::from_hours(1);
/// How long a name without addresses is kept.
const TTL_OF_NOTHING: Duration = Duration::from_secs(5);

/// Which addresses of which name.
pub(super) type Key = (Arc<str>, Family);

/// The addresses of a name; none where it has none of that family.
pub(super) type Addresses = Arc<[IpAddr]>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: HashMap<Key, (Addresses, Instant)>,
}

impl Cache {
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Addresses> {
        let (addresses, until) = self.kept.get(key)?;
        (now < *until).then(|| Arc::clone(addresses))
    }

    /// Keeps what was found, in the place of what ends soonest if there is no room.
    pub(super) fn put(&mut self, key: Key, found: &Found, now: Instant) {
        if found.ttl.is_zero() {
            self.kept.remove(&key);
            return;
        }
        if self.kept.len() >= NAMES_MAX && !self.kept.contains_key(&key) {
            self.kept.retain(|_, (_, until)| now < *until);
        }
        if self.kept.len() >= NAMES_MAX && !self.kept.contains_key(&key) {
            let soonest = self.kept.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(soonest) = soonest.map(|(key, _)| key.clone()) {
                self.kept.remove(&soonest);
            }
        }
        self.kept.insert(key, (Arc::clone(&found.addresses), now + found.ttl));
    }
}

/// What an answer says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) addresses: Addresses,
    pub(super) ttl: Duration,
}

impl Found {
    /// Reads a name server's answer about the addresses of `name`; `None` if it is no answer to that.
    pub(super) fn read(answer: &[u8], name: &Name, family: Family) -> Option<Self> {
        // Checked before the parser, which makes room for as many questions as the header announces.
        if Header::of(answer)?.questions() > 1 {
            return None;
        }
        let message = Message::from_vec(answer).ok()?;
        match message.metadata.response_code {
            ResponseCode::NoError => {}
            ResponseCode::NXDomain => return Some(Self::nothing()),
            _ => return None,
        }
        let (owner, mut ttl) = canonical(&message, name);
        let mut addresses = Vec::new();
        for record in message.answers.iter().filter(|record| record.name == owner) {
            let ip = match (&record.data, family) {
                (RData::A(ip), Family::V4) => IpAddr::V4(ip.0),
                (RData::AAAA(ip), Family::V6) => IpAddr::V6(ip.0),
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            if addresses.len() < ADDRESSES_MAX {
                addresses.push(ip);
            }
        }
        if addresses.is_empty() {
            return Some(Self::nothing());
        }
        let ttl = Duration::from_secs(u64::from(ttl)).min(TTL_MAX);
        Some(Self { addresses: addresses.into(), ttl })
    }

    fn nothing() -> Self {
        Self { addresses: Arc::from([]), ttl: TTL_OF_NOTHING }
    }
}

/// The name at the end of the aliases, and how long all of them last.
fn canonical(message: &Message, name: &Name) -> (Name, u32) {
    let (mut owner, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..ALIASES_MAX {
        let alias = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == owner => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        let Some((target, its_ttl)) = alias else { break };
        ttl = ttl.min(its_ttl);
        owner = target;
    }
    (owner, ttl)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{Record, RecordType};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn answer(code: ResponseCode, records: &[(&str, u32, RData)]) -> Vec<u8> {
        let mut message = Message::response(1, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(Query::query(name("www.example.com."), RecordType::A));
        for (owner, ttl, data) in records {
            message.add_answer(Record::from_rdata(name(owner), *ttl, data.clone()));
        }
        message.to_vec().unwrap()
    }

    fn address(last: u8) -> RData {
        RData::A(A::new(192, 0, 2, last))
    }

    fn alias(target: &str) -> RData {
        RData::CNAME(CNAME(name(target)))
    }

    fn read(bytes: &[u8]) -> Option<(Vec<String>, u64)> {
        let found = Found::read(bytes, &name("www.example.com."), Family::V4)?;
        Some((found.addresses.iter().map(ToString::to_string).collect(), found.ttl.as_secs()))
    }

    #[test]
    fn addresses_are_those_at_the_end_of_the_aliases() {
        let bytes = answer(
            ResponseCode::NoError,
            &[
                ("www.example.com.", 60, alias("a.example.net.")),
                ("a.example.net.", 20, alias("b.example.net.")),
                ("b.example.net.", 300, address(1)),
                ("B.example.net.", 300, address(2)),
                ("elsewhere.example.", 1, address(66)),
            ],
        );
        assert_eq!(read(&bytes), Some((vec!["192.0.2.1".into(), "192.0.2.2".into()], 20)));
    }

    #[test]
    fn aliases_in_a_circle_lead_nowhere() {
        let bytes = answer(
            ResponseCode::NoError,
            &[
                ("www.example.com.", 60, alias("a.example.net.")),
                ("a.example.net.", 60, alias("www.example.com.")),
            ],
        );
        assert_eq!(read(&bytes), Some((Vec::new(), TTL_OF_NOTHING.as_secs())));
    }

    #[test]
    fn no_such_name_is_an_answer_and_a_failure_is_none() {
        assert_eq!(read(&answer(ResponseCode::NXDomain, &[])), Some((Vec::new(), TTL_OF_NOTHING.as_secs())));
        assert_eq!(read(&answer(ResponseCode::ServFail, &[])), None);
        assert_eq!(read(b"nonsense"), None);
    }

    #[test]
    fn what_was_found_is_kept_for_its_time() {
        let (now, key) = (Instant::now(), (Arc::from("www.example.com"), Family::V4));
        let mut cache = Cache::default();
        let found = |ttl| Found { addresses: Arc::from([IpAddr::from([192, 0, 2, 1])]), ttl };
        cache.put(key.clone(), &found(Duration::from_secs(20)), now);
        assert!(cache.get(&key, now + Duration::from_secs(19)).is_some());
        assert!(cache.get(&key, now + Duration::from_secs(20)).is_none());
        assert!(cache.get(&(key.0.clone(), Family::V6), now).is_none());
        cache.put(key.clone(), &found(Duration::ZERO), now);
        assert!(cache.get(&key, now).is_none(), "what may not be kept takes the old away");
    }

    #[test]
    fn a_full_cache_gives_up_what_ends_soonest() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        let key = |number: usize| (Arc::from(format!("host{number}")), Family::V4);
        for number in 0..=NAMES_MAX {
            let ttl = Duration::from_secs(1_000 + number as u64);
            cache.put(key(number), &Found { addresses: Arc::from([]), ttl }, now);
        }
        assert_eq!(cache.kept.len(), NAMES_MAX);
        assert!(cache.get(&key(0), now).is_none());
        assert!(cache.get(&key(1), now).is_some() && cache.get(&key(NAMES_MAX), now).is_some());
    }

    #[test]
    fn fuzz_any_answer_is_read_within_bounds() {
        let name = name("www.example.com.");
        bolero::check!().for_each(|bytes: &[u8]| {
            for family in [Family::V4, Family::V6] {
                if let Some(found) = Found::read(bytes, &name, family) {
                    assert!(found.addresses.len() <= ADDRESSES_MAX && found.ttl <= TTL_MAX);
                    assert!(found.addresses.iter().all(|ip| Family::of(*ip) == family));
                }
            }
        });
    }
}
