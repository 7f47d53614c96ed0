//! Which policies are enforced at which proxy.

use std::sync::Arc;

use serde_json::Value;
use xds::kube::convert::attachment::{ServiceRef, Waypoint, attaches_by_selector, attaches_to_waypoint};
use xds::kube::{Labels, MeshSettings, ObjectName};

use super::{Outcome, objects};

#[derive(Debug, serde::Deserialize)]
pub(super) struct File {
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    id: String,
    proxy: Proxy,
    policy: Value,
    /// `NAMESPACE/NAME` of what a request through a waypoint is meant for.
    destination: Option<String>,
    expect: Expected,
}

#[derive(Debug, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Proxy {
    Waypoint {
        gateway: Arc<str>,
        namespace: Arc<str>,
        gateway_class: Arc<str>,
        root_namespace: Option<Arc<str>>,
        /// `NAMESPACE/NAME (KIND)`.
        serves: Vec<String>,
    },
    Ztunnel {
        workload: Workload,
        root_namespace: Option<Arc<str>>,
    },
}

#[derive(Debug, serde::Deserialize)]
struct Workload {
    namespace: Arc<str>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Debug, serde::Deserialize)]
struct Expected {
    applies: bool,
}

pub(super) fn run(file: &File, sink: &mut dyn FnMut(&str, Outcome)) {
    for case in &file.cases {
        let shown = |applies| String::from(if applies { "applies" } else { "does not apply" });
        let outcome = match applies(case) {
            Ok(found) => Outcome::Compared { got: shown(found), want: shown(case.expect.applies) },
            Err(reason) => Outcome::Skipped(reason),
        };
        sink(&case.id, outcome);
    }
}

fn applies(case: &Case) -> Result<bool, String> {
    let catalog = match objects::read([&objects::policy(&case.policy)]) {
        Ok(catalog) => catalog,
        // A reference into another namespace can never hold: it is refused instead of ignored.
        Err(reason) if reason.contains("targets of its own namespace") => return Ok(false),
        Err(reason) => return Err(format!("a policy is refused: {reason}")),
    };
    let policy = catalog.authorization_policies.values().next().ok_or("the case has no policy")?;
    let mut mesh = MeshSettings::default();
    match &case.proxy {
        Proxy::Ztunnel { workload, root_namespace } => {
            mesh.root_namespace = root_namespace.clone().unwrap_or(mesh.root_namespace);
            Ok(attaches_by_selector(&**policy, &workload.namespace, &workload.labels, &mesh))
        }
        Proxy::Waypoint { gateway, namespace, gateway_class, root_namespace, serves } => {
            mesh.root_namespace = root_namespace.clone().unwrap_or(mesh.root_namespace);
            let destination = case.destination.as_deref().ok_or("the case has no destination")?;
            let waypoint = Waypoint {
                gateway: &ObjectName::new(namespace.clone(), gateway.clone()),
                class: gateway_class,
                destination: &service(destination, serves)?,
            };
            Ok(attaches_to_waypoint(&**policy, &waypoint, &mesh))
        }
    }
}

fn service(destination: &str, serves: &[String]) -> Result<ServiceRef, String> {
    let served = serves.iter().find_map(|text| text.strip_prefix(destination)?.strip_prefix(' '));
    let (namespace, name) = destination.split_once('/').ok_or("the destination has no namespace")?;
    let name = ObjectName::new(namespace, name);
    match served {
        Some("(Service)") => Ok(ServiceRef::Service(name)),
        Some("(ServiceEntry)") => Ok(ServiceRef::ServiceEntry(name)),
        _ => Err(format!("the proxy does not serve {destination}")),
    }
}
