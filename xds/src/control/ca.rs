//! The certificate authority of the mesh: one root, leaves for workloads, a leaf for our own server.
//!
//! A workload certificate is P-256, carries an empty subject and exactly one URI name, the SPIFFE identity, and is
//! good for both TLS roles. What a request asks for beyond its key (names, usages, a CA flag) never reaches the
//! certificate. A node receives certificates only for service accounts of pods bound to it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use model::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::crypto::SecureRandom;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;

use super::files::{self, FileError};
use super::view::ClusterView;

pub const ROOT_CERTIFICATE_FILE: &str = "root-cert.pem";
pub const ROOT_KEY_FILE: &str = "root-key.pem";

const ROOT_LIFETIME: Duration = Duration::from_hours(3650 * 24);
/// Certificates begin a little in the past, for peers whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_mins(2);
/// RFC 5280 section 4.1.2.2 allows 20 bytes.
const SERIAL_BYTES: usize = 16;
/// A request for a P-256 key takes about 400 bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Object identifier of the curve P-256, RFC 5480 section 2.1.1.1.
const CURVE_P256: &str = "1.2.840.10045.3.1.7";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{present} exists but {absent} does not; restore it, or remove both to make a new root")]
    HalfRoot { present: String, absent: String },
    #[error(
        "{file}: {reason}; put a CA certificate and its P-256 key there, or remove both to make new ones"
    )]
    Root { file: String, reason: String },
    #[error("the certificate request is refused: {0}")]
    Request(String),
    #[error("cannot make a certificate: {0}")]
    Issue(String),
}

/// Root certificate and key, and how long leaves live.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_der: CertificateDer<'static>,
    root_end: OffsetDateTime,
    random: &'static dyn SecureRandom,
    leaf_lifetime: Duration,
    leaf_lifetime_max: Duration,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("root_end", &self.root_end).finish_non_exhaustive()
    }
}

/// Lifetimes of workload certificates.
#[derive(Debug, Clone, Copy)]
pub struct LeafLifetimes {
    /// Where the request names none.
    pub usual: Duration,
    /// The most that a request can get.
    pub longest: Duration,
}

impl CertificateAuthority {
    /// A new root, known to nobody yet.
    pub fn generate(
        organization: &str,
        lifetimes: LeafLifetimes,
        random: &'static dyn SecureRandom,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let (certificate, key) = new_root(organization, random, now.into())?;
        Self::from_parts(&certificate.pem(), key, lifetimes, random)
    }

    /// The root of a folder, made and stored there if the folder has none.
    pub fn load_or_generate(
        directory: &Path,
        organization: &str,
        lifetimes: LeafLifetimes,
        random: &'static dyn SecureRandom,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let certificate_path = directory.join(ROOT_CERTIFICATE_FILE);
        let key_path = directory.join(ROOT_KEY_FILE);
        match (certificate_path.exists(), key_path.exists()) {
            (false, false) => {
                files::private_directory(directory)?;
                let (certificate, key) = new_root(organization, random, now.into())?;
                // The key first: a crash in between leaves half a root, which the next start refuses by name.
                files::write_private(&key_path, key.serialize_pem().as_bytes())?;
                files::write_public(&certificate_path, certificate.pem().as_bytes())?;
                Self::from_parts(&certificate.pem(), key, lifetimes, random)
            }
            (true, true) => {
                let root = |path: &Path, reason: String| AuthorityError::Root {
                    file: path.display().to_string(),
                    reason,
                };
                let key = KeyPair::from_pem(&files::read_private(&key_path)?)
                    .map_err(|error| root(&key_path, error.to_string()))?;
                let pem = std::fs::read_to_string(&certificate_path)
                    .map_err(|source| FileError::new("read", &certificate_path, source))?;
                let authority = Self::from_parts(&pem, key, lifetimes, random)?;
                if authority.root_end <= OffsetDateTime::from(now) {
                    return Err(root(&certificate_path, format!("it expired at {}", authority.root_end)));
                }
                Ok(authority)
            }
            (certificate, _) => {
                let (present, absent) =
                    if certificate { (certificate_path, key_path) } else { (key_path, certificate_path) };
                Err(AuthorityError::HalfRoot {
                    present: present.display().to_string(),
                    absent: absent.display().to_string(),
                })
            }
        }
    }

    fn from_parts(
        root_pem: &str,
        key: KeyPair,
        lifetimes: LeafLifetimes,
        random: &'static dyn SecureRandom,
    ) -> Result<Self, AuthorityError> {
        let refuse = |reason: String| AuthorityError::Root { file: ROOT_CERTIFICATE_FILE.to_owned(), reason };
        let (_, pem) = x509_parser::pem::parse_x509_pem(root_pem.as_bytes())
            .map_err(|error| refuse(error.to_string()))?;
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&pem.contents)
            .map_err(|error| refuse(error.to_string()))?;
        if !certificate.is_ca() {
            return Err(refuse(String::from("it is not the certificate of an authority")));
        }
        if certificate.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(refuse(format!("its key is not the one of {ROOT_KEY_FILE}")));
        }
        let root_end = certificate.validity().not_after.to_datetime();
        let root_der = CertificateDer::from(pem.contents.clone());
        let issuer = Issuer::from_ca_cert_der(&root_der, key).map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            issuer,
            root_pem: root_pem.to_owned(),
            root_der,
            root_end,
            random,
            leaf_lifetime: lifetimes.usual,
            leaf_lifetime_max: lifetimes.longest,
        })
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root_der
    }

    /// Signs the key of a request for an identity; the chain is leaf, then root, in PEM.
    ///
    /// The caller has made sure that the requester may have this identity.
    pub fn sign_workload(
        &self,
        request: &SigningRequest,
        identity: &Identity,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<Vec<String>, AuthorityError> {
        let uri = Ia5String::try_from(identity.uri()).map_err(issue)?;
        let lifetime = lifetime.unwrap_or(self.leaf_lifetime).min(self.leaf_lifetime_max);
        let now = OffsetDateTime::from(now);
        let params = self.leaf(vec![SanType::URI(uri)], now, now + lifetime)?;
        let certificate = params.signed_by(&request.params.public_key, &self.issuer).map_err(issue)?;
        Ok(vec![certificate.pem(), self.root_pem.clone()])
    }

    /// A certificate for a server of ours with these DNS names; its key exists only in memory, so it may live as
    /// long as the root.
    pub fn server_certificate(
        &self,
        dns_names: &[&str],
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let key = KeyPair::generate().map_err(issue)?;
        let names = dns_names
            .iter()
            .map(|name| Ok(SanType::DnsName(Ia5String::try_from(*name).map_err(issue)?)))
            .collect::<Result<Vec<_>, AuthorityError>>()?;
        let params = self.leaf(names, now.into(), self.root_end)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((vec![certificate.der().clone(), self.root_der.clone()], key))
    }

    fn leaf(
        &self,
        names: Vec<SanType>,
        now: OffsetDateTime,
        end: OffsetDateTime,
    ) -> Result<CertificateParams, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial_number(self.random)?);
        params.not_before = now - CLOCK_SKEW;
        // A leaf that outlives its root would fail without any sign of why.
        params.not_after = end.min(self.root_end);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn new_root(
    organization: &str,
    random: &'static dyn SecureRandom,
    now: OffsetDateTime,
) -> Result<(Certificate, KeyPair), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.serial_number = Some(serial_number(random)?);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(issue)?;
    Ok((certificate, key))
}

fn serial_number(random: &'static dyn SecureRandom) -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; SERIAL_BYTES];
    random.fill(&mut bytes).map_err(|_| issue("the system gives no randomness"))?;
    // Positive and of full length, RFC 5280 section 4.1.2.2.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn issue(error: impl ToString) -> AuthorityError {
    AuthorityError::Issue(error.to_string())
}

/// A certificate request whose signature proves possession of a P-256 key.
#[derive(Debug)]
pub struct SigningRequest {
    params: CertificateSigningRequestParams,
    /// The identity that its only URI name asks for.
    identity: Option<Identity>,
}

impl SigningRequest {
    pub fn parse(pem: &str) -> Result<Self, AuthorityError> {
        let refuse = |reason: &dyn ToString| AuthorityError::Request(reason.to_string());
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(refuse(&format!("it has {} bytes, more than {REQUEST_BYTES_MAX}", pem.len())));
        }
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| refuse(&error))?;
        let (_, raw) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents)
                .map_err(|error| refuse(&error))?;
        let key = &raw.certification_request_info.subject_pki;
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if curve.is_none_or(|curve| curve.to_id_string() != CURVE_P256) {
            return Err(refuse(&"its key is not ECDSA on the curve P-256"));
        }
        // The signature is verified here, over the very bytes parsed above.
        let der = block.contents.as_slice().into();
        let params = CertificateSigningRequestParams::from_der(&der).map_err(|error| refuse(&error))?;
        let point = params.public_key.der_bytes();
        if params.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256
            || point.len() != 65
            || point.first() != Some(&4)
        {
            return Err(refuse(&"it is not signed with ECDSA and SHA-256 by an uncompressed P-256 key"));
        }
        let identity = match params.params.subject_alt_names.as_slice() {
            [] => None,
            [SanType::URI(uri)] => Some(uri.as_str().parse().map_err(|error| refuse(&error))?),
            _ => return Err(refuse(&"it names more than one URI")),
        };
        Ok(Self { params, identity })
    }

    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }
}

/// True if a pod bound to `node` runs as `identity`.
pub fn runs_on(view: &ClusterView, node: &str, identity: &Identity) -> bool {
    view.pods.values().any(|pod| *pod.node == *node && pod.identity == *identity)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::UnixTime;

    use super::*;

    const LIFETIMES: LeafLifetimes =
        LeafLifetimes { usual: Duration::from_hours(24), longest: Duration::from_hours(48) };

    fn random() -> &'static dyn SecureRandom {
        rustls::crypto::aws_lc_rs::default_provider().secure_random
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::generate("cluster.local", LIFETIMES, random(), SystemTime::now()).unwrap()
    }

    fn request_for(key: &KeyPair, names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            names.iter().map(|name| SanType::URI(Ia5String::try_from(*name).unwrap())).collect();
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn leaf_carries_the_identity_and_nothing_of_the_request() {
        let authority = authority();
        let key = KeyPair::generate().unwrap();
        let identity = Identity::new("cluster.local", "app", "client").unwrap();
        let request = SigningRequest::parse(&request_for(&key, &[identity.uri()])).unwrap();
        assert_eq!(request.identity(), Some(&identity));
        let chain = authority.sign_workload(&request, &identity, None, SystemTime::now()).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(chain[1], authority.root_pem());

        let leaf = der(&chain[0]);
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
        assert_eq!(certificate.public_key().subject_public_key.data, key.public_key_raw());
        assert_eq!(certificate.subject().iter().count(), 0);
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert!(matches!(
            names.as_slice(),
            [x509_parser::extensions::GeneralName::URI("spiffe://cluster.local/ns/app/sa/client")]
        ));
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(!certificate.is_ca());
        let validity = certificate.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(seconds, 24 * 3600 + 120);
        verifies(&authority, &leaf);
    }

    fn verifies(authority: &CertificateAuthority, leaf: &[u8]) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root_der().clone()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            std::sync::Arc::new(roots),
            std::sync::Arc::new(provider),
        )
        .build()
        .unwrap();
        verifier.verify_client_cert(&leaf.to_vec().into(), &[], UnixTime::now()).unwrap();
    }

    #[test]
    fn lifetime_is_honoured_up_to_the_bound() {
        let authority = authority();
        let request = SigningRequest::parse(&request_for(&KeyPair::generate().unwrap(), &[])).unwrap();
        let identity = Identity::new("cluster.local", "app", "client").unwrap();
        let now = SystemTime::now();
        for (asked, granted) in [(60, 60), (999_999_999, 48 * 3600)] {
            let asked = Some(Duration::from_secs(asked));
            let chain = authority.sign_workload(&request, &identity, asked, now).unwrap();
            let leaf = der(&chain[0]);
            let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
            let end = certificate.validity().not_after.timestamp();
            assert_eq!(end, (OffsetDateTime::from(now) + Duration::from_secs(granted)).unix_timestamp());
        }
    }

    #[test]
    fn bad_requests_are_refused_with_a_reason() {
        let key = KeyPair::generate().unwrap();
        let good = request_for(&key, &["spiffe://cluster.local/ns/app/sa/client"]);
        // One bit of the signature's last byte: the tail of the base64 text carries it.
        let block = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap().1;
        let mut forged = block.contents;
        *forged.last_mut().unwrap() ^= 1;
        let forged = pem_of(&forged);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let cases = [
            (String::from("no PEM at all"), ""),
            (forged, "signature"),
            (request_for(&p384, &[]), "P-256"),
            (request_for(&key, &["https://example.com"]), "spiffe://"),
            (request_for(&key, &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/b/sa/d"]), "more than one"),
            ("x".repeat(REQUEST_BYTES_MAX + 1), "bytes"),
        ];
        for (request, reason) in cases {
            let error = SigningRequest::parse(&request).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
        SigningRequest::parse(&good).unwrap();
    }

    fn pem_of(der: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let body = lines.join("\n");
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    }

    #[test]
    fn root_in_a_folder_survives_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        let load =
            |now| CertificateAuthority::load_or_generate(&path, "cluster.local", LIFETIMES, random(), now);
        let first = load(SystemTime::now()).unwrap();
        let second = load(SystemTime::now()).unwrap();
        assert_eq!(first.root_pem(), second.root_pem());
        let request = SigningRequest::parse(&request_for(&KeyPair::generate().unwrap(), &[])).unwrap();
        let identity = Identity::new("cluster.local", "app", "client").unwrap();
        let chain = second.sign_workload(&request, &identity, None, SystemTime::now()).unwrap();
        verifies(&first, &der(&chain[0]));

        let late = SystemTime::now() + ROOT_LIFETIME + Duration::from_secs(1);
        assert!(load(late).unwrap_err().to_string().contains("expired"));
        std::fs::remove_file(path.join(ROOT_CERTIFICATE_FILE)).unwrap();
        let half = load(SystemTime::now()).unwrap_err().to_string();
        assert!(half.contains(ROOT_KEY_FILE) && half.contains("remove both"), "{half}");
        let foreign = authority();
        std::fs::write(path.join(ROOT_CERTIFICATE_FILE), foreign.root_pem()).unwrap();
        assert!(load(SystemTime::now()).unwrap_err().to_string().contains("not the one"));
    }

    #[test]
    fn fuzz_request_parser_never_panics() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let _ = SigningRequest::parse(&pem_of(bytes)).map_err(|error| error.to_string());
        });
    }
}
