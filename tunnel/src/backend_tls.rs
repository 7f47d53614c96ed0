//! TLS to a backend that is no workload of the mesh's trust: names of the web's kind, authorities of the operator's
//! choice. The client has no certificate here.
//!
//! Bytes in, bytes out: the caller moves them. Nothing may be sent before the handshake has ended, so that nothing of
//! a request goes to a backend that has not proved its name.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

/// A name that a certificate may bear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedName {
    /// May begin with `*.`, which stands for one label.
    Dns(Arc<str>),
    Uri(Arc<str>),
}

/// Why there is no way to speak to a backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendTlsError {
    #[error("{0:?} is no server name")]
    Name(Arc<str>),
    #[error("the authorities are not PEM: {0}")]
    Pem(String),
    #[error("there is no authority to trust")]
    NoAuthority,
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Certificates that vouch for backends.
#[derive(Clone)]
pub struct Authorities(Arc<RootCertStore>);

/// What is needed for each connection to a backend. Cheap to clone.
#[derive(Clone)]
pub struct BackendContext {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// One connection to a backend.
pub struct BackendSession {
    tls: ClientConnection,
}

/// What [`BackendSession::read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    Bytes(usize),
    /// The peer has said that it sends no more.
    Ended,
    /// More must be received first.
    Nothing,
}

// === impl Authorities ===

impl Authorities {
    /// Those of a text in PEM.
    pub fn from_pem(text: &str) -> Result<Self, BackendTlsError> {
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let certificates: Vec<_> = certificates
            .collect::<Result<_, _>>()
            .map_err(|error| BackendTlsError::Pem(error.to_string()))?;
        Self::new(certificates)
    }

    /// Those that can be read of `certificates`, of which a system's list may hold some oddities.
    pub fn new(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BackendTlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates);
        if store.is_empty() { Err(BackendTlsError::NoAuthority) } else { Ok(Self(Arc::new(store))) }
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("count", &self.0.len()).finish()
    }
}

// === impl BackendContext ===

impl BackendContext {
    /// The server is asked for as `hostname`, and its certificate must bear one of `names`; without any, `hostname`.
    /// `protocols` are offered by ALPN, the best first.
    pub fn new(
        hostname: &Arc<str>,
        names: &[ExpectedName],
        authorities: &Authorities,
        protocols: &[&[u8]],
    ) -> Result<Self, BackendTlsError> {
        let name = DnsName::try_from(hostname.to_string());
        let name = ServerName::DnsName(name.map_err(|_| BackendTlsError::Name(hostname.clone()))?);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            Verifier { authorities: authorities.clone(), names: names.into(), provider: provider.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would not show its certificate again, whatever the policy says by then.
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), name })
    }

    pub fn start(&self) -> Result<BackendSession, BackendTlsError> {
        let mut tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        // What is sealed is fetched after every write, so nothing piles up.
        tls.set_buffer_limit(None);
        Ok(BackendSession { tls })
    }
}

impl fmt::Debug for BackendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendContext").field("name", &self.name).finish_non_exhaustive()
    }
}

// === impl BackendSession ===

impl BackendSession {
    /// True until the peer has proved its name.
    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// The protocol that was agreed on.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Takes bytes of the peer, up to the first that open: how many it took. The rest is to be offered again when what
    /// is opened has been [read](Self::read). An error ends the connection; what there is to send then is an alert.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<usize, BackendTlsError> {
        let mut rest = bytes;
        while !rest.is_empty() && self.tls.process_new_packets()?.plaintext_bytes_to_read() == 0 {
            // Reading from a slice does not fail, and there is room: nothing waits to be read.
            if self.tls.read_tls(&mut rest).unwrap_or(0) == 0 {
                break;
            }
            self.tls.process_new_packets()?;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Opened bytes.
    pub fn read(&mut self, out: &mut [u8]) -> Opened {
        match self.tls.reader().read(out) {
            Ok(0) if out.is_empty() => Opened::Nothing,
            Ok(0) => Opened::Ended,
            Ok(count) => Opened::Bytes(count),
            Err(error) => {
                debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Opened::Nothing
            }
        }
    }

    /// Seals bytes for the peer; to be called only once the handshake has ended.
    pub fn write(&mut self, bytes: &[u8]) {
        // Without a limit everything is taken.
        if !self.tls.is_handshaking() {
            drop(self.tls.writer().write_all(bytes));
        }
    }

    /// Tells the peer that no more will be sent.
    pub fn finish(&mut self) {
        self.tls.send_close_notify();
    }

    /// Appends what there is to send.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.tls.wants_write() {
            // A vector takes everything.
            if self.tls.write_tls(out).unwrap_or(0) == 0 {
                break;
            }
        }
    }

    pub fn has_output(&self) -> bool {
        self.tls.wants_write()
    }
}

impl fmt::Debug for BackendSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendSession").field("handshaking", &self.is_handshaking()).finish_non_exhaustive()
    }
}

// === Verification ===

struct Verifier {
    authorities: Authorities,
    names: Arc<[ExpectedName]>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let roots = &self.authorities.0;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        if self.names.is_empty() {
            verify_server_name(&certificate, server_name)?;
        } else if !self.names.iter().any(|name| bears(end_entity, &certificate, name)) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn bears(der: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>, expected: &ExpectedName) -> bool {
    match expected {
        ExpectedName::Dns(name) => match name.strip_prefix("*.") {
            None => ServerName::try_from(&**name).is_ok_and(|name| verify_server_name(parsed, &name).is_ok()),
            Some(domain) => EndEntityCert::try_from(der).is_ok_and(|certificate| {
                certificate
                    .valid_dns_names()
                    .any(|own| own.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)))
            }),
        },
        ExpectedName::Uri(uri) => EndEntityCert::try_from(der)
            .is_ok_and(|certificate| certificate.valid_uri_names().any(|own| own == &**uri)),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn issuer() -> Issuer {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A server with a certificate of these names.
    fn server(issuer: &Issuer, names: &[SanType]) -> ServerConnection {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = names.to_vec();
        let certificate = params.signed_by(&key, issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        ServerConnection::new(Arc::new(config)).unwrap()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    fn context(issuer: &Issuer, names: &[ExpectedName]) -> BackendContext {
        let authorities = Authorities::from_pem(&issuer.pem()).unwrap();
        BackendContext::new(&"web.one.example".into(), names, &authorities, &[b"http/1.1"]).unwrap()
    }

    /// Moves bytes both ways until neither has any.
    fn settle(client: &mut BackendSession, server: &mut ServerConnection) -> Result<(), BackendTlsError> {
        loop {
            let mut out = Vec::new();
            client.take_output(&mut out);
            let mut rest = &out[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                // The client may have sent an alert.
                let _ = server.process_new_packets();
            }
            let mut back = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut back).unwrap();
            }
            if out.is_empty() && back.is_empty() {
                return Ok(());
            }
            assert_eq!(client.receive(&back)?, back.len());
        }
    }

    #[test]
    fn bytes_pass_once_the_name_is_proved() {
        let issuer = issuer();
        let mut server = server(&issuer, &[dns("web.one.example")]);
        let mut client = context(&issuer, &[]).start().unwrap();
        client.write(b"too early");
        assert!(client.is_handshaking() && client.has_output());
        settle(&mut client, &mut server).unwrap();
        assert!(!client.is_handshaking());
        assert_eq!(
            (server.server_name(), client.protocol()),
            (Some("web.one.example"), Some(&b"http/1.1"[..]))
        );
        client.write(b"request");
        server.writer().write_all(b"response").unwrap();
        server.send_close_notify();
        settle(&mut client, &mut server).unwrap();
        let mut got = [0; 64];
        assert_eq!(server.reader().read(&mut got).unwrap(), 7);
        assert_eq!(&got[..7], b"request");
        assert_eq!(client.read(&mut got[..3]), Opened::Bytes(3));
        assert_eq!(client.read(&mut got[3..]), Opened::Bytes(5));
        assert_eq!(&got[..8], b"response");
        assert_eq!(client.read(&mut got), Opened::Ended);
        client.finish();
        assert!(client.has_output());
    }

    #[test]
    fn what_is_not_read_is_not_received() {
        let issuer = issuer();
        let mut server = server(&issuer, &[dns("web.one.example")]);
        let mut client = context(&issuer, &[]).start().unwrap();
        settle(&mut client, &mut server).unwrap();
        let mut wire = Vec::new();
        for _ in 0..40 {
            server.writer().write_all(&[7; 16_000]).unwrap();
            server.write_tls(&mut wire).unwrap();
        }
        let (mut rest, mut opened) = (&wire[..], 0);
        let mut got = [0; 1000];
        while opened < 640_000 {
            let taken = client.receive(rest).unwrap();
            assert!(taken < 40_000, "{taken}");
            rest = &rest[taken..];
            while let Opened::Bytes(count) = client.read(&mut got) {
                opened += count;
            }
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn whoever_bears_none_of_the_names_is_refused() {
        let issuer = issuer();
        let expect_dns = |name: &str| ExpectedName::Dns(name.into());
        let expect_uri = |name: &str| ExpectedName::Uri(name.into());
        for (borne, expected, is_good) in [
            (vec![dns("web.one.example")], vec![], true),
            (vec![dns("*.one.example")], vec![], true),
            (vec![dns("other.example")], vec![], false),
            (vec![uri("a://b")], vec![], false),
            // The name that is asked for does not count beside others.
            (vec![dns("web.one.example")], vec![expect_dns("other.example")], false),
            (vec![dns("other.example")], vec![expect_dns("other.example")], true),
            (vec![dns("a.other.example")], vec![expect_dns("*.other.example")], true),
            (vec![dns("*.other.example")], vec![expect_dns("*.other.example")], true),
            (vec![dns("a.b.other.example")], vec![expect_dns("*.other.example")], false),
            (vec![dns("other.example")], vec![expect_dns("*.other.example")], false),
            (vec![uri("a://b")], vec![expect_uri("a://b")], true),
            (vec![uri("a://b/c")], vec![expect_uri("a://b")], false),
            (vec![dns("x.example")], vec![expect_uri("a://b"), expect_dns("x.example")], true),
        ] {
            let mut server = server(&issuer, &borne);
            let mut client = context(&issuer, &expected).start().unwrap();
            let settled = settle(&mut client, &mut server);
            assert_eq!(settled.is_ok(), is_good, "{borne:?} {expected:?}: {settled:?}");
            assert_eq!(client.is_handshaking(), !is_good);
        }
    }

    #[test]
    fn authorities_are_no_others_than_those_named() {
        let (own, other) = (issuer(), issuer());
        let mut server = server(&other, &[dns("web.one.example")]);
        let mut client = context(&own, &[]).start().unwrap();
        assert!(settle(&mut client, &mut server).is_err());
        assert!(client.has_output(), "an alert");
        assert!(matches!(Authorities::from_pem("nothing"), Err(BackendTlsError::NoAuthority)));
        let torn = own.pem().replace("END", "XND");
        assert!(Authorities::from_pem(&torn).is_err());
        let authorities = Authorities::from_pem(&own.pem()).unwrap();
        assert!(BackendContext::new(&"10.0.0.1:80".into(), &[], &authorities, &[]).is_err());
    }
}
