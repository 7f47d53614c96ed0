//! Listeners. The main one holds everything that matters; those that end and begin tunnels are only looked at to see that
//! they are what istiod always writes, for our tunnels are our own.

use std::sync::Arc;

use bytes::Bytes;

use super::Refusal;
use super::chain::{self, is_telemetry};
use super::destinations::{Destinations, destinations};
use super::refusal::{Within, read, type_of, unpack};
use crate::proto::waypoint::{FilterChain, HttpConnectionManager, Listener, TcpProxy};

/// The listener behind the tunnels.
pub(super) const MAIN: &str = "main_internal";
/// The listener that ends tunnels.
const TERMINATE: &str = "connect_terminate";
/// Those that begin tunnels: of one layer, and the inner and outer of two.
const ORIGINATE: [&str; 3] = ["connect_originate", "inner_connect_originate", "outer_connect_originate"];

const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// Filters of a listener that find out what a connection carries and where it goes.
const LISTENER_FILTERS: [&str; 3] = [
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
];
/// Filters of a tunnel's listener that keep who is at its other end and where it goes, and change nothing.
const TUNNEL_FILTERS: [&str; 4] = [
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "envoy.extensions.filters.network.set_filter_state.v3.Config",
    "io.istio.http.peer_metadata.Config",
    "io.istio.network.peer_metadata.Config",
];

/// What a listener says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ReadListener {
    Main(MainListener),
    /// As expected, and of no further use.
    Tunnel,
}

/// The listener behind the tunnels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MainListener {
    pub(super) destinations: Destinations,
    /// Name and bytes of each chain, in their order.
    pub(super) chains: Vec<(Arc<str>, Bytes)>,
}

pub(super) fn listener(name: &str, bytes: &[u8]) -> Result<ReadListener, Refusal> {
    let wire: Listener = read(bytes)?;
    if wire.name != name {
        return Err(Refusal::at("name", format!("{:?} is not the name of the resource", wire.name)));
    }
    for (index, filter) in wire.listener_filters.iter().enumerate() {
        let kind = filter.typed_config.as_ref().map_or("", type_of);
        if !LISTENER_FILTERS.contains(&kind) {
            return Err(
                Refusal::new(format!("{kind} is not supported")).within_item("listener_filters", index)
            );
        }
    }
    match name {
        MAIN => main(&wire).map(ReadListener::Main),
        TERMINATE => only_chain(&wire).and_then(|chain| terminate(&chain)).map(|()| ReadListener::Tunnel),
        name if ORIGINATE.contains(&name) => {
            only_chain(&wire).and_then(|chain| originate(&chain, name)).map(|()| ReadListener::Tunnel)
        }
        other => Err(Refusal::at("name", format!("listener {other:?} is not one of a waypoint"))),
    }
}

fn main(wire: &Listener) -> Result<MainListener, Refusal> {
    let Some(matcher) = &wire.filter_chain_matcher else {
        return Err(Refusal::at("filter_chain_matcher", "there is none"));
    };
    let destinations = destinations(matcher, &chain::is_http).within("filter_chain_matcher")?;
    let chains = wire.filter_chains.iter().enumerate().map(|(index, bytes)| {
        let name = chain::name_of(bytes).within_item("filter_chains", index)?;
        Ok((name.into(), bytes.clone()))
    });
    Ok(MainListener { destinations, chains: chains.collect::<Result<_, _>>()? })
}

fn only_chain(wire: &Listener) -> Result<FilterChain, Refusal> {
    if wire.filter_chain_matcher.is_some() {
        return Err(Refusal::at("filter_chain_matcher", "is not supported here"));
    }
    match &wire.filter_chains[..] {
        [bytes] => read(bytes).within("filter_chains"),
        chains => {
            Err(Refusal::at("filter_chains", format!("{} are not supported here, only one is", chains.len())))
        }
    }
}

/// A CONNECT is taken as it is and given to the main listener: nothing else may stand between.
fn terminate(chain: &FilterChain) -> Result<(), Refusal> {
    let [filter] = &chain.filters[..] else {
        return Err(Refusal::at("filter_chains.filters", "only one is supported here"));
    };
    let place = |refusal: Refusal| refusal.within("filter_chains.filters");
    let Some(config) = &filter.typed_config else {
        return Err(place(Refusal::at("typed_config", "there is none")));
    };
    let manager: HttpConnectionManager = unpack(config, HTTP_CONNECTION_MANAGER).map_err(place)?;
    for (index, filter) in manager.http_filters.iter().enumerate() {
        let place =
            |refusal: Refusal| place(refusal.within(&format!("http_filters[{index}] ({})", filter.name)));
        let Some(config) = &filter.typed_config else {
            return Err(place(Refusal::at("typed_config", "there is none")));
        };
        if type_of(config) != ROUTER && !is_telemetry(config, &TUNNEL_FILTERS).map_err(place)? {
            return Err(place(Refusal::new(format!("{} is not supported here", type_of(config)))));
        }
    }
    Ok(())
}

fn originate(chain: &FilterChain, name: &str) -> Result<(), Refusal> {
    for (index, filter) in chain.filters.iter().enumerate() {
        let place = |refusal: Refusal| refusal.within_item("filters", index).within("filter_chains");
        let Some(config) = &filter.typed_config else {
            return Err(place(Refusal::at("typed_config", "there is none")));
        };
        if type_of(config) != TCP_PROXY {
            if !is_telemetry(config, &TUNNEL_FILTERS).map_err(place)? {
                return Err(place(Refusal::new(format!("{} is not supported here", type_of(config)))));
            }
            continue;
        }
        let proxy: TcpProxy = unpack(config, TCP_PROXY).map_err(place)?;
        if proxy.cluster != name {
            return Err(place(Refusal::at("cluster", format!("{:?} is not supported here", proxy.cluster))));
        }
    }
    Ok(())
}
