//! One request to the certificate authority.

use std::time::Duration;

use model::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use tonic::{Request, Status};

use super::{BundleError, CaConfig, CertificateBundle};
use crate::proto::ca::IstioCertificateRequest;
use crate::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::transport::TransportError;

/// Longest wait for the authority's answer, the connection included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("cannot make a key or a request: {0}")]
    Request(#[from] rcgen::Error),
    #[error("the certificate authority refuses {identity}: {}: {}", status.code(), status.message())]
    Refused { identity: Identity, status: Box<Status> },
    #[error("the certificate authority's answer for {identity} cannot be used: {error}")]
    Answer { identity: Identity, error: BundleError },
    #[error("the certificate authority did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

/// Makes a key and has it certified.
pub async fn create_certificate(
    config: &CaConfig,
    identity: &Identity,
) -> Result<CertificateBundle, CaError> {
    tokio::time::timeout(ANSWER_TIMEOUT, ask(config, identity)).await.map_err(|_| CaError::Timeout)?
}

async fn ask(config: &CaConfig, identity: &Identity) -> Result<CertificateBundle, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut request = Request::new(IstioCertificateRequest {
        csr: signing_request(&key, identity)?,
        validity_duration: i64::try_from(config.validity.as_secs()).unwrap_or(i64::MAX),
        metadata: config.impersonate.then(|| impersonated(identity)),
    });
    *request.metadata_mut() = config.credentials.metadata()?;
    let channel = config.server.connect().await?;
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    let answer =
        answer.map_err(|status| CaError::Refused { identity: identity.clone(), status: Box::new(status) })?;
    let chain = answer.into_inner().cert_chain;
    let public_key = key.subject_public_key_info();
    CertificateBundle::from_chain(identity.clone(), &chain, key.serialize_der(), &public_key)
        .map_err(|error| CaError::Answer { identity: identity.clone(), error })
}

/// A request with an empty subject and the identity as its one alternative name.
fn signing_request(key: &KeyPair, identity: &Identity) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
    params.serialize_request(key)?.pem()
}

fn impersonated(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.uri().to_owned())) };
    Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() }
}
