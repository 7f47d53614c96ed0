//! Questions and answers as Envoy's external authorization has them.

use std::num::NonZeroU32;

use super::*;
use crate::ir::{CheckProtocol, Header, HttpCheck, NameTest, RequestHead};

fn authorizer(fail_open: bool) -> Authorizer {
    Authorizer {
        name: "ext".into(),
        service: model::NamespacedHostname::new("ns", "ext"),
        port: 80,
        timeout_ms: NonZeroU32::MIN,
        fail_open,
        status_on_error: 503,
        body: None,
        protocol: CheckProtocol::Http(HttpCheck::default()),
    }
}

fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
    Header { name, value: value.as_bytes() }
}

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: name.into(), value: value.into() }
}

const HEADERS: &[(&str, &str)] = &[
    ("Authorization", "Bearer x"),
    ("X-User-Id", "1"),
    ("X-Fixed", "theirs"),
    ("Cookie", "c=1"),
    ("Connection", "close"),
    ("Content-Length", "3"),
];

#[test]
fn a_question_shows_what_is_configured_and_nothing_else() {
    let headers: Vec<Header<'_>> = HEADERS.iter().map(|(name, value)| header(name, value)).collect();
    let request = RequestHead {
        method: "PUT",
        authority: "web:80",
        path: "/a",
        query: Some("q=1"),
        headers: &headers,
        token: None,
    };
    let check = HttpCheck {
        path_prefix: "/check".into(),
        request_headers: vec![
            NameTest::Prefix("x-".into()),
            NameTest::Exact("connection".into()),
            NameTest::Exact("content-length".into()),
        ],
        additional_headers: vec![value("x-fixed", "ours")],
        ..HttpCheck::default()
    };
    let question = http_question(&check, &request, None);
    assert_eq!((&*question.method, &*question.authority), ("PUT", "web:80"));
    assert_eq!(question.target, "/check/a?q=1");
    let shown: Vec<(&str, &[u8])> =
        question.headers.iter().map(|(name, value)| (&**name, value.as_slice())).collect();
    assert_eq!(
        shown,
        [("authorization", &b"Bearer x"[..]), ("x-user-id", &b"1"[..]), ("x-fixed", &b"ours"[..])]
    );
    assert!(question.body.is_empty());
    assert_eq!(
        String::from_utf8(question.to_http1()).unwrap(),
        "PUT /check/a?q=1 HTTP/1.1\r\nhost: web:80\r\nauthorization: Bearer x\r\nx-user-id: 1\r\n\
         x-fixed: ours\r\ncontent-length: 0\r\n\r\n"
    );
    let with_body = http_question(&check, &request, Some((b"abc", Shown::Beginning)));
    assert_eq!(with_body.body, b"abc");
    assert_eq!(with_body.headers.last(), Some(&(PARTIAL_BODY_HEADER.into(), b"true".to_vec())));
}

#[test]
fn only_200_lets_a_request_pass() {
    let check = HttpCheck {
        to_upstream_on_allow: vec![NameTest::Prefix("x-auth-".into())],
        to_downstream_on_allow: vec![NameTest::Exact("set-cookie".into())],
        ..HttpCheck::default()
    };
    let headers = [header("X-Auth-User", "u"), header("Set-Cookie", "s=1"), header("Other", "o")];
    let Answer::Allowed(approval) = http_answer(&check, 200, &headers, b"") else { panic!() };
    assert_eq!(approval.request_headers.set, [value("x-auth-user", "u")]);
    assert_eq!(approval.response_headers.set, [value("set-cookie", "s=1")]);
    for status in [201, 204, 301, 401, 403, 404] {
        assert!(matches!(http_answer(&check, status, &[], b""), Answer::Denied(_)), "{status}");
    }
    for status in [500, 503, 599] {
        assert!(matches!(http_answer(&check, status, &[], b""), Answer::Failed(_)), "{status}");
    }
}

#[test]
fn a_denial_is_passed_on_with_the_headers_that_are_configured() {
    let headers = [
        header("Location", "https://login/"),
        header("X-Why", "because"),
        header("Content-Length", "4"),
        header("Transfer-Encoding", "chunked"),
        header("Host", "ext"),
    ];
    let denied = |check: &HttpCheck| match http_answer(check, 302, &headers, b"gone") {
        Answer::Denied(denied) => denied,
        other => panic!("{other:?}"),
    };
    let all = denied(&HttpCheck::default());
    assert_eq!(all.headers, [value("location", "https://login/"), value("x-why", "because")]);
    assert_eq!((all.status, &*all.body), (302, &b"gone"[..]));
    let named = vec![NameTest::Exact("x-other".into())];
    let few = denied(&HttpCheck { to_downstream_on_deny: named, ..HttpCheck::default() });
    assert_eq!(few.headers, [value("location", "https://login/")]);
}

#[test]
fn without_an_answer_a_request_passes_only_where_that_is_said() {
    let failed = Answer::Failed("nobody is there");
    assert_eq!(rule(&authorizer(true), failed.clone()), Ok(Approval::default()));
    let denied = rule(&authorizer(false), failed).unwrap_err();
    assert_eq!((denied.status, denied.failed), (503, Some("nobody is there")));
    let denial = Denied { status: 401, ..Denied::default() };
    assert_eq!(rule(&authorizer(true), Answer::Denied(denial.clone())), Err(denial));
}

#[test]
fn an_answer_cannot_write_what_frames_a_message() {
    let check =
        HttpCheck { to_upstream_on_allow: vec![NameTest::Suffix("h".into())], ..HttpCheck::default() };
    let headers = [header("Content-Length", "0"), header("Path", "/x")];
    assert!(matches!(http_answer(&check, 200, &headers, b""), Answer::Failed(_)));
    let smuggled = Approval {
        request_headers: HeaderEdits { set: vec![value("x", "a\r\nb: c")], ..HeaderEdits::default() },
        ..Approval::default()
    };
    assert!(rule(&authorizer(false), Answer::Allowed(smuggled)).is_err());
}

#[test]
fn of_two_authorizers_the_later_one_counts() {
    let sets = |name: &str, text: &str| Approval {
        request_headers: HeaderEdits { set: vec![value(name, text)], ..HeaderEdits::default() },
        ..Approval::default()
    };
    let both = sets("x-a", "1").and(sets("X-A", "2")).and(sets("x-b", "3"));
    assert_eq!(both.request_headers.set, [value("X-A", "2"), value("x-b", "3")]);
    assert!(Approval::default().into_filters().is_none());
    assert!(both.into_filters().is_some());
}

#[test]
fn fuzz_http_answers_let_pass_only_what_says_so_and_add_only_what_may_be_written() {
    let all = vec![NameTest::Prefix("".into())];
    let check =
        HttpCheck { to_upstream_on_allow: all.clone(), to_downstream_on_allow: all, ..HttpCheck::default() };
    type Answers = (u16, bool, Vec<(u8, String, Vec<u8>)>, Vec<u8>);
    bolero::check!().with_type::<Answers>().for_each(|(status, is_ok, fields, body)| {
        let status = if *is_ok { 200 } else { *status };
        let names: Vec<_> = fields
            .iter()
            .map(|(which, name, _)| HEADERS.get(usize::from(*which)).map_or(&**name, |(known, _)| known))
            .collect();
        let headers: Vec<_> =
            names.iter().zip(fields).map(|(name, (_, _, value))| Header { name, value }).collect();
        let answer = http_answer(&check, status, &headers, body);
        assert!(status == 200 || !matches!(answer, Answer::Allowed(_)), "{answer:?}");
        match rule(&authorizer(false), answer) {
            Ok(approval) => {
                let edits = [&approval.request_headers, &approval.response_headers];
                for header in edits.iter().flat_map(|edits| edits.set.iter().chain(&edits.add)) {
                    assert!(!header.name.eq_ignore_ascii_case("content-length"), "{header:?}");
                    assert!(!header.name.eq_ignore_ascii_case("connection"), "{header:?}");
                    assert!(!header.value.contains(['\r', '\n', '\0']), "{header:?}");
                }
            }
            Err(denied) => {
                assert!(denied.status == status || denied.failed.is_some() && denied.status == 503);
                for header in &denied.headers {
                    assert!(!header.name.eq_ignore_ascii_case("content-length"), "{header:?}");
                    assert!(!header.value.contains(['\r', '\n', '\0']), "{header:?}");
                }
            }
        }
    });
}
