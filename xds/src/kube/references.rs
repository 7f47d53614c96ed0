//! What only the whole catalog can tell: references that lead nowhere, policies that concern nobody.
//!
//! All findings are warnings: what is referred to may come later, and until then the result is defined.

use std::collections::BTreeSet;
use std::sync::Arc;

use l7::ir::{BackendTarget, RouteKind};

use super::backend_policy::{Authorities, BackendTlsPolicy, PolicyTargetRef};
use super::catalog::{Catalog, Kind, Labels, MeshSettings, Meta, ObjectName, Objects, Position};
use super::convert;
use super::convert::attachment::{in_namespace, matches_labels};
use super::convert::authorizer::authorizer;
use super::convert::backend_policy::authority;
use super::convert::route::{ParentError, parent_error, resolve_backend};
use super::gateway::{BackendRef, HttpRoute};
use super::istio::{Attached, AuthorizationPolicy, PeerAuthentication, PolicyTarget, TargetRef};
use super::mesh::{MESH_CONFIG_MAP, ProviderKind};
use super::problem::{Problem, Severity};
use super::reader::closest;
use super::telemetry::Telemetry;

/// Looks at every reference of a catalog.
pub fn check_references(catalog: &Catalog, mesh: &MeshSettings) -> Vec<Problem> {
    let mut checker = Checker { catalog, mesh, problems: Vec::new() };
    checker.namespaces();
    checker.mesh_config();
    for route in catalog.http_routes.values().chain(catalog.grpc_routes.values()) {
        checker.route(route);
    }
    for policy in catalog.backend_tls_policies.values() {
        checker.backend_policy(Kind::BackendTlsPolicy, &policy.meta, &policy.targets);
        checker.authorities(policy);
    }
    for policy in catalog.backend_traffic_policies.values() {
        checker.backend_policy(Kind::BackendTrafficPolicy, &policy.meta, &policy.targets);
    }
    for policy in catalog.authorization_policies.values() {
        checker.attached(Kind::AuthorizationPolicy, &**policy);
        checker.provider(policy);
    }
    for tokens in catalog.request_authentications.values() {
        checker.attached(Kind::RequestAuthentication, &**tokens);
    }
    for telemetry in catalog.telemetries.values() {
        checker.attached(Kind::Telemetry, &**telemetry);
        checker.outranked(telemetry);
        checker.tracing_providers(telemetry);
    }
    for policy in catalog.peer_authentications.values() {
        checker.peer_authentication(policy);
    }
    checker.problems.sort_by(|left, right| {
        (&left.file, left.line, left.column).cmp(&(&right.file, right.line, right.column))
    });
    checker.problems
}

struct Checker<'a> {
    catalog: &'a Catalog,
    mesh: &'a MeshSettings,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn warn(&mut self, kind: Kind, meta: &Meta, at: Position, field: &str, message: String, fix: String) {
        self.problems.push(Problem {
            file: meta.source.file.clone(),
            line: at.line,
            column: at.column,
            object: format!("{kind} {}", meta.object_name()),
            field: field.to_owned(),
            message,
            fix,
            severity: Severity::Warning,
        });
    }

    /// Labels of a namespace decide on membership of the mesh: say so once where the object is missing.
    fn namespaces(&mut self) {
        let mut reported = BTreeSet::new();
        let catalog = self.catalog;
        let pods = catalog.pods.values().map(|pod| (Kind::Pod, &pod.meta));
        let services = catalog.services.values().map(|service| (Kind::Service, &service.meta));
        let routes = catalog.http_routes.values().chain(catalog.grpc_routes.values());
        let routes = routes.map(|route| (object_kind(route), &route.meta));
        let policies =
            catalog.authorization_policies.values().map(|policy| (Kind::AuthorizationPolicy, &policy.meta));
        for (kind, meta) in pods.chain(services).chain(routes).chain(policies) {
            let name = ObjectName::new("", meta.namespace.clone());
            if catalog.namespaces.contains_key(&name) || !reported.insert(meta.namespace.clone()) {
                continue;
            }
            let names = catalog.namespaces.keys().map(|name| name.name.as_ref());
            let fix = match closest(&meta.namespace, names) {
                Some(near) => format!("add a Namespace object of that name; or did you mean {near}?"),
                None => String::from(
                    "add a Namespace object of that name; its labels decide whether it is in the mesh",
                ),
            };
            let message = format!("there is no Namespace {}", meta.namespace);
            self.warn(kind, meta, start(meta), "metadata.namespace", message, fix);
        }
    }

    fn route(&mut self, route: &HttpRoute) {
        let kind = object_kind(route);
        if route.parents.is_empty() {
            let fix = String::from("name the Service whose traffic it governs");
            let message = String::from("the route has no parent, so it has no effect");
            self.warn(kind, &route.meta, start(&route.meta), "spec.parentRefs", message, fix);
        }
        for (index, parent) in route.parents.iter().enumerate() {
            let Some(error) = parent_error(parent, self.catalog, self.mesh) else {
                continue;
            };
            let fix = match &error {
                ParentError::Missing { name, .. } => self.near_service(name),
                ParentError::NoPort { .. } => String::from("name a port of the Service, or leave port out"),
                ParentError::OtherKind { .. } => {
                    String::from("write group: \"\" and kind: Service for traffic between workloads")
                }
            };
            let message = format!("{error}, so the route has no effect there");
            let field = format!("spec.parentRefs[{index}]");
            self.warn(kind, &route.meta, parent.at, &field, message, fix);
        }
        let backends = route.rules.iter().flat_map(|rule| &rule.backends);
        for backend in backends.clone() {
            self.backend(route, backend, "its share of the traffic is answered with 500");
        }
        let mirrors = backends.flat_map(|backend| &backend.mirrors);
        for mirror in route.rules.iter().flat_map(|rule| &rule.mirrors).chain(mirrors) {
            self.backend(route, &mirror.backend, "no copies are sent");
        }
    }

    fn backend(&mut self, route: &HttpRoute, backend: &BackendRef, effect: &str) {
        let BackendTarget::Invalid(reason) = resolve_backend(backend, route, self.catalog, self.mesh) else {
            return;
        };
        let name = ObjectName { namespace: backend.namespace.clone(), name: backend.name.clone() };
        let is_missing = !self.catalog.services.contains_key(&name);
        let fix = if is_missing { self.near_service(&name) } else { String::new() };
        let message = format!("{reason}; {effect}");
        self.warn(object_kind(route), &route.meta, backend.at, &backend.field, message, fix);
    }

    fn backend_policy(&mut self, kind: Kind, meta: &Meta, targets: &[PolicyTargetRef]) {
        for target in targets {
            let name = ObjectName { namespace: meta.namespace.clone(), name: target.name.clone() };
            let finding = if target.group.is_empty() && &*target.kind == "Service" {
                self.missing_port(&name, target.section_name.as_ref())
            } else {
                Some((
                    format!("a target of kind {} is not served", target.kind),
                    String::from("name a Service"),
                ))
            };
            let Some((message, fix)) = finding else { continue };
            let message = format!("{message}, so the policy has no effect there");
            self.warn(kind, meta, target.at, &target.field, message, fix);
        }
    }

    /// What a reference to a Service and one of its ports lacks, and how to mend it.
    fn missing_port(&self, name: &ObjectName, section: Option<&Arc<str>>) -> Option<(String, String)> {
        let Some(service) = self.catalog.services.get(name) else {
            return Some((format!("there is no Service {name}"), self.near_service(name)));
        };
        let section = section.filter(|section| service.ports.iter().all(|port| port.name != **section))?;
        let message = format!("Service {name} has no port named {section}");
        Some((message, String::from("write the name of a port of the Service")))
    }

    fn authorities(&mut self, policy: &BackendTlsPolicy) {
        let Authorities::References(references) = &policy.authorities else {
            return;
        };
        for reference in references {
            if let Err(reason) = authority(self.catalog, policy, reference) {
                let message = format!("{reason}; without any authority no request is forwarded");
                let fix = String::from("put the certificates in PEM under the key ca.crt of a ConfigMap");
                self.warn(Kind::BackendTlsPolicy, &policy.meta, reference.at, &reference.field, message, fix);
            }
        }
    }

    fn near_service(&self, name: &ObjectName) -> String {
        let services = in_namespace(&self.catalog.services, &name.namespace);
        let near = closest(&name.name, services.map(|service| service.meta.name.as_ref()));
        near.map_or_else(|| format!("add Service {name}"), |near| format!("did you mean {near}?"))
    }

    fn attached(&mut self, kind: Kind, policy: &impl Attached) {
        match policy.target() {
            PolicyTarget::Namespace => {}
            PolicyTarget::Selector(selector) => {
                let is_global = policy.meta().namespace == self.mesh.root_namespace;
                self.selector(kind, policy.meta(), selector, is_global);
            }
            PolicyTarget::References(targets) => {
                for (index, target) in targets.iter().enumerate() {
                    self.target(kind, policy, target, &format!("spec.targetRefs[{index}]"));
                }
            }
        }
    }

    /// Whom a CUSTOM policy asks.
    fn provider(&mut self, policy: &AuthorizationPolicy) {
        let Some(name) = &policy.provider else { return };
        let Err(error) = authorizer(name, self.catalog, self.mesh) else { return };
        let message = format!("{error}, so every request that the policy takes is denied");
        let root = &self.mesh.root_namespace;
        let fix = format!(
            "name a provider under extensionProviders of the mesh ConfigMap {root}/{MESH_CONFIG_MAP}"
        );
        let meta = &policy.meta;
        self.warn(Kind::AuthorizationPolicy, meta, start(meta), "spec.provider.name", message, fix);
    }

    /// Of several for a whole namespace the oldest alone counts.
    fn outranked(&mut self, telemetry: &Telemetry) {
        let Some(first) = convert::telemetry::of_namespace(self.catalog, &telemetry.meta.namespace) else {
            return;
        };
        if telemetry.target != PolicyTarget::Namespace || first.meta.name == telemetry.meta.name {
            return;
        }
        let name = &first.meta.name;
        let message =
            format!("Telemetry {name} is for the whole namespace, too, and older: this one has no effect");
        let fix = String::from("merge the two, or give one of them a selector");
        let meta = &telemetry.meta;
        self.warn(Kind::Telemetry, meta, start(meta), "spec", message, fix);
    }

    /// Spans go out by OTLP only, to where the proxy is told.
    fn tracing_providers(&mut self, telemetry: &Telemetry) {
        for provider in telemetry.tracing.iter().filter_map(|entry| entry.provider.as_ref()) {
            let mesh = self.catalog.mesh_config(self.mesh);
            let mut named = mesh.into_iter().flat_map(|(_, mesh)| &mesh.providers);
            let found = named.find(|it| it.name == provider.name).map(|it| &it.kind);
            if matches!(found, Some(ProviderKind::Other(kind)) if &**kind == "opentelemetry") {
                continue;
            }
            let name = &provider.name;
            let message =
                format!("{name:?} is no provider of kind opentelemetry: spans go by OTLP all the same");
            let root = &self.mesh.root_namespace;
            let fix = format!(
                "name one under extensionProviders of the mesh ConfigMap {root}/{MESH_CONFIG_MAP}, or none"
            );
            self.warn(Kind::Telemetry, &telemetry.meta, provider.at, &provider.field, message, fix);
        }
    }

    /// What MeshConfig says about the installation itself, which is not for it to say here.
    fn mesh_config(&mut self) {
        let Some((meta, mesh)) = self.catalog.mesh_config(self.mesh) else { return };
        for (field, written, own) in [
            ("trustDomain", &mesh.trust_domain, &self.mesh.trust_domain),
            ("rootNamespace", &mesh.root_namespace, &self.mesh.root_namespace),
        ] {
            if written.as_ref().is_some_and(|written| written != own) {
                let message = format!("{field} is {own:?} in this installation, whatever MeshConfig says");
                let fix = String::from("start the control plane with the value that is meant");
                let field = format!("data.mesh.{field}");
                self.warn(Kind::ConfigMap, meta, start(meta), &field, message, fix);
            }
        }
    }

    fn target(&mut self, kind: Kind, policy: &impl Attached, target: &TargetRef, field: &str) {
        let name = ObjectName { namespace: policy.meta().namespace.clone(), name: target.name.clone() };
        let class = ObjectName::new("", target.name.clone());
        let is_there = match target.kind.as_ref() {
            "Service" => self.catalog.services.contains_key(&name),
            "ServiceEntry" => self.catalog.service_entries.contains_key(&name),
            "Gateway" => self.catalog.gateways.contains_key(&name),
            _ => self.catalog.gateway_classes.contains_key(&class),
        };
        let (message, fix) = if target.kind.as_ref() == "GatewayClass"
            && policy.meta().namespace != self.mesh.root_namespace
        {
            let message = String::from("a policy for a GatewayClass counts only in the root namespace");
            (message, format!("move the policy into {}", self.mesh.root_namespace))
        } else if is_there {
            return;
        } else {
            let fix = match target.kind.as_ref() {
                "Service" => self.near_service(&name),
                kind => format!("add {kind} {}", target.name),
            };
            (format!("there is no {} {}, so the policy reaches nobody there", target.kind, target.name), fix)
        };
        self.warn(kind, policy.meta(), target.at, field, message, fix);
    }

    fn peer_authentication(&mut self, policy: &PeerAuthentication) {
        let Some(selector) = &policy.selector else {
            return;
        };
        if policy.meta.namespace == self.mesh.root_namespace {
            let message =
                String::from("a PeerAuthentication of the root namespace with a selector has no effect");
            let fix = String::from("move it into the namespace of the workloads, or remove the selector");
            self.warn(
                Kind::PeerAuthentication,
                &policy.meta,
                start(&policy.meta),
                "spec.selector",
                message,
                fix,
            );
            return;
        }
        self.selector(Kind::PeerAuthentication, &policy.meta, selector, false);
    }

    fn selector(&mut self, kind: Kind, meta: &Meta, selector: &Labels, is_global: bool) {
        let namespace = (!is_global).then(|| meta.namespace.clone());
        let catalog = self.catalog;
        let is_matched = objects(&catalog.pods, namespace.as_ref())
            .any(|pod| matches_labels(selector, &pod.meta.labels))
            || objects(&catalog.workload_entries, namespace.as_ref())
                .any(|entry| matches_labels(selector, &entry.spec.labels))
            || objects(&catalog.service_entries, namespace.as_ref()).any(|entry| {
                entry.endpoints.iter().any(|endpoint| matches_labels(selector, &endpoint.labels))
            });
        if is_matched {
            return;
        }
        let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let message =
            format!("no workload has the labels {}, so the policy concerns nobody", pairs.join(", "));
        let fix = String::from("compare the selector with the labels of the Pods of this namespace");
        self.warn(kind, meta, start(meta), "spec.selector.matchLabels", message, fix);
    }
}

fn object_kind(route: &HttpRoute) -> Kind {
    match route.kind {
        RouteKind::Http => Kind::HttpRoute,
        RouteKind::Grpc => Kind::GrpcRoute,
        RouteKind::Virtual => Kind::VirtualService,
    }
}

/// The objects of a namespace, or all.
fn objects<'c, T>(
    all: &'c Objects<T>,
    namespace: Option<&Arc<str>>,
) -> Box<dyn Iterator<Item = &'c Arc<T>> + 'c> {
    match namespace {
        Some(namespace) => Box::new(in_namespace(all, namespace)),
        None => Box::new(all.values()),
    }
}

fn start(meta: &Meta) -> Position {
    Position { line: meta.source.line, column: 1 }
}
