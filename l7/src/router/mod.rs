//! The routes of one Service port, compiled: which rule takes a request.
//!
//! Rank of a match, over all rules of all routes (Gateway API, HTTPRouteRule): a consumer route before a producer
//! route; then a VirtualService before a GRPCRoute, and that before an HTTPRoute; then the more specific hostname; then exact path, regular expression,
//! longest prefix; then a method, more headers, more query parameters; then the older route, the first by
//! `namespace/name`, the first rule, the first match. Where the API leaves the rank of regular expressions open, ours
//! stand between exact paths and prefixes, the longer expression first: below the prefixes a catch-all of `/` would
//! hide every one of them. Of routes whose order is that of a list ([`RouteOrder::Listed`]) the first match that holds
//! counts, and comes before all ranked ones of its host.
//!
//! To a GRPCRoute, service and method are an exact path, a service alone is a prefix, and a method alone ranks below
//! every service (GRPCRouteRule: the service with the most characters, then the method).
//!
//! Paths are found by hash, one probe for each path element, and of the matches with the very same path those that
//! name the right value of a header, so the cost of a request does not grow with the number of routes; only regular
//! expressions, and matches that differ in nothing but method and query, are tried one by one. Routing allocates
//! nothing.

mod backend;
mod candidates;
mod condition;
mod hosts;
#[cfg(test)]
mod naive;
mod pattern;
mod table;
mod text_map;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::filter::{self, CorsPolicy, CorsVerdict, FilterFault};
#[cfg(doc)]
use crate::ir::RouteOrder;
use crate::ir::{Backend, Filters, HttpMatch, HttpRoute, HttpRule, Labels, RequestHead, RouteKind};
use condition::Names;
use hosts::Hosts;

pub use backend::{Picked, Taken, pick_backend};
pub(crate) use pattern::Pattern;
pub use pattern::PatternError;

/// The compiled routes of one Service port, as a client sees them.
#[derive(Debug, Default)]
pub struct Router {
    routes: Box<[Arc<HttpRoute>]>,
    /// `NAMESPACE/NAME` of each route.
    names: Box<[Arc<str>]>,
    /// The rules of all routes side by side, so that finding one touches nothing of its route: with many routes that
    /// is what a lookup costs.
    rules: Box<[HttpRule]>,
    /// Of the rules that have any, by their position among the rules.
    cors: HashMap<u32, RuleCors, RandomState>,
    /// The first that takes a request decides; none is empty.
    tiers: Box<[Hosts]>,
    answers_itself: bool,
}

/// Who sends a request, for matches that look at it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sender<'a> {
    pub namespace: &'a str,
    /// `None` where they are not known: then no match that asks for one holds.
    pub labels: Option<&'a Labels>,
}

/// A request with its sender.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    head: &'a RequestHead<'a>,
    sender: Sender<'a>,
}

/// What a rule and its backends say of requests of other origins.
#[derive(Debug, PartialEq)]
struct RuleCors {
    of_rule: Option<CorsPolicy>,
    /// By the backend's position in the rule.
    of_backends: Vec<(usize, CorsPolicy)>,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouteMatch<'a> {
    Matched(MatchedRoute<'a>),
    /// Routes govern the Service and none takes the request: 404.
    NotFound,
}

/// The rule that takes a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatchedRoute<'a> {
    pub route: &'a Arc<HttpRoute>,
    /// `NAMESPACE/NAME` of the route.
    pub name: &'a Arc<str>,
    pub rule: &'a HttpRule,
    cors: Option<&'a RuleCors>,
    /// Index of `rule` in the route.
    pub rule_index: usize,
    /// Index of the match that holds in the rule.
    pub match_index: usize,
}

/// Position of a match: indices of its route in the router, its rule in the route, itself in the rule; and of its
/// rule among all rules of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MatchId {
    route: u32,
    rule: u32,
    entry: u32,
    slot: u32,
}

/// Why a route cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {namespace}/{name}, rule {rule}: {cause}")]
pub struct RouteError {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Index into the route's rules.
    pub rule: usize,
    #[source]
    pub cause: RouteFault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteFault {
    #[error("path {0:?} does not start with a slash")]
    Path(Arc<str>),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Filter(#[from] FilterFault),
}

/// Routes of the client's namespace for a Service of another before those of the Service's own; then by kind.
type Tier = (bool, Reverse<RouteKind>);

fn tier(route: &HttpRoute) -> Tier {
    (route.consumer_namespace.is_none(), Reverse(route.kind))
}

/// True if the route has a say in what a client of `client_namespace` sends to `port` of its parent.
pub fn governs(route: &HttpRoute, port: u16, client_namespace: &str) -> bool {
    route.parent_port.is_none_or(|own| own == port)
        && route.consumer_namespace.as_deref().is_none_or(|own| own == client_namespace)
}

/// Whether a regular expression can serve in a route: for front ends, which report it where it was written.
pub fn check_pattern(text: &Arc<str>) -> Result<(), PatternError> {
    Pattern::compile(text).map(drop)
}

// === impl Router ===

impl Router {
    /// Compiles the routes of one parent that govern one port for one client namespace (see [`governs`]).
    pub fn compile(routes: impl IntoIterator<Item = Arc<HttpRoute>>) -> Result<Self, RouteError> {
        let mut routes: Vec<_> = routes.into_iter().collect();
        // From here on the position of a route is its rank among equals.
        let name = |route: &Arc<HttpRoute>| format!("{}/{}", route.namespace, route.name);
        routes.sort_by_cached_key(|route| (route.created, name(route)));
        let mut rules: Vec<HttpRule> = Vec::new();
        let mut tiers: BTreeMap<Tier, Hosts> = BTreeMap::new();
        let mut field_names = Names::default();
        let mut policies: HashMap<u32, RuleCors, RandomState> = HashMap::default();
        for (route_index, route) in routes.iter().enumerate() {
            let tier = tiers.entry(tier(route)).or_default();
            for (rule_index, rule) in route.rules.iter().enumerate() {
                let slot = index(rules.len());
                rules.push(rule.clone());
                let refused = |cause| RouteError {
                    namespace: route.namespace.clone(),
                    name: route.name.clone(),
                    rule: rule_index,
                    cause,
                };
                filter::check(rule).map_err(|fault| refused(fault.into()))?;
                if let Some(cors) = RuleCors::compile(rule).map_err(|error| refused(error.into()))? {
                    policies.insert(slot, cors);
                }
                for (entry_index, entry) in rule.matches.iter().enumerate() {
                    let [route_at, rule_at, entry_at] = [route_index, rule_index, entry_index].map(index);
                    let id = MatchId { route: route_at, rule: rule_at, entry: entry_at, slot };
                    tier.add(&route.hostnames, route.order, id, entry, &mut field_names).map_err(refused)?;
                }
            }
        }
        tiers.values_mut().for_each(Hosts::sort);
        let names = routes.iter().map(|route| name(route).into()).collect();
        let answers_itself = rules.iter().any(|rule| rule.fault.is_some() || rule.direct.is_some());
        let (cors, tiers) = (policies, tiers.into_values().collect());
        Ok(Self { routes: routes.into(), names, rules: rules.into(), cors, tiers, answers_itself })
    }

    /// True if no route governs the port: requests then go to the Service as if there were no router.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// True if some rule makes faults or answers in the backend's place.
    pub fn answers_itself(&self) -> bool {
        self.answers_itself
    }

    /// The routes, by rank among equals.
    pub fn routes(&self) -> &[Arc<HttpRoute>] {
        &self.routes
    }

    /// Finds the rule of the highest rank that takes the request, whoever sends it.
    pub fn route(&self, head: &RequestHead<'_>) -> RouteMatch<'_> {
        self.route_from(head, Sender::default())
    }

    /// The same for a sender that is known.
    pub fn route_from(&self, head: &RequestHead<'_>, sender: Sender<'_>) -> RouteMatch<'_> {
        let asked = Asked { head, sender };
        let found = self.tiers.iter().find_map(|tier| tier.find(&asked));
        found.and_then(|id| self.resolve(id)).map_or(RouteMatch::NotFound, RouteMatch::Matched)
    }

    fn resolve(&self, id: MatchId) -> Option<MatchedRoute<'_>> {
        let (rule_index, match_index) = (id.rule as usize, id.entry as usize);
        let (route, name) = (self.routes.get(id.route as usize)?, self.names.get(id.route as usize)?);
        let (rule, cors) = (self.rules.get(id.slot as usize)?, self.cors.get(&id.slot));
        Some(MatchedRoute { route, name, rule, cors, rule_index, match_index })
    }
}

// === impl MatchedRoute, RuleCors ===

impl<'a> MatchedRoute<'a> {
    /// What the rule says of a request of another origin. Asked before the request is [taken](Self::take): it may answer.
    pub fn judge_origin(&self, request: &RequestHead<'_>) -> CorsVerdict {
        let policy = self.cors.and_then(|cors| cors.of_rule.as_ref());
        policy.map_or(CorsVerdict::Pass, |policy| policy.judge(request.method, request.headers))
    }

    /// What the backend says that has taken it, which may answer as well.
    pub fn judge_origin_at(&self, backend: &Backend, request: &RequestHead<'_>) -> CorsVerdict {
        let Some(cors) = self.cors.filter(|cors| !cors.of_backends.is_empty()) else {
            return CorsVerdict::Pass;
        };
        let place = self.rule.backends.iter().position(|own| std::ptr::eq(own, backend));
        let policy = cors.of_backends.iter().find(|(own, _)| Some(*own) == place);
        policy.map_or(CorsVerdict::Pass, |(_, policy)| policy.judge(request.method, request.headers))
    }

    /// The one of the rule's matches that holds.
    pub fn matched(&self) -> Option<&'a HttpMatch> {
        self.rule.matches.get(self.match_index)
    }
}

impl RuleCors {
    /// `None` where nothing is said.
    fn compile(rule: &HttpRule) -> Result<Option<Self>, PatternError> {
        let compile = |filters: &Option<Arc<Filters>>| {
            filters.as_ref().and_then(|filters| filters.cors.as_ref()).map(CorsPolicy::compile).transpose()
        };
        let of_rule = compile(&rule.filters)?;
        let mut of_backends = Vec::new();
        for (place, backend) in rule.backends.iter().enumerate() {
            of_backends.extend(compile(&backend.filters)?.map(|policy| (place, policy)));
        }
        let says = of_rule.is_some() || !of_backends.is_empty();
        Ok(says.then_some(Self { of_rule, of_backends }))
    }
}

/// Indices are 32 bits wide; no configuration comes near that many routes.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}
