//! When to ask for which certificate: pure, with the time as an argument.
//!
//! Invariants:
//! - At most [`IN_FLIGHT_MAX`] requests run at once, never two for one identity; the most urgent goes first.
//! - A certificate is renewed at half of its validity. While renewal fails, the old one stays in use until it expires.
//! - Retries back off for each identity alone: 1 s doubled up to 150 s, each with up to 20 % of jitter, but never later
//!   than the expiry of the certificate in use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use model::Identity;

use super::CertificateBundle;

pub const IN_FLIGHT_MAX: usize = 8;
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
pub const RETRY_MAX: Duration = Duration::from_secs(150);
/// Identities wanted at once; more are not asked for.
pub const IDENTITIES_MAX: usize = 16_384;

/// How urgent a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// One in use is renewed.
    Background,
    /// A workload runs here and may need it.
    WarmUp,
    /// A connection waits for it.
    RealTime,
}

/// What is wanted, held and due.
#[derive(Debug, Default)]
pub struct Manager {
    entries: HashMap<Identity, Entry, foldhash::fast::RandomState>,
    /// Also those forgotten meanwhile, until their answer comes.
    in_flight: HashSet<Identity, foldhash::fast::RandomState>,
    /// Keeps the order of requests of one priority.
    sequence: u64,
}

#[derive(Debug)]
struct Entry {
    held: Option<Held>,
    priority: Priority,
    sequence: u64,
    due: Instant,
    /// Zero until something failed.
    backoff: Duration,
}

#[derive(Debug)]
struct Held {
    bundle: Arc<CertificateBundle>,
    expires: Instant,
}

impl Manager {
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants a certificate; if it is wanted already, perhaps more urgently than before.
    pub fn want(&mut self, identity: Identity, priority: Priority, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&identity) {
            entry.priority = entry.priority.max(priority);
            return;
        }
        if self.entries.len() >= IDENTITIES_MAX {
            return;
        }
        self.sequence += 1;
        let entry =
            Entry { held: None, priority, sequence: self.sequence, due: now, backoff: Duration::ZERO };
        self.entries.insert(identity, entry);
    }

    /// Wants it no longer. An answer that is still to come is thrown away.
    pub fn forget(&mut self, identity: &Identity) {
        self.entries.remove(identity);
    }

    /// The next request to start, if one is due and may run. It is in flight from here on.
    pub fn next(&mut self, now: Instant) -> Option<Identity> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let due = self
            .entries
            .iter()
            .filter(|(identity, entry)| entry.due <= now && !self.in_flight.contains(*identity));
        let urgency = |entry: &Entry| (entry.priority, std::cmp::Reverse(entry.sequence));
        let (identity, _) = due.max_by_key(|(_, entry)| urgency(entry))?;
        let identity = identity.clone();
        self.in_flight.insert(identity.clone());
        Some(identity)
    }

    /// When [`Manager::next`] may have something, if nothing else happens before. `None` while the answer to a
    /// request has to come first, or nothing is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let waiting = self.entries.iter().filter(|(identity, _)| !self.in_flight.contains(*identity));
        waiting.map(|(_, entry)| entry.due).min()
    }

    /// A request succeeded. False if the certificate is not wanted any more.
    pub fn issued(
        &mut self,
        identity: &Identity,
        bundle: Arc<CertificateBundle>,
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        self.in_flight.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        let until = |time: SystemTime| now + time.duration_since(wall).unwrap_or(Duration::ZERO);
        let validity = bundle.not_after.duration_since(bundle.not_before).unwrap_or(Duration::ZERO);
        // One that is past its half already, or whose clock is far off, must not make a tight loop.
        entry.due = until(bundle.not_before + validity / 2).max(now + RETRY_FIRST);
        entry.held = Some(Held { expires: until(bundle.not_after), bundle });
        entry.backoff = Duration::ZERO;
        entry.priority = Priority::Background;
        self.sequence += 1;
        entry.sequence = self.sequence;
        true
    }

    /// A request failed. `random` gives the jitter.
    pub fn failed(&mut self, identity: &Identity, now: Instant, random: u64) {
        self.in_flight.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return };
        entry.backoff =
            if entry.backoff.is_zero() { RETRY_FIRST } else { (entry.backoff * 2).min(RETRY_MAX) };
        // 0.8 to 1.2 of the wait, the cap above all.
        let percent = u32::try_from(80 + random % 41).unwrap_or(100);
        let mut due = now + (entry.backoff * percent / 100).min(RETRY_MAX);
        if let Some(held) = entry.held.as_ref().filter(|held| held.expires > now) {
            due = due.min(held.expires);
        }
        entry.due = due;
    }

    /// The certificate of an identity, if one is held that has not expired.
    pub fn certificate(&self, identity: &Identity, now: Instant) -> Option<&Arc<CertificateBundle>> {
        let held = self.entries.get(identity)?.held.as_ref()?;
        (held.expires > now).then_some(&held.bundle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    struct World {
        manager: Manager,
        now: Instant,
        wall: SystemTime,
    }

    fn identity(name: &str) -> Identity {
        Identity::new("td", "ns", name).unwrap()
    }

    impl World {
        fn new() -> Self {
            Self { manager: Manager::new(), now: Instant::now(), wall: SystemTime::UNIX_EPOCH + 1000 * HOUR }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.wall += time;
        }

        fn want(&mut self, name: &str, priority: Priority) {
            self.manager.want(identity(name), priority, self.now);
        }

        fn next(&mut self) -> Option<String> {
            self.manager.next(self.now).map(|it| it.service_account().to_owned())
        }

        fn issue(&mut self, name: &str, validity: Duration) -> bool {
            let bundle = CertificateBundle {
                identity: identity(name),
                chain_der: vec![],
                key_pkcs8_der: vec![],
                roots_der: vec![],
                not_before: self.wall,
                not_after: self.wall + validity,
            };
            self.manager.issued(&identity(name), Arc::new(bundle), self.now, self.wall)
        }

        /// Fails with a jitter of nothing.
        fn fail(&mut self, name: &str) -> Duration {
            self.manager.failed(&identity(name), self.now, 20);
            self.manager.deadline().unwrap() - self.now
        }
    }

    #[test]
    fn renewal_is_due_at_half_of_the_validity() {
        let mut world = World::new();
        world.want("a", Priority::WarmUp);
        assert_eq!(world.next().as_deref(), Some("a"));
        assert_eq!(world.next(), None, "never two for one identity");
        assert!(world.issue("a", 24 * HOUR));
        assert_eq!(world.manager.deadline(), Some(world.now + 12 * HOUR));
        world.pass(11 * HOUR);
        assert_eq!(world.next(), None);
        world.pass(HOUR);
        assert_eq!(world.next().as_deref(), Some("a"));
        assert!(
            world.manager.certificate(&identity("a"), world.now).is_some(),
            "the old one is in use meanwhile"
        );
    }

    #[test]
    fn retries_double_up_to_the_cap_and_start_over_after_success() {
        let mut world = World::new();
        world.want("a", Priority::WarmUp);
        let mut waits = Vec::new();
        for _ in 0..10 {
            world.next().unwrap();
            let wait = world.fail("a");
            waits.push(wait.as_secs());
            world.pass(wait);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
        world.next().unwrap();
        world.issue("a", 24 * HOUR);
        world.pass(12 * HOUR);
        world.next().unwrap();
        assert_eq!(world.fail("a"), Duration::from_secs(1));
    }

    #[test]
    fn fuzz_the_jitter_stays_within_a_fifth_and_below_the_cap() {
        bolero::check!().with_type::<(u8, u64)>().for_each(|(failures, random)| {
            let mut world = World::new();
            world.want("a", Priority::WarmUp);
            let mut plain = RETRY_FIRST;
            for _ in 0..failures % 12 {
                world.next().unwrap();
                world.manager.failed(&identity("a"), world.now, *random);
                let wait = world.manager.deadline().unwrap() - world.now;
                assert!(
                    wait >= plain * 8 / 10 && wait <= (plain * 12 / 10).min(RETRY_MAX),
                    "{wait:?} for {plain:?}"
                );
                plain = (plain * 2).min(RETRY_MAX);
                world.pass(wait);
            }
        });
    }

    #[test]
    fn a_failing_renewal_is_tried_again_no_later_than_the_expiry() {
        let mut world = World::new();
        world.want("a", Priority::WarmUp);
        world.next().unwrap();
        world.issue("a", Duration::from_secs(100));
        world.pass(Duration::from_secs(50));
        for wait in [1, 2, 4, 8, 16] {
            world.next().unwrap();
            assert_eq!(world.fail("a").as_secs(), wait);
            world.pass(Duration::from_secs(wait));
        }
        world.next().unwrap();
        assert_eq!(world.fail("a").as_secs(), 19, "and not 32");
        assert!(world.manager.certificate(&identity("a"), world.now).is_some());
        world.pass(Duration::from_secs(19));
        assert!(world.manager.certificate(&identity("a"), world.now).is_none(), "expired");
        world.next().unwrap();
        assert_eq!(world.fail("a").as_secs(), 64);
    }

    #[test]
    fn at_most_eight_run_at_once_and_the_most_urgent_goes_first() {
        let mut world = World::new();
        for number in 0..20 {
            world.want(&format!("warm-{number:02}"), Priority::WarmUp);
        }
        world.want("urgent", Priority::RealTime);
        world.want("warm-19", Priority::RealTime);
        let started: Vec<_> = std::iter::from_fn(|| world.next()).collect();
        assert_eq!(started.len(), IN_FLIGHT_MAX);
        // Of one priority, what was wanted first goes first.
        assert_eq!(started[..3], ["warm-19", "urgent", "warm-00"]);
        assert_eq!(world.manager.deadline(), None);
        world.issue("urgent", HOUR);
        assert_eq!(world.next().as_deref(), Some("warm-06"));
    }

    #[test]
    fn what_is_forgotten_in_flight_is_thrown_away_and_frees_its_place() {
        let mut world = World::new();
        world.want("a", Priority::WarmUp);
        world.next().unwrap();
        world.manager.forget(&identity("a"));
        assert!(!world.issue("a", HOUR));
        assert!(world.manager.certificate(&identity("a"), world.now).is_none());
        assert!(world.manager.in_flight.is_empty());
        assert_eq!(world.manager.deadline(), None);
    }

    #[test]
    fn a_certificate_that_is_nearly_over_does_not_make_a_tight_loop() {
        let mut world = World::new();
        world.want("a", Priority::WarmUp);
        world.next().unwrap();
        world.issue("a", Duration::ZERO);
        assert_eq!(world.manager.deadline(), Some(world.now + RETRY_FIRST));
    }

    #[test]
    fn identities_are_bounded() {
        let mut world = World::new();
        for number in 0..IDENTITIES_MAX + 10 {
            world.want(&number.to_string(), Priority::WarmUp);
        }
        assert_eq!(world.manager.entries.len(), IDENTITIES_MAX);
    }
}
