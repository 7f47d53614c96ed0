//! Cases of gateways, as far as they are about routing: a Service of the gateway's name stands in for it.
//!
//! The rank and the conditions of matches are the same at a gateway and in a mesh; what a listener adds (hostnames
//! of its own, TLS, sections) is not modelled, and cases that need it are left out by name.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Objects without gateways.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    pub(super) objects: Vec<Value>,
    /// Gateways for which nothing can stand in, as `NAMESPACE/NAME`, and what of them is not modelled.
    pub(super) left_out: BTreeMap<String, String>,
}

/// Rewrites routes of gateways into routes of Services.
pub(super) fn replace_gateways(objects: &[Value]) -> Replaced {
    let mut replaced = Replaced::default();
    for object in objects {
        match kind(object) {
            "Gateway" => match service(object) {
                Ok(service) => replaced.objects.extend(service),
                Err(reason) => {
                    let text = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
                    let name = format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"));
                    replaced.left_out.insert(name, reason);
                }
            },
            "HTTPRoute" => replaced.objects.push(route(object)),
            // Not all of them are objects of a mesh, and those that are not would only be warned about.
            _ => replaced.objects.push(object.clone()),
        }
    }
    replaced
}

pub(super) fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

/// A Service with the ports of the gateway's listeners.
fn service(gateway: &Value) -> Result<Option<Value>, String> {
    let listeners = gateway.pointer("/spec/listeners").and_then(Value::as_array);
    let mut ports: Vec<Value> = Vec::new();
    for listener in listeners.into_iter().flatten() {
        let protocol = listener.get("protocol").and_then(Value::as_str).unwrap_or_default();
        if protocol != "HTTP" {
            return Err(format!("gateway listener: protocol {protocol}"));
        }
        if listener.get("hostname").is_some() {
            return Err(String::from("gateway listener: hostname"));
        }
        let number = listener.get("port").cloned().unwrap_or_default();
        if ports.iter().all(|port| port.get("port") != Some(&number)) {
            ports.push(json!({ "name": format!("port-{number}"), "port": number }));
        }
    }
    let metadata = gateway.get("metadata").cloned().unwrap_or_default();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": { "clusterIP": "10.0.0.1", "ports": ports },
    });
    Ok((!ports.is_empty()).then_some(service))
}

fn route(route: &Value) -> Value {
    let mut route = route.clone();
    let parents = route.pointer_mut("/spec/parentRefs").and_then(Value::as_array_mut);
    for parent in parents.into_iter().flatten().filter_map(Value::as_object_mut) {
        let is_gateway = parent.get("kind").is_none_or(|kind| kind == "Gateway");
        if is_gateway {
            parent.insert(String::from("group"), json!(""));
            parent.insert(String::from("kind"), json!("Service"));
        }
    }
    route
}
