//! TLS 1.3, and TLS 1.2 where it is asked for, with SPIFFE identities on both sides.
//!
//! rustls carries the handshake and, afterwards, only the key schedule; the records in between are sealed and
//! opened here, in the caller's buffers ([`record`]). The rules of this module:
//!
//! - Both peers present a certificate. A peer is known by the one SPIFFE URI in it and by nothing else: no
//!   server name is sent or compared.
//! - A [`VerifiedIdentity`] exists only behind a finished handshake: its field is private to the verifier, and
//!   the handshake hands it out after the peer proved possession of the key.
//! - Nothing is resumed. A ticket would let a peer come back without showing its certificate again, past its
//!   revocation.

mod context;
mod credentials;
mod error;
mod handshake;
pub mod record;
mod revocation;
mod suite;
mod verified;
mod verifier;

pub use context::{ClientContext, CryptoPolicy, ServerContext};
pub use credentials::{Credentials, CredentialsError};
pub use error::{AlertCode, CloseCause, TlsError, VerifyError};
pub use handshake::{Established, Handshake, Progress};
pub use revocation::{REVOCATION_BYTES_MAX, REVOCATION_LISTS_MAX, RevocationError, RevocationLists};
pub use suite::{CipherSuite, TlsVersion};
pub use verifier::VerifiedIdentity;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
