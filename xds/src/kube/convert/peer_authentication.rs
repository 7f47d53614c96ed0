//! PeerAuthentication as policies of the connection: STRICT is a denial of whoever shows no identity.
//!
//! The effective mode of a workload is that of its own PeerAuthentication, else of its namespace, else of the mesh;
//! of two at one level the older counts. Where ports differ from the workload's mode, a policy made for that
//! PeerAuthentication takes the place of the static one.

use std::cmp::Reverse;
use std::sync::Arc;

use l7::ir::{Action, Attribute, AuthorizationPolicy, Clause, Condition, Match, Rule, Test};

use super::super::catalog::{Catalog, Labels, MeshSettings};
use super::super::istio::{MtlsMode, PeerAuthentication};
use super::attachment::{in_namespace, matches_labels};

/// Name of the policy, in the root namespace, that refuses every peer without identity.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Goes before the name of a PeerAuthentication whose ports need a policy of their own.
pub const CONVERTED_PREFIX: &str = "converted_peer_authentication_";

/// The policy that refuses every peer without identity.
pub fn static_strict(mesh: &MeshSettings) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: mesh.root_namespace.clone(),
        name: Arc::from(STATIC_STRICT),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause(vec![no_identity()])] }],
        authorizer: None,
        source: None,
    }
}

/// All policies that the PeerAuthentications of a catalog amount to. The static one is there if anything is strict.
pub fn convert_all(catalog: &Catalog, mesh: &MeshSettings) -> Vec<AuthorizationPolicy> {
    let mut policies: Vec<AuthorizationPolicy> =
        catalog.peer_authentications.values().filter_map(|policy| convert(policy, catalog, mesh)).collect();
    if catalog.peer_authentications.values().any(|policy| policy.mode == MtlsMode::Strict) {
        policies.push(static_strict(mesh));
    }
    policies
}

/// The policy of a PeerAuthentication whose ports differ from its mode; `None` where the static one serves, or none.
pub fn convert(
    policy: &PeerAuthentication,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> Option<AuthorizationPolicy> {
    if policy.selector.is_none() || policy.meta.namespace == mesh.root_namespace {
        return None;
    }
    let mode = own_mode(policy, catalog, mesh);
    let is_strict = mode == MtlsMode::Strict;
    let ports: Vec<Test> = policy
        .ports
        .iter()
        .filter(|(_, mode)| **mode != MtlsMode::Unset && (**mode == MtlsMode::Strict) != is_strict)
        .map(|(port, _)| Test::Port(*port))
        .collect();
    if ports.is_empty() {
        return None;
    }
    let mut condition =
        Condition { attribute: Attribute::DestinationPort, any_of: Vec::new(), none_of: Vec::new() };
    if is_strict {
        condition.none_of = ports;
    } else {
        condition.any_of = ports;
    }
    Some(AuthorizationPolicy {
        namespace: policy.meta.namespace.clone(),
        name: Arc::from(format!("{CONVERTED_PREFIX}{}", policy.meta.name)),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause(vec![no_identity(), condition])] }],
        authorizer: None,
        source: Some(policy.meta.source.clone()),
    })
}

/// Keys of the policies that a workload's effective PeerAuthentication amounts to: none or one.
pub fn policy_key(
    catalog: &Catalog,
    mesh: &MeshSettings,
    namespace: &str,
    labels: &Labels,
) -> Option<Arc<str>> {
    let of_workload = (*namespace != *mesh.root_namespace)
        .then(|| {
            oldest(catalog, namespace, |policy| {
                policy.selector.as_ref().is_some_and(|selector| matches_labels(selector, labels))
            })
        })
        .flatten();
    let mode = match of_workload {
        Some(policy) => {
            if let Some(converted) = convert(policy, catalog, mesh) {
                return Some(super::key(&converted));
            }
            own_mode(policy, catalog, mesh)
        }
        None => inherited_mode(catalog, mesh, namespace),
    };
    (mode == MtlsMode::Strict).then(|| Arc::from(format!("{}/{STATIC_STRICT}", mesh.root_namespace)))
}

fn own_mode(policy: &PeerAuthentication, catalog: &Catalog, mesh: &MeshSettings) -> MtlsMode {
    match policy.mode {
        MtlsMode::Unset => inherited_mode(catalog, mesh, &policy.meta.namespace),
        mode => mode,
    }
}

/// Mode of a namespace, else of the mesh, else PERMISSIVE.
fn inherited_mode(catalog: &Catalog, mesh: &MeshSettings, namespace: &str) -> MtlsMode {
    [namespace, &mesh.root_namespace]
        .into_iter()
        .filter_map(|namespace| oldest(catalog, namespace, |policy| policy.selector.is_none()))
        .map(|policy| policy.mode)
        .find(|mode| *mode != MtlsMode::Unset)
        .unwrap_or(MtlsMode::Permissive)
}

fn oldest<'c>(
    catalog: &'c Catalog,
    namespace: &str,
    is_meant: impl Fn(&PeerAuthentication) -> bool,
) -> Option<&'c PeerAuthentication> {
    in_namespace(&catalog.peer_authentications, namespace)
        .map(AsRef::as_ref)
        .filter(|policy| is_meant(policy))
        // The map is in the order of names: of equal ages the first name wins.
        .max_by_key(|policy| (Reverse(policy.meta.created), Reverse(policy.meta.name.clone())))
}

fn clause(conditions: Vec<Condition>) -> Clause {
    Clause { matches: vec![Match { conditions }] }
}

fn no_identity() -> Condition {
    Condition { attribute: Attribute::SourcePrincipal, any_of: Vec::new(), none_of: vec![Test::Present] }
}
