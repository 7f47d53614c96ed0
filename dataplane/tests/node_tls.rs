//! Versions of TLS that a node proxy speaks.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::io;

use node_support::raw::ask_in_tls12;
use node_support::resources::identity;
use node_support::{Bed, inside};

const TUNNEL: u16 = 15008;

/// A client outside the mesh that has nothing newer than TLS 1.2 asks the server's proxy.
fn ask(bed: &Bed) -> io::Result<String> {
    let leaf = bed.control.authority.leaf(&identity("client"));
    let socket = bed.connect("plain", bed.address("server", TUNNEL).v4).unwrap();
    let authority = bed.address("server", 8080).v4.to_string();
    ask_in_tls12(leaf, socket, &authority, b"hello").map(|answer| String::from_utf8(answer).unwrap())
}

fn bed(variable: Option<(&str, &str)>) -> Bed {
    let mut bed = Bed::with(&["a"], |node| {
        if let Some((name, value)) = variable {
            node.set(name, value);
        }
    });
    bed.pod("a", "server");
    bed.pod("a", "client");
    bed.plain_pod("plain");
    bed.ready();
    bed.echo("server", 8080);
    bed
}

#[test]
fn tls_1_2_is_taken_where_it_is_switched_on_and_the_log_says_so() {
    inside("tls_1_2_is_taken_where_it_is_switched_on_and_the_log_says_so", || {
        let bed = bed(Some(("TLS12_ENABLED", "true")));
        let answer = ask(&bed).unwrap();
        assert_eq!(answer, format!("server {} hello", bed.v4("plain")));
        let suite = "tls.cipher=\"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\"";
        let client = format!("src.identity=\"{}\"", identity("client"));
        bed.nodes["a"].until_logged(&["tls.version=\"TLSv1.2\"", suite, &client]);
        // Proxies among themselves go on with TLS 1.3.
        let server = bed.address("server", 8080).v4;
        assert_eq!(bed.request("client", server).unwrap(), bed.answer("server", bed.v4("client")));
        bed.nodes["a"].until_logged(&["tls.version=\"TLSv1.3\"", &client]);
    });
}

#[test]
fn tls_1_2_is_refused_by_default() {
    inside("tls_1_2_is_refused_by_default", || {
        let error = ask(&bed(None)).unwrap_err();
        assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    });
}
