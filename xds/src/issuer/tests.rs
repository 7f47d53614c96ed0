//! Issuers of all kinds, over sockets of this machine.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;

use super::*;

const JWKS: &str = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a","alg":"HS256"}]}"#;

/// Answers each request with the next of `answers`, the last one for ever.
fn issuer(answers: Vec<String>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut request = [0; 4096];
            let count = socket.read(&mut request).unwrap_or(0);
            if count == 0 {
                continue;
            }
            let answer = &answers[counter.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
            let answer = answer.replace("ISSUER", &format!("http://{address}"));
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    (address, asked)
}

fn ok(body: &str) -> String {
    let body = body.to_owned();
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}")
}

async fn fetched(source: KeySource) -> Result<String, String> {
    fetch::keys(&source, PATIENCE, &Roots::Pem(Arc::from(&b""[..]))).await
}

#[tokio::test]
async fn keys_are_where_the_rule_or_the_issuer_says() {
    let (address, _) = issuer(vec![ok(JWKS)]);
    assert_eq!(fetched(KeySource::Address(format!("http://{address}/keys?x=1").into())).await.unwrap(), JWKS);
    let (address, asked) = issuer(vec![ok(r#"{"issuer":"i","jwks_uri":"ISSUER/keys"}"#), ok(JWKS)]);
    assert_eq!(fetched(KeySource::Issuer(format!("http://{address}/").into())).await.unwrap(), JWKS);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_no_answer_is_told() {
    for (answer, complaint) in [
        ("HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n".to_owned(), "302"),
        ("HELLO\r\n\r\n".to_owned(), "no HTTP answer"),
        (ok(&"x".repeat((1 << 20) + 1)), "too long"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc".to_owned(), "broke off"),
    ] {
        let (address, _) = issuer(vec![answer]);
        let error = fetched(KeySource::Address(format!("http://{address}/").into())).await.unwrap_err();
        assert!(error.contains(complaint), "{complaint}: {error}");
    }
    for (address, complaint) in [
        ("http://127.0.0.1:1/", "cannot be reached"),
        ("ftp://127.0.0.1/", "neither http nor https"),
        ("not an address", "is no address"),
    ] {
        let error = fetched(KeySource::Address(address.into())).await.unwrap_err();
        assert!(error.contains(complaint), "{complaint}: {error}");
    }
}

#[tokio::test]
async fn an_issuer_over_tls_must_prove_its_name() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![String::from("localhost")]).unwrap().signed_by(&key, &authority);
    let chain = vec![leaf.unwrap().der().clone()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(mut socket) = acceptor.accept(socket).await else { continue };
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(ok(JWKS).as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    });
    let roots = Roots::Pem(Arc::from(authority.pem().as_bytes()));
    let source = KeySource::Address(format!("https://localhost:{port}/").into());
    assert_eq!(fetch::keys(&source, PATIENCE, &roots).await.unwrap(), JWKS);
    let other_name = KeySource::Address(format!("https://127.0.0.1:{port}/").into());
    let error = fetch::keys(&other_name, PATIENCE, &roots).await.unwrap_err();
    assert!(error.contains("TLS"), "{error}");
    server.abort();
}

#[tokio::test]
async fn good_keys_outlive_their_issuer_and_a_failure_is_tried_again() {
    let (address, asked) = issuer(vec!["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(), ok(JWKS)]);
    let source = KeySource::Address(format!("http://{address}/").into());
    let (want, wanted) = watch::channel(Arc::new(Wanted::from([(source.clone(), Pace::default())])));
    let (tell, mut keys) = watch::channel(Arc::<Keys>::default());
    let fetcher = tokio::spawn(Fetcher::new(wanted, tell, Roots::System).run());
    let failed = keys.wait_for(|keys| keys.contains_key(&source)).await.unwrap()[&source].clone();
    assert!(failed.keys.is_none() && failed.failure.unwrap().contains("500"));
    let known = keys.wait_for(|keys| keys[&source].keys.is_some()).await.unwrap()[&source].clone();
    assert_eq!((known.keys.as_deref(), known.failure), (Some(JWKS), None));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    want.send_replace(Arc::default());
    keys.wait_for(|keys| keys.is_empty()).await.unwrap();
    drop(want);
    fetcher.await.unwrap();
}

#[test]
fn a_later_failure_leaves_the_keys_in_force() {
    let source = KeySource::Address("http://issuer/keys".into());
    let (_want, wanted) = watch::channel(Arc::new(Wanted::from([(source.clone(), Pace::default())])));
    let (tell, keys) = watch::channel(Arc::<Keys>::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut fetcher = Fetcher::new(wanted, tell, Roots::System);
    fetcher.follow();
    fetcher.note(&source, Ok(JWKS.to_owned()));
    fetcher.note(&source, Err("gone".to_owned()));
    let known = keys.borrow()[&source].clone();
    assert_eq!((known.keys.as_deref(), known.failure.as_deref()), (Some(JWKS), Some("gone")));
}

#[tokio::test]
async fn an_issuer_may_take_as_long_as_is_said() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = KeySource::Address(format!("http://{}/", silent.local_addr().unwrap()).into());
    let pace = Pace::default().with_patience(Duration::from_millis(40));
    let (_want, wanted) = watch::channel(Arc::new(Wanted::from([(source.clone(), pace)])));
    let (tell, mut keys) = watch::channel(Arc::<Keys>::default());
    let fetcher = tokio::spawn(Fetcher::new(wanted, tell, Roots::System).run());
    let failed = keys.wait_for(|keys| keys.contains_key(&source)).await.unwrap()[&source].clone();
    assert_eq!(failed.failure.as_deref(), Some("no answer within 40ms"));
    fetcher.abort();
}

#[test]
fn whoever_waits_longer_is_waited_for_within_bounds() {
    let seconds = |count| Pace::default().with_patience(Duration::from_secs(count));
    assert_eq!((seconds(0).patience, seconds(31).patience), (PATIENCE_MAX, PATIENCE_MAX));
    let newest = Pace { refresh: Duration::from_secs(1), ..seconds(2) };
    assert_eq!(newest.for_both(seconds(9)), Pace { refresh: Duration::from_secs(1), ..seconds(9) });
    assert_eq!(seconds(9).for_both(newest), newest.for_both(seconds(9)));
}
