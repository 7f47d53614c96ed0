//! Texts that an operator may get wrong, each with the place and the mend that must be named.

use super::{findings, load};
use crate::kube::problem::{render, to_json};
use crate::kube::{MeshSettings, check, load_documents};

const HEAD: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: app
";

/// One finding is expected, and nothing of the policy is kept.
fn refused(body: &str) -> String {
    let text = format!("{HEAD}{body}");
    let loaded = load(&text);
    assert!(loaded.catalog.authorization_policies.is_empty(), "{body}");
    let found = findings(&text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

#[test]
fn a_bad_template_is_found_at_its_list_entry() {
    let found = refused(
        "spec:\n  rules:\n  - to:\n    - operation:\n        paths:\n        - /ok\n        - /{**}/x/{*}\n",
    );
    assert!(found.starts_with("12:11 error spec.rules[0].to[0].operation.paths[1]: "), "{found}");
    assert!(found.contains("{**} must be the last operator") && found.contains("| use {*}"), "{found}");
}

#[test]
fn misspelled_fields_are_found_with_the_right_spelling() {
    let found = refused("spec:\n  rulez: []\n");
    assert_eq!(found, "7:3 error spec.rulez: there is no field \"rulez\" here | did you mean rules?");
    let found =
        refused("spec:\n  rules:\n  - to:\n    - operation:\n        path: [/a]\n        ports: ['80']\n");
    assert!(found.starts_with("10:9 error spec.rules[0].to[0].operation.path: "), "{found}");
    assert!(found.ends_with("did you mean paths?"), "{found}");
    let found = refused(
        "spec:\n  rules:\n  - from:\n    - source:\n        color: [blue]\n        namespaces: [a]\n",
    );
    assert!(found.contains("known fields: principals, notPrincipals"), "{found}");
    let found = refused("sepc:\n  rules: []\n");
    assert!(found.starts_with("6:1 error sepc: ") && found.ends_with("did you mean spec?"), "{found}");
}

#[test]
fn wrong_types_say_what_is_expected_and_what_is_there() {
    for (body, expected) in [
        ("spec: []\n", "6:7 error spec: this must be a map, but it is a list | "),
        (
            "spec:\n  action: 5\n",
            "7:11 error spec.action: this must be a text, but it is the number 5 | quote it: \"5\"",
        ),
        (
            "spec:\n  rules: {}\n",
            "7:10 error spec.rules: this must be a list, but it is a map | begin each entry with `- `",
        ),
        (
            "spec:\n  rules:\n  - to:\n    - operation:\n        ports: [8080]\n",
            "10:17 error spec.rules[0].to[0].operation.ports[0]: this must be a text, but it is the number 8080 | quote it: \"8080\"",
        ),
    ] {
        let found = findings(&format!("{HEAD}{body}"));
        assert_eq!(found.first().map(String::as_str), Some(expected), "{found:#?}");
        assert_eq!(load(&format!("{HEAD}{body}")).refused.len(), 1);
    }
}

#[test]
fn unknown_values_of_closed_sets_are_refused() {
    let found = refused("spec:\n  action: DENNY\n");
    assert_eq!(found, "7:11 error spec.action: \"DENNY\" is not known here | did you mean DENY?");
    let found = refused("spec:\n  action: BLOCK\n  rules: [{}]\n");
    assert!(found.ends_with("write one of ALLOW, DENY, AUDIT, CUSTOM"), "{found}");
    let found = refused("spec:\n  action: CUSTOM\n  rules: [{}]\n");
    assert!(found.contains("spec.provider: the field provider is missing"), "{found}");
}

#[test]
fn rules_that_would_silently_never_match_or_match_all_are_refused() {
    assert!(refused("spec:\n  action: DENY\n").contains("never matches | write rules: [{}]"));
    assert!(refused("spec:\n  action: DENY\n  rules: []\n").contains("never matches"));
    assert!(
        refused("spec:\n  rules:\n  - from: []\n")
            .starts_with("8:11 error spec.rules[0].from: from is empty")
    );
    assert!(refused("spec:\n  rules:\n  - from:\n    - source: {}\n").contains("the source has no field"));
    assert!(
        refused("spec:\n  rules:\n  - to:\n    - operation: {}\n").contains("the operation has no field")
    );
    assert!(refused("spec:\n  rules:\n  - to:\n    - {}\n").contains("the field operation is missing"));
    assert!(
        refused("spec:\n  rules:\n  - to:\n    - operation: {methods: ['']}\n").contains("must not be empty")
    );
    assert!(
        refused("spec:\n  rules:\n  - when:\n    - key: source.ip\n")
            .contains("neither values nor notValues")
    );
    assert!(refused("spec:\n  rules:\n  - \n").contains("this must be a map, but it is nothing"));
    assert!(refused("spec:\n  provider: {name: x}\n").contains("provider goes only with action CUSTOM"));
    let audit = findings(&format!("{HEAD}spec:\n  action: AUDIT\n"));
    assert!(audit[0].starts_with("7:3 warning spec.rules: "), "{audit:?}");
}

#[test]
fn keys_of_conditions_are_checked() {
    let when =
        |key: &str| refused(&format!("spec:\n  rules:\n  - when:\n    - key: {key}\n      values: [x]\n"));
    assert!(when("source.principle").starts_with("9:12 error spec.rules[0].when[0].key: "));
    assert!(when("source.principle").ends_with("did you mean source.principal?"));
    assert!(when("request.headers").ends_with("write it like request.headers[x-name]"));
    assert!(when("destination.labels[app]").contains("the selector of the policy"));
    let found = refused("spec:\n  rules:\n  - when:\n    - key: destination.port\n      values: [http]\n");
    assert!(found.contains("when[0].values[0]: \"http\" is no port"), "{found}");
}

#[test]
fn targets_are_checked() {
    assert!(
        refused("spec:\n  selector: {matchLabels: {a: b}}\n  targetRefs: [{kind: Service, name: x}]\n")
            .contains("exclude each other")
    );
    assert!(refused("spec:\n  selector: {matchLabels: {a: 'b*'}}\n").contains("selects nothing"));
    assert!(
        refused("spec:\n  targetRefs: [{kind: Gateway, name: x}]\n")
            .ends_with("write group: \"gateway.networking.k8s.io\"")
    );
    assert!(
        refused("spec:\n  targetRefs: [{kind: Service, name: x, namespace: y}]\n")
            .contains("its own namespace")
    );
    assert!(refused("spec:\n  targetRefs: [{kind: Service}]\n").contains("the field name is missing"));
}

#[test]
fn metadata_is_checked() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec: {}\n";
    assert_eq!(
        findings(text),
        [
            "4:3 error metadata.namespace: the object does not say its namespace | write namespace: NAME (kubectl would take its own default)"
        ]
    );
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: Web_1\n  namespace: app\nspec: {}\n";
    assert!(findings(text)[0].starts_with("4:9 error metadata.name: \"Web_1\" cannot be a name"));
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  nane: web\n  namespace: app\n";
    assert!(findings(text)[0].contains("is nane meant to be name?"));
    let text = "apiVersion: v1\nkind: Service\n";
    assert!(findings(text)[0].contains("the field metadata is missing"));
    let text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    version: 1\n";
    assert!(
        findings(text)[0].starts_with("6:14 error metadata.labels[version]: this must be a text"),
        "{:?}",
        findings(text)
    );
    let text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  creationTimestamp: yesterday\n";
    assert!(findings(text)[0].starts_with("5:22 error metadata.creationTimestamp: "));
}

#[test]
fn keys_given_twice_are_refused_at_the_second() {
    let found = refused("spec:\n  action: ALLOW\n  rules: [{}]\n  action: DENY\n");
    assert_eq!(
        found,
        "9:3 error spec.action: this field is given twice; the first stands at line 7 | keep one of the two"
    );
}

#[test]
fn the_same_name_twice_is_refused_at_the_second() {
    let text = format!("{HEAD}---\n{HEAD}");
    assert_eq!(
        findings(&text),
        [
            "7:1 error : AuthorizationPolicy app/p is already written at a.yaml:1 | remove one of the two, or give it another name"
        ]
    );
}

#[test]
fn a_tab_is_refused_where_it_stands_and_the_next_document_is_read() {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata:\n\tname: x\n---\n{HEAD}");
    let found = findings(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("4:2 error : ") && found[0].ends_with("| indent with spaces"), "{found:?}");
    assert_eq!(load(&text).catalog.authorization_policies.len(), 1);
}

#[test]
fn every_problem_of_a_text_is_reported() {
    let text = format!(
        "{HEAD}spec:\n  action: DENNY\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: app}}\nspec:\n  hostNetwork: maybe\n  containers: [{{ports: [{{containerPort: 99999}}]}}]\n"
    );
    let lines: Vec<u32> = load(&text).problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [7, 13, 14]);
}

#[test]
fn core_objects_tolerate_fields_but_near_misses_are_warned_of() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec:\n  selctor: {app: web}\n  sessionAffinity: None\n  ports: [{port: 80, nodePort: 30000}]\n";
    assert_eq!(
        findings(text),
        [
            "5:3 warning spec.selctor: there is no field \"selctor\" here, so it has no effect | did you mean selector?"
        ]
    );
    assert_eq!(load(text).catalog.services.len(), 1);
}

#[test]
fn services_and_entries_are_checked() {
    let service = |spec: &str| {
        findings(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n"
        ))
        .join("\n")
    };
    assert!(service("{ports: [{port: 80}, {port: 81}]}").contains("must name each"));
    assert!(service("{ports: [{port: 80, name: a}, {port: 80, name: b}]}").contains("port 80 stands twice"));
    assert!(service("{type: Cluster}").contains("\"Cluster\" is not known here"));
    assert!(service("{clusterIP: 10.0.0}").contains("is not an IP address"));
    let entry = |spec: &str| {
        findings(&format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n")).join("\n")
    };
    assert!(entry("{hosts: []}").contains("at least one host"));
    assert!(entry("{}").contains("the field hosts is missing"));
    assert!(entry("{hosts: [a.b], resolution: STATIK}").contains("did you mean STATIC?"));
    assert!(entry("{hosts: [a.b], addresses: [10.0.0.0/33]}").contains("neither an IP address nor a block"));
    assert!(
        entry("{hosts: [a.b], ports: [{number: 80, name: x, protocol: HTPP}]}").contains("is no protocol")
    );
    assert!(entry("{hosts: [a.b], endpoints: [{address: 1.2.3.4}]}").contains("resolution: STATIC"));
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a, namespace: b}\nspec: {}\n";
    assert!(findings(entry)[0].contains("needs an address or a network"));
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec: {mtls: {mode: STRICKT}, portLevelMtls: {80: {mode: STRICT}}}\n";
    let found = findings(peer).join("\n");
    assert!(found.contains("did you mean STRICT?"), "{found}");
}

#[test]
fn findings_print_for_readers_and_for_machines() {
    let problems = load_documents(vec![("x/a.yaml", format!("{HEAD}spec:\n  action: DENNY\n"))]).problems;
    assert_eq!(
        render(&problems),
        "x/a.yaml:7:11: error: \"DENNY\" is not known here\n    in:  AuthorizationPolicy app/p spec.action\n    fix: did you mean DENY?\n1 error, 0 warnings\n"
    );
    let json: serde_json::Value = serde_json::from_str(&to_json(&problems)).unwrap();
    assert_eq!(json[0]["line"], 7);
    assert_eq!(json[0]["severity"], "error");
    assert_eq!(json[0]["field"], "spec.action");
}

#[test]
fn a_folder_passes_with_warnings_only() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), HEAD).unwrap();
    let mesh = MeshSettings::default();
    let problems = check(dir.path(), &mesh);
    assert_eq!(problems.len(), 1, "the namespace has no object: {problems:?}");
    assert_eq!(check::exit_status(&problems), check::EXIT_OK);
    std::fs::write(dir.path().join("b.yaml"), "kind: [").unwrap();
    assert_eq!(check::exit_status(&check(dir.path(), &mesh)), check::EXIT_PROBLEMS);
}
