//! Which kind an object is, and what to say of kinds that are not read.

use super::catalog::{Kind, Position};
use super::problem::Severity;
use super::reader::{Findings, Item, closest};
use super::yaml::{Node, shortened};

/// API groups in which an unknown kind is an error: leaving it out would change what the mesh enforces.
const MESH_GROUPS: [&str; 5] = [
    "security.istio.io",
    "networking.istio.io",
    "telemetry.istio.io",
    "gateway.networking.k8s.io",
    "gateway.networking.x-k8s.io",
];

/// Kinds of those groups that exist but are not read, so that they are not taken for misspelled ones.
const UNSUPPORTED_KINDS: [&str; 18] = [
    "BackendTrafficPolicy",
    "EnvoyFilter",
    "HTTPFilter",
    "ListenerSet",
    "ProxyConfig",
    "Sidecar",
    "TCPRoute",
    "TLSRoute",
    "TrafficExtension",
    "UDPRoute",
    "WorkloadGroup",
    "XListenerSet",
    "XMesh",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "ServiceEntry",
    "WorkloadEntry",
];

/// Which of our kinds an object is; `None` once it is reported why it is none.
pub(super) fn kind_of(root: &Item<'_>, findings: &mut Findings) -> Option<Kind> {
    let at = |field: &str| root.node.get(field).map_or(root.node.at, |node| node.at);
    let text = |field: &str| root.node.get(field).and_then(Node::as_text).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    findings.object = described(root, &kind);
    if kind.is_empty() {
        let message = "the object does not say its kind";
        findings.add(
            Severity::Error,
            at("kind"),
            "kind",
            message,
            "write `kind:` with a text, such as Service",
        );
        return None;
    }
    if api_version.is_empty() {
        let fix = Kind::ALL.into_iter().find(|known| known.name() == kind).map_or_else(
            || String::from("write `apiVersion:` with a text"),
            |known| format!("write apiVersion: {}", known.api_version()),
        );
        findings.add(Severity::Error, at("apiVersion"), "apiVersion", "apiVersion is missing", fix);
        return None;
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let of_group = || Kind::ALL.into_iter().filter(|known| known.api().0 == group);
    if let Some(known) = of_group().find(|known| known.name() == kind) {
        if known.api().1.contains(&version) {
            return Some(known);
        }
        let message = format!("{kind} of version {} is not read", shortened(version));
        let fix = format!("write apiVersion: {}", known.api_version());
        findings.add(Severity::Error, at("apiVersion"), "apiVersion", message, fix);
        return None;
    }
    unknown_kind(group, &kind, (at("apiVersion"), at("kind")), findings);
    None
}

/// Reports a kind that is not read: an error where it would matter, else a warning.
fn unknown_kind(
    group: &str,
    kind: &str,
    (api_version_at, kind_at): (Position, Position),
    findings: &mut Findings,
) {
    let shown = shortened(kind);
    if let Some(meant) = closest(group, MESH_GROUPS.into_iter()).filter(|meant| *meant != group) {
        let message = format!("{:?} is no API group of the mesh", shortened(group));
        let fix = format!("did you mean {meant}?");
        return findings.add(Severity::Error, api_version_at, "apiVersion", message, fix);
    }
    let of_group = Kind::ALL.into_iter().filter(|known| known.api().0 == group);
    let is_real = UNSUPPORTED_KINDS.contains(&kind);
    let near = closest(kind, of_group.map(Kind::name)).filter(|_| !is_real);
    let homeless =
        || Kind::ALL.into_iter().find(|known| known.name() == kind && !MESH_GROUPS.contains(&group));
    if let Some(near) = near {
        let message = format!("there is no kind {shown:?} that is read");
        findings.add(Severity::Error, kind_at, "kind", message, format!("did you mean {near}?"));
    } else if MESH_GROUPS.contains(&group) {
        let message = format!(
            "{shown} ({group}) is not supported yet, and leaving it out would change what the mesh does"
        );
        findings.add(
            Severity::Error,
            kind_at,
            "kind",
            message,
            "remove the object, or move it out of this folder",
        );
    } else if let Some(known) = homeless().filter(|known| MESH_GROUPS.contains(&known.api().0)) {
        let message = format!("{shown} is not of the API group {:?}", shortened(group));
        let fix = format!("write apiVersion: {}", known.api_version());
        findings.add(Severity::Error, api_version_at, "apiVersion", message, fix);
    } else {
        let message = format!("{shown} is ignored: objects of this kind are not read");
        let fix = match kind {
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "CronJob" => {
                "write the Pods themselves: no controller makes them here"
            }
            "Endpoints" => "write an EndpointSlice",
            _ => "",
        };
        findings.add(Severity::Warning, kind_at, "kind", message, fix);
    }
}

/// `KIND NAMESPACE/NAME` as far as they are written.
fn described(root: &Item<'_>, kind: &str) -> String {
    let meta = root.node.get("metadata");
    let text = |field: &str| meta.and_then(|meta| meta.get(field)).and_then(Node::as_text).map(shortened);
    let name = match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!(" {namespace}/{name}"),
        (None, Some(name)) => format!(" {name}"),
        _ => String::new(),
    };
    format!("{}{name}", shortened(kind))
}

#[cfg(test)]
mod tests {
    use crate::kube::load_documents;

    fn problems(text: &str) -> Vec<String> {
        load_documents(vec![("a.yaml", text)]).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_kinds_are_errors_only_where_they_matter() {
        let object = |api: &str, kind: &str| {
            let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata:\n  name: x\n  namespace: y\n");
            problems(&text).join("\n")
        };
        assert!(object("apps/v1", "Deployment").contains("a.yaml:2:7: warning: Deployment is ignored"));
        assert!(object("v1", "Secret").contains("warning"));
        assert_eq!(object("v1", "ConfigMap"), "");
        assert!(object("gateway.networking.x-k8s.io/v1alpha1", "XMesh").contains("error: XMesh"));
        assert!(object("serving.knative.dev/v1", "Service").contains("warning"));
        assert!(object("v1", "Servce").contains("a.yaml:2:7: error"));
        assert!(object("v1", "Servce").contains("did you mean Service?"));
        assert!(
            object("security.istio.io/v1", "AuthorisationPolicy")
                .contains("did you mean AuthorizationPolicy?")
        );
        assert!(object("networking.istio.io/v1", "Sidecar").contains("error: Sidecar"));
        assert!(object("networking.istio.io/v1", "Gateway").contains("error: Gateway (networking.istio.io)"));
        assert!(
            object("securty.istio.io/v1", "AuthorizationPolicy").contains("did you mean security.istio.io?")
        );
        assert!(object("v1", "HTTPRoute").contains("write apiVersion: gateway.networking.k8s.io/v1"));
        assert!(object("gateway.networking.k8s.io/v1alpha2", "HTTPRoute").contains("a.yaml:1:13: error"));
        assert!(problems("kind: Service\n").join("").contains("write apiVersion: v1"));
        assert!(problems("apiVersion: v1\n").join("").contains("does not say its kind"));
        assert!(problems("- a\n").join("").contains("an object is expected here"));
    }
}
