//! The certificates of the identities that run on this node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use model::Identity;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tunnel::tls::{Credentials, CryptoPolicy, RevocationLists};
use xds::ca::{CertificateBundle, Command, Priority};

use crate::session::TlsContexts;

/// Orders that may wait for the certificate client.
pub(super) const COMMANDS_WAITING_MAX: usize = 4_096;

/// As the workers take them.
pub(super) type Contexts = HashMap<Identity, Arc<TlsContexts>>;

/// What is wanted, and what has been issued.
#[derive(Debug)]
pub(super) struct Certificates {
    commands: mpsc::Sender<Command>,
    crypto: CryptoPolicy,
    wanted: BTreeSet<Identity>,
    bundles: BTreeMap<Identity, Arc<CertificateBundle>>,
    failures: BTreeMap<Identity, String>,
    contexts: Arc<Contexts>,
    /// Whom both roles refuse.
    revocation: RevocationLists,
}

impl Certificates {
    pub(super) fn new(commands: mpsc::Sender<Command>, crypto: CryptoPolicy) -> Self {
        Self {
            commands,
            crypto,
            wanted: BTreeSet::new(),
            bundles: BTreeMap::new(),
            failures: BTreeMap::new(),
            contexts: Arc::default(),
            revocation: RevocationLists::default(),
        }
    }

    pub(super) fn revocation(&self) -> RevocationLists {
        self.revocation.clone()
    }

    /// Puts other revocation lists into force, for all certificates that are held and will be.
    pub(super) fn revoke(&mut self, lists: RevocationLists) {
        self.revocation = lists;
        for (identity, bundle) in &self.bundles {
            match contexts(bundle, self.crypto, &self.revocation) {
                Ok(contexts) => {
                    Arc::make_mut(&mut self.contexts).insert(identity.clone(), Arc::new(contexts));
                }
                Err(reason) => {
                    tracing::error!(%identity, reason, "the certificate cannot be used any more");
                    Arc::make_mut(&mut self.contexts).remove(identity);
                }
            }
        }
    }

    pub(super) fn contexts(&self) -> Arc<Contexts> {
        Arc::clone(&self.contexts)
    }

    /// Makes `wanted` all that is wanted: orders what has come, lets go of what has gone. What cannot be ordered now
    /// is ordered by the next call.
    pub(super) fn follow(&mut self, wanted: BTreeSet<Identity>) {
        let gone: Vec<_> = self.wanted.difference(&wanted).cloned().collect();
        for identity in gone {
            if self.order(Command::Forget(identity.clone())) {
                self.wanted.remove(&identity);
                self.failures.remove(&identity);
                self.drop_certificate(&identity);
            }
        }
        for identity in wanted {
            if !self.wanted.contains(&identity)
                && self.order(Command::Want(identity.clone(), Priority::WarmUp))
            {
                self.wanted.insert(identity);
            }
        }
    }

    /// A connection waits for this one: it goes before the others.
    pub(super) fn need(&mut self, identity: &Identity) {
        if self.wanted.contains(identity) && !self.contexts.contains_key(identity) {
            self.order(Command::Want(identity.clone(), Priority::RealTime));
        }
    }

    /// Takes a new certificate into use; why it cannot be used otherwise.
    pub(super) fn issued(&mut self, bundle: Arc<CertificateBundle>) -> Result<(), String> {
        let identity = bundle.identity.clone();
        if !self.wanted.contains(&identity) {
            return Ok(());
        }
        let made = contexts(&bundle, self.crypto, &self.revocation);
        match made {
            Ok(contexts) => {
                Arc::make_mut(&mut self.contexts).insert(identity.clone(), Arc::new(contexts));
                self.failures.remove(&identity);
                self.bundles.insert(identity, bundle);
                Ok(())
            }
            Err(reason) => {
                self.failures.insert(identity, reason.clone());
                Err(reason)
            }
        }
    }

    pub(super) fn failed(&mut self, identity: &Identity, reason: String) {
        if self.wanted.contains(identity) {
            self.failures.insert(identity.clone(), reason);
        }
    }

    /// Drops what has expired: a peer would refuse it. Whether anything was dropped.
    pub(super) fn expire(&mut self, now: SystemTime) -> bool {
        let expired: Vec<_> =
            self.bundles.values().filter(|b| b.not_after <= now).map(|b| b.identity.clone()).collect();
        for identity in &expired {
            tracing::error!(%identity, "the certificate has expired and could not be renewed");
            self.drop_certificate(identity);
        }
        !expired.is_empty()
    }

    /// In ztunnel's shape.
    pub(super) fn dump(&self) -> Value {
        let entries = self.wanted.iter().map(|identity| {
            if let Some(bundle) = self.bundles.get(identity) {
                let list = |ders: &[Vec<u8>]| ders.iter().map(|der| dump_certificate(der)).collect::<Vec<_>>();
                let (chain, roots) = (list(&bundle.chain_der), list(&bundle.roots_der));
                let identity = identity.uri();
                return json!({ "identity": identity, "state": "Available", "certChain": chain, "rootCerts": roots });
            }
            let failure = self.failures.get(identity);
            let state = failure.map_or_else(|| "Initializing".to_owned(), |why| format!("Unavailable: {why}"));
            json!({ "identity": identity.uri(), "state": state, "certChain": [], "rootCerts": [] })
        });
        entries.collect()
    }

    fn drop_certificate(&mut self, identity: &Identity) {
        self.bundles.remove(identity);
        Arc::make_mut(&mut self.contexts).remove(identity);
    }

    /// Whether the order was taken.
    fn order(&self, command: Command) -> bool {
        let taken = self.commands.try_send(command).is_ok();
        if !taken {
            tracing::warn!("the certificate client does not keep up; the rest is ordered later");
        }
        taken
    }
}

fn contexts(
    bundle: &CertificateBundle,
    crypto: CryptoPolicy,
    revocation: &RevocationLists,
) -> Result<TlsContexts, String> {
    let chain = bundle.chain_der.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(bundle.key_pkcs8_der.clone()));
    let roots: Vec<_> = bundle.roots_der.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let credentials = Credentials::from_der(chain, key, &roots).map_err(|error| error.to_string())?;
    TlsContexts::new(&credentials.with_revocation_lists(revocation), crypto)
        .map_err(|error| error.to_string())
}

fn dump_certificate(der: &[u8]) -> Value {
    use base64::Engine;
    use x509_parser::prelude::{FromDer, X509Certificate};
    const LINE_CHARACTERS: usize = 64;
    let engine = base64::engine::general_purpose::STANDARD;
    let body = engine.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in body.as_bytes().chunks(LINE_CHARACTERS) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut entry = json!({ "pem": engine.encode(pem) });
    if let (Ok((_, certificate)), Some(fields)) = (X509Certificate::from_der(der), entry.as_object_mut()) {
        let validity = certificate.validity();
        fields.insert("serialNumber".to_owned(), certificate.serial.to_string().into());
        fields.insert("validFrom".to_owned(), time(validity.not_before.timestamp()).into());
        fields.insert("expirationTime".to_owned(), time(validity.not_after.timestamp()).into());
    }
    entry
}

/// RFC 3339 in UTC, in whole seconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    time(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// RFC 3339 in UTC.
fn time(seconds: i64) -> String {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}
