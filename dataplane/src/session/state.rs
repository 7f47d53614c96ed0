//! What the control thread publishes to the workers of a node: one immutable value at a time.

use std::collections::HashMap;
use std::sync::Arc;

use model::Identity;
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy, RevocationLists, ServerContext, TlsError};
use xds::snapshot::Snapshot;

use super::dns::resolv_conf::ResolvConf;
use crate::net::NetworkNamespace;

/// Everything that a worker decides from. Parts that did not change are shared with the state before.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The mesh as the control plane tells it.
    pub snapshot: Arc<Snapshot>,
    /// Certificates of the identities that run on this node. An identity that is missing here can neither dial nor
    /// accept: its connections are closed, never passed on in plain text.
    pub credentials: Arc<HashMap<Identity, Arc<TlsContexts>>>,
    /// Whose certificates count no more. The same lists are in the credentials, for new handshakes; here they are for
    /// the tunnels that are there already.
    pub revocation: RevocationLists,
    /// The pods whose traffic is captured, by uid.
    pub pods: Arc<HashMap<Arc<str>, Arc<LocalPod>>>,
    /// The node's name servers.
    pub resolv_conf: Arc<ResolvConf>,
}

/// Both roles of one certificate.
#[derive(Debug)]
pub struct TlsContexts {
    pub client: Arc<ClientContext>,
    pub server: Arc<ServerContext>,
}

impl TlsContexts {
    pub fn new(credentials: &Credentials, policy: CryptoPolicy) -> Result<Self, TlsError> {
        let client = Arc::new(ClientContext::new(credentials, policy)?);
        Ok(Self { client, server: Arc::new(ServerContext::new(credentials, policy)?) })
    }
}

/// A pod of this node that is in the mesh.
#[derive(Debug, Clone)]
pub struct LocalPod {
    /// As the node agent names it; the key of [`NodeState::pods`].
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    /// Where its listeners and its outgoing connections live.
    pub network: NetworkNamespace,
}

/// What a worker tells of the pods. A pod may be redirected to the proxy once every worker is listening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    Listening {
        uid: Arc<str>,
        worker: usize,
    },
    /// The listeners could not be opened; they are tried again with the next state.
    Failed {
        uid: Arc<str>,
        worker: usize,
        reason: String,
    },
    /// The listeners are closed; connections that were open have been cut.
    Stopped {
        uid: Arc<str>,
        worker: usize,
    },
    /// A connection waits for the certificate of a pod's workload.
    CertificateNeeded {
        identity: Identity,
    },
}
