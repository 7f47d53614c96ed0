//! HBONE: a TCP connection as an HTTP/2 CONNECT stream, with what the mesh needs to know in its headers.
//!
//! What a request says is checked here, once: [`ConnectRequest::parse`] decides whether it is an HBONE request at all,
//! [`resolve`] whether it asks for something that this workload may be asked for. Nothing in the other headers
//! can make a request fail; they describe, and what cannot be read describes nothing.

mod authority;
mod baggage;
mod destination;
mod forwarded;
mod head;
mod trace;

pub use authority::{Authority, AuthorityError, Host};
pub use baggage::Baggage;
pub use destination::{Destination, DestinationError, DestinationLookup, HostnamePort, resolve};
pub use forwarded::Forwarded;
pub use head::{ConnectAnswer, ConnectHead, ConnectRequest, accept, refuse};
pub use trace::TraceParent;

#[cfg(test)]
mod fuzz;
