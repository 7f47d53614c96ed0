//! Traffic over a while, with certificates that rotate every few seconds and a configuration that changes ten times a
//! second: nothing is lost, nothing grows.
//!
//! `CORELANE_TEST_SECONDS=3600 cargo test -p dataplane --test node_soak` goes on for an hour.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::time::{Duration, Instant};

use node_support::load::Load;
use node_support::resources::{identity, policy, principal};
use node_support::{Bed, inside};
use xds::proto::security::Action;

const SECONDS: u64 = 10;
/// Certificates begin two minutes in the past and are renewed at half of their time: here 3 s after they were issued.
const LIFETIME: Duration = Duration::from_secs(126);
const ROTATED_EVERY: u64 = 3;
const CHANGED_EVERY: Duration = Duration::from_millis(100);
/// Descriptors that the pools of pipes may take beyond what they had: they grow with the most that was in flight at once.
const DESCRIPTORS_SLACK: usize = 16;
/// Growth of the memory in a hundredth, once everything has been used for a while.
const MEMORY_SLACK_PERCENT: usize = 15;

#[test]
fn nothing_is_lost_and_nothing_grows_while_everything_changes() {
    inside("nothing_is_lost_and_nothing_grows_while_everything_changes", || {
        let seconds = std::env::var("CORELANE_TEST_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
        let mut bed = Bed::new(&["a", "b"]);
        bed.control.authority.set_lifetime(LIFETIME);
        bed.pod("a", "client");
        bed.pod("b", "server");
        bed.ready();
        let server = bed.pieces("server", 8080);
        bed.until("there is a way", |bed| {
            bed.connect("client", server.v4).is_ok_and(|socket| node_support::traffic::ping(&socket).is_ok())
        });
        let load = Load::start(&bed, "client", server);
        let nodes: Vec<_> = ["a", "b"].map(|node| bed.nodes[node].usage()).into();
        let (start, mut before) = (Instant::now(), nodes);
        let (third, end) = (Duration::from_secs(seconds) / 3, Duration::from_secs(seconds));
        let mut round = 0_u64;
        while start.elapsed() < end {
            round += 1;
            bed.control
                .put([policy("changing", Action::Allow, &[&principal("client"), &round.to_string()]).into()]);
            if start.elapsed() < third {
                before = ["a", "b"].map(|node| bed.nodes[node].usage()).into();
            }
            // The pace of the changes.
            std::thread::sleep(CHANGED_EVERY);
        }
        bed.settle();
        let exchanges = load.stop();
        let issued = bed.control.authority.issued();
        for pod in ["client", "server"] {
            let count = issued.iter().filter(|it| **it == identity(pod)).count();
            let rotations = usize::try_from(seconds / ROTATED_EVERY).unwrap();
            assert!(count >= rotations.max(2), "{pod} has got {count} certificates");
        }
        for (node, before) in ["a", "b"].into_iter().zip(before) {
            bed.until("descriptors are given back", |bed| {
                bed.nodes[node].usage().descriptors <= before.descriptors + DESCRIPTORS_SLACK
            });
            let after = bed.nodes[node].usage();
            println!("{node}: {exchanges} exchanges, {round} changes: {before:?}, then {after:?}");
            let allowed = before.resident_kib * (100 + MEMORY_SLACK_PERCENT) / 100;
            assert!(after.resident_kib <= allowed, "{node}: {before:?}, then {after:?}");
        }
    });
}
