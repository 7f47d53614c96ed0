//! Random policies and requests, of few words so that they meet.

use serde_json::{Map, Value, json};

use super::Random;

/// A list field of a policy, or a condition: some values of which one must hold, and some of which none may.
#[derive(Debug, Clone)]
pub struct Field {
    /// `principals`, `paths`; the key of a condition.
    pub name: &'static str,
    pub values: Vec<&'static str>,
    pub not_values: Vec<&'static str>,
}

#[derive(Debug, Clone, Default)]
pub struct Rule {
    pub sources: Vec<Vec<Field>>,
    pub operations: Vec<Vec<Field>>,
    pub conditions: Vec<Field>,
}

#[derive(Debug, Clone)]
pub struct Policy {
    pub action: &'static str,
    pub rules: Vec<Rule>,
}

const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/app/sa/client",
    "cluster.local/ns/app/sa/other",
    "cluster.local/ns/app/*",
    "*/sa/client",
    "*",
    "elsewhere/ns/app/sa/client",
];
const NAMESPACES: &[&str] = &["app", "shop", "ap*", "*op", "*", "a"];
const ACCOUNTS: &[&str] = &["client", "shop/buyer", "app/other", "shop/client"];
const TRUST_DOMAINS: &[&str] = &["cluster.local", "cluster*", "*local", "*", "elsewhere"];
const ADDRESSES: &[&str] =
    &["10.244.1.1", "10.244.1.0/30", "10.0.0.0/8", "10.244.1.9/32", "192.0.2.0/24", "fd00::/16"];
const FORWARDED: &[&str] =
    &["203.0.113.7", "203.0.113.0/24", "10.244.1.1", "198.51.100.0/24", "2001:db8::/32"];
const SUBJECTS: &[&str] = &["https://i.example/ann", "https://i.example/*", "*", "https://i.example/bob"];
const HOSTS: &[&str] =
    &["web.example", "WEB.example", "*.example", "web.*", "web.example:8080", "*", "*:8080"];
const METHODS: &[&str] = &["GET", "POST", "P*", "*", "PUT"];
const PATHS: &[&str] = &[
    "/", "/a", "/a/*", "*/b", "/a/b", "*", "/a*", "/A", "/{*}", "/a/{**}", "/a/{*}/c", "/{**}/b", "/a/{*}/",
];
const PORTS: &[&str] = &["8080", "8081", "80"];
const VALUES: &[&str] = &["1", "*", "2*", "*3", "1,2", "A"];
const GROUPS: &[&str] = &["admin", "staff", "ad*", "*f", "*", "7"];

type Words = (&'static str, &'static str, &'static [&'static str]);

const SOURCES: &[Words] = &[
    ("principals", "notPrincipals", PRINCIPALS),
    ("namespaces", "notNamespaces", NAMESPACES),
    ("serviceAccounts", "notServiceAccounts", ACCOUNTS),
    ("trustDomains", "notTrustDomains", TRUST_DOMAINS),
    ("ipBlocks", "notIpBlocks", ADDRESSES),
    ("remoteIpBlocks", "notRemoteIpBlocks", FORWARDED),
    ("requestPrincipals", "notRequestPrincipals", SUBJECTS),
];
const OPERATIONS: &[Words] = &[
    ("hosts", "notHosts", HOSTS),
    ("methods", "notMethods", METHODS),
    ("paths", "notPaths", PATHS),
    ("paths", "notPaths", PATHS),
    ("ports", "notPorts", PORTS),
];
const CONDITIONS: &[(&str, &[&str])] = &[
    ("request.headers[x-a]", VALUES),
    ("request.headers[X-B]", VALUES),
    ("source.ip", ADDRESSES),
    ("remote.ip", FORWARDED),
    ("source.namespace", NAMESPACES),
    ("source.principal", PRINCIPALS),
    ("destination.ip", &["10.244.1.2", "10.244.1.3", "10.244.0.0/16"]),
    ("destination.port", PORTS),
    ("request.auth.principal", SUBJECTS),
    ("request.auth.audiences", &["web", "api", "w*", "*"]),
    ("request.auth.presenter", &["web", "api", "*"]),
    ("request.auth.claims[groups]", GROUPS),
    ("request.auth.claims[scope]", GROUPS),
    ("request.auth.claims[realm][roles]", GROUPS),
];

// === Policies ===

/// One ALLOW, one DENY, or both.
pub fn policies(random: &mut Random) -> Vec<Policy> {
    let actions: &[&str] =
        [&["ALLOW"][..], &["DENY"], &["DENY", "ALLOW"], &["ALLOW", "ALLOW"]][random.roll(4)];
    actions.iter().map(|action| Policy { action, rules: rules(random, action) }).collect()
}

fn rules(random: &mut Random, action: &str) -> Vec<Rule> {
    let fewest = usize::from(action == "DENY");
    let count = fewest.max([1, 1, 1, 2, 2, 3, 3, 0][random.roll(8)]);
    (0..count).map(|_| rule(random)).collect()
}

fn rule(random: &mut Random) -> Rule {
    let mut rule = Rule::default();
    for _ in 0..[0, 1, 1, 2][random.roll(4)] {
        rule.sources.push(fields(random, SOURCES));
    }
    for _ in 0..[0, 1, 1, 2][random.roll(4)] {
        rule.operations.push(fields(random, OPERATIONS));
    }
    for _ in 0..[0, 0, 1, 2][random.roll(4)] {
        let (key, words) = CONDITIONS[random.roll(CONDITIONS.len())];
        rule.conditions.push(field(random, key, words));
    }
    rule
}

fn fields(random: &mut Random, all: &[Words]) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    for _ in 0..=random.roll(2) {
        let (name, _, words) = all[random.roll(all.len())];
        // A source with accounts has neither principals nor namespaces.
        let excluded = |other: &str| match name {
            "serviceAccounts" => matches!(other, "principals" | "namespaces"),
            "principals" | "namespaces" => other == "serviceAccounts",
            _ => false,
        };
        if fields.iter().all(|other| other.name != name && !excluded(other.name)) {
            fields.push(field(random, name, words));
        }
    }
    fields
}

fn field(random: &mut Random, name: &'static str, words: &[&'static str]) -> Field {
    let (mut values, mut not_values) = (Vec::new(), Vec::new());
    match random.roll(5) {
        0 => not_values = random.words(1, words),
        1 => (values, not_values) = (random.words(2, words), random.words(1, words)),
        _ => values = random.words(2, words),
    }
    Field { name, values, not_values }
}

// === As the operator writes them ===

impl Policy {
    /// The AuthorizationPolicy, as a document of its own.
    pub fn document(&self, name: &str) -> String {
        let fields = |all: &[Words], fields: &[Field]| {
            let mut map = Map::new();
            for field in fields {
                let (_, not_name, _) = all.iter().find(|(name, ..)| *name == field.name).unwrap();
                for (name, values) in [(field.name, &field.values), (not_name, &field.not_values)] {
                    if !values.is_empty() {
                        map.insert(name.to_owned(), json!(values));
                    }
                }
            }
            Value::Object(map)
        };
        let rules = self.rules.iter().map(|rule| {
            let mut written = Map::new();
            let mut put = |name: &str, entries: Vec<Value>| {
                if !entries.is_empty() {
                    written.insert(name.to_owned(), json!(entries));
                }
            };
            put("from", rule.sources.iter().map(|it| json!({ "source": fields(SOURCES, it) })).collect());
            put(
                "to",
                rule.operations.iter().map(|it| json!({ "operation": fields(OPERATIONS, it) })).collect(),
            );
            let conditions = rule.conditions.iter().map(|it| {
                let mut condition = json!({ "key": it.name });
                for (name, values) in [("values", &it.values), ("notValues", &it.not_values)] {
                    if !values.is_empty() {
                        condition[name] = json!(values);
                    }
                }
                condition
            });
            put("when", conditions.collect());
            Value::Object(written)
        });
        let document = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": "app" },
            "spec": {
                "selector": { "matchLabels": { "app": "server" } },
                "action": self.action,
                "rules": rules.collect::<Vec<_>>(),
            }
        });
        format!("---\n{document}\n")
    }
}

// === Requests ===

/// Who asks where, and what.
#[derive(Debug, Clone)]
pub struct Request {
    pub client: &'static str,
    pub port: u16,
    pub bytes: Vec<u8>,
}

impl Request {
    /// `x-policy` tells Envoy which policies it is to ask.
    pub fn draw(random: &mut Random, policy: usize, tokens: &[String]) -> Self {
        let client = random.pick(&["client", "other", "buyer", "plain"]);
        let port = [8080, 8080, 8081][random.roll(3)];
        let method = random.pick(&["GET", "GET", "POST", "PUT"]);
        let path = random.pick(&[
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/a/x/c",
            "/b",
            "/a?b=/a/b",
            "/a/../b",
            "/a//b",
            "/%61/b",
            "/A",
            "/a/b/",
            "/a/*/c",
            "/a/%2f/c",
            "/x/a/b",
        ]);
        let host =
            random.pick(&["web.example", "Web.Example", "web.example:8080", "api.example", "web.other", "x"]);
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nx-policy: {policy}\r\n");
        if method != "GET" {
            text += "Content-Length: 0\r\n";
        }
        let mut add = |name: &str, value: &str| text.extend([name, ": ", value, "\r\n"]);
        for _ in 0..random.roll(3) {
            add(random.pick(&["x-a", "X-A", "x-b"]), random.pick(&["1", "", "23", "1,2", "a", "A"]));
        }
        for _ in 0..random.roll(3) {
            let forwarded = [
                "203.0.113.7",
                "198.51.100.9, 203.0.113.9",
                "203.0.113.1, 10.244.1.1",
                "nonsense",
                "2001:db8::1",
            ];
            add("X-Forwarded-For", random.pick(&forwarded));
        }
        if let Some(token) = tokens.get(random.roll(tokens.len() * 2)) {
            add("Authorization", &format!("Bearer {token}"));
        }
        text += "\r\n";
        Self { client, port, bytes: text.into_bytes() }
    }

    pub fn text(&self) -> String {
        format!(
            "port {} {}",
            self.port,
            String::from_utf8_lossy(&self.bytes).trim_end().replace("\r\n", " | ")
        )
    }
}
