//! The L7 engine: routes, policies, paths, HTTP/1.1 framing and what HTTP/2 heads become, without I/O.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod authz;
pub mod balance;
pub mod cel;
pub mod check;
pub mod fault;
pub mod filter;
pub mod grpc;
pub mod http1;
pub mod http2;
pub mod ir;
pub mod jwt;
pub mod outlier;
pub mod path;
#[cfg(test)]
mod random;
pub mod retry;
pub mod router;
pub mod session;
pub mod telemetry;
pub mod template;
