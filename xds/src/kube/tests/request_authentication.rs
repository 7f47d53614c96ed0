//! RequestAuthentications: what they become, whom they concern, and what is said of those that cannot work.

use l7::ir::{HeaderValue, TokenRule};

use super::{findings, load};
use crate::kube::convert::request_authentication::{key, request_authentications};
use crate::kube::convert::{Scope, Subject, workload_policies};
use crate::kube::{Labels, MeshSettings, ObjectName};

fn object(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: ra, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const RULE: &str = "jwtRules: [{issuer: i, jwks: '{\"keys\":[]}'}]";

#[test]
fn every_field_finds_its_place() {
    let text = object(
        "app",
        "jwtRules: [{issuer: i, audiences: [a], jwks: '{\"keys\":[]}', forwardOriginalToken: true, \
         fromHeaders: [{name: X-Jwt, prefix: 'JWT '}], fromParams: [t], fromCookies: [c], \
         outputPayloadToHeader: X-Payload, outputClaimToHeaders: [{header: X-User, claim: sub}], \
         spaceDelimitedClaims: [roles], timeout: 5s}]",
    );
    let loaded = load(&text);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let served = request_authentications(&loaded.catalog, &MeshSettings::default());
    assert_eq!((&*served[0].key, served[0].scope), ("app/request_authentication/ra", Scope::Namespace));
    let expected = TokenRule {
        issuer: "i".into(),
        audiences: vec!["a".into()],
        jwks: "{\"keys\":[]}".into(),
        from_headers: vec![HeaderValue { name: "x-jwt".into(), value: "JWT ".into() }],
        from_parameters: vec!["t".into()],
        from_cookies: vec!["c".into()],
        forward_original: true,
        payload_to_header: Some("x-payload".into()),
        claims_to_headers: vec![("x-user".into(), "sub".into())],
        space_delimited_claims: vec!["roles".into()],
    };
    assert_eq!(served[0].tokens.rules, [expected]);
}

#[test]
fn it_reaches_whom_its_namespace_selector_and_target_say() {
    let mesh = MeshSettings::default();
    let key = key(&ObjectName::new("app", "ra"));
    let labels: Labels = [("app".into(), "web".into())].into();
    let none = Labels::new();
    let named = |spec: &str, labels: &Labels| {
        let loaded = load(&object("app", spec));
        let subject = Subject { namespace: "app", labels, services: &[] };
        workload_policies(&loaded.catalog, &mesh, subject).contains(&key)
    };
    let selecting = format!("selector: {{matchLabels: {{app: web}}}}, {RULE}");
    assert!(named(&selecting, &labels) && !named(&selecting, &none));
    // By namespace it concerns everybody there, unnamed.
    assert!(!named(RULE, &labels));
    let root = load(&object("istio-system", RULE));
    assert_eq!(request_authentications(&root.catalog, &mesh)[0].scope, Scope::Global);
    let empty = load(&object("app", "selector: {matchLabels: {app: web}}"));
    assert!(request_authentications(&empty.catalog, &mesh).is_empty());
}

#[test]
fn rules_that_cannot_work_are_told_and_refuse_their_tokens() {
    for (spec, complaint) in [
        ("jwtRules: [{issuer: i}]", "the rule has no keys"),
        ("jwtRules: [{issuer: i, jwks: '{'}]", "no JWKS"),
    ] {
        let text = object("app", spec);
        let told = findings(&text).join("\n");
        assert!(told.contains("warning") && told.contains(complaint), "{spec}: {told}");
        let served = request_authentications(&load(&text).catalog, &MeshSettings::default());
        assert!(l7::jwt::check_jwks(&served[0].tokens.rules[0].jwks).is_err());
    }
}

#[test]
fn what_is_written_wrongly_is_refused_where_it_stands() {
    for (spec, complaint) in [
        ("jwtRules: [{jwks: '{\"keys\":[]}'}]", "spec.jwtRules[0].issuer"),
        ("jwtRules: [{issuer: i, audience: [a]}]", "did you mean audiences?"),
        (
            "jwtRules: [{issuer: i, outputPayloadToHeader: content-length}]",
            "spec.jwtRules[0].outputPayloadToHeader",
        ),
        ("jwtRules: [{issuer: i, fromHeaders: [{prefix: p}]}]", "spec.jwtRules[0].fromHeaders[0].name"),
        ("jwtRules: [{issuer: i, jwksUri: keys}]", "is no address that keys could be fetched from"),
        ("jwtRules: [{issuer: i, jwksUri: 'https://i/k', jwks: '{\"keys\":[]}'}]", "exclude each other"),
        ("targetRefs: [{kind: Pod, name: x}]", "a policy cannot target kind Pod"),
    ] {
        let told = findings(&object("app", spec)).join("\n");
        assert!(told.contains("error") && told.contains(complaint), "{spec}: {told}");
    }
}
