//! The tunnel: TLS 1.3 with SPIFFE identities, HTTP/2, HBONE CONNECT, pool decisions. No sockets, no clock.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod session;
pub mod tls;
pub mod h2;
