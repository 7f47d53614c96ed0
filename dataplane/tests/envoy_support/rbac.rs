//! The policies of the test as configuration of Envoy's RBAC filter, from Istio's documented semantics and nothing of
//! our own code: principals as names of certificates, namespaces as expressions on them, path templates as
//! `uri_template`, claims as the metadata that the JWT filter leaves.

use serde_json::{Value, json};

use super::policy::{Field, Policy, Rule};
use super::typed;

/// Addresses of the application as policies name it, and as Envoy, which stands in another pod, sees it.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    pub from: &'static str,
    pub to: &'static str,
}

/// The rules of all policies with one action, for one filter.
pub fn rules(policies: &[Policy], action: &str, moved: Moved) -> Option<Value> {
    let mut own = policies.iter().filter(|policy| policy.action == action).peekable();
    own.peek()?;
    let rules = own.flat_map(|policy| &policy.rules).enumerate();
    let entries = rules.map(|(number, rule)| (format!("rule-{number}"), entry(rule, moved)));
    Some(json!({ "action": action, "policies": entries.collect::<serde_json::Map<_, _>>() }))
}

/// Permissions speak of what is asked, principals of who asks; conditions go to either.
fn entry(rule: &Rule, moved: Moved) -> Value {
    let (mut permissions, mut principals) = (Vec::new(), Vec::new());
    if !rule.operations.is_empty() {
        let all = rule.operations.iter().map(|fields| {
            let rules: Vec<_> = fields.iter().map(|field| PERMISSION.all(field, moved)).collect();
            json!({ "and_rules": { "rules": rules } })
        });
        permissions.push(json!({ "or_rules": { "rules": all.collect::<Vec<_>>() } }));
    }
    if !rule.sources.is_empty() {
        let all = rule.sources.iter().map(|fields| {
            let ids: Vec<_> = fields.iter().map(|field| PRINCIPAL.all(field, moved)).collect();
            json!({ "and_ids": { "ids": ids } })
        });
        principals.push(json!({ "or_ids": { "ids": all.collect::<Vec<_>>() } }));
    }
    for condition in &rule.conditions {
        if condition.name.starts_with("destination.") {
            permissions.push(PERMISSION.all(condition, moved));
        } else {
            principals.push(PRINCIPAL.all(condition, moved));
        }
    }
    let any = || json!({ "any": true });
    let permission = match permissions.as_slice() {
        [] => any(),
        rules => json!({ "and_rules": { "rules": rules } }),
    };
    let principal = match principals.as_slice() {
        [] => any(),
        ids => json!({ "and_ids": { "ids": ids } }),
    };
    json!({ "permissions": [permission], "principals": [principal] })
}

/// The words of one of Envoy's two trees.
struct Tree {
    and: (&'static str, &'static str),
    or: (&'static str, &'static str),
    not: &'static str,
    one: fn(&str, &str, Moved) -> Value,
}

const PERMISSION: Tree =
    Tree { and: ("and_rules", "rules"), or: ("or_rules", "rules"), not: "not_rule", one: permission };
const PRINCIPAL: Tree =
    Tree { and: ("and_ids", "ids"), or: ("or_ids", "ids"), not: "not_id", one: principal };

impl Tree {
    fn all(&self, field: &Field, moved: Moved) -> Value {
        let any_of = |values: &[&'static str]| {
            let all: Vec<_> = values.iter().map(|value| (self.one)(field.name, value, moved)).collect();
            json!({ self.or.0: { self.or.1: all } })
        };
        let mut both = Vec::new();
        if !field.values.is_empty() {
            both.push(any_of(&field.values));
        }
        if !field.not_values.is_empty() {
            both.push(json!({ self.not: any_of(&field.not_values) }));
        }
        json!({ self.and.0: { self.and.1: both } })
    }
}

fn permission(name: &str, value: &str, moved: Moved) -> Value {
    match name {
        "hosts" => header(":authority", value, true),
        "methods" => header(":method", value, false),
        "ports" | "destination.port" => json!({ "destination_port": value.parse::<u16>().unwrap() }),
        "paths" if value.contains('{') => {
            let template = value.replace("{**}", "**").replace("{*}", "*");
            json!({ "uri_template": { "name": "template", "typed_config": {
                "@type": typed("path.match.uri_template.v3.UriTemplateMatchConfig"), "path_template": template
            } } })
        }
        "paths" => json!({ "url_path": { "path": text(value, "", false) } }),
        "destination.ip" => {
            json!({ "destination_ip": network(if value == moved.from { moved.to } else { value }) })
        }
        other => panic!("{other}"),
    }
}

fn principal(name: &str, value: &str, _: Moved) -> Value {
    match name {
        "principals" | "source.principal" => authenticated(&text(value, "spiffe://", false)),
        "namespaces" | "source.namespace" => {
            authenticated(&expression(&format!(".*/ns/{}/.*", value.replace('*', ".*"))))
        }
        "serviceAccounts" => {
            let (namespace, account) = value.split_once('/').unwrap_or(("app", value));
            authenticated(&expression(&format!("spiffe://[^/]+/ns/{namespace}/sa/{account}")))
        }
        "trustDomains" => {
            let domain = value.replace('.', "\\.").replace('*', "[^/]*");
            authenticated(&expression(&format!("spiffe://{domain}/.*")))
        }
        "ipBlocks" | "source.ip" => json!({ "direct_remote_ip": network(value) }),
        "remoteIpBlocks" | "remote.ip" => json!({ "remote_ip": network(value) }),
        "requestPrincipals" | "request.auth.principal" => {
            let (issuer, subject) = value.rsplit_once('/').unwrap_or(("*", value));
            json!({ "and_ids": { "ids": [claim(&["iss"], issuer), claim(&["sub"], subject)] } })
        }
        "request.auth.audiences" => claim(&["aud"], value),
        "request.auth.presenter" => claim(&["azp"], value),
        _ => {
            let (key, rest) = name.split_once('[').unwrap();
            let path: Vec<_> = rest.trim_end_matches(']').split("][").collect();
            match key {
                "request.headers" => header(path[0], value, false),
                "request.auth.claims" => claim(&path, value),
                other => panic!("{other}"),
            }
        }
    }
}

fn authenticated(name: &Value) -> Value {
    json!({ "authenticated": { "principal_name": name } })
}

fn expression(text: &str) -> Value {
    json!({ "safe_regex": { "regex": text } })
}

fn network(text: &str) -> Value {
    let whole = if text.contains(':') { "128" } else { "32" };
    let (address, length) = text.split_once('/').unwrap_or((text, whole));
    json!({ "address_prefix": address, "prefix_len": length.parse::<u32>().unwrap() })
}

/// A star at the begin, at the end, or alone; `before` stands before what the policy says.
fn text(value: &str, before: &str, ignore_case: bool) -> Value {
    let mut matcher = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => expression(".+"),
        (Some(end), _) => json!({ "suffix": end }),
        (_, Some(begin)) => json!({ "prefix": format!("{before}{begin}") }),
        _ => json!({ "exact": format!("{before}{value}") }),
    };
    // An expression says itself what it takes.
    if ignore_case && value != "*" {
        matcher["ignore_case"] = json!(true);
    }
    matcher
}

fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    if value == "*" {
        return json!({ "header": { "name": name, "present_match": true } });
    }
    json!({ "header": { "name": name, "string_match": text(value, "", ignore_case) } })
}

/// A claim that is the text, or a list with it.
fn claim(path: &[&str], value: &str) -> Value {
    let text = json!({ "string_match": text(value, "", false) });
    let keys: Vec<_> =
        std::iter::once("payload").chain(path.iter().copied()).map(|key| json!({ "key": key })).collect();
    json!({ "metadata": {
        "filter": "envoy.filters.http.jwt_authn",
        "path": keys,
        "value": { "or_match": { "value_matchers": [text, { "list_match": { "one_of": text } }] } }
    } })
}
