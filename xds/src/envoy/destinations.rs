//! The tree by which the main listener of a waypoint chooses the filter chain of a connection: by the address of a
//! service and its port, by the address of a workload, or by the name that the client asked for; then by what the
//! connection carries.

use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use prost_types::Any;

use super::Refusal;
use super::refusal::{Within, type_of, unpack};
use super::text;
use crate::proto::waypoint::matcher_tree::TreeType;
use crate::proto::waypoint::{
    FilterStateInput, IpMatcher, Matcher, MatcherTree, OnMatch, TypedExtension, on_match,
};

const DESTINATION_IP: &str = "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput";
const DESTINATION_PORT: &str = "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput";
const APPLICATION_PROTOCOL: &str =
    "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput";
const FILTER_STATE: &str = "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput";
const IP_MATCHER: &str = "xds.type.matcher.v3.IPMatcher";
const STRING_VALUE: &str = "google.protobuf.StringValue";

/// Under these keys the listener for tunnels keeps the authority of the CONNECT.
const AUTHORITY_KEYS: [&str; 2] =
    ["io.istio.connect_authority", "envoy.filters.listener.original_dst.local_ip"];
/// As the inspector of connections names the versions of HTTP, in quotes.
const HTTP_NAMES: [&str; 3] = ["'h2c'", "'http/1.1'", "'http/1.0'"];

/// Which connections go where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Destinations {
    /// Services, in the order written.
    pub(super) addresses: Vec<(IpNet, u16, Chains)>,
    /// By `host:port`, in lower case.
    pub(super) names: Vec<(Arc<str>, Chains)>,
    /// Workloads, on any port.
    pub(super) workloads: Vec<(IpNet, Chains)>,
}

/// Names of filter chains; with both, what the connection carries decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chains {
    pub(super) http: Option<Arc<str>>,
    pub(super) tcp: Option<Arc<str>>,
}

/// Reads the tree. A name of a chain does not tell what the chain carries, so `is_http` does.
pub(super) fn destinations(
    matcher: &Matcher,
    is_http: &dyn Fn(&str) -> bool,
) -> Result<Destinations, Refusal> {
    let mut destinations = Destinations::default();
    let reader = Reader { is_http };
    let tree = tree(matcher)?;
    match (input(tree)?, &tree.tree_type) {
        (DESTINATION_IP, Some(TreeType::CustomMatch(custom))) => {
            let config = config(custom).within("matcher_tree.custom_match")?;
            let ranges: IpMatcher =
                unpack(config, IP_MATCHER).within("matcher_tree.custom_match.typed_config")?;
            for (index, range) in ranges.range_matchers.iter().enumerate() {
                let blocks = range.ranges.iter().enumerate();
                let blocks = blocks.map(|(index, range)| text::block(range).within_item("ranges", index));
                let blocks: Vec<_> = blocks.collect::<Result<_, _>>().within_item("range_matchers", index)?;
                let on_match = range.on_match.as_ref();
                reader.range(&blocks, on_match, &mut destinations).within_item("range_matchers", index)?;
            }
        }
        (input, _) => {
            return Err(Refusal::at("matcher_tree", format!("a tree over {input} is not supported here")));
        }
    }
    if let Some(otherwise) = &matcher.on_no_match {
        reader.names(otherwise, &mut destinations).within("on_no_match")?;
    }
    Ok(destinations)
}

struct Reader<'a> {
    is_http: &'a dyn Fn(&str) -> bool,
}

impl Reader<'_> {
    /// What is done with connections to these addresses.
    fn range(
        &self,
        blocks: &[IpNet],
        on_match: Option<&OnMatch>,
        destinations: &mut Destinations,
    ) -> Result<(), Refusal> {
        let inner = inner(on_match).within("on_match")?;
        let tree = tree(inner).within("on_match.matcher")?;
        match input(tree).within("on_match.matcher")? {
            DESTINATION_PORT => {
                if inner.on_no_match.is_some() {
                    return Err(Refusal::at("on_match.matcher.on_no_match", "is not supported here"));
                }
                for (port, on_match) in exact(tree).within("on_match.matcher")? {
                    let place = format!("on_match.matcher.matcher_tree.exact_match_map[{port:?}]");
                    let number = port.parse().map_err(|_| Refusal::at(&place, "is no port"))?;
                    let chains = self.chains(on_match).map_err(|refusal| refusal.within(&place))?;
                    destinations
                        .addresses
                        .extend(blocks.iter().map(|block| (*block, number, chains.clone())));
                }
            }
            APPLICATION_PROTOCOL => {
                let chains = Self::by_protocol(inner).within("on_match.matcher")?;
                destinations.workloads.extend(blocks.iter().map(|block| (*block, chains.clone())));
            }
            other => {
                return Err(Refusal::at(
                    "on_match.matcher",
                    format!("a tree over {other} is not supported here"),
                ));
            }
        }
        Ok(())
    }

    /// What is done with connections to names.
    fn names(&self, on_match: &OnMatch, destinations: &mut Destinations) -> Result<(), Refusal> {
        let inner = inner(Some(on_match))?;
        let tree = tree(inner).within("matcher")?;
        let Some(asked) = &tree.input else {
            return Err(Refusal::at("matcher.matcher_tree.input", "there is none"));
        };
        let state: FilterStateInput =
            unpack(config(asked)?, FILTER_STATE).within("matcher.matcher_tree.input.typed_config")?;
        if !AUTHORITY_KEYS.contains(&&*state.key) || inner.on_no_match.is_some() {
            return Err(Refusal::at("matcher", format!("a tree over {:?} is not supported here", state.key)));
        }
        for (name, on_match) in exact(tree).within("matcher")? {
            let chains = self.chains(on_match);
            let place = format!("matcher.matcher_tree.exact_match_map[{name:?}]");
            destinations.names.push((text::lower(name), chains.map_err(|refusal| refusal.within(&place))?));
        }
        Ok(())
    }

    fn chains(&self, on_match: &OnMatch) -> Result<Chains, Refusal> {
        match &on_match.on_match {
            Some(on_match::OnMatch::Action(action)) => {
                let name = chain_name(action).within("action")?;
                Ok(if (self.is_http)(&name) {
                    Chains { http: Some(name), tcp: None }
                } else {
                    Chains { http: None, tcp: Some(name) }
                })
            }
            Some(on_match::OnMatch::Matcher(matcher)) => Self::by_protocol(matcher).within("matcher"),
            None => Err(Refusal::new("nothing follows")),
        }
    }

    fn by_protocol(matcher: &Matcher) -> Result<Chains, Refusal> {
        let tree = tree(matcher)?;
        let input = input(tree)?;
        if input != APPLICATION_PROTOCOL {
            return Err(Refusal::at("matcher_tree", format!("a tree over {input} is not supported here")));
        }
        let mut chains = Chains::default();
        for (protocol, on_match) in exact(tree)? {
            let place = format!("matcher_tree.exact_match_map[{protocol:?}]");
            let refused = |reason: &str| Refusal::at(&place, reason);
            let Some(on_match::OnMatch::Action(action)) = &on_match.on_match else {
                return Err(refused("only a filter chain is supported here"));
            };
            let name = chain_name(action).map_err(|refusal| refusal.within(&place))?;
            if !HTTP_NAMES.contains(&protocol) || chains.http.as_ref().is_some_and(|own| *own != name) {
                return Err(refused("only one filter chain for all of HTTP is supported"));
            }
            chains.http = Some(name);
        }
        if let Some(otherwise) = &matcher.on_no_match {
            let Some(on_match::OnMatch::Action(action)) = &otherwise.on_match else {
                return Err(Refusal::at("on_no_match", "only a filter chain is supported here"));
            };
            chains.tcp = Some(chain_name(action).within("on_no_match.action")?);
        }
        Ok(chains)
    }
}

fn inner(on_match: Option<&OnMatch>) -> Result<&Matcher, Refusal> {
    match on_match.and_then(|it| it.on_match.as_ref()) {
        Some(on_match::OnMatch::Matcher(matcher)) => Ok(matcher),
        _ => Err(Refusal::new("only a matcher is supported here")),
    }
}

fn tree(matcher: &Matcher) -> Result<&MatcherTree, Refusal> {
    matcher.matcher_tree.as_ref().ok_or_else(|| Refusal::at("matcher_tree", "there is none"))
}

/// The type of what the tree looks at.
fn input(tree: &MatcherTree) -> Result<&str, Refusal> {
    let input = tree.input.as_ref().ok_or_else(|| Refusal::at("matcher_tree.input", "there is none"))?;
    config(input).map(type_of).within("matcher_tree.input")
}

fn config(extension: &TypedExtension) -> Result<&Any, Refusal> {
    extension.typed_config.as_ref().ok_or_else(|| Refusal::at("typed_config", "there is none"))
}

fn exact(tree: &MatcherTree) -> Result<impl Iterator<Item = (&str, &OnMatch)>, Refusal> {
    match &tree.tree_type {
        Some(TreeType::ExactMatchMap(map)) => Ok(map.map.iter().map(|(key, value)| (key.as_str(), value))),
        _ => Err(Refusal::at("matcher_tree", "only a map of exact values is supported here")),
    }
}

fn chain_name(action: &TypedExtension) -> Result<Arc<str>, Refusal> {
    let config = config(action)?;
    if type_of(config) != STRING_VALUE {
        return Err(Refusal::at("typed_config", format!("{} is not supported here", type_of(config))));
    }
    let name =
        String::decode(&*config.value).map_err(|error| Refusal::at("typed_config", error.to_string()))?;
    Ok(name.into())
}
