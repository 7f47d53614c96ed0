use jsonwebtoken::{Algorithm, EncodingKey, Header as TokenHeader};
use serde_json::{Value, json};

use super::*;
use crate::ir::Header;

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"a shared secret of at least 32 bytes";

/// A JWKS with the shared secret under the id `one`.
fn jwks() -> String {
    use base64::Engine;
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(SECRET);
    json!({ "keys": [{ "kty": "oct", "kid": "one", "alg": "HS256", "k": secret }] }).to_string()
}

fn rule(issuer: &str) -> TokenRule {
    TokenRule { issuer: issuer.into(), jwks: jwks().into(), ..TokenRule::default() }
}

fn authenticator(rules: Vec<TokenRule>) -> Authenticator {
    let policy = RequestAuthentication { namespace: "app".into(), name: "ra".into(), rules, source: None };
    Authenticator::compile([&policy])
}

fn signed_with(header: &TokenHeader, claims: &Value, key: &[u8]) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(key)).unwrap()
}

fn signed(claims: &Value) -> String {
    let header = TokenHeader { kid: Some("one".into()), ..TokenHeader::new(Algorithm::HS256) };
    signed_with(&header, claims, SECRET)
}

fn ask(
    authenticator: &Authenticator,
    headers: &[(&str, &str)],
    query: Option<&str>,
) -> Result<Authenticated, Rejection> {
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
    let head =
        RequestHead { method: "GET", authority: "svc", path: "/", query, headers: &headers, token: None };
    authenticator.authenticate(&head, NOW)
}

fn bearer(authenticator: &Authenticator, token: &str) -> Result<Authenticated, Rejection> {
    ask(authenticator, &[("Authorization", &format!("Bearer {token}"))], None)
}

fn claims(extra: Value) -> Value {
    let mut claims = json!({ "iss": "i", "sub": "s" });
    claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    claims
}

#[test]
fn a_request_without_token_is_nobodys() {
    let one = authenticator(vec![rule("i")]);
    for headers in [&[][..], &[("authorization", "Basic abc")], &[("authorization", "Bearer")]] {
        assert!(ask(&one, headers, Some("a=b")).unwrap().token.is_none(), "{headers:?}");
    }
}

#[test]
fn a_valid_token_tells_its_bearer() {
    let one = authenticator(vec![rule("other"), rule("i")]);
    let claims = claims(json!({
        "aud": ["a", 3, "b"], "azp": "cli", "scope": "read write", "list": ["x", true, "y z"],
        "nested": { "key": "v" }, "flag": true,
    }));
    let token = bearer(&one, &signed(&claims)).unwrap().token.unwrap();
    assert_eq!((token.principal(), token.presenter()), (Some("i/s"), Some("cli")));
    assert!(token.audiences().eq(["a", "b"]));
    assert!(token.claim(&["scope"]).eq(["read", "write"]));
    assert!(token.claim(&["list"]).eq(["x", "y z"]));
    assert!(token.claim(&["nested", "key"]).eq(["v"]));
    for absent in [&["flag"][..], &["nested"], &["nested", "none"], &["none", "key"], &[]] {
        assert_eq!(token.claim(absent).count(), 0, "{absent:?}");
    }
}

#[test]
fn what_is_wrong_with_a_token_is_named() {
    let one = authenticator(vec![TokenRule { audiences: vec!["https://a/".into()], ..rule("i") }]);
    let with = |extra: Value| claims(extra);
    for (claims, expected) in [
        (with(json!({ "aud": "http://a" })), Ok(())),
        (with(json!({ "aud": "b" })), Err(Rejection::Audience)),
        (with(json!({})), Err(Rejection::Audience)),
        (with(json!({ "aud": "a", "exp": NOW - 61 })), Err(Rejection::Expired)),
        (with(json!({ "aud": "a", "exp": NOW - 60 })), Ok(())),
        (with(json!({ "aud": "a", "exp": -1 })), Err(Rejection::Expired)),
        (with(json!({ "aud": "a", "exp": 0.5 })), Err(Rejection::Expired)),
        (with(json!({ "aud": "a", "exp": "tomorrow" })), Err(Rejection::Malformed)),
        (with(json!({ "aud": "a", "nbf": NOW + 61 })), Err(Rejection::NotYetValid)),
        (with(json!({ "aud": "a", "nbf": NOW + 60 })), Ok(())),
        (json!({ "iss": "else", "aud": "a" }), Err(Rejection::UnknownIssuer)),
        (json!({ "aud": "a" }), Err(Rejection::UnknownIssuer)),
    ] {
        assert_eq!(bearer(&one, &signed(&claims)).map(drop), expected, "{claims}");
    }
    for malformed in ["a", "a.b", "a.b.c", "....", "e30.e30.", "\u{e4}.b.c"] {
        assert_eq!(bearer(&one, malformed).map(drop), Err(Rejection::Malformed), "{malformed:?}");
    }
}

#[test]
fn only_a_key_of_the_issuer_makes_a_token_valid() {
    let one = authenticator(vec![rule("i")]);
    let claims = claims(json!({}));
    let header = |kid: Option<&str>, algorithm| TokenHeader {
        kid: kid.map(Into::into),
        ..TokenHeader::new(algorithm)
    };
    let hs256 = Algorithm::HS256;
    let other_key = signed_with(&header(Some("one"), hs256), &claims, b"another secret, just as long as it");
    assert_eq!(bearer(&one, &other_key).map(drop), Err(Rejection::Signature));
    let unnamed = signed_with(&header(None, hs256), &claims, SECRET);
    assert_eq!(bearer(&one, &unnamed).map(drop), Ok(()));
    let other_id = signed_with(&header(Some("two"), hs256), &claims, SECRET);
    assert_eq!(bearer(&one, &other_id).map(drop), Err(Rejection::NoKey));
    let other_algorithm = signed_with(&header(Some("one"), Algorithm::HS384), &claims, SECRET);
    assert_eq!(bearer(&one, &other_algorithm).map(drop), Err(Rejection::NoKey));
    // "alg": "none", with and without a signature.
    for end in ["", "AAAA"] {
        let none = format!("eyJhbGciOiJub25lIn0.eyJpc3MiOiJpIn0.{end}");
        assert_eq!(bearer(&one, &none).map(drop), Err(Rejection::Malformed));
    }
    let (start, signature) = unnamed.rsplit_once('.').unwrap();
    let cut = format!("{start}.{}", &signature[..signature.len() - 2]);
    assert!(bearer(&one, &cut).is_err());
}

#[test]
fn a_public_key_is_no_shared_secret() {
    // The classic confusion: the text of an RSA modulus as the secret of an HMAC.
    let modulus = "AQAB".repeat(86);
    let keys = json!({ "keys": [{ "kty": "RSA", "n": modulus, "e": "AQAB" }] }).to_string();
    assert_eq!(check_jwks(&keys), Ok(()));
    let one = authenticator(vec![TokenRule { jwks: keys.into(), ..rule("i") }]);
    let token = signed_with(&TokenHeader::new(Algorithm::HS256), &claims(json!({})), modulus.as_bytes());
    assert_eq!(bearer(&one, &token).map(drop), Err(Rejection::NoKey));
}

#[test]
fn keys_that_cannot_be_read_refuse_every_token() {
    for (text, complaint) in [
        ("", "no JWKS"),
        ("{}", "no JWKS"),
        (r#"{"keys":[{"kty":"RSA","n":"!","e":"AQAB"}]}"#, "key 0"),
        (r#"{"keys":[{"kty":"RSA"}]}"#, "key 0"),
    ] {
        let error = check_jwks(text).unwrap_err().to_string();
        assert!(error.contains(complaint), "{text}: {error}");
        let one = authenticator(vec![TokenRule { jwks: text.into(), ..rule("i") }]);
        assert_eq!(bearer(&one, &signed(&claims(json!({})))).map(drop), Err(Rejection::NoKey), "{text}");
        assert!(ask(&one, &[], None).unwrap().token.is_none());
    }
    for harmless in [r#"{"keys":[]}"#, r#"{"keys":[{"kty":"AKP","pub":"AAAA"}]}"#] {
        assert_eq!(check_jwks(harmless), Ok(()), "{harmless}");
    }
    let many = json!({ "keys": vec![json!({ "kty": "oct", "k": "AAAA" }); 65] }).to_string();
    assert_eq!(check_jwks(&many), Err(JwksError::TooMany(65)));
}

#[test]
fn tokens_are_looked_for_where_the_rule_says() {
    let token = signed(&claims(json!({})));
    let usual = authenticator(vec![rule("i")]);
    let is_known = |result: Result<Authenticated, Rejection>| result.unwrap().token.is_some();
    assert!(is_known(ask(&usual, &[("authorization", &format!("bearer {token}"))], None)));
    assert!(is_known(ask(&usual, &[], Some(&format!("a=b&access_token={token}")))));
    let moved = authenticator(vec![TokenRule {
        from_headers: vec![HeaderValue { name: "x-jwt".into(), value: "JWT ".into() }],
        from_cookies: vec!["session".into()],
        from_parameters: vec!["t".into()],
        ..rule("i")
    }]);
    assert!(is_known(ask(&moved, &[("X-Jwt", &format!("JWT {token}"))], None)));
    assert!(is_known(ask(&moved, &[("cookie", &format!("a=b; session={token}"))], None)));
    assert!(is_known(ask(&moved, &[], Some(&format!("t={token}")))));
    for (headers, query) in [
        (&[("x-jwt", format!("jwt {token}"))][..], None),
        (&[("authorization", format!("Bearer {token}"))], None),
        (&[], Some(format!("access_token={token}"))),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert!(!is_known(ask(&moved, &headers, query.as_deref())), "{headers:?} {query:?}");
    }
}

#[test]
fn one_valid_token_is_enough_and_the_number_is_bounded() {
    let good = signed(&claims(json!({})));
    let old = signed(&claims(json!({ "exp": 1 })));
    let one = authenticator(vec![rule("other"), rule("i")]);
    let header = format!("Bearer {old}");
    let query = format!("access_token={good}");
    assert!(ask(&one, &[("authorization", &header)], Some(&query)).unwrap().token.is_some());
    let query = format!("access_token={old}");
    assert_eq!(ask(&one, &[], Some(&query)).map(drop), Err(Rejection::Expired));
    let many = [query.as_str(); 9].join("&");
    assert_eq!(ask(&one, &[], Some(&many)).map(drop), Err(Rejection::TooMany));
}

#[test]
fn a_preflight_is_let_pass() {
    let one = authenticator(vec![rule("i")]);
    let headers = [
        Header { name: "Origin", value: b"http://a" },
        Header { name: "Access-Control-Request-Method", value: b"GET" },
        Header { name: "authorization", value: b"Bearer not.a.jwt" },
    ];
    let head = |method, headers| RequestHead {
        method,
        authority: "svc",
        path: "/",
        query: None,
        headers,
        token: None,
    };
    assert!(one.authenticate(&head("OPTIONS", &headers), NOW).unwrap().token.is_none());
    for head in [head("GET", &headers[..]), head("OPTIONS", &headers[1..])] {
        assert_eq!(one.authenticate(&head, NOW).map(drop), Err(Rejection::Malformed));
    }
}

#[test]
fn the_application_gets_what_the_rule_says_and_nothing_forged() {
    let edits_of = |rule: TokenRule, headers: &[(&str, &str)]| {
        let authenticator = authenticator(vec![rule]);
        let edits = ask(&authenticator, headers, None).unwrap().edits;
        edits.map(|filters| {
            let edits = &filters.request_headers;
            let sets: Vec<_> =
                edits.set.iter().map(|it| (it.name.to_string(), it.value.to_string())).collect();
            (edits.remove.iter().map(ToString::to_string).collect::<Vec<_>>(), sets)
        })
    };
    let token = signed(&claims(json!({ "role": "admin", "n": 3, "bad": "a\nb", "list": ["x"] })));
    let header = format!("Bearer {token}");
    let sent = [("authorization", header.as_str())];
    let removed = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(edits_of(rule("i"), &sent), Some((removed(&["authorization"]), vec![])));
    assert_eq!(edits_of(TokenRule { forward_original: true, ..rule("i") }, &sent), None);
    let sender = authenticator(vec![rule("i"), TokenRule { forward_original: true, ..rule("j") }]);
    let query_after = |token: &str| {
        let query = format!("a=%20b&access_token={token}&c");
        let edits = ask(&sender, &[], Some(&query)).unwrap().edits.unwrap_or_default();
        let chain = crate::filter::Chain::of_rule(Some(&edits), None);
        chain.query(Some(&query)).map(std::borrow::Cow::into_owned)
    };
    assert_eq!(query_after(&token).as_deref(), Some("a=%20b&c"), "a parameter is taken out as a header is");
    let other = signed(&claims(json!({ "iss": "j" })));
    assert_eq!(query_after(&other), Some(format!("a=%20b&access_token={other}&c")));
    let telling = || TokenRule {
        forward_original: true,
        payload_to_header: Some("x-payload".into()),
        claims_to_headers: ["role", "n", "bad", "list", "none"]
            .map(|claim| (Arc::from(format!("x-{claim}")), Arc::from(claim)))
            .into(),
        ..rule("i")
    };
    let guarded = removed(&["x-payload", "x-role", "x-n", "x-bad", "x-list", "x-none"]);
    let payload = token.split('.').nth(1).unwrap().to_owned();
    let set = [("x-payload", payload.as_str()), ("x-role", "admin"), ("x-n", "3")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(edits_of(telling(), &sent), Some((guarded.clone(), set.to_vec())));
    assert_eq!(edits_of(telling(), &[("x-role", "forged")]), Some((guarded, vec![])));
}

#[test]
fn a_subject_cannot_pretend_to_be_part_of_the_issuer() {
    let one = authenticator(vec![rule("i")]);
    let token = bearer(&one, &signed(&json!({ "iss": "i", "sub": "realm/admin" }))).unwrap().token.unwrap();
    let principal = token.principal().unwrap();
    assert!(
        principal.starts_with("i/realm") && !principal.ends_with("/admin") && principal != "i/realm/admin"
    );
    let nobody = bearer(&one, &signed(&json!({ "iss": "i", "sub": "" }))).unwrap().token.unwrap();
    assert_eq!(nobody.principal(), None);
}

#[test]
fn the_challenge_keeps_the_query_to_itself() {
    let head = RequestHead {
        method: "GET",
        authority: "svc\"",
        path: "/a",
        query: Some("access_token=secret"),
        headers: &[],
        token: None,
    };
    assert_eq!(Rejection::challenge(&head), "Bearer realm=\"http://svc/a\", error=\"invalid_token\"");
}

#[test]
fn fuzz_tokens() {
    let one = authenticator(vec![rule("i"), TokenRule { from_cookies: vec!["c".into()], ..rule("j") }]);
    bolero::check!().with_type::<(String, String, String)>().for_each(|(header, query, cookie)| {
        let headers = [("authorization", header.as_str()), ("cookie", cookie.as_str())];
        if let Ok(found) = ask(&one, &headers, Some(query)) {
            // Nobody can guess the secret.
            assert!(found.token.is_none());
        }
        drop(check_jwks(header));
    });
}
