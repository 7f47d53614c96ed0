//! Who the peer is: chain, validity, usage and the one SPIFFE URI of its certificate.
//!
//! rustls asks the verifier about the certificate during the handshake. That answer alone proves nothing: a
//! [`VerifiedIdentity`] is made from a connection whose handshake has ended, that is, after the peer's signature
//! over the transcript and its Finished message were checked (RFC 8446 section 4.4; RFC 5246 sections 7.4.3, 7.4.8, 7.4.9).

use std::fmt;
use std::sync::Arc;

use model::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::credentials::Credentials;
use super::verified::Role;
use super::{VerifyError, context};

/// The identity of a peer that proved itself in a finished handshake.
///
/// Only this module can make one; whoever holds it needs no further check of who the peer is.
#[derive(Clone, Debug)]
pub struct VerifiedIdentity {
    identity: Identity,
    /// The certificates that proved it, leaf first: a later revocation of any of them ends the proof.
    certificates: Arc<[CertificateName]>,
}

/// Issuer and serial number, which name a certificate (RFC 5280 section 4.1.2.2).
#[derive(Debug)]
struct CertificateName {
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
}

impl VerifiedIdentity {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn into_identity(self) -> Identity {
        self.identity
    }

    /// Issuer and serial number of each certificate that proved it, leaf first.
    pub(super) fn names(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.certificates.iter().map(|certificate| (&*certificate.issuer, &*certificate.serial))
    }
}

impl fmt::Display for VerifiedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

/// Which peers pass once their chain holds.
#[derive(Debug, Clone)]
pub(super) enum Expectation {
    /// Server role: any workload of our own trust domain.
    OwnTrustDomain,
    /// Client role: exactly one of these.
    OneOf(Arc<[Identity]>),
}

/// The certificate rules of one role. Knows the roots through our own credentials.
pub(super) struct Verifier {
    credentials: Credentials,
    expectation: Expectation,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(credentials: Credentials, expectation: Expectation) -> Self {
        let algorithms = context::provider().signature_verification_algorithms;
        Self { credentials, expectation, algorithms }
    }

    /// Whether the peer of a handshake is one that may be.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let shared = &self.credentials.shared;
        let known = shared.verified.find(leaf, intermediates, role, now);
        let is_new = known.is_none();
        let peer = known.map_or_else(|| self.verify(leaf, intermediates, role, now), Ok)?;
        if is_new {
            shared.verified.keep(leaf, intermediates, role, &peer);
        }
        match &self.expectation {
            Expectation::OwnTrustDomain => {
                let own = shared.identity.trust_domain();
                if peer.trust_domain() != own {
                    return Err(VerifyError::TrustDomain { own: own.to_owned(), peer });
                }
            }
            Expectation::OneOf(expected) => {
                if !expected.contains(&peer) {
                    return Err(VerifyError::IdentityUnexpected(peer));
                }
            }
        }
        Ok(())
    }

    /// Whom the chain names, if it holds now.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Identity, VerifyError> {
        let shared = &self.credentials.shared;
        let certificate = EndEntityCert::try_from(leaf).map_err(|e| webpki_error(&e))?;
        let lists: Vec<_> = shared.revocation.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .build()
        });
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        certificate
            .verify_for_usage(self.algorithms.all, &shared.roots, intermediates, now, usage, revocation, None)
            .map_err(|e| webpki_error(&e))?;
        identity_of(leaf)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expectation", &self.expectation).finish_non_exhaustive()
    }
}

/// The workload that a certificate names.
///
/// SPIFFE X509-SVID section 2 and 5.2: exactly one URI SAN. Names of other kinds beside it are of no account; a
/// name that cannot be read makes the whole certificate unreadable, so that nothing can hide in one.
pub(super) fn identity_of(leaf: &CertificateDer<'_>) -> Result<Identity, VerifyError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
    if !rest.is_empty() {
        return Err(VerifyError::Malformed);
    }
    let mut uris = 0;
    let mut first = None;
    for extension in certificate.extensions() {
        if extension.oid != x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME {
            continue;
        }
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(VerifyError::Malformed);
        };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => {
                    uris += 1;
                    first.get_or_insert(*uri);
                }
                GeneralName::Invalid(..) => {
                    return Err(VerifyError::Malformed);
                }
                _ => {}
            }
        }
    }
    match (uris, first) {
        (1, Some(uri)) => Ok(uri.parse()?),
        (0, _) => Err(VerifyError::SanMissing),
        (count, _) => Err(VerifyError::SanMultiple(count)),
    }
}

fn webpki_error(error: &webpki::Error) -> VerifyError {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => VerifyError::Expired,
        E::CertNotValidYet { .. } => VerifyError::NotYetValid,
        E::CertRevoked => VerifyError::Revoked,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension | E::CaUsedAsEndEntity => VerifyError::Usage,
        E::BadDer
        | E::BadDerTime
        | E::ExtensionValueInvalid
        | E::InvalidCertValidity
        | E::InvalidSerialNumber
        | E::MalformedExtensions
        | E::MalformedDnsIdentifier
        | E::MalformedNameConstraint
        | E::TrailingData(_)
        | E::UnsupportedCertVersion
        | E::UnsupportedCriticalExtension => VerifyError::Malformed,
        _ => VerifyError::Untrusted,
    }
}

/// What rustls needs to choose the alert; a refused name becomes `certificate_unknown` and carries the reason.
fn rustls_error(error: VerifyError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        VerifyError::Expired => CertificateError::Expired,
        VerifyError::NotYetValid => CertificateError::NotValidYet,
        VerifyError::Untrusted => CertificateError::UnknownIssuer,
        VerifyError::Usage => CertificateError::InvalidPurpose,
        VerifyError::Revoked => CertificateError::Revoked,
        VerifyError::Malformed => CertificateError::BadEncoding,
        named => CertificateError::Other(OtherError(Arc::new(named))),
    })
}

/// The way back from [`rustls_error`], and from what rustls itself finds wrong with a certificate.
pub(super) fn verify_error(error: &CertificateError) -> VerifyError {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => VerifyError::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            VerifyError::NotYetValid
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            VerifyError::Usage
        }
        CertificateError::Revoked => VerifyError::Revoked,
        CertificateError::BadEncoding => VerifyError::Malformed,
        CertificateError::Other(OtherError(inner)) => {
            inner.downcast_ref::<VerifyError>().cloned().unwrap_or(VerifyError::Untrusted)
        }
        _ => VerifyError::Untrusted,
    }
}

/// The proof for the peer of a connection whose handshake is over.
///
/// Must only be called with the chain that rustls kept from a completed, not resumed handshake.
pub(super) fn proven(chain: &[CertificateDer<'_>]) -> Result<VerifiedIdentity, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::SanMissing)?;
    let name = |der| {
        let certificate = EndEntityCert::try_from(der).map_err(|e| webpki_error(&e))?;
        Ok(CertificateName { issuer: certificate.issuer().into(), serial: certificate.serial().into() })
    };
    let certificates: Result<Arc<[_]>, VerifyError> = chain.iter().map(name).collect();
    Ok(VerifiedIdentity { identity: identity_of(leaf)?, certificates: certificates? })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, Role::Server, now).map_err(rustls_error)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// Names of acceptable authorities are left out: a workload has one certificate, there is nothing to choose.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, Role::Client, now).map_err(rustls_error)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }
}
