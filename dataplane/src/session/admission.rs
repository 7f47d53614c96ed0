//! What policy says of an arrived connection, and the question that is asked again when policies change.

use std::net::SocketAddr;
use std::sync::Arc;

use l7::authz::{ConnectionVerdict, Denial, MatchedRule, PolicySet, Verdict};
use l7::ir::ConnectionAttributes;
use model::{AppProtocol, Identity, NamespacedHostname, Service, Workload};
use tracing::Level;
use xds::snapshot::Snapshot;

use super::connection::{Authorized, Connection};
use super::node::workload_of;
use super::shadow::observe;
use super::state::{LocalPod, NodeState};
use crate::access_log::cause::CloseCause;

/// The log target of decisions.
const POLICY_TARGET: &str = "policy";

/// An arrived connection as policies see it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// Proved by mTLS; `None` for plain text.
    pub(super) source: Option<Identity>,
    pub(super) source_address: SocketAddr,
    /// The pod's own address and the port that policies see.
    pub(super) destination: SocketAddr,
}

impl Arrival {
    pub(super) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source: self.source.as_ref(),
            source_ip: self.source_address.ip(),
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
            sni: None,
        }
    }
}

/// What policy says before the first byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// Each request is decided on its own.
    ByRequest,
}

/// What the answers for a pod's connections depend on beside the connections. The same, by address, as long as none of
/// it changes.
#[derive(Debug)]
pub(super) struct Grounds {
    workload: Arc<Workload>,
    policies: Arc<PolicySet>,
    /// The workload's, in its order: they declare which of its ports are HTTP.
    services: Vec<Option<Arc<Service>>>,
}

impl Grounds {
    /// `None` for a pod that the control plane does not know.
    pub(super) fn of(state: &NodeState, pod: &LocalPod) -> Option<Self> {
        let workload = workload_of(state, pod)?;
        let policies = state.snapshot.policies_for(&workload);
        let service = |key: &NamespacedHostname| {
            state.snapshot.service(&key.namespace, &key.hostname).map(|entry| entry.service.clone())
        };
        let services = workload.services.keys().map(service).collect();
        Some(Self { workload, policies, services })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_service = |(one, other): (&Option<Arc<Service>>, &Option<Arc<Service>>)| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        // The same workload names the same services.
        Arc::ptr_eq(&self.workload, &other.workload)
            && Arc::ptr_eq(&self.policies, &other.policies)
            && self.services.iter().zip(&other.services).all(same_service)
    }
}

/// Asks policy, and notes the question for the day that the policies change.
pub(super) fn admit(
    connection: &Connection,
    state: &NodeState,
    workload: &Workload,
    arrival: &Arrival,
) -> Result<Admission, CloseCause> {
    let policies = state.snapshot.policies_for(workload);
    let attributes = arrival.attributes();
    let admission = judge(&state.snapshot, workload, &policies, &attributes);
    Teller { at_info: connection.node.options.policy_decisions_at_info, workload, arrival }
        .tell(&policies, admission);
    if admission != Some(Admission::ByRequest) {
        observe(&connection.node.metrics, &policies, &attributes, None);
    }
    let admission = admission.ok_or(CloseCause::PolicyDenied)?;
    connection.shared.authorized.replace(Some(Authorized {
        source: arrival.source.clone(),
        source_ip: arrival.source_address.ip(),
        destination_ip: arrival.destination.ip(),
        destination_port: arrival.destination.port(),
        reads_requests: admission == Admission::ByRequest,
        front: None,
    }));
    let in_force = Arc::ptr_eq(&connection.node.state().snapshot, &state.snapshot);
    connection.node.registry.note_admission(&connection.shared.pod, state, in_force);
    Ok(admission)
}

/// What policy says of a connection; `None` denies it.
pub(crate) fn judge(
    snapshot: &Snapshot,
    workload: &Workload,
    policies: &PolicySet,
    connection: &ConnectionAttributes<'_>,
) -> Option<Admission> {
    match policies.evaluate_connection(connection) {
        ConnectionVerdict::Allow(_) => Some(Admission::Admitted),
        ConnectionVerdict::Deny(_) => None,
        // Declared not to be HTTP: what only requests have is absent.
        ConnectionVerdict::NeedsRequest if is_opaque(snapshot, workload, connection.destination_port) => {
            policies.evaluate(connection, None).is_allowed().then_some(Admission::Admitted)
        }
        ConnectionVerdict::NeedsRequest => Some(Admission::ByRequest),
    }
}

/// Tells operators of decisions: those of enforced policies, and what dry-run policies would have decided.
struct Teller<'a> {
    at_info: bool,
    workload: &'a Workload,
    arrival: &'a Arrival,
}

impl Teller<'_> {
    fn tell(&self, policies: &PolicySet, admission: Option<Admission>) {
        let heard = if self.at_info {
            tracing::enabled!(target: POLICY_TARGET, Level::INFO)
        } else {
            tracing::enabled!(target: POLICY_TARGET, Level::DEBUG)
        };
        if !heard {
            return;
        }
        let attributes = self.arrival.attributes();
        match (policies.evaluate_connection(&attributes), admission) {
            (ConnectionVerdict::Deny(denial), _) => self.line("denied", cause(&denial), false),
            (_, None) => {
                self.line("denied", "no rule allows a connection that is not HTTP".to_owned(), false);
            }
            (ConnectionVerdict::Allow(Some(rule)), _) => self.line("allowed", named(&rule), false),
            (ConnectionVerdict::Allow(None) | ConnectionVerdict::NeedsRequest, _) => {}
        }
        match policies.shadow(&attributes, None) {
            Some(Verdict::Deny(denial)) => self.line("would be denied", cause(&denial), true),
            Some(Verdict::Allow(Some(rule))) => self.line("would be allowed", named(&rule), true),
            Some(Verdict::Allow(None)) | None => {}
        }
    }

    fn line(&self, decision: &str, by: String, dry_run: bool) {
        let source = self.arrival.source.as_ref().map_or("unknown", |identity| identity.uri());
        let (workload, namespace) = (&*self.workload.name, &*self.workload.namespace);
        let (from, to) = (self.arrival.source_address, self.arrival.destination);
        if self.at_info {
            tracing::info!(target: POLICY_TARGET, decision, by, dry_run, source, %from, %to, workload, namespace, "policy");
        } else {
            tracing::debug!(target: POLICY_TARGET, decision, by, dry_run, source, %from, %to, workload, namespace, "policy");
        }
    }
}

fn named(rule: &MatchedRule<'_>) -> String {
    format!("{}/{} rule {}", rule.policy.namespace, rule.policy.name, rule.rule)
}

fn cause(denial: &Denial<'_>) -> String {
    match denial {
        Denial::Matched(rule) => named(rule),
        Denial::NoAllowMatched => "no rule of an ALLOW policy matches".to_owned(),
        Denial::Closed(reason) => (*reason).to_owned(),
    }
}

/// Whether a service declares the port as something that is not HTTP.
fn is_opaque(snapshot: &Snapshot, workload: &Workload, target_port: u16) -> bool {
    workload.services.iter().any(|(key, ports)| {
        let Some(entry) = snapshot.service(&key.namespace, &key.hostname) else { return false };
        ports.iter().filter(|port| port.target_port == target_port).any(|port| {
            let declared = entry.service.port(port.service_port).map(|it| it.app_protocol);
            matches!(declared, Some(AppProtocol::Tcp | AppProtocol::Tls))
        })
    })
}
