//! Routes and endpoints that Envoy reads from discovery files and reads again when they are replaced.

use std::path::Path;

use serde_json::{Value, json};

use super::http::{prefix, route, virtual_hosts};
use super::parts::{address, any};

const ROUTES: &str = "routes.json";
const ENDPOINTS: &str = "endpoints.json";
const OTHERS: &str = "others";

/// The client's routes, and the endpoints of a service that nobody asks for, come from files.
pub(super) fn from_files(folder: &Path, manager: &mut Value, clusters: &mut Vec<Value>) {
    let source = |name: &str| {
        let path = folder.join(name).display().to_string();
        json!({ "resource_api_version": "V3", "path_config_source": { "path": path } })
    };
    if let Some(fields) = manager.as_object_mut() {
        fields.remove("route_config");
    }
    manager["rds"] = json!({ "route_config_name": "outbound", "config_source": source(ROUTES) });
    clusters.push(json!({
        "name": OTHERS, "type": "EDS", "connect_timeout": "10s", "eds_cluster_config": { "eds_config": source(ENDPOINTS) },
    }));
}

/// Names and contents of the files at the change of this number: one route and one endpoint are others than before.
pub(in crate::compare) fn changed_files(number: usize) -> [(&'static str, String); 2] {
    let gone = json!({ "match": prefix(&format!("/churn/{number}/")), "direct_response": { "status": 410 } });
    let routes = json!({ "name": "outbound", "virtual_hosts": virtual_hosts(&[gone, route("outbound", prefix("/"))]) });
    let ip = [10, 244, 9, u8::try_from(1 + number % 250).unwrap_or(1)];
    let endpoint = json!({ "endpoint": { "address": address((ip, 8080).into()) } });
    let endpoints = json!({ "cluster_name": OTHERS, "endpoints": [{ "lb_endpoints": [endpoint] }] });
    let file = |kind: &str, resource: Value| {
        json!({ "version_info": number.to_string(), "resources": [any(kind, resource)] }).to_string()
    };
    [
        (ROUTES, file("envoy.config.route.v3.RouteConfiguration", routes)),
        (ENDPOINTS, file("envoy.config.endpoint.v3.ClusterLoadAssignment", endpoints)),
    ]
}
