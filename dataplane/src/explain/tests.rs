//! Decisions about the example and about folders of a few objects; inputs that nothing can be said about.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello-world");

const PODS: &str = "---
apiVersion: v1
kind: Namespace
metadata: { name: app, labels: { istio.io/dataplane-mode: ambient } }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: app, annotations: { corelane.io/ip: 10.244.1.1 } }
spec: { nodeName: one, serviceAccountName: client, containers: [] }
---
apiVersion: v1
kind: Pod
metadata: { name: v1, namespace: app, labels: { app: web, version: v1 }, annotations: { corelane.io/ip: 10.244.1.2 } }
spec: { nodeName: two, serviceAccountName: web, containers: [] }
---
apiVersion: v1
kind: Pod
metadata: { name: v2, namespace: app, labels: { app: web, version: v2, istio.io/dataplane-mode: none }, annotations: { corelane.io/ip: 10.244.1.3 } }
spec: { nodeName: two, serviceAccountName: web, containers: [] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.1, selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }, { name: tcp-db, port: 81 }] }
---
apiVersion: v1
kind: Service
metadata: { name: v1, namespace: app }
spec: { clusterIP: 10.96.1.2, selector: { version: v1 }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
";

const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /old } }]
    filters: [{ type: RequestRedirect, requestRedirect: { hostname: new.example, statusCode: 301 } }]
  - matches: [{ path: { type: PathPrefix, value: /api }, headers: [{ name: x-canary, value: 'yes' }] }]
    filters:
    - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /v2 } } }
    - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-by, value: route }] } }
    timeouts: { request: 2s }
    backendRefs: [{ name: v1, port: 80, weight: 3 }, { name: missing, port: 80, weight: 1 }]
";

const POLICY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: paths, namespace: app }
spec:
  selector: { matchLabels: { app: web } }
  action: ALLOW
  rules:
  - to: [{ operation: { paths: [/nothing] } }]
  - to: [{ operation: { paths: [/v2/*], methods: [GET] } }]
";

fn folder(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), yaml).unwrap();
    dir
}

fn question(from: &str, to: &str, path: &str) -> Question {
    let [from, to, method, path] = [from, to, "GET", path].map(str::to_owned);
    Question { from, to, method, path, ..Question::default() }
}

fn ask(folder: &Path, question: &Question) -> Value {
    let explanation = explain(folder, question).unwrap_or_else(|error| panic!("{error}"));
    let text = explanation.to_string();
    assert!(text.starts_with(explanation.decision.label()) && text.contains("\nfrom "), "{text}");
    serde_json::to_value(explanation).unwrap()
}

/// What the pointers lead to.
fn picked<const N: usize>(said: &Value, pointers: [&str; N]) -> [Value; N] {
    pointers.map(|pointer| said.pointer(pointer).cloned().unwrap_or_default())
}

#[test]
fn the_example_is_explained_as_its_plan_expects() {
    let ask =
        |from: &str, path: &str| ask(Path::new(EXAMPLE), &question(from, "hello-world.hello:5000", path));
    for (path, pod) in [("/v1/hello", "hello/hello-world-v1"), ("/v2/users", "hello/hello-world-v2")] {
        let said = ask("hello/client", path);
        assert_eq!(
            picked(&said, ["/decision", "/route/name", "/route/source/file", "/backends/0/endpoints/0/pod"]),
            ["allowed", "hello-world", "30-hello-world.yaml", pod].map(Value::from),
            "{said:#}"
        );
        assert_eq!(
            picked(
                &said,
                [
                    "/backends/0/endpoints/0/transport/kind",
                    "/backends/0/endpoints/0/policy/rule/name",
                    "/backends/0/endpoints/0/policy/rule/source/file",
                    "/backends/0/endpoints/0/policy/decided_by",
                ]
            ),
            ["hbone", "hello-world", "40-policies.yaml", "request"].map(Value::from)
        );
    }
    let nowhere = ask("client", "/v3/users");
    assert_eq!(picked(&nowhere, ["/decision", "/status"]), [json!("answered"), json!(404)]);
    let denied = ask("client", "/v1/admin");
    assert_eq!(picked(&denied, ["/decision", "/status"]), [json!("denied"), json!(403)]);
    let unmatched = "/backends/0/endpoints/0/policy/unmatched/0";
    assert_eq!(denied.pointer(unmatched).unwrap()["name"], "hello-world");
    // Nobody without an identity may connect.
    let stranger = ask("outside/stranger", "/v1/hello");
    assert_eq!(
        picked(&stranger, ["/decision", "/from/in_mesh", "/status"]),
        [json!("denied"), json!(false), Value::Null]
    );
    let rule = &stranger["backends"][0]["endpoints"][0]["policy"]["rule"];
    assert_eq!(
        (&rule["action"], rule["name"].as_str().unwrap().contains("strict")),
        (&json!("DENY"), true),
        "{rule}"
    );
}

#[test]
fn shares_filters_and_invalid_backends_are_told() {
    let dir = folder(&format!("{PODS}{ROUTE}{POLICY}"));
    let canary =
        Question { headers: vec!["X-Canary: yes".into()], ..question("client", "web:80", "/api/a?b=c") };
    let said = ask(dir.path(), &canary);
    assert_eq!(
        picked(&said, ["/decision", "/route/rule", "/route/timeouts/request_ms", "/to/service/hostname"]),
        [json!("mixed"), json!(1), json!(2000), json!("web.app.svc.cluster.local")],
        "{said:#}"
    );
    let backends = said["backends"].as_array().unwrap();
    assert_eq!([&backends[0]["share"], &backends[1]["share"]], [0.75, 0.25]);
    let forwarded = &backends[0]["forwarded"];
    assert_eq!([&forwarded["path"], &forwarded["query"]], ["/v2/a", "b=c"]);
    assert!(forwarded["headers"].as_array().unwrap().contains(&json!(["x-by", "route"])), "{forwarded}");
    // The policy sees what arrives, not what was asked for.
    let policy = &backends[0]["endpoints"][0]["policy"];
    assert_eq!((&policy["allowed"], &policy["rule"]["rule"]), (&json!(true), &json!(1)));
    let line = u64::try_from(format!("{PODS}{ROUTE}").lines().count()).unwrap() + 2;
    assert_eq!(policy["rule"]["source"], json!({ "file": "all.yaml", "line": line }));
    assert_eq!((&backends[1]["decision"], &backends[1]["status"]), (&json!("answered"), &json!(500)));
    let redirected = ask(dir.path(), &question("app/client", "web.app.svc.cluster.local:80", "/old/x"));
    assert_eq!(
        picked(&redirected, ["/decision", "/status", "/backends/0/location"]),
        [json!("redirected"), json!(301), json!("http://new.example/old/x")],
    );
    let denied = ask(dir.path(), &Question { method: "POST".into(), ..canary });
    assert_eq!(
        (&denied["backends"][0]["decision"], &denied["backends"][0]["status"]),
        (&json!("denied"), &json!(403))
    );
}

#[test]
fn what_no_route_governs_goes_to_every_endpoint() {
    let dir = folder(&format!("{PODS}{ROUTE}{POLICY}"));
    // A port that is declared to be no HTTP: what the policy asks of requests is absent.
    let said = ask(dir.path(), &question("client", "10.96.1.1:81", "/v2/a"));
    let [one, other] = said["backends"][0]["endpoints"].as_array().unwrap().as_slice() else {
        panic!("{said:#}")
    };
    assert_eq!(
        (&one["pod"], &one["policy"]["allowed"], &one["policy"]["decided_by"]),
        (&json!("app/v1"), &json!(false), &json!("connection"))
    );
    assert_eq!(
        (&other["pod"], &other["in_mesh"], &other["transport"]["kind"]),
        (&json!("app/v2"), &json!(false), &json!("tcp"))
    );
    assert_eq!((&said["decision"], &said["route"]), (&json!("mixed"), &Value::Null));
    let pod = ask(dir.path(), &question("client", "pod/app/v1:8080", "/v2/a"));
    assert_eq!(
        picked(&pod, ["/decision", "/to/kind", "/to/pod/pod"]),
        ["allowed", "workload", "app/v1"].map(Value::from)
    );
    let elsewhere = ask(dir.path(), &question("client", "192.0.2.1:443", "/"));
    assert_eq!(picked(&elsewhere, ["/decision", "/to/kind"]), ["passthrough", "unknown"].map(Value::from));
}

#[test]
fn endpoints_that_are_not_chosen_say_why() {
    let unready = PODS.replace(
        "spec: { nodeName: two, serviceAccountName: web, containers: [] }\n---\napiVersion: v1\nkind: Service",
        "spec: { nodeName: two, serviceAccountName: web, containers: [] }\n\
         status: { conditions: [{ type: Ready, status: 'False' }] }\n---\napiVersion: v1\nkind: Service",
    );
    let dir = folder(&unready);
    let said = ask(dir.path(), &question("client", "web:80", "/"));
    let why = &said["backends"][0]["endpoints"][1];
    assert_eq!((&why["eligible"], &why["why_not"]), (&json!(false), &json!("it is not ready")), "{said:#}");
    assert_eq!(said["decision"], "allowed");
    let none = ask(dir.path(), &question("client", "web:9", "/"));
    assert_eq!(
        (&none["decision"], &none["backends"][0]["endpoints"][0]["why_not"]),
        (&json!("refused"), &json!("it does not serve this port"))
    );
}

#[test]
fn an_input_that_nothing_can_be_said_about_is_named() {
    let dir = folder(&format!("{PODS}{ROUTE}"));
    let fails = |question: &Question| explain(dir.path(), question).unwrap_err().to_string();
    for (from, to, expected) in [
        ("nobody", "web:80", "--from \"nobody\": there is no such pod"),
        ("client", "web", "--to \"web\" is not HOST:PORT"),
        ("client", "web:0", "is not HOST:PORT"),
        ("client", "web:http", "is not HOST:PORT"),
        ("client", "fd00::1:80:x", "is not HOST:PORT"),
        ("client", "wbe:80", "wbe.app.svc.cluster.local"),
        ("client", "pod/app/nobody:80", "there is no such pod"),
    ] {
        let error = fails(&question(from, to, "/"));
        assert!(error.contains(expected), "{error}");
    }
    let with = |header: &str| Question { headers: vec![header.into()], ..question("client", "web:80", "/") };
    assert!(fails(&with("no colon")).contains("is not NAME: VALUE"));
    assert!(fails(&with("a: b\r\nc: d")).contains("is not NAME: VALUE"));
    assert!(fails(&with("a b: c")).contains("the request cannot be sent"));
    assert!(fails(&question("client", "web:80", "no slash")).contains("the request cannot be sent"));
    let missing = explain(&PathBuf::from("/nowhere/at/all"), &question("client", "web:80", "/")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/at/all holds no configuration"), "{missing}");
}

#[test]
fn objects_that_are_not_in_force_are_told_of() {
    let dir = folder(&format!("{PODS}{}", POLICY.replace("paths: [/nothing]", "pahts: [/nothing]")));
    let said = ask(dir.path(), &question("client", "web:80", "/v2/a"));
    assert!(said["problems"][0].as_str().unwrap().contains("pahts"), "{said:#}");
}

#[test]
fn policies_see_the_source_that_is_asked_about() {
    let rules = "  rules:\n  - from: [{ source: { principals: [partner.example/ns/shop/sa/cart] } }]\n  \
                 - from: [{ source: { ipBlocks: [203.0.113.0/24] } }]\n";
    let (head, _) = POLICY.split_once("  rules:\n").unwrap();
    let dir = folder(&format!("{PODS}{head}{rules}"));
    let ask = |identity: Option<&str>, ip: Option<&str>| {
        let (identity, ip) = (identity.map(str::to_owned), ip.map(|ip| ip.parse().unwrap()));
        let said = ask(dir.path(), &Question { identity, ip, ..question("client", "v1:80", "/x") });
        let rule = said.pointer("/backends/0/endpoints/0/policy/rule/rule").cloned();
        (said["decision"].clone(), rule, said["from"]["identity"].clone())
    };
    let own = "spiffe://cluster.local/ns/app/sa/client";
    let partner = "spiffe://partner.example/ns/shop/sa/cart";
    assert_eq!(ask(None, None), (json!("denied"), None, json!(own)));
    assert_eq!(ask(Some(partner), None), (json!("allowed"), Some(json!(0)), json!(partner)));
    assert_eq!(ask(None, Some("203.0.113.7")), (json!("allowed"), Some(json!(1)), json!(own)));
    let stranger = Question { identity: Some(String::from("cart")), ..question("client", "v1:80", "/x") };
    let error = explain(dir.path(), &stranger).unwrap_err().to_string();
    assert!(error.starts_with("--identity \"cart\" is not spiffe://"), "{error}");
}

#[test]
fn what_a_waypoint_decides_is_told_in_its_place() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/waypoint");
    let ask = |from: &str, to: &str, path: &str| ask(Path::new(example), &question(from, to, path));
    let of_waypoint = ["/decision", "/waypoint/transport/authority", "/waypoint/policy/rule/name"];
    for (path, rule, pod) in [("/v1/7/items", 1, "app/web"), ("/second", 0, "app/web-2")] {
        let said = ask("client", "web:80", path);
        let authority = said["to"]["address"].clone();
        assert_eq!(picked(&said, of_waypoint), [json!("allowed"), authority, json!("of-web")], "{said:#}");
        assert_eq!(
            picked(
                &said,
                [
                    "/waypoint/policy/rule/source/file",
                    "/route/name",
                    "/route/rule",
                    "/route/source/file",
                    "/backends/0/endpoints/0/pod"
                ]
            ),
            [json!("mesh.yaml"), json!("web"), json!(rule), json!("mesh.yaml"), json!(pod)],
            "{said:#}"
        );
        assert_eq!(
            picked(&said, ["/waypoint/pod", "/waypoint/identity"]),
            ["app/waypoint", "spiffe://cluster.local/ns/app/sa/waypoint"].map(Value::from),
            "{said:#}"
        );
    }
    for (from, path) in [("other", "/second"), ("client", "/v1/7/8/items")] {
        let said = ask(from, "web:80", path);
        assert_eq!(
            picked(&said, ["/decision", "/status", "/waypoint/policy/unmatched/0/name", "/backends"]),
            [json!("denied"), json!(403), json!("of-web"), json!([])],
            "{said:#}"
        );
    }
}

#[test]
fn a_waypoint_of_pods_decides_about_their_own_addresses_alone() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/waypoint");
    let ask = |to: &str, path: &str| ask(Path::new(example), &question("client", to, path));
    let said = ask("pod/app/web:8080", "/secret");
    assert_eq!(
        picked(&said, ["/decision", "/status", "/waypoint/policy/rule/action", "/waypoint/policy/rule/name"]),
        [json!("denied"), json!(403), json!("DENY"), json!("of-pods")],
        "{said:#}"
    );
    let said = ask("pod/app/web:8080", "/open");
    assert_eq!(
        picked(&said, ["/decision", "/backends/0/endpoints/0/pod", "/backends/0/endpoints/0/transport/kind"]),
        ["allowed", "app/web", "hbone"].map(Value::from),
        "{said:#}"
    );
    assert!(said["waypoint"]["pod"].as_str().unwrap().starts_with("app/for-pods"), "{said:#}");
    let said = ask("bare:80", "/secret");
    assert_eq!(picked(&said, ["/decision", "/waypoint"]), [json!("allowed"), Value::Null], "{said:#}");
}
