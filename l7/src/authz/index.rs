//! Rules of one kind (all enforced DENY rules, say), found by what they ask for.
//!
//! A rule holds only if each of its clauses does, so it is enough to file it under one clause: under every key that
//! could make that clause hold. The clause chosen is the most telling one whose matches all have a key: the one whose
//! keys the fewest other rules could be filed under, for a principal that every policy names tells nothing. Rules
//! without such a clause are looked at every time. Evaluation then visits only rules whose key fits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::RuleId;
use super::rule::{CompileError, Rule, Truth};
use super::subject::{Request, Subject};
use super::test::Letters;
use crate::ir::{self, Attribute, Test};
use crate::template::Template;

/// Positions in a [`RuleTable`], ascending.
type Positions = Vec<u32>;
type Table<K> = HashMap<K, Positions, RandomState>;

/// Longest host that is found by key (RFC 1035 section 2.3.4 allows 255 bytes in a name; a port may follow).
const HOST_BYTES_MAX: usize = 272;

/// Compiled rules in the order of their policies.
#[derive(Debug, Default)]
pub(super) struct RuleTable {
    rules: Vec<(RuleId, Rule)>,
    /// Rules without a key.
    scanned: Positions,
    /// Rules filed under a key that only a request has.
    by_request: Positions,
    paths: Table<Box<[u8]>>,
    path_prefixes: Prefixes,
    hosts: Table<Box<[u8]>>,
    principals: Table<Box<[u8]>>,
    accounts: Table<Box<[u8]>>,
    namespaces: Table<Box<[u8]>>,
    networks: Networks,
    ports: Table<u16>,
}

/// Text prefixes: one probe for each distinct length.
#[derive(Debug, Default)]
struct Prefixes {
    lengths: Vec<usize>,
    table: Table<Box<[u8]>>,
}

/// Address blocks: one probe for each distinct prefix length of the family.
#[derive(Debug, Default)]
struct Networks {
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
    table: Table<IpNet>,
}

/// What a rule is filed under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Path(Box<[u8]>),
    Host(Box<[u8]>),
    Principal(Box<[u8]>),
    Account(Box<[u8]>),
    PathPrefix(Box<[u8]>),
    Namespace(Box<[u8]>),
    Network(IpNet),
    Port(u16),
}

/// How many conditions of a table's rules have each key.
#[derive(Default)]
struct Crowds(HashMap<Key, u32, RandomState>);

// === impl RuleTable ===

impl RuleTable {
    pub(super) fn compile(
        policies: &[Arc<ir::AuthorizationPolicy>],
        wanted: &dyn Fn(&ir::AuthorizationPolicy) -> bool,
    ) -> Result<Self, CompileError> {
        let mut table = Self::default();
        let crowds = Crowds::of(policies.iter().filter(|policy| wanted(policy)).flat_map(|it| &it.rules));
        for (policy_index, policy) in policies.iter().enumerate().filter(|(_, policy)| wanted(policy)) {
            for (rule_index, rule) in policy.rules.iter().enumerate() {
                let compiled = Rule::compile(rule).map_err(|cause| CompileError {
                    namespace: policy.namespace.clone(),
                    name: policy.name.clone(),
                    rule: rule_index,
                    cause,
                })?;
                let id = RuleId { policy: position(policy_index), rule: position(rule_index) };
                table.add(id, compiled, rule, &crowds);
            }
        }
        Ok(table)
    }

    fn add(&mut self, id: RuleId, compiled: Rule, rule: &ir::Rule, crowds: &Crowds) {
        let at = position(self.rules.len());
        self.rules.push((id, compiled));
        let clauses = rule.clauses.iter().filter_map(|clause| crowds.clause_keys(clause));
        let Some(keys) = crowds.most_telling(clauses) else {
            self.scanned.push(at);
            return;
        };
        if keys.iter().any(Key::is_l7) {
            self.by_request.push(at);
        }
        for key in keys {
            self.file(key, at);
        }
    }

    fn file(&mut self, key: Key, at: u32) {
        let positions = match key {
            Key::Path(text) => self.paths.entry(text).or_default(),
            Key::Host(text) => self.hosts.entry(text).or_default(),
            Key::Principal(text) => self.principals.entry(text).or_default(),
            Key::Account(text) => self.accounts.entry(text).or_default(),
            Key::Namespace(text) => self.namespaces.entry(text).or_default(),
            Key::Port(port) => self.ports.entry(port).or_default(),
            Key::PathPrefix(text) => self.path_prefixes.entry(text),
            Key::Network(network) => self.networks.entry(network),
        };
        if positions.last() != Some(&at) {
            positions.push(at);
        }
    }

    /// The first rule that holds. With a request pending, what depends on it counts as not holding.
    pub(super) fn first_match(&self, subject: &Subject<'_>) -> Option<RuleId> {
        let mut first = position(self.rules.len());
        self.visit_by_connection(subject, &mut |positions| self.lower(&mut first, positions, subject));
        self.visit_by_request(subject, &mut |positions| self.lower(&mut first, positions, subject));
        self.rules.get(first as usize).map(|(id, _)| *id)
    }

    /// Lowers `first` to the first of `positions` whose rule holds, if that is lower.
    fn lower(&self, first: &mut u32, positions: &[u32], subject: &Subject<'_>) {
        for at in positions {
            if at >= first {
                return;
            }
            if self.holds(*at, subject) == Truth::True {
                *first = *at;
                return;
            }
        }
    }

    /// Whether any rule holds, as far as is known while a request is pending, and the first that surely does.
    pub(super) fn certainty(&self, subject: &Subject<'_>) -> (Truth, Option<RuleId>) {
        let mut first = position(self.rules.len());
        let mut unknown = false;
        self.visit_by_connection(subject, &mut |positions| {
            for at in positions.iter().take_while(|at| **at < first) {
                match self.holds(*at, subject) {
                    Truth::True => {
                        first = *at;
                        return;
                    }
                    Truth::Unknown => unknown = true,
                    Truth::False => {}
                }
            }
        });
        if let Some((id, _)) = self.rules.get(first as usize) {
            return (Truth::True, Some(*id));
        }
        // A rule filed under a key of the request is at best unknown: the clause it is filed under is.
        unknown = unknown || self.by_request.iter().any(|at| self.holds(*at, subject) != Truth::False);
        (if unknown { Truth::Unknown } else { Truth::False }, None)
    }

    fn holds(&self, at: u32, subject: &Subject<'_>) -> Truth {
        self.rules.get(at as usize).map_or(Truth::False, |(_, rule)| rule.holds(subject))
    }

    /// Visits the rules that are scanned and those whose key the connection has.
    fn visit_by_connection(&self, subject: &Subject<'_>, visit: &mut dyn FnMut(&[u32])) {
        visit(&self.scanned);
        if let Some(positions) = self.ports.get(&subject.connection.destination_port) {
            visit(positions);
        }
        if let Some(address) = subject.address(&Attribute::SourceIp) {
            self.networks.visit(address, visit);
        }
        let Some(identity) = subject.connection.source else { return };
        if let Some(positions) = self.principals.get(identity.principal().as_bytes()) {
            visit(positions);
        }
        if let Some(positions) = self.namespaces.get(identity.namespace().as_bytes()) {
            visit(positions);
        }
        if self.accounts.is_empty() {
            return;
        }
        let account = subject.account();
        if let Some(positions) = account.and_then(|text| self.accounts.get(text.as_slice())) {
            visit(positions);
        }
    }

    /// Visits the rules whose key the request has.
    fn visit_by_request(&self, subject: &Subject<'_>, visit: &mut dyn FnMut(&[u32])) {
        let Request::Read(head) = subject.request else { return };
        let path = head.path.as_bytes();
        if let Some(positions) = self.paths.get(path) {
            visit(positions);
        }
        self.path_prefixes.visit(path, visit);
        if self.hosts.is_empty() || head.authority.len() > HOST_BYTES_MAX {
            return;
        }
        let host: ArrayVec<u8, HOST_BYTES_MAX> =
            head.authority.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
        if let Some(positions) = self.hosts.get(host.as_slice()) {
            visit(positions);
        }
    }
}

/// Positions are 32 bits wide; no policy set comes near that many rules.
fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

// === impl Crowds ===

impl Crowds {
    fn of<'a>(rules: impl Iterator<Item = &'a ir::Rule>) -> Self {
        let mut crowds = Self::default();
        let clauses = rules.flat_map(|rule| &rule.clauses);
        for condition in clauses.flat_map(|clause| &clause.matches).flat_map(|entry| &entry.conditions) {
            for key in condition_keys(condition).into_iter().flatten() {
                *crowds.0.entry(key).or_default() += 1;
            }
        }
        crowds
    }

    /// The keys of a clause; `None` if some match of it could hold without any key, or if it always holds.
    fn clause_keys(&self, clause: &ir::Clause) -> Option<Vec<Key>> {
        if clause.matches.is_empty() {
            return None;
        }
        let mut keys = Vec::new();
        // A match without conditions never holds and so needs no key.
        for entry in clause.matches.iter().filter(|entry| !entry.conditions.is_empty()) {
            keys.extend(self.most_telling(entry.conditions.iter().filter_map(condition_keys))?);
        }
        // Keys of connections only or of requests only: otherwise a pending request could hide a rule.
        let l7 = keys.iter().filter(|key| key.is_l7()).count();
        (l7 == 0 || l7 == keys.len()).then_some(keys)
    }

    /// Those of several sets of keys that are shared least. The least telling key of a set is what bounds its use.
    fn most_telling(&self, sets: impl Iterator<Item = Vec<Key>>) -> Option<Vec<Key>> {
        let crowd = |key: &Key| (self.0.get(key).copied().unwrap_or_default(), key.rank());
        sets.min_by_key(|keys| keys.iter().map(crowd).max())
    }
}

// === impl Key ===

/// The keys one of which a connection or request must have for the condition to hold.
fn condition_keys(condition: &ir::Condition) -> Option<Vec<Key>> {
    if condition.any_of.is_empty() {
        return None;
    }
    condition.any_of.iter().map(|test| Key::of(&condition.attribute, test)).collect()
}

impl Key {
    fn of(attribute: &Attribute, test: &Test) -> Option<Self> {
        let bytes = |text: &str| Letters::of(attribute).stored(text);
        match (attribute, test) {
            (Attribute::RequestPath, Test::Exact(text)) => Some(Self::Path(bytes(text))),
            // A prefix shorter than two bytes is the slash that every path has.
            (Attribute::RequestPath, Test::Prefix(text)) if text.len() >= 2 => {
                Some(Self::PathPrefix(bytes(text)))
            }
            (Attribute::RequestPath, Test::Template(text)) => {
                let template = Template::compile(text).ok()?;
                let literal = template.literal_prefix();
                (literal.len() >= 2).then(|| Self::PathPrefix(bytes(literal)))
            }
            (Attribute::RequestHost, Test::Exact(text)) if text.len() <= HOST_BYTES_MAX => {
                Some(Self::Host(bytes(text)))
            }
            (Attribute::SourcePrincipal, Test::Exact(text)) => Some(Self::Principal(bytes(text))),
            (Attribute::SourceServiceAccount, Test::Exact(text)) => Some(Self::Account(bytes(text))),
            // The empty text is the namespace of a peer without identity, which has no key.
            (Attribute::SourceNamespace, Test::Exact(text)) if !text.is_empty() => {
                Some(Self::Namespace(bytes(text)))
            }
            (Attribute::SourceIp, Test::Ip(network)) => Some(Self::Network(network.trunc())),
            (Attribute::DestinationPort, Test::Port(port)) => Some(Self::Port(*port)),
            _ => None,
        }
    }

    /// Lower is more telling, of keys that are shared alike.
    fn rank(&self) -> u8 {
        match self {
            Self::Path(_) => 0,
            Self::Host(_) => 1,
            Self::Principal(_) => 2,
            Self::Account(_) => 3,
            Self::PathPrefix(_) => 4,
            Self::Namespace(_) => 5,
            Self::Network(_) => 6,
            Self::Port(_) => 7,
        }
    }

    fn is_l7(&self) -> bool {
        matches!(self, Self::Path(_) | Self::Host(_) | Self::PathPrefix(_))
    }
}

// === impl Prefixes ===

impl Prefixes {
    fn entry(&mut self, prefix: Box<[u8]>) -> &mut Positions {
        if let Err(at) = self.lengths.binary_search(&prefix.len()) {
            self.lengths.insert(at, prefix.len());
        }
        self.table.entry(prefix).or_default()
    }

    fn visit(&self, text: &[u8], visit: &mut dyn FnMut(&[u32])) {
        for length in &self.lengths {
            let Some(prefix) = text.get(..*length) else { return };
            if let Some(positions) = self.table.get(prefix) {
                visit(positions);
            }
        }
    }
}

// === impl Networks ===

impl Networks {
    fn entry(&mut self, network: IpNet) -> &mut Positions {
        let lengths = match network {
            IpNet::V4(_) => &mut self.lengths_v4,
            IpNet::V6(_) => &mut self.lengths_v6,
        };
        if !lengths.contains(&network.prefix_len()) {
            lengths.push(network.prefix_len());
        }
        self.table.entry(network).or_default()
    }

    fn visit(&self, address: IpAddr, visit: &mut dyn FnMut(&[u32])) {
        let lengths = if address.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        for length in lengths {
            let network = IpNet::new(address, *length).ok().map(|network| network.trunc());
            if let Some(positions) = network.and_then(|network| self.table.get(&network)) {
                visit(positions);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Identity;

    use super::*;
    use crate::ir::{
        Action, AuthorizationPolicy, Clause, Condition, ConnectionAttributes, Match, RequestHead,
    };

    fn policy(principal: &str, paths: &[String]) -> Arc<AuthorizationPolicy> {
        let clause = |attribute, any_of| {
            let condition = Condition { attribute, any_of, none_of: Vec::new() };
            Clause { matches: vec![Match { conditions: vec![condition] }] }
        };
        let principal = Test::Exact(principal.into());
        let paths = paths.iter().map(|path| Test::Template((&**path).into())).collect();
        let clauses =
            vec![clause(Attribute::SourcePrincipal, vec![principal]), clause(Attribute::RequestPath, paths)];
        Arc::new(AuthorizationPolicy {
            namespace: "ns".into(),
            name: "p".into(),
            action: Action::Allow,
            dry_run: false,
            rules: vec![ir::Rule { clauses }],
            authorizer: None,
            source: None,
        })
    }

    /// Rules that are looked at for a request of `client-7` for `path`.
    fn visited(policies: &[Arc<AuthorizationPolicy>], path: &str) -> usize {
        let table = RuleTable::compile(policies, &|_| true).unwrap();
        let identity = Identity::new("cluster.local", "app", "client-7").unwrap();
        let connection = ConnectionAttributes {
            source: Some(&identity),
            source_ip: "10.0.0.1".parse().unwrap(),
            destination_ip: "10.0.0.2".parse().unwrap(),
            destination_port: 80,
            sni: None,
        };
        let head =
            RequestHead { method: "GET", authority: "h", path, query: None, headers: &[], token: None };
        let subject = Subject::new(&connection, Some(&head));
        let mut visited = 0;
        table.visit_by_connection(&subject, &mut |positions| visited += positions.len());
        table.visit_by_request(&subject, &mut |positions| visited += positions.len());
        visited
    }

    #[test]
    fn rules_are_filed_under_what_tells_them_apart() {
        let client = |number| format!("cluster.local/ns/app/sa/client-{number}");
        let of_one_client: Vec<_> = (0..100)
            .map(|number| {
                policy(&client(7), &[format!("/team-{number}/{{*}}/users"), format!("/t{number}/{{*}}/edit")])
            })
            .collect();
        assert_eq!(visited(&of_one_client, "/team-99/1/users"), 1);
        assert_eq!(visited(&of_one_client, "/elsewhere"), 0);
        let of_one_path: Vec<_> =
            (0..100).map(|number| policy(&client(number), &["/api/{*}".to_owned()])).collect();
        assert_eq!(visited(&of_one_path, "/api/1"), 1);
    }
}
