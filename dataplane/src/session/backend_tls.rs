//! How to speak TLS to backends: contexts that a worker has made from what routes say, and the authorities of the
//! system.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use l7::ir::{BackendTls, CertificateName, Trust};
use tunnel::backend_tls::{Authorities, BackendContext, BackendTlsError, ExpectedName};

/// Contexts that a worker keeps; with more, it begins anew.
const CONTEXTS_MAX: usize = 256;

/// What is offered by ALPN, the best first. Who would rather be asked in HTTP/1.1 is asked so.
const HTTP1: &[&[u8]] = &[b"http/1.1"];
const HTTP2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Read once, before the workers run: they read no files.
static SYSTEM: OnceLock<Option<Authorities>> = OnceLock::new();

/// By the place of what they were made from, which they keep there, and whether they offer HTTP/2.
type Contexts = HashMap<(usize, bool), (Arc<BackendTls>, BackendContext), RandomState>;

/// The contexts of one worker.
#[derive(Debug, Default)]
pub(super) struct BackendContexts {
    made: RefCell<Contexts>,
}

impl BackendContexts {
    pub(super) fn of(
        &self,
        tls: &Arc<BackendTls>,
        offers_http2: bool,
    ) -> Result<BackendContext, BackendTlsError> {
        let place = (Arc::as_ptr(tls).addr(), offers_http2);
        let mut made = self.made.borrow_mut();
        if let Some((_, context)) = made.get(&place) {
            return Ok(context.clone());
        }
        let context = make(tls, if offers_http2 { HTTP2 } else { HTTP1 })?;
        if made.len() >= CONTEXTS_MAX {
            made.clear();
        }
        made.insert(place, (Arc::clone(tls), context.clone()));
        Ok(context)
    }
}

fn make(tls: &BackendTls, protocols: &[&[u8]]) -> Result<BackendContext, BackendTlsError> {
    let authorities = match &tls.trust {
        Trust::System => {
            SYSTEM.get().and_then(Option::as_ref).cloned().ok_or(BackendTlsError::NoAuthority)?
        }
        Trust::Bundle(text) => Authorities::from_pem(text)?,
    };
    let name = |name: &CertificateName| match name {
        CertificateName::Dns(name) => ExpectedName::Dns(name.clone()),
        CertificateName::Uri(uri) => ExpectedName::Uri(uri.clone()),
    };
    let names: Vec<_> = tls.names.iter().map(name).collect();
    BackendContext::new(&tls.hostname, &names, &authorities, protocols)
}

/// Reads the authorities that the system trusts, for backends whose policy names those. Blocks. Without them such a
/// backend cannot be reached.
pub fn load_system_authorities() {
    SYSTEM.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "an authority of the system cannot be read");
        }
        match Authorities::new(found.certs) {
            Ok(authorities) => Some(authorities),
            Err(error) => {
                tracing::info!(%error, "the system's authorities are not there; set SSL_CERT_FILE to name them");
                None
            }
        }
    });
}
