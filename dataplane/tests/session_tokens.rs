//! Tokens of requests on sockets: refused with their reason, kept from the application, told to policies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dataplane::access_log::CloseCause;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use session_support::{Bed, PATIENCE, inside, pods};

const KEY: &[u8] = b"the key that the issuer of this test signs with";

/// Token rules for the server's pod, with the issuer's keys or without.
fn authentication(jwks: &str) -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: tokens, namespace: app }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{jwks}'
    outputClaimToHeaders: [{{ header: x-user, claim: sub }}]
"
    )
}

fn jwks() -> String {
    json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(KEY) }] }).to_string()
}

const POLICY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: admins, namespace: app }
spec:
  selector: { matchLabels: { app: server } }
  rules:
  - to: [{ operation: { paths: [/open] } }]
  - from: [{ source: { requestPrincipals: ['https://issuer.example/*'] } }]
    when: [{ key: 'request.auth.claims[groups]', values: [admin] }]
";

fn token(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(KEY)).unwrap()
}

fn claims(groups: &[&str]) -> Value {
    json!({ "iss": "https://issuer.example", "sub": "ann", "groups": groups })
}

/// A server that tells the client the head that it got, in the body.
fn serve(bed: &Bed) -> SocketAddr {
    bed.serve("server", 8080, |socket, _| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(socket);
        let mut head = String::new();
        while reader.read_line(&mut head).is_ok_and(|read| read > 0) {
            if head.ends_with("\r\n\r\n") {
                let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                // The test may have ended, and nobody may listen.
                if reader.get_mut().write_all(reply.as_bytes()).is_err() {
                    return;
                }
                head.clear();
            }
        }
    });
    SocketAddr::new(bed.ip("server"), 8080)
}

#[test]
fn tokens_are_verified_told_to_policies_and_kept_from_the_application() {
    inside("tokens_are_verified_told_to_policies_and_kept_from_the_application", || {
        let mut bed = Bed::new(&(pods() + &authentication(&jwks()) + POLICY));
        let server = serve(&bed);
        let mut client = bed.client("client", server);
        let mut ask = |path: &str, token: Option<&str>| {
            let line = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
            let head = format!("GET {path} HTTP/1.1\r\nHost: web\r\nx-user: forged\r\n{line}\r\n");
            client.send(head).unwrap();
            client.response().unwrap()
        };

        let anonymous = ask("/open", None);
        assert_eq!(anonymous.text_without_id(), "GET /open HTTP/1.1\r\nhost: web\r\n\r\n");
        assert_eq!(ask("/", None).status, 403);

        let admin = ask("/", Some(&token(&claims(&["staff", "admin"]))));
        assert_eq!(admin.text_without_id(), "GET / HTTP/1.1\r\nhost: web\r\nx-user: ann\r\n\r\n");
        assert_eq!(ask("/", Some(&token(&claims(&["staff"])))).status, 403);

        let sent = token(&claims(&["admin"]));
        let in_query = ask(&format!("/?a=b&access_token={sent}&c"), None);
        assert_eq!(in_query.text_without_id(), "GET /?a=b&c HTTP/1.1\r\nhost: web\r\nx-user: ann\r\n\r\n");

        let mut old = claims(&["admin"]);
        old["exp"] = json!(1000);
        // Also where policy asks for no token: an invalid one is refused everywhere.
        for path in ["/", "/open"] {
            let expired = ask(path, Some(&token(&old)));
            assert_eq!((expired.status, expired.text(), expired.closes()), (401, "Jwt is expired", false));
            let challenge = format!(
                "\r\nwww-authenticate: Bearer realm=\"http://web{path}\", error=\"invalid_token\"\r\n"
            );
            assert!(expired.head.contains(&challenge), "{expired:?}");
        }
        drop(client);
        let refused = bed.record("a refused token", |it| it.cause == CloseCause::TokenRefused);
        assert_eq!(refused.http.unwrap().status, 401);
    });
}

#[test]
fn keys_that_change_count_from_the_next_request_and_none_refuse_all() {
    inside("keys_that_change_count_from_the_next_request_and_none_refuse_all", || {
        let mut bed = Bed::new(&(pods() + &authentication(&jwks())));
        let server = serve(&bed);
        let mut client = bed.client("client", server);
        let good = token(&claims(&[]));
        let ask = |client: &mut session_support::http::Client| {
            client
                .send(format!("GET / HTTP/1.1\r\nHost: web\r\nAuthorization: Bearer {good}\r\n\r\n"))
                .unwrap();
            client.response().unwrap()
        };
        assert_eq!(ask(&mut client).status, 200);
        bed.apply(&(pods() + &authentication(r#"{"keys":[]}"#)));
        let refused = ask(&mut client);
        assert_eq!(
            (refused.status, refused.text()),
            (401, "Jwks doesn't have key to match kid or alg from Jwt")
        );
        assert_eq!(client.get("/").status, 200);
        bed.apply(&(pods() + &authentication(&jwks())));
        assert_eq!(ask(&mut client).status, 200);
    });
}
