//! One question to an issuer: HTTP/1.1, over TLS where its address says so. Redirections are not followed.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kube::istio::KeySource;
use crate::transport::Roots;

/// The longest document that is read.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Where an issuer describes itself, after its own address.
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

/// The JWKS of a source, which may take this long.
pub(super) async fn keys(source: &KeySource, patience: Duration, roots: &Roots) -> Result<String, String> {
    let fetching = async {
        match source {
            KeySource::Written => Err(String::from("they are not fetched")),
            KeySource::Address(address) => document(address, roots).await,
            KeySource::Issuer(issuer) => {
                let address = format!("{}{DISCOVERY_PATH}", issuer.strip_suffix('/').unwrap_or(issuer));
                let described = document(&address, roots).await?;
                document(&jwks_uri(&described).map_err(|reason| format!("{address}: {reason}"))?, roots).await
            }
        }
    };
    let late = || format!("no answer within {patience:?}");
    tokio::time::timeout(patience, fetching).await.map_err(|_| late())?
}

/// OpenID Connect Discovery 1.0, section 3.
fn jwks_uri(document: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Described {
        jwks_uri: String,
    }
    let described: Described = serde_json::from_str(document).map_err(|error| error.to_string())?;
    Ok(described.jwks_uri)
}

async fn document(address: &str, roots: &Roots) -> Result<String, String> {
    let uri: Uri = address.parse().map_err(|error| format!("{address:?} is no address: {error}"))?;
    let host = uri.host().ok_or("the address names no host")?;
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(format!("{address:?} is neither http nor https")),
    };
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let unreachable = |error: std::io::Error| format!("{host}:{port} cannot be reached: {error}");
    let stream = TcpStream::connect((bare.as_str(), port)).await.map_err(unreachable)?;
    if !is_secure {
        return ask(stream, &uri).await;
    }
    let name = ServerName::try_from(bare).map_err(|_| "a certificate cannot carry this host name")?;
    let tls = TlsConnector::from(Arc::new(tls(roots)?));
    let stream = tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
    ask(stream, &uri).await
}

fn tls(roots: &Roots) -> Result<ClientConfig, String> {
    let roots = roots.read().map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &Uri,
) -> Result<String, String> {
    let broken = |error: hyper::Error| format!("no HTTP answer: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Ends with the answer: nobody asks twice on it.
    let connection = tokio::spawn(connection);
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target)
        .header(http::header::HOST, host)
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("the answer broke off or is too long: {error}"))?;
        String::from_utf8(body.to_bytes().to_vec()).map_err(|_| String::from("the answer is no text"))
    };
    let answer = answered.await;
    connection.abort();
    answer
}
