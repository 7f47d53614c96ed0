//! HTTP/1.1: a head read, and written for the upstream.

use l7::http1::{empty_headers, parse_request, write_request};

use super::{Step, black_box};

const HEAD: &[u8] = b"GET /v1/users/7/orders?page=2 HTTP/1.1\r\nhost: web.app.svc.cluster.local\r\nuser-agent: bench/1.0\r\n\
accept: application/json\r\naccept-encoding: gzip, br\r\nx-request-id: 5f1c2b44-7a1d-4c44-9c0b-0f3e1ad3b8f1\r\n\
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ncookie: session=abcdef0123456789\r\n\r\n";

/// One request with the headers that a service's client sends.
pub(super) fn forwarded() -> Step {
    // Owned, so that it lies as every allocation does.
    let head = HEAD.to_vec();
    let mut out = Vec::with_capacity(2 * head.len());
    Box::new(move || {
        out.clear();
        let mut storage = empty_headers();
        let request = parse_request(black_box(&head), &mut storage).expect("a sound head");
        write_request(&mut out, &request, request.target, &[]);
        assert!(black_box(&out).len() > 64);
    })
}
