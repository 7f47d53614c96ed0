//! The L7 engine: routes, policies, paths and HTTP/1.1 framing, without I/O.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod authz;
pub mod check;
pub mod filter;
pub mod http1;
pub mod ir;
pub mod jwt;
pub mod path;
#[cfg(test)]
mod random;
pub mod router;
pub mod template;
