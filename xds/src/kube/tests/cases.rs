//! The authorization cases: what admission takes, and the conversions as far as they can be seen without an engine.

use std::path::Path;

use l7::ir::{Action, Attribute, Clause, Condition, Match, Rule, Test};
use serde_json::{Value, json};

use crate::kube::convert::{self, Carrier, authorization};
use crate::kube::{Loaded, MeshSettings, load_documents};

pub(super) fn case_file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../l7/cases/authz").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// JSON is YAML: an object of a case file goes through the same reader as a file of an operator.
pub(super) fn load_object(object: &Value) -> Loaded {
    load_documents(vec![("case.json", object.to_string())])
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "foo"},
        "spec": spec,
    })
}

#[test]
fn admission_agrees_with_every_validation_case() {
    let file = case_file("validation.yaml");
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let loaded = load_object(&policy(json!({"action": "ALLOW", "rules": [case["rule"]]})));
        let is_valid = loaded.catalog.authorization_policies.len() == 1;
        assert_eq!(is_valid, case["expect"]["valid"].as_bool().unwrap(), "{id}: {:?}", loaded.problems);
        for problem in &loaded.problems {
            assert!(problem.field.starts_with("spec.rules[0]."), "{id}: {problem}");
            assert!(!problem.fix.is_empty() || problem.message.contains("empty"), "{id}: {problem}");
        }
        if is_valid {
            let (policies, errors) = convert::policies(&loaded.catalog, &MeshSettings::default());
            assert_eq!((policies.len(), errors.as_slice()), (1, [].as_slice()), "{id}");
        }
    }
    assert!(cases.len() > 60);
}

/// What a translation does with a policy that slipped past admission.
#[test]
fn a_refused_policy_is_reduced_on_the_safe_side() {
    let bad = json!({"to": [{"operation": {"ports": ["http"], "methods": ["GET"]}}]});
    let good = json!({"to": [{"operation": {"paths": ["/a"]}}]});
    let degraded = |action: &str| {
        let loaded = load_object(&policy(json!({"action": action, "rules": [bad, good]})));
        assert_eq!((loaded.refused.len(), loaded.catalog.authorization_policies.len()), (1, 0));
        loaded.degraded.values().next().unwrap().rules.clone()
    };
    let allow = degraded("ALLOW");
    assert_eq!(allow.len(), 1, "the rule with an error allows nothing");
    assert_eq!(allow[0].to[0].paths.any_of, ["/a".into()]);
    let deny = degraded("DENY");
    assert_eq!(deny.len(), 2);
    assert!(deny[0].to[0].ports.is_empty() && !deny[0].to[0].methods.is_empty(), "denies at every port");
    let only =
        load_object(&policy(json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["x"]}}]}]})));
    assert!(only.degraded.values().next().unwrap().rules[0].to.is_empty(), "denies everything");
    let unclear = load_object(&policy(json!({"action": "DENNY", "rules": [{}]})));
    assert_eq!((unclear.refused.len(), unclear.degraded.len()), (1, 0));
}

#[test]
fn every_policy_of_the_cases_loads() {
    let mut count = 0;
    for name in [
        "actions.yaml",
        "combination.yaml",
        "conditions.yaml",
        "custom.yaml",
        "grpc.yaml",
        "jwt.yaml",
        "normalisation.yaml",
        "operation.yaml",
        "path-template.yaml",
        "source.yaml",
        "ztunnel-l4.yaml",
    ] {
        let file = case_file(name);
        let groups = file["groups"].as_array().or_else(|| file["cases"].as_array()).unwrap();
        for policy in groups.iter().flat_map(|group| group["policies"].as_array().unwrap()) {
            let loaded = load_object(policy);
            let action = policy["spec"]["action"].as_str().unwrap_or("ALLOW");
            let is_never = policy["spec"]["rules"].as_array().is_none_or(Vec::is_empty) && action != "ALLOW";
            let is_unknown = policy["spec"].to_string().contains("no.such.key");
            let is_refused = is_never || is_unknown;
            assert_eq!(
                loaded.refused.len(),
                usize::from(is_refused),
                "{name} {policy}: {:?}",
                loaded.problems
            );
            count += 1;
        }
    }
    assert!(count > 100);
}

fn converted(spec: Value) -> l7::ir::AuthorizationPolicy {
    let loaded = load_object(&policy(spec));
    assert_eq!(loaded.problems, []);
    let (mut policies, errors) = convert::policies(&loaded.catalog, &MeshSettings::default());
    assert_eq!(errors, []);
    policies.remove(0).policy
}

fn reduced(spec: Value) -> Option<l7::ir::AuthorizationPolicy> {
    let loaded = load_object(&policy(spec));
    let policy = loaded.catalog.authorization_policies.values().next().unwrap().clone();
    authorization::convert_reduced(&policy).unwrap()
}

fn condition(attribute: Attribute, any_of: Vec<Test>, none_of: Vec<Test>) -> Condition {
    Condition { attribute, any_of, none_of }
}

#[test]
fn clauses_follow_the_shape_of_the_rule() {
    let policy = converted(json!({
        "action": "DENY",
        "rules": [{
            "from": [
                {"source": {"principals": ["cluster.local/ns/a/sa/b"], "notIpBlocks": ["10.0.0.1/8"]}},
                {"source": {"namespaces": ["x*y"]}},
            ],
            "to": [{"operation": {"paths": ["/v1/*", "/{**}/users"], "notPaths": ["*/admin"], "ports": ["80"]}}],
            "when": [
                {"key": "request.headers[X-A]", "notValues": ["*"]},
                {"key": "source.serviceAccount", "values": ["s"]},
            ],
        }],
    }));
    let exact = |text: &str| vec![Test::Exact(text.into())];
    let header = Attribute::RequestHeader("x-a".into());
    let paths = vec![Test::Prefix("/v1/".into()), Test::Template("/{**}/users".into())];
    let sources = [
        Match {
            conditions: vec![
                condition(Attribute::SourcePrincipal, exact("cluster.local/ns/a/sa/b"), vec![]),
                condition(Attribute::SourceIp, vec![], vec![Test::Ip("10.0.0.0/8".parse().unwrap())]),
            ],
        },
        Match {
            conditions: vec![condition(Attribute::SourceNamespace, vec![Test::Glob("x*y".into())], vec![])],
        },
    ];
    let operation = Match {
        conditions: vec![
            condition(Attribute::DestinationPort, vec![Test::Port(80)], vec![]),
            condition(Attribute::RequestPath, paths, vec![Test::Suffix("/admin".into())]),
        ],
    };
    let headers = Match { conditions: vec![condition(header, vec![], vec![Test::Present])] };
    let account =
        Match { conditions: vec![condition(Attribute::SourceServiceAccount, exact("foo/s"), vec![])] };
    let clauses = [sources.to_vec(), vec![operation], vec![headers], vec![account]];
    let expected = Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() };
    assert_eq!(policy.rules, [expected]);
    assert_eq!(policy.action, Action::Deny);
    assert_eq!(policy.source.unwrap().to_string(), "case.json:1");
}

#[test]
fn the_carrier_follows_from_the_conditions() {
    let carrier = |spec: Value| authorization::carrier(&converted(spec));
    let from = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    assert_eq!(carrier(json!({})), Carrier::Connection);
    assert_eq!(carrier(json!({"rules": [{}]})), Carrier::Connection);
    assert_eq!(carrier(from(json!({"namespaces": ["a*"], "ipBlocks": ["10.0.0.1"]}))), Carrier::Connection);
    assert_eq!(carrier(from(json!({"serviceAccounts": ["a"]}))), Carrier::Connection);
    assert_eq!(carrier(from(json!({"namespaces": ["a*b"]}))), Carrier::Request);
    assert_eq!(carrier(from(json!({"trustDomains": ["td"]}))), Carrier::Request);
    assert_eq!(carrier(json!({"action": "AUDIT", "rules": [{}]})), Carrier::Request);
    let to = json!({"rules": [{}, {"to": [{"operation": {"methods": ["GET"]}}]}]});
    assert_eq!(carrier(to), Carrier::Request);
}

#[test]
fn an_allow_rule_with_a_request_condition_is_dropped_from_the_reduced_form() {
    let l7 = json!({"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]});
    let l4 = json!({"from": [{"source": {"namespaces": ["a*b"]}}]});
    let policy = reduced(json!({"rules": [l7, l4]})).unwrap();
    let [Rule { clauses }] = policy.rules.as_slice() else { panic!("{:?}", policy.rules) };
    assert_eq!(
        clauses[0].matches[0].conditions[0].any_of,
        [Test::Exact("a*b".into())],
        "an inner star is literal"
    );
    assert_eq!(reduced(json!({"rules": [l7]})).unwrap().rules, []);
}

#[test]
fn a_deny_rule_keeps_its_connection_conditions_and_empty_entries_never_match() {
    let policy = reduced(json!({"action": "DENY", "rules": [{
        "from": [{"source": {"namespaces": ["a"], "requestPrincipals": ["*"]}}],
        "to": [{"operation": {"methods": ["GET"]}}, {"operation": {"methods": ["GET"], "ports": ["80"]}}],
        "when": [{"key": "source.serviceAccount", "values": ["x"]}, {"key": "destination.ip", "values": ["10.0.0.1"]}],
    }]}))
    .unwrap();
    let counts: Vec<Vec<usize>> = policy.rules[0]
        .clauses
        .iter()
        .map(|clause| clause.matches.iter().map(|entry| entry.conditions.len()).collect())
        .collect();
    assert_eq!(counts, [vec![1], vec![0, 1], vec![0], vec![1]]);
}

#[test]
fn audit_dry_run_and_targeted_policies_have_no_reduced_form() {
    assert_eq!(reduced(json!({"action": "AUDIT", "rules": [{}]})), None);
    let target = json!([{"group": "", "kind": "Service", "name": "s"}]);
    assert_eq!(reduced(json!({"action": "DENY", "rules": [{}], "targetRefs": target})), None);
    let mut object = policy(json!({"action": "DENY", "rules": [{}]}));
    for (text, dry_run) in [("true", true), ("1", true), ("yes", false), ("false", false)] {
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": text});
        let loaded = load_object(&object);
        let policy = loaded.catalog.authorization_policies.values().next().unwrap();
        assert_eq!(policy.dry_run, dry_run, "{text}");
        assert_eq!(authorization::convert_reduced(policy).unwrap().is_none(), dry_run, "{text}");
    }
}

#[test]
fn aliases_widen_principals_in_the_complete_form_only() {
    let loaded = load_object(&policy(json!({"rules": [{"from": [{"source": {
        "principals": ["cluster.local/ns/a/sa/b", "*/sa/c"]}}], "when": [
        {"key": "source.principal", "notValues": ["td-old/ns/a/sa/b"]}]}]})));
    let policy = loaded.catalog.authorization_policies.values().next().unwrap();
    let mesh = MeshSettings {
        trust_domain: "td".into(),
        trust_domain_aliases: vec!["td-old".into()],
        ..MeshSettings::default()
    };
    let full = authorization::convert(policy, &mesh).unwrap();
    let exact = |text: &str| Test::Exact(text.into());
    let clauses = &full.rules[0].clauses;
    assert_eq!(
        clauses[0].matches[0].conditions[0].any_of,
        [exact("td/ns/a/sa/b"), exact("td-old/ns/a/sa/b"), Test::Suffix("/sa/c".into())]
    );
    assert_eq!(clauses[1].matches[0].conditions[0].none_of.len(), 2);
    let reduced = authorization::convert_reduced(policy).unwrap().unwrap();
    assert_eq!(reduced.rules[0].clauses[0].matches[0].conditions[0].any_of.len(), 2);
}
