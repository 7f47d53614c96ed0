//! AuthorizationPolicy and PeerAuthentication.
//!
//! As strict as Istio's admission, and stricter where it lets something pass that then silently never matches.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::catalog::{Labels, Meta};
use super::super::istio::{
    AuthorizationPolicy, MtlsMode, Operation, PeerAuthentication, PolicyAction, PolicyRule, PolicyTarget,
    Source, TargetRef, Values, When,
};
use super::super::problem::Severity;
use super::super::reader::{Fields, Findings, Item, closest};
use super::super::yaml::shortened;
use super::{names, registry};
use crate::kube::convert::attribute::{AttributeError, parse_key};

/// Bound of Istio's schema on rules and on every list in them.
const ENTRIES_MAX: usize = 512;
const TARGETS_MAX: usize = 16;
const SERVICE_ACCOUNTS_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum WrittenAction {
    Policy(PolicyAction),
    Custom,
}

const ACTIONS: [(&str, WrittenAction); 4] = [
    ("ALLOW", WrittenAction::Policy(PolicyAction::Allow)),
    ("DENY", WrittenAction::Policy(PolicyAction::Deny)),
    ("AUDIT", WrittenAction::Policy(PolicyAction::Audit)),
    ("CUSTOM", WrittenAction::Custom),
];

const MODES: [(&str, MtlsMode); 4] = [
    ("UNSET", MtlsMode::Unset),
    ("DISABLE", MtlsMode::Disable),
    ("PERMISSIVE", MtlsMode::Permissive),
    ("STRICT", MtlsMode::Strict),
];

/// What the values of a list must look like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Principal,
    Method,
    Path,
    Port,
    Network,
    ServiceAccount,
    TrustDomain,
}

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
        return Some(AuthorizationPolicy { meta, target, action, dry_run, rules: Vec::new() });
    };
    let mut fields = spec.fields(findings)?;
    let target = target(&mut fields, findings)?;
    let action = match fields.optional("action") {
        Some(item) => match item.one_of(findings, &ACTIONS)? {
            WrittenAction::Policy(action) => action,
            WrittenAction::Custom => {
                let fix = "use ALLOW, DENY or AUDIT, or remove the policy";
                item.error(findings, "action CUSTOM is not supported yet", fix);
                return None;
            }
        },
        None => PolicyAction::Allow,
    };
    if let Some(item) = fields.optional("provider") {
        item.error(findings, "provider goes only with action CUSTOM", "remove provider");
    }
    let list = fields.optional("rules");
    let rules = list.as_ref().map_or_else(Vec::new, |list| rules(list, action, findings));
    fields.finish(findings);
    if action != PolicyAction::Allow && list.as_ref().is_none_or(|list| list.list(findings).is_empty()) {
        let severity = if action == PolicyAction::Deny { Severity::Error } else { Severity::Warning };
        let field = format!("{}.rules", spec.path);
        let message = "the policy has no rules, so it never matches";
        findings.add(severity, spec.node.at, &field, message, "write rules: [{}] to match everything");
    }
    Some(AuthorizationPolicy { meta, target, action, dry_run, rules })
}

/// The spellings that Go's `strconv.ParseBool` takes for true; any other counts as false.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

// === Target ===

fn target(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<PolicyTarget> {
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

/// A list that may be absent, but must hold something if it is there: emptied by mistake it would match everything.
fn entries<'n>(fields: &mut Fields<'n>, name: &'static str, findings: &mut Findings) -> Vec<Item<'n>> {
    let Some(list) = fields.optional(name) else {
        return Vec::new();
    };
    let items = list.list(findings);
    if items.is_empty() {
        list.error(findings, format!("{name} is empty"), format!("add an entry, or remove {name}"));
    }
    if items.len() > ENTRIES_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    items
}

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
    if !accounts.is_empty() && !(source.principals.is_empty() && source.namespaces.is_empty()) {
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

fn values(
    fields: &mut Fields<'_>,
    (name, not_name): (&'static str, &'static str),
    form: Form,
    findings: &mut Findings,
) -> Values {
    let any_of = list(fields, name, form, findings);
    let none_of = list(fields, not_name, form, findings);
    Values { any_of, none_of }
}

fn list(fields: &mut Fields<'_>, name: &'static str, form: Form, findings: &mut Findings) -> Vec<Arc<str>> {
    let items = entries(fields, name, findings);
    if form == Form::ServiceAccount && items.len() > SERVICE_ACCOUNTS_MAX {
        let field = format!("{}.{name}", fields.path);
        let fix = format!("keep at most {SERVICE_ACCOUNTS_MAX}");
        findings.add(Severity::Error, fields.at, &field, "there are too many service accounts", fix);
    }
    items.iter().filter_map(|item| value(item, form, findings)).collect()
}

fn value(item: &Item<'_>, form: Form, findings: &mut Findings) -> Option<Arc<str>> {
    let text = item.filled(findings)?;
    let shown = shortened(text);
    match form {
        Form::Text => {}
        Form::Principal => {
            if let Some(rest) = text.strip_prefix("spiffe://") {
                let message = "principals are compared without spiffe://, so this one never matches";
                item.warning(findings, message, format!("write {rest}"));
            }
        }
        Form::Method => {
            if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
                let message = format!("methods are compared with case, and {shown:?} is not upper case");
                item.warning(findings, message, format!("write {}", text.to_ascii_uppercase()));
            }
        }
        Form::Path => path(item, text, findings)?,
        Form::Port => {
            if text.parse::<u16>().is_err() || text.starts_with('+') {
                item.error(
                    findings,
                    format!("{shown:?} is no port"),
                    "write a number from 0 to 65535 in quotes",
                );
                return None;
            }
        }
        Form::Network => {
            registry::network(item, findings)?;
        }
        Form::ServiceAccount => service_account(item, text, findings)?,
        Form::TrustDomain => trust_domain(item, text, findings)?,
    }
    Some(Arc::from(text))
}

fn path(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    if text.contains(['{', '}']) {
        if let Err(error) = l7::template::Template::compile(&Arc::from(text)) {
            let fix = "use {*} for one segment and {**} for the rest, each as a whole segment";
            item.error(findings, error.to_string(), fix);
            return None;
        }
    } else if !text.starts_with(['/', '*']) {
        let message = format!("every path begins with a slash, so {:?} never matches", shortened(text));
        item.warning(findings, message, format!("write /{text}"));
    }
    Some(())
}

fn service_account(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    let shown = shortened(text);
    if text.contains('*') {
        item.error(findings, format!("{shown:?} holds a wildcard"), "write each service account out");
        return None;
    }
    let (namespace, account) = text.split_once('/').map_or((None, text), |(left, right)| (Some(left), right));
    if account.is_empty() || account.contains('/') || namespace == Some("") {
        let fix = "write ACCOUNT or NAMESPACE/ACCOUNT";
        item.error(findings, format!("{shown:?} does not name a service account"), fix);
        return None;
    }
    Some(())
}

fn trust_domain(item: &Item<'_>, text: &str, findings: &mut Findings) -> Option<()> {
    let stars = text.matches('*').count();
    let message = if text.contains('/') {
        "a trust domain holds no slash"
    } else if stars > 1 {
        "at most one * may stand in a trust domain"
    } else if stars == 1 && !text.starts_with('*') && !text.ends_with('*') {
        "a * may stand only at the start or the end of a trust domain"
    } else {
        return Some(());
    };
    item.error(
        findings,
        format!("{:?}: {message}", shortened(text)),
        "write it like example.org or *.example.org",
    );
    None
}

// === Conditions ===

fn when(item: &Item<'_>, findings: &mut Findings) -> Option<When> {
    let errors = findings.errors;
    let mut fields = item.fields(findings)?;
    let key_item = fields.required(findings, "key");
    let key = key_item.as_ref().and_then(|item| item.filled(findings));
    let form = key.and_then(|key| match parse_key(key) {
        Ok(_) => Some(form_of(key)),
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
        AttributeError::Unsupported(_) => String::from("remove the condition"),
        AttributeError::Brackets(_) => String::from("write it like request.headers[x-name]"),
        AttributeError::Replaced(..) => String::from("use the selector or the namespace of the policy"),
        AttributeError::Unknown(_) => closest(key, PLAIN.into_iter()).map_or_else(
            || format!("write one of {}", PLAIN.join(", ")),
            |near| format!("did you mean {near}?"),
        ),
    }
}

// === PeerAuthentication ===

pub(super) fn peer_authentication(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<PeerAuthentication> {
    let mut policy =
        PeerAuthentication { meta, selector: None, mode: MtlsMode::Unset, ports: BTreeMap::new() };
    let Some(spec) = fields.optional("spec") else {
        return Some(policy);
    };
    let mut fields = spec.fields(findings)?;
    if let Some(selector) = fields.optional("selector") {
        policy.selector =
            names::match_labels(&selector, findings).filter(|labels: &Labels| !labels.is_empty());
    }
    if let Some(item) = fields.optional("mtls") {
        policy.mode = mode(&item, findings)?;
    }
    if let Some(item) = fields.optional("portLevelMtls") {
        if policy.selector.is_none() {
            let message = "portLevelMtls goes only with a selector";
            item.error(findings, message, "add selector.matchLabels, or remove portLevelMtls");
        }
        for (port, item) in item.fields(findings)?.entries() {
            match port.parse::<u16>() {
                Ok(number) if number > 0 => {
                    policy.ports.insert(number, mode(&item, findings)?);
                }
                _ => item.error(findings, format!("{:?} is no port", shortened(port)), "write a port number"),
            }
        }
    }
    fields.finish(findings);
    Some(policy)
}

fn mode(item: &Item<'_>, findings: &mut Findings) -> Option<MtlsMode> {
    let mut fields = item.fields(findings)?;
    let mode = fields.optional("mode").map_or(Some(MtlsMode::Unset), |item| item.one_of(findings, &MODES));
    fields.finish(findings);
    mode
}
