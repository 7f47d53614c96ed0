//! Nothing in a request's head may break the server role, and what parses prints back.

use super::{Authority, Baggage, ConnectRequest, Forwarded, TraceParent};
use crate::h2::Headers;

#[test]
fn fuzz_hbone_connect() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>, Vec<u8>)>().for_each(|(authority, name, value)| {
        if let Ok(parsed) = Authority::parse(authority) {
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        let Ok(mut headers) = Headers::connect(authority) else { return };
        for name in [name.as_slice(), b"baggage", b"forwarded", b"traceparent", b"x-forwarded-network"] {
            let _may_be_refused = headers.push(name, value);
        }
        if let Ok(request) = ConnectRequest::parse(&headers) {
            let _ = (request.baggage(), request.forwarded(), request.trace(), request.network());
        }
    });
}

#[test]
fn fuzz_baggage() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        for value in [bytes.clone(), [b"k8s.pod.name=".as_slice(), bytes].concat()] {
            let baggage = Baggage::parse([value.as_slice()]);
            assert_eq!(Baggage::parse([baggage.encode().as_bytes()]).workload_name, baggage.workload_name);
        }
    });
}

#[test]
fn fuzz_forwarded_and_traceparent() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        if let Some(forwarded) = Forwarded::parse(&[b"for=\"10.0.0.1:1\";".as_slice(), bytes].concat()) {
            assert_eq!(forwarded.to_string().split(';').count(), 1 + usize::from(forwarded.host.is_some()));
        }
        if let Some(trace) = TraceParent::parse(bytes) {
            assert_eq!(TraceParent::parse(trace.to_string().as_bytes()), Some(trace));
        }
    });
}
