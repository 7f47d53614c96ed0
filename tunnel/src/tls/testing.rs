//! A certificate authority for tests, and certificates that are right or wrong in one way.

use std::sync::Arc;

use model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{ClientContext, Credentials, CryptoPolicy, ServerContext};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) years: (i32, i32),
    pub(crate) is_ca: bool,
    pub(crate) serial: u64,
    pub(crate) key: &'static SignatureAlgorithm,
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl Leaf {
    pub(crate) fn of(identity: &str) -> Self {
        Self {
            names: vec![uri(identity)],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            years: (2020, 2090),
            is_ca: false,
            serial: 7,
            key: &PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("authority")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn certificate(&self, leaf: &Leaf) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&leaf.names);
        params.extended_key_usages.clone_from(&leaf.usages);
        params.not_before = date_time_ymd(leaf.years.0, 1, 1);
        params.not_after = date_time_ymd(leaf.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.crl_distribution_points =
            vec![CrlDistributionPoint { uris: vec!["http://revocation.test/".to_owned()] }];
        if leaf.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate_for(leaf.key).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Credentials with this certificate that trust this authority, whatever is wrong with them.
    pub(crate) fn issue(&self, leaf: &Leaf) -> Credentials {
        self.issue_trusting(leaf, self)
    }

    pub(crate) fn issue_trusting(&self, leaf: &Leaf, trusted: &Self) -> Credentials {
        let (certificate, key) = self.certificate(leaf);
        let identity = SERVER.parse().unwrap();
        match Credentials::from_der(
            vec![certificate.clone()],
            key.clone_key(),
            std::slice::from_ref(&trusted.root),
        ) {
            Ok(credentials) => credentials,
            Err(_) => Credentials::from_der_unchecked(
                vec![certificate],
                key,
                std::slice::from_ref(&trusted.root),
                identity,
            ),
        }
    }

    pub(crate) fn identity(&self, identity: &str) -> Credentials {
        self.issue(&Leaf::of(identity))
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A revocation list, as PEM, that revokes one serial number.
    pub(crate) fn revoke(&self, serial: u64) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub(crate) fn client(credentials: &Credentials) -> ClientContext {
    ClientContext::new(credentials, CryptoPolicy::Standard).unwrap()
}

pub(crate) fn server(credentials: &Credentials) -> ServerContext {
    ServerContext::new(credentials, CryptoPolicy::Standard).unwrap()
}

pub(crate) fn expecting(identities: &[&str]) -> Arc<[Identity]> {
    identities.iter().map(|identity| identity.parse().unwrap()).collect()
}
