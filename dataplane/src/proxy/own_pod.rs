//! The pod that the proxy itself runs in: tunnels to it are accepted, so that its metrics can be scraped over mTLS.

use super::{ProxyError, insist, local_pod, own_uid};
use crate::config::{Config, Mode, WorkloadName};
use crate::control::NodeProxy;
use std::sync::Arc;

/// The pod's uid, if its name, namespace and account are known and other pods are served beside it.
pub(super) fn uid(config: &Config) -> Option<Arc<str>> {
    name(config).map(|name| own_uid(&name))
}

/// Serves it for good. Without one, waits for ever.
pub(super) async fn serve(config: &Config, node: &NodeProxy) -> ProxyError {
    if let Some(name) = name(config) {
        match local_pod(&name) {
            Ok(pod) => insist(node, pod).await,
            Err(error) => return error.into(),
        }
    }
    std::future::pending().await
}

fn name(config: &Config) -> Option<WorkloadName> {
    let pod = &config.this_pod;
    config.own_identity().filter(|_| config.mode == Mode::Shared)?;
    Some(WorkloadName {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
    })
}
