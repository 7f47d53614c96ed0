//! Certificates that are revoked while tunnels are open, in both roles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::net::{SocketAddr, TcpStream};

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, inside, is_refused, is_reset, ping, pods};

fn open(bed: &Bed, pod: &str, to: SocketAddr) -> TcpStream {
    let socket = bed.connect(pod, to).unwrap();
    ping(&socket).unwrap();
    socket
}

#[test]
fn a_revoked_client_loses_its_tunnels_and_gets_no_new_ones() {
    inside("a_revoked_client_loses_its_tunnels_and_gets_no_new_ones", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let doomed: Vec<_> = (0..16).map(|_| open(&bed, "client", server)).collect();
        let spared = [open(&bed, "other", server), open(&bed, "plain", server)];
        bed.revoke(&["client"]);
        assert!(doomed.iter().all(is_reset));
        for _ in &doomed {
            let record = bed.ended(Direction::Inbound, CloseCause::CertificateRevoked);
            assert_eq!(record.source.identity, Some(bed.identity("client")));
        }
        assert!(is_refused(bed.network("client"), server));
        bed.ended(Direction::Inbound, CloseCause::CertificateRevoked);
        bed.ended(Direction::Outbound, CloseCause::TlsFailed);
        for socket in &spared {
            ping(socket).unwrap();
        }
        assert!(bed.metric("istio_crl_policy_rejections_total", &["reporter=\"destination\""]) >= 2);
        assert_eq!(bed.metric("istio_crl_untracked_connections_total", &[]), 0);
        let revoked = ["reporter=\"destination\"", "response_flags=\"CERT_REVOKED\""];
        assert!(bed.metric("istio_tcp_connections_failed_total", &revoked) > 0, "{}", bed.metrics());
        // The list is corrected.
        bed.revoke(&[]);
        ping(&open(&bed, "client", server)).unwrap();
    });
}

#[test]
fn a_revoked_server_is_left_by_its_clients() {
    inside("a_revoked_server_is_left_by_its_clients", || {
        let mut bed = Bed::new(&pods());
        let (server, other) = (bed.serve_pieces("server", 8080), bed.serve_pieces("other", 8080));
        let doomed: Vec<_> = (0..4).map(|_| open(&bed, "client", server)).collect();
        let spared = open(&bed, "client", other);
        bed.revoke(&["server"]);
        assert!(doomed.iter().all(is_reset));
        for _ in &doomed {
            bed.ended(Direction::Outbound, CloseCause::CertificateRevoked);
        }
        assert!(is_refused(bed.network("client"), server));
        bed.ended(Direction::Outbound, CloseCause::CertificateRevoked);
        assert!(bed.metric("istio_crl_policy_rejections_total", &["reporter=\"source\""]) >= 2);
        ping(&spared).unwrap();
        // A renewed certificate has another number.
        let identity = bed.identity("server");
        bed.issue(&identity);
        bed.publish();
        bed.settle();
        ping(&open(&bed, "client", server)).unwrap();
    });
}

#[test]
fn peers_of_whom_no_list_speaks_pass_and_are_counted() {
    inside("peers_of_whom_no_list_speaks_pass_and_are_counted", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        bed.state.revocation = session_support::Pki::new("stranger").revoke(&[]);
        bed.publish();
        bed.apply(&pods());
        ping(&open(&bed, "client", server)).unwrap();
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            assert_eq!(bed.metric("istio_crl_untracked_connections_total", &[reporter]), 1);
            assert_eq!(bed.metric("istio_crl_policy_rejections_total", &[reporter]), 0);
        }
    });
}
