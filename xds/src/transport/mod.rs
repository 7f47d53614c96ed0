//! Connections to the control plane: gRPC over TLS over TCP or a Unix socket.
//!
//! Roots and tokens are read from their files anew for each connection, so that rotating them needs no restart.
//! [`discovery`] drives the delta client over such a connection; the certificate client of [`crate::ca`] uses the same.

pub mod discovery;
mod recording;
mod token_keys;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Longest time for the connection, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between pings on an open connection.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a ping.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest message taken from the control plane.
pub const MESSAGE_BYTES_MAX: usize = 200 * 1024 * 1024;
/// Longest token taken from a file.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Where the control plane is and how it proves itself.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: ServerAddress,
    /// Name that its certificate must carry.
    pub server_name: String,
    pub roots: Roots,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Certificates that the control plane's own may chain to, in PEM.
#[derive(Debug, Clone)]
pub enum Roots {
    File(PathBuf),
    Pem(Arc<[u8]>),
    /// What this machine trusts.
    System,
}

/// What the control plane knows us by.
#[derive(Clone, Default)]
pub enum Token {
    #[default]
    None,
    /// Read anew for each request: tokens are short-lived.
    File(PathBuf),
    Literal(Arc<str>),
}

/// What proves us to the control plane, as request headers.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Sent as `authorization: Bearer`.
    pub token: Token,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// Sent as they are.
    pub headers: Vec<(String, String)>,
}

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(
        "address {0:?} is not of the form https://HOST[:PORT] or unix:PATH; correct XDS_ADDRESS or CA_ADDRESS"
    )]
    Address(String),
    #[error("{path}: {error}; the control plane cannot be reached without it")]
    File { path: PathBuf, error: io::Error },
    #[error("{from}: {what}; put the PEM of the control plane's root certificate there")]
    Roots { from: String, what: String },
    #[error("{what} cannot be sent as a header; it must be one line of visible ASCII")]
    Header { what: String },
    #[error("{0:?} is not a name that a certificate can carry")]
    ServerName(String),
    #[error("TLS settings are refused: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot connect to {address}: {}", chain(error))]
    Connect { address: String, error: tonic::transport::Error },
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

// === impl Server ===

impl Server {
    /// Reads `https://HOST[:PORT]` or `unix:PATH`. The certificate must carry `server_name` if given, else the host.
    pub fn parse(address: &str, server_name: Option<&str>, roots: Roots) -> Result<Self, TransportError> {
        let bad = || TransportError::Address(address.to_owned());
        if let Some(path) = address.strip_prefix("unix:") {
            let server_name = server_name.ok_or_else(bad)?.to_owned();
            return Ok(Self { address: ServerAddress::Unix(path.into()), server_name, roots });
        }
        let uri: Uri = address.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(bad)?;
        // An IPv6 address stands in brackets in an URI only.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let server_name = server_name.unwrap_or(&host).to_owned();
        Ok(Self { address: ServerAddress::Tcp { host, port }, server_name, roots })
    }

    /// Connects, the TLS handshake included.
    pub async fn connect(&self) -> Result<Channel, TransportError> {
        let tls = TlsConnector::from(Arc::new(self.tls_config()?));
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|_| TransportError::ServerName(self.server_name.clone()))?;
        let address = self.address.clone();
        // The URI becomes the :authority of requests; the connector below knows where to go.
        let is_ipv6 = self.server_name.parse::<std::net::Ipv6Addr>().is_ok();
        let authority = if is_ipv6 { format!("[{}]", self.server_name) } else { self.server_name.clone() };
        let uri = format!("https://{authority}")
            .parse::<Uri>()
            .map_err(|_| TransportError::ServerName(self.server_name.clone()))?;
        Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                dial(address.clone(), tls.clone(), name.clone())
            }))
            .await
            .map_err(|error| TransportError::Connect { address: self.address.to_string(), error })
    }

    fn tls_config(&self) -> Result<ClientConfig, TransportError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.read()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A byte stream of either kind.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn dial(
    address: ServerAddress,
    tls: TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TokioIo<TlsStream<Pin<Box<dyn Io>>>>> {
    let stream: Pin<Box<dyn Io>> = match address {
        ServerAddress::Tcp { host, port } => {
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Box::pin(stream)
        }
        ServerAddress::Unix(path) => Box::pin(UnixStream::connect(path).await?),
    };
    Ok(TokioIo::new(tls.connect(name, stream).await?))
}

// === impl Roots ===

impl Roots {
    pub(crate) fn read(&self) -> Result<RootCertStore, TransportError> {
        let (from, pem) = match self {
            Self::File(path) => (path.display().to_string(), read(path)?),
            Self::Pem(pem) => ("the given PEM".to_owned(), pem.to_vec()),
            Self::System => return system_roots(),
        };
        let fault = |what: String| TransportError::Roots { from: from.clone(), what };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| fault(error.to_string()))?;
            store.add(certificate).map_err(|error| fault(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(fault("no certificate in it".to_owned()));
        }
        Ok(store)
    }
}

/// Certificates of this machine that cannot be read are left out, unless none is left.
fn system_roots() -> Result<RootCertStore, TransportError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let what = if errors.is_empty() { "there is none".to_owned() } else { errors.join("; ") };
        return Err(TransportError::Roots { from: "the trust store of this machine".to_owned(), what });
    }
    Ok(store)
}

fn read(path: &Path) -> Result<Vec<u8>, TransportError> {
    fs::read(path).map_err(|error| TransportError::File { path: path.to_owned(), error })
}

// === impl Token ===

/// In words, without the token itself.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("a client without token"),
            Self::File(path) => write!(f, "the token in {}", path.display()),
            Self::Literal(_) => f.write_str("the given token"),
        }
    }
}

/// Without the token itself.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// The headers for one request, with the token that the file holds now.
    pub fn metadata(&self) -> Result<MetadataMap, TransportError> {
        let mut metadata = MetadataMap::new();
        let (token, from) = match &self.token {
            Token::None => (None, String::new()),
            Token::File(path) => {
                let text = String::from_utf8(read(path)?).unwrap_or_default();
                (Some(text), format!("the token in {}", path.display()))
            }
            Token::Literal(text) => (Some(text.to_string()), "the given token".to_owned()),
        };
        if let Some(token) = token.as_deref().map(str::trim) {
            let fault = || TransportError::Header { what: from.clone() };
            if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
                return Err(fault());
            }
            let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| fault())?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        for (name, value) in &self.headers {
            put(&mut metadata, name, value)?;
        }
        if !self.cluster_id.is_empty() {
            put(&mut metadata, "clusterid", &self.cluster_id)?;
        }
        Ok(metadata)
    }
}

fn put(metadata: &mut MetadataMap, name: &str, value: &str) -> Result<(), TransportError> {
    let fault = || TransportError::Header { what: format!("{name}: {value}") };
    let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| fault())?;
    metadata.insert(key, value.parse().map_err(|_| fault())?);
    Ok(())
}
