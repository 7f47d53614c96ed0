//! Which policies concern a port of a Service, and what they amount to.
//!
//! A policy that names the port goes before one that names the whole Service; of two alike the older one counts, then
//! the first by name (GEP-713). The other has no effect, even if the one that counts is not valid.

use std::sync::Arc;

use l7::ir::{BackendTls, RetryBudget, SessionPersistence, Trust};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::super::backend_policy::{Authorities, AuthorityRef, BackendTlsPolicy, PolicyTargetRef};
use super::super::catalog::{Catalog, Meta, ObjectName, Objects};
use super::super::cluster::{Service, ServicePort};
use super::attachment::in_namespace;

/// Most certificates of one policy.
const AUTHORITIES_MAX: usize = 100;

/// TLS to a port of a Service, `None` where no policy asks for it; or why the policy that does cannot be followed.
pub fn backend_tls(
    catalog: &Catalog,
    service: &Service,
    port: &ServicePort,
) -> Result<Option<BackendTls>, String> {
    let Some(policy) = governing(&catalog.backend_tls_policies, service, port, |it| (&it.meta, &it.targets))
    else {
        return Ok(None);
    };
    let trust = trust(catalog, policy)
        .map_err(|reason| format!("BackendTLSPolicy {} is not valid: {reason}", policy.meta.object_name()))?;
    Ok(Some(BackendTls { hostname: policy.hostname.clone(), names: policy.names.clone(), trust }))
}

/// The bound on further tries at a port of a Service.
pub fn retry_budget(catalog: &Catalog, service: &Service, port: &ServicePort) -> Option<RetryBudget> {
    let policies = &catalog.backend_traffic_policies;
    governing(policies, service, port, |it| (&it.meta, &it.targets))?.retry_budget
}

/// The sessions that clients have with a port of a Service, in whichever route. Without a name of its own a policy names
/// them by the Service: one client may have some with several.
pub fn session(catalog: &Catalog, service: &Service, port: &ServicePort) -> Option<Arc<SessionPersistence>> {
    let policies = &catalog.backend_traffic_policies;
    let policy = governing(policies, service, port, |it| (&it.meta, &it.targets))?;
    let session = policy.session.clone()?;
    if !session.name.is_empty() {
        return Some(session);
    }
    let (namespace, name) = (&service.meta.namespace, &service.meta.name);
    let name = format!("corelane-session-{namespace}-{name}-{}", port.port).into();
    Some(Arc::new(SessionPersistence { name, ..(*session).clone() }))
}

fn governing<'c, T>(
    policies: &'c Objects<T>,
    service: &Service,
    port: &ServicePort,
    parts: impl Fn(&T) -> (&Meta, &[PolicyTargetRef]),
) -> Option<&'c T> {
    let mut best: Option<(_, &T)> = None;
    for policy in in_namespace(policies, &service.meta.namespace) {
        let (meta, targets) = parts(policy);
        let named = targets.iter().filter(|target| {
            target.group.is_empty() && &*target.kind == "Service" && target.name == service.meta.name
        });
        let sections = named.filter_map(|target| match &target.section_name {
            None => Some(true),
            Some(section) => (*section == port.name).then_some(false),
        });
        let Some(is_whole) = sections.min() else { continue };
        let rank = (is_whole, meta.created, meta.name.clone());
        if best.as_ref().is_none_or(|(own, _)| rank < *own) {
            best = Some((rank, policy));
        }
    }
    best.map(|(_, policy)| policy)
}

/// The authorities that can be had; an error if there is none.
fn trust(catalog: &Catalog, policy: &BackendTlsPolicy) -> Result<Trust, String> {
    let Authorities::References(references) = &policy.authorities else {
        return Ok(Trust::System);
    };
    let mut bundle = String::new();
    let mut errors = Vec::new();
    for reference in references {
        match authority(catalog, policy, reference) {
            Ok(text) => {
                bundle.push_str(text.trim_end());
                bundle.push('\n');
            }
            Err(error) => errors.push(error),
        }
    }
    if bundle.is_empty() {
        return Err(errors.join("; "));
    }
    Ok(Trust::Bundle(Arc::from(bundle)))
}

/// The certificates that a policy refers to.
pub fn authority<'c>(
    catalog: &'c Catalog,
    policy: &BackendTlsPolicy,
    reference: &AuthorityRef,
) -> Result<&'c Arc<str>, String> {
    let AuthorityRef { group, kind, name, .. } = reference;
    if !group.is_empty() || &**kind != "ConfigMap" {
        return Err(format!("authorities of kind {kind} (group {group:?}) are not known"));
    }
    let name = ObjectName { namespace: policy.meta.namespace.clone(), name: name.clone() };
    let map = catalog.config_maps.get(&name).ok_or_else(|| format!("there is no ConfigMap {name}"))?;
    let text = map.authorities.as_ref().ok_or_else(|| format!("ConfigMap {name} has no key ca.crt"))?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()).take(AUTHORITIES_MAX + 1) {
        certificate.map_err(|error| format!("ca.crt of ConfigMap {name} is not PEM: {error}"))?;
        count += 1;
    }
    match count {
        0 => Err(format!("ca.crt of ConfigMap {name} holds no certificate")),
        1..=AUTHORITIES_MAX => Ok(text),
        _ => Err(format!("ca.crt of ConfigMap {name} holds more than {AUTHORITIES_MAX} certificates")),
    }
}
