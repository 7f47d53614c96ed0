//! A waypoint in front of services that are not HTTP, or not said to be, and in front of pods.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::io::{Read, Write};
use std::net::Shutdown;

use node_support::resources::identity;
use node_support::traffic::{ping, time_to_end};
use node_support::waypoint::{WAYPOINT, client_of};
use node_support::{Bed, inside};
use xds::proto::workload::AppProtocol;

const NOBODY_OTHER: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-other, namespace: app}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/other]}}]}]
---
";

const ONLY_SOME_PATHS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: app}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{to: [{operation: {paths: [/open]}}]}]
---
";

fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("a", "other"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.waypoint(|_| {});
    bed.ready();
    bed
}

#[test]
fn bytes_pass_whole_in_both_directions_and_a_denial_cuts_them() {
    inside("bytes_pass_whole_in_both_directions_and_a_denial_cuts_them", || {
        let mut bed = bed();
        let web = bed.service("web", &["server"], 8080, false);
        bed.echo("server", 8080);
        bed.stand_before(&["web"], AppProtocol::Tcp, NOBODY_OTHER);
        for (to, waypoint) in web.into_iter().zip(bed.ips(WAYPOINT)) {
            bed.until_answer("client", to, &bed.answer("server", waypoint));
            bed.until_refused("other", to);
        }
        // More than all windows on the way hold, there and back, the end of one direction before the other.
        let socket = bed.connect("client", web.v4).unwrap();
        let sent: Vec<u8> = (0..24_000_000_u32).map(|number| (number % 251) as u8).collect();
        let mut writer = socket.try_clone().unwrap();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&copy).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        (&socket).read_to_end(&mut answer).unwrap();
        writing.join().unwrap();
        assert!(answer.ends_with(&sent), "{} bytes came back", answer.len());
        bed.nodes["b"].until_logged(&["dst.workload=\"server\"", &identity(WAYPOINT)]);

        let pieces = bed.service("pieces", &["server"], 9090, false);
        bed.pieces("server", 9090);
        bed.stand_before(&["pieces", "web"], AppProtocol::Tcp, NOBODY_OTHER);
        let live = bed.connect("client", pieces.v4).unwrap();
        ping(&live).unwrap();
        let denied = NOBODY_OTHER.replace("sa/other", "sa/client");
        bed.enforce(&["pieces", "web"], &denied);
        time_to_end(&live);
        let other = bed.connect("other", pieces.v4).unwrap();
        ping(&other).unwrap();
        // The server's end reaches the client as an end.
        bed.enforce(&["pieces", "web"], "");
        ping(&other).unwrap();
    });
}

#[test]
fn what_is_not_declared_is_told_by_its_first_bytes() {
    inside("what_is_not_declared_is_told_by_its_first_bytes", || {
        let mut bed = bed();
        let http = bed.service("http", &["server"], 8080, false);
        let other = bed.service("other", &["server"], 9090, false);
        bed.http_echo("server", 8080);
        bed.echo("server", 9090);
        bed.stand_before(&["http", "other"], AppProtocol::Unknown, NOBODY_OTHER);
        assert_eq!(bed.until_status("client", http.v4, "/open", 200).status, 200);
        assert_eq!(bed.http("other", http.v4, "/open", &[]).unwrap().status, 403);
        bed.until_answer("client", other.v4, &bed.answer("server", bed.v4(WAYPOINT)));
        bed.until_refused("other", other.v4);
        // Where only paths are allowed, what has none is not.
        bed.enforce(&["http", "other"], &(NOBODY_OTHER.to_owned() + ONLY_SOME_PATHS));
        bed.until_status("client", http.v4, "/closed", 403);
        assert_eq!(bed.http("client", http.v4, "/open", &[]).unwrap().status, 200);
        bed.until_refused("client", other.v4);
    });
}

#[test]
fn pods_behind_the_waypoint_are_reached_through_it_by_their_own_addresses() {
    inside("pods_behind_the_waypoint_are_reached_through_it_by_their_own_addresses", || {
        let mut bed = bed();
        let web = bed.service("web", &["server"], 8080, false);
        bed.http_echo("server", 8080);
        bed.stand_before_pods(&["server"], &(NOBODY_OTHER.to_owned() + ONLY_SOME_PATHS));
        for to in bed.address("server", 8080) {
            let answer = bed.until_status("client", to, "/open", 200);
            assert!(bed.ips(WAYPOINT).contains(&client_of(&answer)));
            assert_eq!(bed.http("client", to, "/closed", &[]).unwrap().status, 403);
            assert_eq!(bed.http("other", to, "/open", &[]).unwrap().status, 403);
        }
        // The service is not behind it.
        let answer = bed.http("other", web.v4, "/closed", &[]).unwrap();
        assert_eq!((answer.status, client_of(&answer)), (200, bed.v4("other")));
    });
}

#[test]
fn streams_that_nobody_reads_hold_up_no_other() {
    inside("streams_that_nobody_reads_hold_up_no_other", || {
        let mut bed = bed();
        let web = bed.service("web", &["server"], 8080, false);
        bed.http_echo("server", 8080);
        bed.stand_before(&["web"], AppProtocol::Http11, "");
        bed.until_status("client", web.v4, "/", 200);
        // Answers that their client does not read, far longer than a stream's window, and requests that never end: all
        // share the waypoint's tunnels to the server with what comes after them.
        let stalled: Vec<_> = (0..4)
            .map(|_| {
                let mut socket = bed.connect("client", web.v4).unwrap();
                write!(socket, "GET /bytes/64000000 HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
                socket.read_exact(&mut [0; 10]).unwrap();
                socket
            })
            .collect();
        let stuck: Vec<_> = (0..24)
            .map(|_| {
                let mut socket = bed.connect("other", web.v4).unwrap();
                write!(socket, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\n").unwrap();
                socket
            })
            .collect();
        for number in 0..50 {
            let answer = bed.http("other", web.v4, "/bytes/1000000", &[]).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, 1_000_000), "{number}");
        }
        // What is stalled goes on as soon as it is read.
        for mut socket in stalled {
            let mut read = vec![0; 8 << 20];
            socket.read_exact(&mut read).unwrap();
        }
        drop(stuck);
    });
}
