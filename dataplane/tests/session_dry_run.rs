//! Policies that decide nothing: what they say of a request stands in its line, and the request goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::sync::mpsc::channel;

use dataplane::access_log::Direction;
use session_support::{Bed, inside, pods, policy};

#[test]
fn dry_run_and_audit_policies_are_told_and_decide_nothing() {
    inside("dry_run_and_audit_policies_are_told_and_decide_nothing", || {
        let on = |path: &str| format!("[{{ to: [{{ operation: {{ paths: ['{path}'] }} }}] }}]");
        let trial = policy("trial", "DENY", &on("/trial*")).replace(
            "metadata: { name: trial,",
            "metadata: { name: trial, annotations: { istio.io/dry-run: 'true' },",
        );
        assert!(trial.contains("dry-run"));
        let enforced = policy("never", "DENY", &on("/never"));
        let mut bed =
            Bed::new(&(pods() + &trial + &enforced + &policy("audit", "AUDIT", &on("/trial/audited"))));
        let (tell, _told) = channel();
        let server = bed.serve_http("server", 8080, tell);
        let mut client = bed.client("client", server);
        for (path, status, dry_run, audit) in [
            ("/trial/audited", 200, Some((false, Some("app/trial"))), Some("app/audit")),
            ("/trial", 200, Some((false, Some("app/trial"))), None),
            ("/free", 200, Some((true, None)), None),
            ("/never", 403, Some((true, None)), None),
        ] {
            assert_eq!(client.get(path).status, status, "{path}");
            let record = bed.record(path, |it| it.direction == Direction::Inbound && it.http.is_some());
            let observed = record.http.unwrap().observed.unwrap();
            let told = observed.dry_run.map(|it| (it.allowed, it.policy));
            let told = told.as_ref().map(|(allowed, policy)| (*allowed, policy.as_deref()));
            assert_eq!((told, observed.audit.as_deref()), (dry_run, audit), "{path}");
        }
        for (policy, verdict, count) in
            [("app/trial", "denied", 2), ("none", "allowed", 2), ("app/audit", "audited", 1)]
        {
            let labels = [format!("policy=\"{policy}\""), format!("verdict=\"{verdict}\"")];
            let labels = labels.each_ref().map(String::as_str);
            assert_eq!(bed.metric("corelane_policy_shadow_total", &labels), count, "{policy}");
        }
    });
}
