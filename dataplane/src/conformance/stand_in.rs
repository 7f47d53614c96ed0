//! Gateways, as far as they are about routing: a Service stands in for each of their listeners.
//!
//! The rank and the conditions of matches are the same at a gateway and in a mesh. What a listener adds is here: a
//! route is attached to the listeners that its parents name and whose host names it shares, and a request belongs to
//! the listener that names its host best.

use std::sync::Arc;

use serde_json::{Value, json};

/// Objects without gateways.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    pub(super) objects: Vec<Value>,
    pub(super) listeners: Vec<Listener>,
}

/// One listener of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    /// `NAMESPACE/NAME`.
    pub(super) gateway: String,
    name: String,
    pub(super) port: u16,
    pub(super) has_tls: bool,
    hostname: Option<String>,
    takes_other_namespaces: bool,
    /// Name of the Service that stands in for it, in the gateway's namespace.
    pub(super) service: String,
}

/// Rewrites routes of gateways into routes of Services.
pub(super) fn replace_gateways(objects: &[Value]) -> Result<Replaced, String> {
    let mut replaced = Replaced::default();
    for gateway in objects.iter().filter(|object| kind(object) == "Gateway") {
        let listeners = gateway.pointer("/spec/listeners").and_then(Value::as_array);
        for listener in listeners.into_iter().flatten() {
            let listener = read_listener(gateway, listener, replaced.listeners.len())?;
            replaced.objects.push(service(&listener));
            replaced.listeners.push(listener);
        }
    }
    for object in objects {
        match kind(object) {
            "Gateway" => {}
            "HTTPRoute" | "GRPCRoute" => replaced.objects.push(route(object, &replaced.listeners)),
            // Not all of them are objects of a mesh, and those that are not would only be warned about.
            _ => replaced.objects.push(object.clone()),
        }
    }
    Ok(replaced)
}

pub(super) fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn read_listener(gateway: &Value, listener: &Value, index: usize) -> Result<Listener, String> {
    let protocol = text(listener, "/protocol");
    if !matches!(protocol, "HTTP" | "HTTPS") {
        return Err(format!("gateway listener: protocol {protocol}"));
    }
    let port = listener.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    Ok(Listener {
        gateway: format!("{}/{}", text(gateway, "/metadata/namespace"), text(gateway, "/metadata/name")),
        name: text(listener, "/name").to_owned(),
        port: port.ok_or("gateway listener: no port")?,
        has_tls: protocol == "HTTPS",
        hostname: listener.get("hostname").and_then(Value::as_str).map(str::to_owned),
        takes_other_namespaces: !matches!(text(listener, "/allowedRoutes/namespaces/from"), "" | "Same"),
        service: format!("listener-{index}"),
    })
}

fn service(listener: &Listener) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": listener.namespace(), "name": listener.service },
        "spec": { "clusterIP": "10.0.0.1", "ports": [{ "name": "http", "port": listener.port }] },
    })
}

/// The route with the listeners in place of the gateways that it names.
fn route(route: &Value, listeners: &[Listener]) -> Value {
    let namespace = text(route, "/metadata/namespace");
    let parents = route.pointer("/spec/parentRefs").and_then(Value::as_array);
    let mut replaced: Vec<Value> = Vec::new();
    for parent in parents.into_iter().flatten() {
        if parent.get("kind").is_some_and(|kind| kind != "Gateway") {
            replaced.push(parent.clone());
            continue;
        }
        let of_parent = parent.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let gateway = format!("{of_parent}/{}", text(parent, "/name"));
        let is_named = |listener: &&Listener| {
            listener.gateway == gateway
                && parent.get("sectionName").is_none_or(|section| *section == listener.name)
                && parent.get("port").is_none_or(|port| *port == listener.port)
                && (listener.takes_other_namespaces || of_parent == namespace)
        };
        for listener in listeners.iter().filter(is_named) {
            let parent = json!({
                "group": "", "kind": "Service", "namespace": of_parent, "name": listener.service,
            });
            // Two parents may name one listener.
            if !replaced.contains(&parent) {
                replaced.push(parent);
            }
        }
    }
    let mut route = route.clone();
    if let Some(spec) = route.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert(String::from("parentRefs"), Value::Array(replaced));
    }
    route
}

// === impl Listener ===

impl Listener {
    fn namespace(&self) -> &str {
        self.gateway.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// How well the listener names a host; `None` if it does not take it at all.
    pub(super) fn rank(&self, host: &str) -> Option<usize> {
        match &self.hostname {
            None => Some(0),
            Some(own) if own == host => Some(usize::MAX),
            Some(own) => {
                let suffix = own.strip_prefix('*')?;
                (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len())
            }
        }
    }

    /// The host names for which the listener gives requests to a route that asks for `wanted`; `None` if they share
    /// none. Without any, a route or a listener takes every host.
    pub(super) fn intersect(&self, wanted: &[Arc<str>]) -> Option<Vec<Arc<str>>> {
        let Some(own) = &self.hostname else { return Some(wanted.to_vec()) };
        if wanted.is_empty() {
            return Some(vec![Arc::from(own.as_str())]);
        }
        let shared: Vec<Arc<str>> = wanted.iter().filter_map(|other| narrower(own, other)).collect();
        (!shared.is_empty()).then_some(shared)
    }
}

/// What two host names have in common, either of which may begin with a star.
fn narrower(left: &str, right: &str) -> Option<Arc<str>> {
    let covers = |wide: &str, narrow: &str| {
        wide.strip_prefix('*').is_some_and(|suffix| {
            let rest = narrow.strip_prefix('*').unwrap_or(narrow);
            narrow.starts_with('*') && rest.ends_with(suffix)
                || narrow.len() > suffix.len() && rest.ends_with(suffix)
        })
    };
    if left == right || covers(left, right) {
        Some(Arc::from(right))
    } else if covers(right, left) {
        Some(Arc::from(left))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(hostname: Option<&str>) -> Listener {
        Listener {
            gateway: "n/g".into(),
            name: "l".into(),
            port: 80,
            has_tls: false,
            hostname: hostname.map(str::to_owned),
            takes_other_namespaces: false,
            service: "s".into(),
        }
    }

    #[test]
    fn hosts_are_shared_as_the_api_says() {
        for (own, wanted, expected) in [
            (None, &["a.b"][..], Some(&["a.b"][..])),
            (Some("a.b"), &[], Some(&["a.b"])),
            (Some("a.b"), &["a.b", "c.d"], Some(&["a.b"])),
            (Some("*.b"), &["a.b", "b", "x.a.b"], Some(&["a.b", "x.a.b"])),
            (Some("a.b"), &["*.b", "*.c"], Some(&["a.b"])),
            (Some("*.a.b"), &["*.b"], Some(&["*.a.b"])),
            (Some("*.b"), &["*.a.b"], Some(&["*.a.b"])),
            (Some("a.b"), &["c.d"], None),
        ] {
            let wanted: Vec<Arc<str>> = wanted.iter().map(|it| Arc::from(*it)).collect();
            let expected = expected.map(|it| it.iter().map(|it| Arc::from(*it)).collect::<Vec<Arc<str>>>());
            assert_eq!(listener(own).intersect(&wanted), expected, "{own:?} {wanted:?}");
        }
        assert_eq!(listener(Some("*.b")).rank("b"), None);
        assert!(listener(Some("a.b")).rank("a.b") > listener(Some("*.b")).rank("a.b"));
        assert!(listener(Some("*.b")).rank("a.b") > listener(None).rank("a.b"));
    }
}
