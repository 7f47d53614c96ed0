//! Questions and answers over gRPC, byte by byte where it matters.

use std::time::UNIX_EPOCH;

use super::*;
use crate::proto::ext_authz::{HeaderValue as Written, HttpStatus, QueryParameter};
use crate::proto::rpc::Status;

fn option(key: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    let header = Some(Written { key: key.into(), value: value.into(), raw_value: Vec::new() });
    HeaderValueOption { header, append, append_action: 0 }
}

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: name.into(), value: value.into() }
}

fn payload(response: &CheckResponse) -> Vec<u8> {
    let message = response.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

fn answered(code: i32, response: Option<HttpResponse>) -> Answer {
    let status = Some(Status { code, ..Status::default() });
    let headers = ["X-There".to_owned()];
    answer(&payload(&CheckResponse { status, http_response: response }), &headers)
}

#[test]
fn a_question_tells_the_request_and_both_ends() {
    let identity = Identity::new("cluster.local", "app", "client").unwrap();
    let request = RequestHead {
        method: "POST",
        authority: "web:80",
        path: "/a",
        query: Some("q=1"),
        headers: &[
            Header { name: "Host", value: b"web:80" },
            Header { name: "X-A", value: b"1" },
            Header { name: "x-a", value: b"2" },
            Header { name: "X-Envoy-Auth-Partial-Body", value: b"forged" },
            Header { name: "Content-Length", value: b"5" },
        ],
        token: None,
    };
    let circumstances = Circumstances {
        source: End { address: "10.0.0.1:5".parse().unwrap(), identity: Some(&identity) },
        destination: End { address: "10.0.0.2:80".parse().unwrap(), identity: None },
        time: UNIX_EPOCH,
        id: 7,
        protocol: "HTTP/1.1",
        body: Some((b"ab\xff", Shown::Beginning)),
        as_bytes: false,
    };
    let read = |bytes: &[u8]| {
        let (prefix, message) = bytes.split_at(5);
        assert_eq!(prefix, [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes()].concat());
        CheckRequest::decode(message).unwrap().attributes.unwrap()
    };
    let attributes = read(&question(&request, &circumstances));
    let source = attributes.source.unwrap();
    assert_eq!(source.principal, "spiffe://cluster.local/ns/app/sa/client");
    assert_eq!(source.address.unwrap().socket_address.unwrap().port_value, 5);
    assert_eq!(attributes.destination.unwrap().principal, "");
    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!((&*http.method, &*http.path, &*http.host, http.size), ("POST", "/a?q=1", "web:80", 5));
    assert_eq!((&*http.headers["x-a"], &*http.headers[":path"]), ("1,2", "/a?q=1"));
    assert_eq!(http.headers[PARTIAL_BODY_HEADER], "true");
    assert!(!http.headers.contains_key("host"));
    assert_eq!((http.body.as_str(), http.raw_body.len()), ("ab\u{fffd}", 0));
    let bytes = Circumstances { as_bytes: true, ..circumstances };
    let http = read(&question(&request, &bytes)).request.unwrap().http.unwrap();
    assert_eq!((http.body.as_str(), http.raw_body.as_slice()), ("", &b"ab\xff"[..]));
    let without = Circumstances { body: None, ..circumstances };
    let http = read(&question(&request, &without)).request.unwrap().http.unwrap();
    assert!(!http.headers.contains_key(PARTIAL_BODY_HEADER), "the client's own is not believed");
}

#[test]
fn an_approval_edits_headers_and_the_query() {
    let ok = OkHttpResponse {
        headers: vec![
            option("X-Set", "1", None),
            option("x-set", "2", Some(false)),
            option("x-there", "2", Some(true)),
            option("x-absent", "2", Some(true)),
            option("x-gone", "1", None),
        ],
        headers_to_remove: vec!["Host".into(), ":path".into(), "X-Gone".into()],
        response_headers_to_add: vec![option("x-r", "1", Some(true)), option("x-s", "2", None)],
        query_parameters_to_set: vec![QueryParameter { key: "u".into(), value: "1".into() }],
        query_parameters_to_remove: vec!["t".into()],
    };
    let Answer::Allowed(approval) = answered(0, Some(HttpResponse::OkResponse(ok))) else { panic!() };
    assert_eq!(approval.request_headers.set, [value("x-set", "2")]);
    assert_eq!(approval.request_headers.add, [value("x-there", "2")]);
    assert_eq!(approval.request_headers.remove, [Arc::from("x-gone")]);
    assert_eq!(approval.response_headers.add, [value("x-r", "1")]);
    assert_eq!(approval.response_headers.set, [value("x-s", "2")]);
    assert_eq!(approval.query.remove, [Arc::from("t")]);
    assert_eq!(approval.query.set, [("u".into(), "1".into())]);
    assert_eq!(answered(0, None), Answer::Allowed(Approval::default()));
}

#[test]
fn whatever_is_no_approval_denies_or_fails() {
    let denied = |code: i32| DeniedHttpResponse {
        status: Some(HttpStatus { code }),
        headers: vec![
            option("X-Why", "no", None),
            option("content-length", "1", None),
            option("x-bad", "a\r\nb", None),
        ],
        body: "who".into(),
    };
    let expected = |status| {
        Answer::Denied(Denied {
            status,
            headers: vec![value("x-why", "no")],
            body: b"who".to_vec(),
            failed: None,
        })
    };
    assert_eq!(answered(7, Some(HttpResponse::DeniedResponse(denied(401)))), expected(401));
    assert_eq!(answered(7, Some(HttpResponse::DeniedResponse(denied(0)))), expected(403));
    assert!(matches!(answered(7, Some(HttpResponse::DeniedResponse(denied(99)))), Answer::Failed(_)));
    // The status counts, whatever stands beside it.
    let ok = Some(HttpResponse::OkResponse(OkHttpResponse::default()));
    assert!(matches!(answered(16, ok), Answer::Denied(Denied { status: 403, .. })));
    assert!(matches!(answered(16, None), Answer::Denied(Denied { status: 403, .. })));
    let smuggles =
        OkHttpResponse { headers: vec![option("x", "a\r\nb: c", None)], ..OkHttpResponse::default() };
    assert!(matches!(answered(0, Some(HttpResponse::OkResponse(smuggles))), Answer::Failed(_)));
    for payload in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 1, 0xff]] {
        assert!(matches!(answer(payload, &[]), Answer::Failed(_)), "{payload:?}");
    }
}

#[test]
fn fuzz_answers() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|payload| {
        let framed = [&[0][..], &u32::try_from(payload.len()).unwrap_or(0).to_be_bytes(), payload].concat();
        for bytes in [payload, &framed] {
            let _whatever = answer(bytes, &[]);
        }
    });
}
