//! Random policies and requests of few words, so that they meet.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::ir::{
    Action, Attribute, AuthorizationPolicy, Clause, Condition, ConnectionAttributes, Header, Match,
    RequestAuthentication, RequestHead, Rule, Test, TokenRule,
};
use crate::jwt::{Authenticator, Token};

const PRINCIPALS: &[&str] = &["td/ns/a/sa/x", "td/ns/b/sa/x", "td2/ns/a/sa/y", "td/ns/a.b/sa/x"];
const NAMESPACES: &[&str] = &["a", "b", "", "ab", "a.b", "a*b"];
const ACCOUNTS: &[&str] = &["a/x", "b/x", "a/y", "a.b/x", "/x"];
const PATHS: &[&str] =
    &["/", "/a", "/a/b", "/ab", "/b/c/d", "/a/x/b", "/a/", "/a//b", "/A", "/a*b", "/a/[", "*"];
const TEMPLATES: &[&str] = &["/{*}", "/a/{**}", "/a/{*}/b", "/{**}/d", "/{**}", "/{*}/{*}/{**}", "/a/{*}/"];
const HOSTS: &[&str] = &["h", "H.example", "h.example:80", "x.H", "h.example.", "[::1]:80"];
const ADDRESSES: &[&str] = &["10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "fd00::1", "fd00::2:1"];
const METHODS: &[&str] = &["GET", "POST", "get", "OPTIONS"];
const HEADERS: &[&str] = &["v", "w", "x-forwarded-for"];
const VALUES: &[&str] = &["", "1", "2", "1,2", "1*", "12"];
const NAMES: &[&str] = &["s.example", "x.S.example", "s"];
const SUBJECTS: &[&str] = &["https://i/s", "i/s", "i/a/b", "https://i/ann", "i/", "/s"];
const AUDIENCES: &[&str] = &["web", "api", "https://web.example"];
const GROUPS: &[&str] = &["admin", "staff", "admin staff", "1", "true", ""];

/// Draws choices from a byte string; runs dry into zeros.
pub(super) struct Dice<'a>(&'a [u8]);

/// One side of a connection and what it dialled.
pub(super) struct Peer {
    source: Option<model::Identity>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    sni: Option<&'static str>,
}

/// A verified token and the claims that went into it.
pub(super) struct Bearer {
    pub(super) claims: Value,
    pub(super) token: Token,
}

impl<'a> Dice<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn roll(&mut self, sides: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % sides
    }

    fn pick<'b>(&mut self, words: &[&'b str]) -> &'b str {
        words[self.roll(words.len())]
    }

    fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.roll(most + 1)).map(|_| item(self)).collect()
    }

    // === Policies ===

    pub(super) fn policies(&mut self) -> Vec<Arc<AuthorizationPolicy>> {
        (0..=self.roll(5)).map(|_| self.policy()).collect()
    }

    fn policy(&mut self) -> Arc<AuthorizationPolicy> {
        let action =
            [Action::Allow, Action::Deny, Action::Audit, Action::Allow, Action::Custom][self.roll(5)];
        let dry_run = self.roll(6) == 1;
        // Rules that are found by a key, and many by the same one; or of any shape.
        let rules = if self.roll(2) == 1 {
            self.list(6, |dice| {
                let conditions = vec![dice.keyed_condition(), dice.condition()];
                Rule { clauses: vec![Clause { matches: vec![Match { conditions }] }] }
            })
        } else {
            self.list(3, |dice| Rule {
                clauses: dice.list(2, |dice| Clause {
                    matches: dice.list(2, |dice| Match { conditions: dice.list(2, Self::condition) }),
                }),
            })
        };
        Arc::new(AuthorizationPolicy {
            namespace: "ns".into(),
            name: "p".into(),
            action,
            dry_run,
            rules,
            authorizer: None,
            source: None,
        })
    }

    /// One exact value of what rules are filed under.
    fn keyed_condition(&mut self) -> Condition {
        let (attribute, words) = match self.roll(4) {
            0 => (Attribute::RequestPath, &PATHS[..3]),
            1 => (Attribute::RequestHost, &HOSTS[..2]),
            2 => (Attribute::SourcePrincipal, &PRINCIPALS[..2]),
            _ => (Attribute::SourceNamespace, &NAMESPACES[..2]),
        };
        let any_of = vec![Test::Exact(self.pick(words).into())];
        Condition { attribute, any_of, none_of: Vec::new() }
    }

    fn condition(&mut self) -> Condition {
        let (attribute, words) = self.attribute();
        // Enough of them are found by hash.
        let most = [3, 12][usize::from(self.roll(8) == 1)];
        let any_of = self.list(most, |dice| dice.test(&attribute, words));
        let none_of = self.list(1, |dice| dice.test(&attribute, words));
        Condition { attribute, any_of, none_of }
    }

    /// What a condition looks at, and the words that its tests are made of.
    fn attribute(&mut self) -> (Attribute, &'static [&'static str]) {
        let claim = |path: &[&str]| Attribute::RequestClaim(path.iter().map(|name| (*name).into()).collect());
        match self.roll(22) {
            0 => (Attribute::SourcePrincipal, PRINCIPALS),
            1 => (Attribute::SourceNamespace, NAMESPACES),
            2 => (Attribute::SourceServiceAccount, ACCOUNTS),
            3 => (Attribute::SourceTrustDomain, &["td", "td2", "t"]),
            4 => (Attribute::SourceIp, ADDRESSES),
            5 => (Attribute::RemoteIp, ADDRESSES),
            6 => (Attribute::DestinationIp, ADDRESSES),
            7 => (Attribute::DestinationPort, &["80", "81", "65535"]),
            8 => (Attribute::ConnectionSni, NAMES),
            9 => (Attribute::RequestHost, HOSTS),
            10 => (Attribute::RequestMethod, METHODS),
            11 | 12 => (Attribute::RequestPath, PATHS),
            13 | 14 => (Attribute::RequestPath, TEMPLATES),
            15 => (Attribute::RequestHeader(self.pick(HEADERS).into()), VALUES),
            16 => (Attribute::RequestPrincipal, SUBJECTS),
            17 => (Attribute::RequestAudiences, AUDIENCES),
            18 => (Attribute::RequestPresenter, AUDIENCES),
            19 => (claim(&["groups"]), GROUPS),
            20 => (claim([&["scope"][..], &["realm", "roles"], &["scope", "x"]][self.roll(3)]), GROUPS),
            _ => (Attribute::FilterMetadata("envoy.filters.x".into()), &["x"]),
        }
    }

    fn test(&mut self, attribute: &Attribute, words: &[&str]) -> Test {
        let text = self.pick(words);
        match attribute {
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
                let address = text.parse::<IpAddr>().unwrap().to_canonical();
                let length = [0, 8, 24, 32, 128][self.roll(5)].min(if address.is_ipv4() { 32 } else { 128 });
                Test::Ip(ipnet::IpNet::new(address, length).unwrap())
            }
            Attribute::DestinationPort => Test::Port(text.parse().unwrap()),
            _ if text.contains('{') => Test::Template(text.into()),
            _ => match self.roll(7) {
                0 => Test::Prefix(text.get(..text.len() / 2).unwrap().into()),
                1 => Test::Suffix(text.get(text.len() / 2..).unwrap().into()),
                2 => Test::Present,
                3 => {
                    let middle = text.get(..1).unwrap_or("");
                    let last = text.get(text.len().saturating_sub(1)..).unwrap_or("");
                    let glob =
                        [format!("*{middle}*"), format!("{middle}*{last}"), format!("*{middle}*{last}*")];
                    Test::Glob(glob[self.roll(3)].as_str().into())
                }
                _ => Test::Exact(text.into()),
            },
        }
    }

    // === Requests ===

    pub(super) fn headers(&mut self) -> Vec<Header<'static>> {
        const FORWARDED: &[&str] =
            &["10.0.1.1", "9.9.9.9, 10.0.0.1", "nonsense", "10.0.1.1,", " fd00::1 ", "\u{e9}"];
        self.list(4, |dice| {
            let name = dice.pick(&["v", "V", "w", "x-forwarded-for", "X-Forwarded-For"]);
            let words = if name.len() > 1 { FORWARDED } else { VALUES };
            Header { name, value: dice.pick(words).as_bytes() }
        })
    }

    pub(super) fn head<'b>(&mut self, headers: &'b [Header<'b>]) -> RequestHead<'b> {
        let bearers = Bearer::all();
        let token = bearers.get(self.roll(bearers.len() * 2)).map(|bearer| &bearer.token);
        RequestHead {
            method: self.pick(METHODS),
            authority: self.pick(HOSTS),
            path: self.pick(PATHS),
            query: [None, Some("a=b")][self.roll(2)],
            headers,
            token,
        }
    }
}

impl Peer {
    pub(super) fn draw(dice: &mut Dice<'_>) -> Self {
        let who = dice.roll(PRINCIPALS.len() + 1);
        Self {
            source: PRINCIPALS.get(who).map(|principal| format!("spiffe://{principal}").parse().unwrap()),
            source_ip: dice.pick(ADDRESSES).parse().unwrap(),
            destination_ip: dice.pick(ADDRESSES).parse().unwrap(),
            destination_port: [80, 81][dice.roll(2)],
            sni: NAMES.get(dice.roll(NAMES.len() + 1)).copied(),
        }
    }

    pub(super) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni,
        }
    }
}

// === Tokens ===

const KEY: &[u8] = b"the key that the issuers of the twin sign with";

impl Bearer {
    /// Every token that a request may carry, verified as any other.
    pub(super) fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Bearer>> = OnceLock::new();
        ALL.get_or_init(|| {
            let authenticator = Self::authenticator();
            let all = Self::claims().into_iter().enumerate();
            all.map(|(number, mut claims)| {
                // No two tokens are equal.
                claims["jti"] = json!(number);
                let token = Self::verified(&authenticator, &claims);
                Self { claims, token }
            })
            .collect()
        })
    }

    fn claims() -> Vec<Value> {
        let subjects = [json!({ "sub": "s" }), json!({ "sub": "a/b" }), json!({ "sub": "" }), json!({})];
        let mut all = Vec::new();
        for issuer in ["https://i", "i", "i/a"] {
            for (at, subject) in subjects.iter().enumerate() {
                let mut claims = subject.clone();
                claims["iss"] = json!(issuer);
                claims["aud"] = [json!("web"), json!(["api", "web"]), json!(7), json!([])]
                    [(at + issuer.len()) % 4]
                    .clone();
                claims["azp"] = [json!("web"), json!(""), json!(["web"]), Value::Null][at].clone();
                claims["groups"] =
                    [json!(["admin", "staff"]), json!("admin staff"), json!(1), json!([true, 1, ""])][at]
                        .clone();
                claims["scope"] =
                    [json!("admin  staff "), json!(["staff", "admin x"]), json!({ "x": "admin" }), json!("")]
                        [at]
                        .clone();
                claims["realm"] =
                    [json!({ "roles": ["admin"] }), json!("admin"), json!({ "roles": {} }), json!([])][at]
                        .clone();
                all.push(claims);
            }
        }
        all
    }

    fn authenticator() -> Authenticator {
        use base64::Engine;
        let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(KEY);
        let jwks = json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": key }] }).to_string();
        let rule = |issuer: &str| TokenRule {
            issuer: issuer.into(),
            jwks: jwks.as_str().into(),
            ..TokenRule::default()
        };
        let rules = ["https://i", "i", "i/a"].map(rule).to_vec();
        let policy = RequestAuthentication { namespace: "ns".into(), name: "t".into(), rules, source: None };
        Authenticator::compile([&policy])
    }

    fn verified(authenticator: &Authenticator, claims: &Value) -> Token {
        let header = jsonwebtoken::Header::new(Algorithm::HS256);
        let text = jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(KEY)).unwrap();
        let value = format!("Bearer {text}");
        let headers = [Header { name: "authorization", value: value.as_bytes() }];
        let head = RequestHead {
            method: "GET",
            authority: "h",
            path: "/",
            query: None,
            headers: &headers,
            token: None,
        };
        authenticator.authenticate(&head, 1_800_000_000).unwrap().token.unwrap()
    }
}
