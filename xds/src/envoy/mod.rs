//! The front end that reads what an unmodified istiod sends to a waypoint: Envoy's listeners, clusters and endpoints, in
//! the one shape that istiod gives them.
//!
//! Nothing of Envoy is emulated. What the resources mean becomes routes, policies and token rules of the IR, and endpoints
//! of services. What is known to be telemetry or a detail of Envoy is skipped; anything else is refused with its path:
//! a filter chain that is not understood fails closed (its connections and requests are refused) and the rest goes on; a
//! resource that makes no sense as a whole is refused to its sender, and the last good one stays in force.
//!
//! - [`shape`]: finds fields that we do not know, in the bytes.
//! - [`listener`]: the listeners; [`destinations`]: which connections of the main one go to which filter chain.
//! - [`cluster`], [`endpoints`]: clusters and their endpoints.
//! - [`state`]: all of it, held; [`serve`]: what the workers get of it.
//! - [`chain`], [`http`]: a filter chain; [`routes`], [`rbac`], [`tokens`], [`authorizer`], [`telemetry`]: what is in it.

mod authorizer;
mod chain;
mod cluster;
mod destinations;
mod endpoints;
mod http;
mod listener;
mod names;
mod rbac;
mod refusal;
mod routes;
mod serve;
mod shape;
mod state;
mod tcp;
mod telemetry;
#[cfg(test)]
mod tests;
mod text;
mod tokens;

pub use refusal::Refusal;
pub(crate) use serve::Serving;
