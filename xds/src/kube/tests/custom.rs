//! CUSTOM policies and their providers: what they become, and what is said of those that nobody can be asked for.

use l7::ir::{Action, CheckBody, CheckProtocol, HeaderValue, HttpCheck, NameTest};
use l7::path::Normalization;

use super::{findings, load};
use crate::kube::convert::{Carrier, MeshPolicy, policies};
use crate::kube::{MeshSettings, check_references};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: ext, namespace: auth}\n\
     spec: {ports: [{port: 8000}]}\n---\n";

fn mesh(text: &str) -> String {
    let text = text.replace('\n', "\n    ");
    format!(
        "{SERVICE}apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {text}\n---\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: app}}\nspec: {{action: CUSTOM, {spec}}}\n"
    )
}

fn provider(kind: &str, fields: &str) -> String {
    mesh(&format!(
        "extensionProviders:\n- name: ext\n  {kind}: {{service: ext.auth.svc.cluster.local, port: 8000{fields}}}"
    ))
}

fn converted(text: &str) -> MeshPolicy {
    let loaded = load(text);
    assert!(!loaded.problems.iter().any(crate::kube::Problem::is_error), "{:?}", loaded.problems);
    policies(&loaded.catalog, &MeshSettings::default()).0.remove(0)
}

const RULES: &str = "rules: [{to: [{operation: {paths: [/a]}}]}]";

#[test]
fn every_field_of_a_provider_finds_its_place() {
    let fields = ", timeout: 0.5s, failOpen: true, statusOnError: '503', pathPrefix: /check/, \
         includeRequestHeadersInCheck: [X-A, x-b-*, '*-c'], \
         includeAdditionalHeadersInCheck: {X-Fixed: v}, \
         includeRequestBodyInCheck: {maxRequestBytes: 8192, allowPartialMessage: true, packAsBytes: true}, \
         headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [x-why], \
         headersToDownstreamOnAllow: [set-cookie]";
    let text = provider("envoyExtAuthzHttp", fields) + &policy(&format!("provider: {{name: ext}}, {RULES}"));
    let MeshPolicy { policy, carrier, .. } = converted(&text);
    assert_eq!((policy.action, carrier), (Action::Custom, Carrier::Request));
    let authorizer = policy.authorizer.unwrap();
    assert_eq!((&*authorizer.service.hostname, authorizer.port), ("ext.auth.svc.cluster.local", 8000));
    assert_eq!(authorizer.timeout_ms.get(), 500);
    assert_eq!((authorizer.fail_open, authorizer.status_on_error), (true, 503));
    let bytes_max = 8192.try_into().unwrap();
    assert_eq!(authorizer.body, Some(CheckBody { bytes_max, allow_partial: true, as_bytes: true }));
    let expected = HttpCheck {
        path_prefix: "/check".into(),
        request_headers: vec![
            NameTest::Exact("x-a".into()),
            NameTest::Prefix("x-b-".into()),
            NameTest::Suffix("-c".into()),
        ],
        additional_headers: vec![HeaderValue { name: "x-fixed".into(), value: "v".into() }],
        to_upstream_on_allow: vec![NameTest::Exact("x-user".into())],
        to_downstream_on_deny: vec![NameTest::Exact("x-why".into())],
        to_downstream_on_allow: vec![NameTest::Exact("set-cookie".into())],
    };
    assert_eq!(authorizer.protocol, CheckProtocol::Http(expected));
}

#[test]
fn defaults_fail_closed() {
    let text = provider("envoyExtAuthzGrpc", "") + &policy(&format!("provider: {{name: ext}}, {RULES}"));
    let authorizer = converted(&text).policy.authorizer.unwrap();
    assert_eq!((authorizer.fail_open, authorizer.status_on_error), (false, 403));
    assert_eq!((authorizer.timeout_ms.get(), &authorizer.protocol), (600_000, &CheckProtocol::Grpc));
}

#[test]
fn a_provider_that_nobody_knows_is_told_and_leaves_nobody_to_ask() {
    let cases = [
        (String::new(), "MeshConfig has no provider \"ext\""),
        (mesh("extensionProviders:\n- name: ext\n  prometheus: {}"), "of kind prometheus"),
        (
            provider("envoyExtAuthzHttp", "").replace("[{port: 8000}]", "[{port: 8001}]"),
            "or has no port 8000",
        ),
        (provider("envoyExtAuthzHttp", "").replace("ext.auth.svc", "ext.other.svc"), "is not known"),
    ];
    for (text, complaint) in cases {
        let text = text + &policy(&format!("provider: {{name: ext}}, {RULES}"));
        let loaded = load(&text);
        let told = check_references(&loaded.catalog, &MeshSettings::default());
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let told = told.join("\n");
        assert!(told.contains(complaint) && told.contains("is denied"), "{complaint}: {told}");
        assert_eq!(converted(&text).policy.authorizer, None);
    }
}

#[test]
fn what_is_written_wrongly_is_refused_where_it_stands() {
    for (text, complaint) in [
        (policy(RULES), "spec.provider"),
        (policy(&format!("provider: {{name: ''}}, {RULES}")), "spec.provider.name"),
        (policy("provider: {name: ext}"), "the policy has no rules"),
        (
            policy("provider: {name: ext}, rules: [{from: [{source: {principals: [a]}}]}]"),
            "cannot look at who the client is",
        ),
        (
            policy("provider: {name: ext}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]"),
            "cannot look at who the client is",
        ),
        (provider("envoyExtAuthzHttp", ", failopen: true"), "did you mean failOpen?"),
        (provider("envoyExtAuthzHttp", ", statusOnError: '7'"), "this is no status"),
        (provider("envoyExtAuthzHttp", ", includeRequestHeadersInCheck: ['*']"), "names no header"),
        (provider("envoyExtAuthzHttp", ", pathPrefix: /a/../b"), "cannot stand before a path"),
        (provider("envoyExtAuthzGrpc", ", pathPrefix: /a"), "there is no field \"pathPrefix\""),
        (provider("envoyExtAuthzHttp", ", timeout: soon"), "is no duration"),
        (provider("envoyExtAuthz", ""), "did you mean envoyExtAuthz"),
    ] {
        let told = findings(&text).join("\n");
        assert!(told.contains("error") && told.contains(complaint), "{complaint}: {told}");
    }
}

#[test]
fn findings_in_mesh_config_stand_at_their_line() {
    let text =
        mesh("accessLogFile: /dev/stdout\nextensionProviders:\n- name: ext\n  envoyExtAuthzHttp: {port: 1}");
    let line = text.lines().position(|line| line.contains("envoyExtAuthzHttp")).unwrap() + 1;
    let loaded = load(&text);
    assert_eq!(loaded.problems[0].line as usize, line, "{:?}", loaded.problems);
    assert!(loaded.catalog.config_maps.is_empty(), "refused");
}

#[test]
fn mesh_wide_settings_are_read() {
    let loaded = load(&mesh(
        "pathNormalization: {normalization: MERGE_SLASHES}\ntrustDomainAliases: [old]\ntrustDomain: other\nunheardOf: 1",
    ));
    assert_eq!(loaded.problems, []);
    let settings = MeshSettings::default();
    let (_, config) = loaded.catalog.mesh_config(&settings).unwrap();
    assert_eq!(config.normalization, Some(Normalization::MergeSlashes));
    assert_eq!(settings.with(&loaded.catalog).trust_domain_aliases, ["old".into()]);
    let told = check_references(&loaded.catalog, &settings);
    assert!(told.iter().any(|it| it.message.contains("trustDomain is \"cluster.local\"")), "{told:?}");
    let wrong = mesh("pathNormalization: {normalization: MERGE}");
    assert!(findings(&wrong).join("").contains("MERGE_SLASHES"));
}
