//! AuthorizationPolicy.
//!
//! As strict as Istio's admission, and stricter where it lets something pass that then silently never matches.

use std::sync::Arc;

use l7::ir::Attribute;

use super::super::catalog::Meta;
use super::super::istio::{
    AuthorizationPolicy, Operation, PolicyAction, PolicyRule, PolicyTarget, Source, TargetRef, When,
};
use super::super::problem::Severity;
use super::super::reader::{Fields, Findings, Item, closest};
use super::super::yaml::shortened;
use super::names;
use super::policy_values::{ENTRIES_MAX, Form, entries, values};
use crate::kube::convert::attribute::{AttributeError, parse_key};

const TARGETS_MAX: usize = 16;

const ACTIONS: [(&str, PolicyAction); 4] = [
    ("ALLOW", PolicyAction::Allow),
    ("DENY", PolicyAction::Deny),
    ("AUDIT", PolicyAction::Audit),
    ("CUSTOM", PolicyAction::Custom),
];

pub(super) fn authorization_policy(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<AuthorizationPolicy> {
    let dry_run = meta.annotation("istio.io/dry-run").is_some_and(is_true);
    let Some(spec) = fields.optional("spec") else {
        // Kubernetes takes a policy without spec: an ALLOW without rules for its namespace, which denies all.
        let target = PolicyTarget::Namespace;
        let action = PolicyAction::Allow;
        let (provider, rules) = (None, Vec::new());
        return Some(AuthorizationPolicy { meta, target, action, provider, dry_run, rules });
    };
    let mut fields = spec.fields(findings)?;
    let target = target(&mut fields, findings)?;
    let action = match fields.optional("action") {
        Some(item) => item.one_of(findings, &ACTIONS)?,
        None => PolicyAction::Allow,
    };
    let provider = provider(&mut fields, action, findings);
    let list = fields.optional("rules");
    let rules = list.as_ref().map_or_else(Vec::new, |list| rules(list, action, findings));
    fields.finish(findings);
    if action != PolicyAction::Allow && list.as_ref().is_none_or(|list| list.list(findings).is_empty()) {
        let severity = if action == PolicyAction::Audit { Severity::Warning } else { Severity::Error };
        let field = format!("{}.rules", spec.path);
        let message = "the policy has no rules, so it never matches";
        findings.add(severity, spec.node.at, &field, message, "write rules: [{}] to match everything");
    }
    if action == PolicyAction::Custom {
        custom_rules(&spec, &rules, dry_run, findings);
    }
    Some(AuthorizationPolicy { meta, target, action, provider, dry_run, rules })
}

/// Whom a CUSTOM policy asks. What stands for a policy without it denies what it takes.
fn provider(fields: &mut Fields<'_>, action: PolicyAction, findings: &mut Findings) -> Option<Arc<str>> {
    if action != PolicyAction::Custom {
        if let Some(item) = fields.optional("provider") {
            item.error(findings, "provider goes only with action CUSTOM", "remove provider");
        }
        return None;
    }
    let item = fields.required(findings, "provider")?;
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    fields.finish(findings);
    name.map(Arc::from)
}

/// As Istio's admission: what tells who somebody is cannot decide who is asked about them.
fn custom_rules(spec: &Item<'_>, rules: &[PolicyRule], dry_run: bool, findings: &mut Findings) {
    const IDENTITY_KEYS: [&str; 4] =
        ["source.principal", "source.namespace", "source.serviceAccount", "source.trustDomain"];
    let of_source = |source: &Source| {
        let fields = [
            &source.principals,
            &source.request_principals,
            &source.namespaces,
            &source.service_accounts,
            &source.trust_domains,
        ];
        fields.into_iter().any(|values| !values.is_empty())
    };
    let of_when =
        |when: &When| when.key.starts_with("request.auth.") || IDENTITY_KEYS.contains(&when.key.as_ref());
    for (index, rule) in rules.iter().enumerate() {
        if rule.from.iter().any(of_source) || rule.when.iter().any(of_when) {
            let field = format!("{}.rules[{index}]", spec.path);
            let message = "a CUSTOM rule cannot look at who the client is, or at its token";
            let fix = "use ipBlocks, the operation and request headers, and leave the rest to the provider";
            findings.add(Severity::Error, spec.node.at, &field, message, fix);
        }
    }
    if dry_run {
        let message = "nobody is asked for a trial: with istio.io/dry-run a CUSTOM policy has no effect";
        spec.warning(findings, message, "remove the annotation to have the provider asked");
    }
}

/// The spellings that Go's `strconv.ParseBool` takes for true; any other counts as false.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

// === Target ===

pub(super) fn target(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<PolicyTarget> {
    let selector = fields.optional("selector");
    let single = fields.optional("targetRef");
    let several = fields.optional("targetRefs");
    let written: Vec<&Item<'_>> = [&selector, &single, &several].into_iter().flatten().collect();
    if let [_, second, ..] = written.as_slice() {
        second.error(findings, "selector, targetRef and targetRefs exclude each other", "keep one of them");
        return None;
    }
    if let Some(selector) = selector {
        let labels = names::match_labels(&selector, findings)?;
        return Some(if labels.is_empty() {
            PolicyTarget::Namespace
        } else {
            PolicyTarget::Selector(labels)
        });
    }
    let items = match (&single, &several) {
        (Some(item), _) => vec![item.clone()],
        (None, Some(list)) => list.list(findings),
        (None, None) => return Some(PolicyTarget::Namespace),
    };
    if items.len() > TARGETS_MAX {
        let item = several.as_ref().or(single.as_ref())?;
        item.error(findings, "there are too many targets", format!("keep at most {TARGETS_MAX}"));
    }
    // Every target must be good: without the bad one the policy would apply to less, without all to everything.
    let targets: Option<Vec<TargetRef>> = items.iter().map(|item| target_ref(item, findings)).collect();
    let targets = targets?;
    Some(if targets.is_empty() { PolicyTarget::Namespace } else { PolicyTarget::References(targets) })
}

fn target_ref(item: &Item<'_>, findings: &mut Findings) -> Option<TargetRef> {
    let mut fields = item.fields(findings)?;
    let group = fields.optional("group").map_or(Some(""), |item| item.text(findings));
    let kind = fields.required(findings, "kind").and_then(|item| item.filled(findings));
    let name = fields.required(findings, "name").and_then(|item| names::subdomain(&item, findings));
    let namespace = fields.optional("namespace").filter(|item| item.node.as_text() != Some(""));
    fields.finish(findings);
    if let Some(item) = &namespace {
        let message = "a policy reaches only targets of its own namespace";
        item.error(
            findings,
            message,
            "remove namespace, and put the policy into the namespace of its target",
        );
        return None;
    }
    let (group, kind) = (group?, kind?);
    let known = [
        ("", "Service"),
        ("networking.istio.io", "ServiceEntry"),
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
    ];
    if !known.contains(&(group, kind)) {
        let fix = known.iter().find(|(_, known)| *known == kind).map_or_else(
            || String::from("name a Service, a ServiceEntry, a Gateway or a GatewayClass"),
            |(group, _)| format!("write group: {group:?}"),
        );
        let message =
            format!("a policy cannot target kind {} of group {:?}", shortened(kind), shortened(group));
        item.error(findings, message, fix);
        return None;
    }
    let at = item.node.at;
    Some(TargetRef { group: Arc::from(group), kind: Arc::from(kind), name: name?, namespace: None, at })
}

// === Rules ===

/// An ALLOW rule with an error is left out of what remains of the refused policy: any part of it might have been
/// what keeps others out.
fn rules(list: &Item<'_>, action: PolicyAction, findings: &mut Findings) -> Vec<PolicyRule> {
    let items = list.list(findings);
    if items.len() > ENTRIES_MAX {
        let message = format!("{} rules are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    let mut rules = Vec::new();
    for item in &items {
        let errors = findings.errors;
        let rule = rule(item, findings);
        if findings.errors == errors || action != PolicyAction::Allow {
            rules.extend(rule);
        }
    }
    rules
}

fn rule(item: &Item<'_>, findings: &mut Findings) -> Option<PolicyRule> {
    let mut fields = item.fields(findings)?;
    let mut rule = PolicyRule::default();
    for item in entries(&mut fields, "from", findings) {
        rule.from.extend(wrapped(&item, "source", findings).and_then(|item| source(&item, findings)));
    }
    for item in entries(&mut fields, "to", findings) {
        rule.to.extend(wrapped(&item, "operation", findings).and_then(|item| operation(&item, findings)));
    }
    for item in entries(&mut fields, "when", findings) {
        rule.when.extend(when(&item, findings));
    }
    fields.finish(findings);
    Some(rule)
}

/// The only field of a map: `source` of a `from` entry, `operation` of a `to` entry.
fn wrapped<'n>(item: &Item<'n>, name: &'static str, findings: &mut Findings) -> Option<Item<'n>> {
    let mut fields = item.fields(findings)?;
    let inner = fields.required(findings, name);
    fields.finish(findings);
    inner
}

fn source(item: &Item<'_>, findings: &mut Findings) -> Option<Source> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    let mut read = |name, not_name, form| values(&mut fields, (name, not_name), form, findings);
    let source = Source {
        principals: read("principals", "notPrincipals", Form::Principal),
        request_principals: read("requestPrincipals", "notRequestPrincipals", Form::Text),
        namespaces: read("namespaces", "notNamespaces", Form::Text),
        service_accounts: read("serviceAccounts", "notServiceAccounts", Form::ServiceAccount),
        trust_domains: read("trustDomains", "notTrustDomains", Form::TrustDomain),
        ip_blocks: read("ipBlocks", "notIpBlocks", Form::Network),
        remote_ip_blocks: read("remoteIpBlocks", "notRemoteIpBlocks", Form::Network),
    };
    fields.finish(findings);
    if source == Source::default() {
        // Fields with nothing but errors are reported already.
        if findings.errors > errors {
            return None;
        }
        item.error(
            findings,
            "the source has no field",
            "name principals, namespaces, ipBlocks or another field",
        );
        return None;
    }
    let accounts = &source.service_accounts;
    let has_others = !source.principals.is_empty() || !source.namespaces.is_empty();
    if has_others && !accounts.is_empty() {
        let message = "serviceAccounts excludes principals and namespaces in one source";
        item.error(
            findings,
            message,
            "keep serviceAccounts alone: an entry may name its namespace, as in ns/account",
        );
    }
    Some(source)
}

fn operation(item: &Item<'_>, findings: &mut Findings) -> Option<Operation> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    let mut read = |name, not_name, form| values(&mut fields, (name, not_name), form, findings);
    let operation = Operation {
        hosts: read("hosts", "notHosts", Form::Text),
        ports: read("ports", "notPorts", Form::Port),
        methods: read("methods", "notMethods", Form::Method),
        paths: read("paths", "notPaths", Form::Path),
    };
    fields.finish(findings);
    if operation == Operation::default() {
        if findings.errors > errors {
            return None;
        }
        item.error(findings, "the operation has no field", "name hosts, ports, methods or paths");
        return None;
    }
    Some(operation)
}

// === Conditions ===

fn when(item: &Item<'_>, findings: &mut Findings) -> Option<When> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    let key_item = fields.required(findings, "key");
    let key = key_item.as_ref().and_then(|item| item.filled(findings));
    let form = key.and_then(|key| match parse_key(key) {
        Ok(attribute) => {
            if let (Attribute::FilterMetadata(_), Some(item)) = (&attribute, &key_item) {
                let message = "no filter of this proxy sets this attribute: it is always absent";
                item.warning(findings, message, "remove the condition unless that is meant");
            }
            Some(form_of(key))
        }
        Err(error) => {
            if let Some(item) = &key_item {
                item.error(findings, error.to_string(), key_fix(&error, key));
            }
            None
        }
    });
    // The values are read in any case: their own findings count too.
    let values = values(&mut fields, ("values", "notValues"), form.unwrap_or(Form::Text), findings);
    fields.finish(findings);
    if values.is_empty() {
        if findings.errors == errors {
            item.error(findings, "the condition has neither values nor notValues", "add values");
        }
        return None;
    }
    form?;
    Some(When { key: Arc::from(key?), values })
}

fn form_of(key: &str) -> Form {
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => Form::Network,
        "destination.port" => Form::Port,
        "source.principal" => Form::Principal,
        "source.serviceAccount" => Form::ServiceAccount,
        "source.trustDomain" => Form::TrustDomain,
        _ => Form::Text,
    }
}

fn key_fix(error: &AttributeError, key: &str) -> String {
    const PLAIN: [&str; 11] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "remote.ip",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
    ];
    match error {
        AttributeError::Brackets(_) => String::from("write it like request.headers[x-name]"),
        AttributeError::Replaced(..) => String::from("use the selector or the namespace of the policy"),
        AttributeError::Unknown(_) => closest(key, PLAIN.into_iter()).map_or_else(
            || format!("write one of {}", PLAIN.join(", ")),
            |near| format!("did you mean {near}?"),
        ),
    }
}
