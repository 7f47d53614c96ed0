//! BackendTLSPolicy and XBackendTrafficPolicy: whom they concern, and what they amount to.

use l7::ir::{Backend, BackendTarget, CertificateName, SessionCarrier, Trust};
use rcgen::{CertificateParams, KeyPair};

use super::{findings, load};
use crate::kube::convert::routes;
use crate::kube::{MeshSettings, check_references};

const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {ports: [{port: 443, name: tls}, {port: 80, name: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: app}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 443}, {name: web, port: 80}]}]
---
";

fn policy(name: &str, created: u32, target: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
         metadata: {{name: {name}, namespace: app, creationTimestamp: '2026-01-0{created}T00:00:00Z'}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{{rest}}}}}\n---\n"
    )
}

fn authorities(name: &str, text: &str) -> String {
    let indented = text.replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: app}}\ndata:\n  other: x\n  ca.crt: |\n    {indented}\n---\n"
    )
}

fn certificate() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::new([]).unwrap().self_signed(&key).unwrap().pem()
}

fn backends(objects: &str) -> Vec<Backend> {
    let loaded = load(&format!("{BASE}{objects}"));
    assert_eq!(loaded.problems, [], "{objects}");
    routes(&loaded.catalog, &MeshSettings::default()).remove(0).rules.remove(0).backends
}

/// The names asked for at ports 443 and 80.
fn hostnames(objects: &str) -> Vec<String> {
    let shown = |backend: &Backend| match &backend.target {
        BackendTarget::Invalid(_) => String::from("invalid"),
        BackendTarget::Service { .. } => {
            backend.tls.as_ref().map_or_else(|| String::from("-"), |tls| tls.hostname.to_string())
        }
    };
    backends(objects).iter().map(shown).collect()
}

const SYSTEM: &str = "hostname: HOST, wellKnownCACertificates: System";

fn system(host: &str) -> String {
    SYSTEM.replace("HOST", host)
}

#[test]
fn the_more_specific_and_the_older_policy_counts() {
    let whole = policy("a", 2, "name: web", &system("whole"));
    let section = policy("b", 3, "name: web, sectionName: tls", &system("section"));
    assert_eq!(hostnames(&whole), ["whole", "whole"]);
    assert_eq!(hostnames(&format!("{whole}{section}")), ["section", "whole"]);
    let older = policy("z", 1, "name: web", &system("older"));
    assert_eq!(hostnames(&format!("{whole}{older}")), ["older", "older"]);
    let twin = policy("b", 2, "name: web", &system("twin"));
    assert_eq!(hostnames(&format!("{twin}{whole}")), ["whole", "whole"]);
    assert_eq!(hostnames(&policy("a", 1, "name: other", &system("x"))), ["-", "-"]);
    let far = policy("a", 1, "name: web", &system("far")).replace("namespace: app", "namespace: shop");
    assert_eq!(hostnames(&far), ["-", "-"]);
}

#[test]
fn authorities_come_from_config_maps() {
    let (first, second) = (certificate(), certificate());
    let refs = |names: &[&str]| {
        let refs: Vec<_> =
            names.iter().map(|name| format!("{{group: '', kind: ConfigMap, name: {name}}}")).collect();
        let names = "[{type: Hostname, hostname: '*.b.example'}, {type: URI, uri: 'spiffe://td/x'}]";
        let rest = format!("hostname: a, caCertificateRefs: [{}], subjectAltNames: {names}", refs.join(", "));
        policy("p", 1, "name: web, sectionName: tls", &rest)
    };
    let maps = authorities("one", &first) + &authorities("two", &second) + &authorities("bad", "nothing");
    let tls = backends(&(refs(&["one", "two", "bad", "gone"]) + &maps))[0].tls.clone().unwrap();
    assert_eq!(tls.trust, Trust::Bundle(format!("{}\n{}\n", first.trim_end(), second.trim_end()).into()));
    let dns = CertificateName::Dns("*.b.example".into());
    assert_eq!(tls.names, [dns, CertificateName::Uri("spiffe://td/x".into())]);
    for names in [&["bad"][..], &["gone"], &["bad", "gone"]] {
        let own = refs(names) + &maps;
        assert_eq!(hostnames(&own), ["invalid", "-"], "{names:?}");
        let catalog = load(&format!("{BASE}{own}")).catalog;
        let warnings = check_references(&catalog, &MeshSettings::default());
        assert_eq!(warnings.iter().filter(|it| it.field.contains("caCertificateRefs")).count(), names.len());
    }
    // An older policy that cannot be followed does not give way to a younger one that can.
    let younger = policy("q", 2, "name: web, sectionName: tls", &system("younger"));
    assert_eq!(hostnames(&(refs(&["gone"]) + &younger)), ["invalid", "-"]);
}

#[test]
fn a_budget_has_the_defaults_of_its_schema() {
    let budget = |constraint: &str| {
        let text = format!(
            "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {{name: b, namespace: app}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: web}}], {constraint}}}\n"
        );
        let budget = backends(&text)[1].retry_budget?;
        Some((budget.percent, budget.interval_ms.get(), budget.min_retries, budget.min_interval_ms.get()))
    };
    assert_eq!(budget("retryConstraint: {}"), Some((20, 10_000, 10, 1000)));
    assert_eq!(
        budget(
            "retryConstraint: {budget: {percent: 50, interval: 2s}, minRetryRate: {count: 3, interval: 500ms}}"
        ),
        Some((50, 2000, 3, 500))
    );
    assert_eq!(budget(""), None);
}

#[test]
fn sessions_of_a_service_are_named_by_it() {
    let sessions = |session: &str| {
        let text = format!(
            "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {{name: b, namespace: app}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: web}}], sessionPersistence: {session}}}\n"
        );
        let named = |it: &Backend| it.session.as_ref().map(|it| (it.name.to_string(), it.carrier));
        backends(&text).iter().map(named).collect::<Vec<_>>()
    };
    let cookie = SessionCarrier::SessionCookie;
    let own = sessions("{}");
    assert_eq!(own[0], Some((String::from("corelane-session-app-web-443"), cookie)), "{own:?}");
    assert_ne!(own[0], own[1]);
    let written = sessions("{sessionName: X-Sid, type: Header}");
    assert_eq!(written[1], Some((String::from("x-sid"), SessionCarrier::Header)));
}

#[test]
fn what_cannot_be_followed_is_refused_where_it_stands() {
    let named = |name: &str| format!("{}, subjectAltNames: [{{{name}}}]", system("a"));
    for (rest, expected) in [
        ("hostname: a".into(), "spec.validation: the policy does not say whom to trust"),
        ("wellKnownCACertificates: System".into(), "validation.hostname: the field hostname is missing"),
        (system("'*.a'"), "names no one host"),
        (system("10.0.0.1"), "cannot be a host name"),
        ("hostname: a, wellKnownCACertificates: Mozilla".into(), "\"Mozilla\" is not known here"),
        ("hostname: a, caCertificateRefs: []".into(), "caCertificateRefs: this list must not be empty"),
        (
            system("a") + ", caCertificateRefs: [{group: '', kind: ConfigMap, name: c}]",
            "wellKnownCACertificates and caCertificateRefs exclude each other",
        ),
        (named("type: Hostname"), "subjectAltNames[0].hostname: the field hostname is missing"),
        (named("type: URI, uri: x"), "\"x\" is no absolute URI"),
        (named("type: URI, uri: 'a://b', hostname: c"), "a name of this type has no hostname"),
        (named("type: Email, email: x"), "\"Email\" is not known here"),
        (system("a") + ", ciphers: []", "there is no field \"ciphers\" here"),
    ] {
        let found = findings(&policy("p", 1, "name: web", &rest)).join("\n");
        assert!(found.contains(expected), "{rest}:\n{found}\nmust hold {expected}");
    }
    let session = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: b, namespace: app}\n\
                   spec: {targetRefs: [{group: '', kind: Service, name: web}], sessionPersistence: {type: Ip}}\n";
    assert!(findings(session).join("").contains("sessionPersistence.type: \"Ip\" is not known here"));
    let nowhere = policy("p", 1, "name: wep", &system("a"))
        + &policy("q", 1, "name: web, sectionName: x", &system("a"));
    let catalog = load(&format!("{BASE}{nowhere}")).catalog;
    let shown: String =
        check_references(&catalog, &MeshSettings::default()).iter().map(ToString::to_string).collect();
    assert!(shown.contains("did you mean web?") && shown.contains("has no port named x"), "{shown}");
}
