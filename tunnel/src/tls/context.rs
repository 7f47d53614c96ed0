//! The rustls configurations of the two roles, built once per set of credentials.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use model::identity::Identity;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{IpAddr, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use super::TlsError;
use super::credentials::Credentials;
use super::verifier::{Expectation, Verifier};

/// The only application protocol: HTTP/2, RFC 9113 section 3.2.
pub(super) const ALPN: &[u8] = b"h2";

/// Which versions and key exchanges may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CryptoPolicy {
    /// X25519, P-256, P-384 and the hybrid X25519MLKEM768, in this order.
    #[default]
    Standard,
    /// The same, and TLS 1.2 with ECDHE and AES-GCM for peers that have nothing newer.
    StandardAndTls12,
    /// Only the hybrid, against an adversary who records now and has a quantum computer later.
    PostQuantum,
}

impl CryptoPolicy {
    fn groups(self) -> Vec<&'static dyn SupportedKxGroup> {
        match self {
            // A client sends one key share, for the first of its list.
            Self::Standard | Self::StandardAndTls12 => {
                vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768]
            }
            Self::PostQuantum => vec![kx_group::X25519MLKEM768],
        }
    }

    fn cipher_suites(self) -> Vec<SupportedCipherSuite> {
        let mut suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256];
        if self == Self::StandardAndTls12 {
            suites.extend([
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ]);
        }
        suites
    }

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static NEW: [&SupportedProtocolVersion; 1] = [&TLS13];
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Standard | Self::PostQuantum => &NEW,
            Self::StandardAndTls12 => &BOTH,
        }
    }

    /// One provider per policy for the life of the process; building one copies tables.
    fn provider(self) -> Arc<CryptoProvider> {
        static STANDARD: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
        static STANDARD_AND_TLS12: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
        static POST_QUANTUM: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
        let slot = match self {
            Self::Standard => &STANDARD,
            Self::StandardAndTls12 => &STANDARD_AND_TLS12,
            Self::PostQuantum => &POST_QUANTUM,
        };
        let build = || {
            Arc::new(CryptoProvider {
                cipher_suites: self.cipher_suites(),
                kx_groups: self.groups(),
                ..default_provider()
            })
        };
        Arc::clone(slot.get_or_init(build))
    }
}

/// The provider for what does not depend on the policy: keys and signatures.
pub(super) fn provider() -> &'static CryptoProvider {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| CryptoPolicy::Standard.provider())
}

/// What an accepting workload needs for each handshake. Cheap to clone.
#[derive(Clone)]
pub struct ServerContext {
    identity: Identity,
    config: Arc<ServerConfig>,
}

impl ServerContext {
    /// Accepts peers of the credentials' own trust domain that chain to their roots.
    pub fn new(credentials: &Credentials, policy: CryptoPolicy) -> Result<Self, TlsError> {
        Self::with(credentials, policy.provider(), policy.versions())
    }

    /// One that speaks nothing but this suite, in its version.
    #[cfg(test)]
    pub(crate) fn of_suite(credentials: &Credentials, suite: SupportedCipherSuite) -> Self {
        Self::with(credentials, provider_of(suite), &[suite.version()]).unwrap()
    }

    fn with(
        credentials: &Credentials,
        provider: Arc<CryptoProvider>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, TlsError> {
        let verifier = Verifier::new(credentials.clone(), Expectation::OwnTrustDomain);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|e| TlsError::Internal(e.to_string()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(certificate(credentials)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.require_ems = true;
        config.enable_secret_extraction = true;
        Ok(Self { identity: credentials.identity().clone(), config: Arc::new(config) })
    }

    /// The same, reading the wall clock from `time`: for simulations.
    #[must_use]
    pub fn with_time(&self, time: Arc<dyn TimeProvider>) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.time_provider = time;
        Self { identity: self.identity.clone(), config: Arc::new(config) }
    }

    /// Who we are in this role.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn connection(&self) -> Result<UnbufferedServerConnection, TlsError> {
        UnbufferedServerConnection::new(Arc::clone(&self.config))
            .map_err(|e| TlsError::Internal(e.to_string()))
    }
}

impl fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerContext").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What a dialling workload needs for each handshake. Cheap to clone.
#[derive(Clone)]
pub struct ClientContext {
    credentials: Credentials,
    config: Arc<ClientConfig>,
}

impl ClientContext {
    pub fn new(credentials: &Credentials, policy: CryptoPolicy) -> Result<Self, TlsError> {
        Self::with(credentials, policy.provider(), policy.versions())
    }

    /// One that speaks nothing but this suite, in its version.
    #[cfg(test)]
    pub(crate) fn of_suite(credentials: &Credentials, suite: SupportedCipherSuite) -> Self {
        Self::with(credentials, provider_of(suite), &[suite.version()]).unwrap()
    }

    fn with(
        credentials: &Credentials,
        provider: Arc<CryptoProvider>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, TlsError> {
        // Nobody is expected until a connection names whom it expects.
        let nobody = Verifier::new(credentials.clone(), Expectation::OneOf(Arc::from([])));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|e| TlsError::Internal(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody))
            .with_client_cert_resolver(Arc::new(certificate(credentials)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        // RFC 7627: without it the keys of TLS 1.2 are not bound to the certificates.
        config.require_ems = true;
        config.enable_secret_extraction = true;
        Ok(Self { credentials: credentials.clone(), config: Arc::new(config) })
    }

    /// The same, reading the wall clock from `time`: for simulations.
    #[must_use]
    pub fn with_time(&self, time: Arc<dyn TimeProvider>) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.time_provider = time;
        Self { credentials: self.credentials.clone(), config: Arc::new(config) }
    }

    /// Who we are in this role.
    pub fn identity(&self) -> &Identity {
        self.credentials.identity()
    }

    /// A connection that accepts a server of one of the identities `expected`, and no other.
    pub(super) fn connection(
        &self,
        expected: &Arc<[Identity]>,
    ) -> Result<UnbufferedClientConnection, TlsError> {
        let expectation = Expectation::OneOf(Arc::clone(expected));
        let verifier = Verifier::new(self.credentials.clone(), expectation);
        let mut config = ClientConfig::clone(&self.config);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        // rustls wants a name; an address is never sent as SNI, and the verifier does not look at it.
        let name = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        UnbufferedClientConnection::new(Arc::new(config), name).map_err(|e| TlsError::Internal(e.to_string()))
    }
}

impl fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientContext").field("identity", self.identity()).finish_non_exhaustive()
    }
}

fn certificate(credentials: &Credentials) -> SingleCertAndKey {
    SingleCertAndKey::from(Arc::clone(&credentials.shared.certified_key))
}

#[cfg(test)]
pub(super) fn provider_of(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() })
}
