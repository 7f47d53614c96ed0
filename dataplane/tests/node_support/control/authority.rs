//! The certificate authority of the scripted control plane.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use model::Identity;
use prost_types::value::Kind;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::{Request, Response, Status};
use tunnel::tls::Credentials;
use xds::control::ca::{CertificateAuthority, LeafLifetimes, ROOT_KEY_FILE, SigningRequest};
use xds::proto::ca::istio_certificate_service_server::IstioCertificateService;
use xds::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

use super::SERVER_NAME;
use super::discovery::authenticate;
use crate::node_support::PATIENCE;
use crate::node_support::pki::{Leaf, revocation_list, serial_number};

/// Signs what it is asked to, unless it is told not to.
pub struct Authority {
    inner: CertificateAuthority,
    /// The same key, for revocation lists.
    issuer: Issuer<'static, KeyPair>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Every identity that a certificate was issued to, in order.
    issued: Vec<String>,
    /// The numbers of all certificates, each with its identity.
    serials: Vec<(String, Vec<u8>)>,
    refused: BTreeSet<String>,
    lifetime: Option<Duration>,
}

impl Authority {
    /// Its files are in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        let lifetimes = LeafLifetimes { usual: Duration::from_hours(24), longest: Duration::from_hours(48) };
        let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        let now = SystemTime::now();
        let inner = CertificateAuthority::load_or_generate(folder, "cluster.local", lifetimes, random, now);
        let inner = inner.unwrap();
        let key = std::fs::read_to_string(folder.join(ROOT_KEY_FILE)).unwrap();
        let issuer = Issuer::from_ca_cert_der(inner.root_der(), KeyPair::from_pem(&key).unwrap()).unwrap();
        Self { inner, issuer, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn root_pem(&self) -> &str {
        self.inner.root_pem()
    }

    /// Identities that certificates were issued to, in order, each as often as it was.
    pub fn issued(&self) -> Vec<String> {
        self.book().issued.clone()
    }

    /// Waits until a certificate has been issued to the identity.
    pub fn until_issued(&self, identity: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.book().issued.iter().any(|issued| issued == identity) {
            assert!(Instant::now() < deadline, "no certificate for {identity}: {:?}", self.issued());
            std::thread::yield_now();
        }
    }

    /// From now on the identity gets no certificate.
    pub fn refuse(&self, identity: &str) {
        self.book().refused.insert(identity.to_owned());
    }

    /// From now on it may have one again.
    pub fn allow(&self, identity: &str) {
        self.book().refused.remove(identity);
    }

    /// The revocation list of all certificates of these identities, as PEM.
    pub fn revocation_list(&self, identities: &[&str]) -> String {
        let serials = self.book().serials.clone();
        let revoked = serials.into_iter().filter(|(identity, _)| identities.contains(&identity.as_str()));
        revocation_list(&self.issuer, revoked.map(|(_, serial)| serial))
    }

    /// From now on certificates live so long, whatever is asked for.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.book().lifetime = Some(lifetime);
    }

    /// TLS for the control plane itself.
    pub(super) fn server_config(&self) -> ServerConfig {
        let (chain, key) = self.inner.server_certificate(&[SERVER_NAME], SystemTime::now()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// A certificate of the identity, with its key; for clients that are no node proxy.
    pub fn leaf(&self, identity: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let chain = self.sign(&csr, identity, Duration::from_hours(1)).unwrap();
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        // Without the root.
        (vec![der(&chain[0])], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    /// The same for both roles of a tunnel.
    pub fn credentials(&self, identity: &str) -> Credentials {
        let (chain, key) = self.leaf(identity);
        Credentials::from_der(chain, key, std::slice::from_ref(self.inner.root_der())).unwrap()
    }

    /// Signs a request for an identity.
    fn sign(&self, csr: &str, identity: &str, lifetime: Duration) -> Result<Vec<String>, String> {
        let parsed: Identity = identity.parse().map_err(|error| format!("{identity}: {error}"))?;
        let request = SigningRequest::parse(csr).map_err(|error| error.to_string())?;
        let lifetime = {
            let mut book = self.book();
            if book.refused.contains(identity) {
                return Err(format!("{identity} gets no certificate"));
            }
            book.issued.push(identity.to_owned());
            book.lifetime.unwrap_or(lifetime)
        };
        let chain = self.inner.sign_workload(&request, &parsed, Some(lifetime), SystemTime::now());
        let chain = chain.map_err(|error| error.to_string())?;
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        self.book().serials.push((identity.to_owned(), serial_number(&leaf)));
        Ok(chain)
    }
}

pub(super) struct Certificates {
    pub(super) authority: Arc<Authority>,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        authenticate(request.metadata())?;
        let request = request.into_inner();
        let metadata = request.metadata.unwrap_or_default();
        let named = metadata.fields.get("ImpersonatedIdentity").and_then(|it| it.kind.clone());
        let identity = match named {
            Some(Kind::StringValue(identity)) => identity,
            // Who asks for himself: here the one that the request says.
            _ => SigningRequest::parse(&request.csr)
                .ok()
                .and_then(|csr| csr.identity().map(|identity| identity.uri().to_owned()))
                .ok_or_else(|| Status::invalid_argument("neither ImpersonatedIdentity nor a name"))?,
        };
        let seconds = u64::try_from(request.validity_duration).unwrap_or(0);
        let chain = self.authority.sign(&request.csr, &identity, Duration::from_secs(seconds));
        let cert_chain = chain.map_err(Status::permission_denied)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
