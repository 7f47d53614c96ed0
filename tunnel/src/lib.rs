//! The tunnel: TLS 1.3 with SPIFFE identities, HTTP/2, HBONE CONNECT, pool decisions; TLS to backends outside the
//! mesh's trust. No sockets, no clock.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod backend_tls;
pub mod h2;
pub mod hbone;
pub mod pool;
pub mod proxy_protocol;
pub mod session;
pub mod sniff;
pub mod tls;
