//! Envoy as Istio configures it, written as its bootstrap files.
//!
//! A sidecar has what istiod gives one: the connection manager with RBAC of an AuthorizationPolicy (methods, paths, a
//! path template), the gRPC statistics, fault and CORS filters, route retries, mutual TLS, and Istio's four request
//! metrics with 25 tags each. Those come from Envoy's own `stats` access logger, which stands in for Istio's filter.

mod changes;
mod http;
mod parts;

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::super::site::Site;
use super::Rules;
use crate::certificates::{Certificates, identity};
pub(in crate::compare) use changes::changed_files;

use changes::from_files;
use http::{
    connect_terminate, http, hundred_policies, policy, prefix, principal, route, telemetry, thousand_routes,
};
use parts::{
    Upstream, address, bootstrap, cluster, filter, inspecting, internal_address, listener, tcp, tls_in,
    tls_out, tunnelling,
};

/// Bootstraps of one arrangement, in the order of its processes.
pub(super) struct Pair<'a> {
    pub(super) site: &'a Site,
    pub(super) certificates: &'a Certificates,
    /// Where the discovery files are of what changes.
    pub(super) folder: &'a Path,
}

impl Pair<'_> {
    /// HTTP at both, mutual TLS between, HTTP/1.1 or HTTP/2.
    pub(super) fn sidecars(&self, http2: bool, with_telemetry: bool, rules: Rules) -> Vec<Value> {
        let site = self.site;
        let logs = |reporter: &str| if with_telemetry { vec![telemetry(reporter)] } else { Vec::new() };
        let (offered, protocol) =
            if http2 { (["h2"], Upstream::Http2) } else { (["http/1.1"], Upstream::Http1) };
        let routes = match rules {
            Rules::One | Rules::Grpc | Rules::Changing => vec![route("outbound", prefix("/"))],
            Rules::Many => thousand_routes("outbound"),
        };
        let mut out = http("outbound", routes, Vec::new(), logs("source"));
        let peer = json!({ "exact": identity("server") });
        let to_peer = tls_out(self, "client", peer, &offered, "TLSv1_2");
        let mut clusters = vec![cluster("outbound", address(site.inbound().dial), protocol, Some(to_peer))];
        if rules == Rules::Changing {
            from_files(self.folder, &mut out["typed_config"], &mut clusters);
        }
        let client =
            bootstrap(1, vec![listener("outbound", Some(site.outbound().listen), vec![out], None)], clusters);
        let policies = match rules {
            Rules::One | Rules::Grpc | Rules::Changing => {
                vec![policy(vec![principal("client"), principal("waypoint")])]
            }
            Rules::Many => vec![hundred_policies(&principal("client"))],
        };
        let mut inbound = http("inbound", vec![route("inbound", prefix("/"))], policies, logs("destination"));
        inbound["typed_config"]["forward_client_cert_details"] = json!("APPEND_FORWARD");
        inbound["typed_config"]["set_current_client_cert_details"] =
            json!({ "subject": true, "dns": true, "uri": true });
        let app = if rules == Rules::Grpc { Upstream::Http2 } else { Upstream::Http1 };
        let tls = tls_in(self, "server", &["h2", "http/1.1"], "TLSv1_2");
        let server = bootstrap(
            2,
            vec![inspecting(listener("inbound", Some(site.inbound().listen), vec![inbound], Some(tls)))],
            vec![cluster("inbound", address(site.backend().dial), app, None)],
        );
        vec![client, server]
    }

    /// Bytes in mutual TLS, one connection for each.
    pub(super) fn l4(&self) -> Vec<Value> {
        let site = self.site;
        let peer = json!({ "exact": identity("server") });
        let to_peer = tls_out(self, "client", peer, &["istio-peer-exchange", "istio"], "TLSv1_2");
        let client = bootstrap(
            1,
            vec![listener("outbound", Some(site.outbound().listen), vec![tcp("outbound", None)], None)],
            vec![cluster("outbound", address(site.inbound().dial), Upstream::Http1, Some(to_peer))],
        );
        let everything = json!({ "permissions": [{ "any": true }], "principals": [principal("client")] });
        let rules = json!({ "action": "ALLOW", "policies": { "l4": everything } });
        let kind = "envoy.extensions.filters.network.rbac.v3.RBAC";
        let rbac =
            filter("envoy.filters.network.rbac", kind, json!({ "stat_prefix": "tcp.", "rules": rules }));
        let tls = tls_in(self, "server", &["istio-peer-exchange", "h2", "http/1.1"], "TLSv1_2");
        let filters = vec![rbac, tcp("inbound", None)];
        let server = bootstrap(
            2,
            vec![inspecting(listener("inbound", Some(site.inbound().listen), filters, Some(tls)))],
            vec![cluster("inbound", address(site.backend().dial), Upstream::Http1, None)],
        );
        vec![client, server]
    }

    /// CONNECT streams in pooled mutual TLS.
    pub(super) fn hbone(&self) -> Vec<Value> {
        vec![self.hbone_client(self.site.tunnel().dial), self.hbone_server()]
    }

    /// The same with a waypoint between, which routes and decides each request.
    pub(super) fn waypoint(&self) -> Vec<Value> {
        let site = self.site;
        let terminate = connect_terminate("main", vec![principal("client")]);
        let tls = tls_in(self, "waypoint", &["h2"], "TLSv1_3");
        let anybody = vec![json!({ "any": true })];
        let main = http(
            "main",
            vec![route("encapsulate", prefix("/"))],
            vec![policy(anybody)],
            vec![telemetry("waypoint")],
        );
        let originate = tcp("onward", Some(tunnelling(site.backend().dial)));
        let raw = json!({ "transport_socket": filter(
            "envoy.transport_sockets.raw_buffer",
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            json!({}),
        ) });
        let inside = || {
            let kind = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
            Some(filter("envoy.transport_sockets.internal_upstream", kind, raw.clone()))
        };
        let mesh = prefix("spiffe://cluster.local/");
        let onward = tls_out(self, "waypoint", mesh, &["h2"], "TLSv1_3");
        let waypoint = bootstrap(
            3,
            vec![
                listener("terminate", Some(site.waypoint_door().listen), vec![terminate], Some(tls)),
                listener("main", None, vec![main], None),
                listener("originate", None, vec![originate], None),
            ],
            vec![
                cluster("main", internal_address("main"), Upstream::Http1, inside()),
                cluster("encapsulate", internal_address("originate"), Upstream::Http1, inside()),
                cluster("onward", address(site.tunnel().dial), Upstream::Hbone, Some(onward)),
            ],
        );
        vec![self.hbone_client(site.waypoint_door().dial), waypoint, self.hbone_server()]
    }

    /// One hop without TLS.
    pub(super) fn hop(&self, rules: Rules) -> Vec<Value> {
        let (routes, policies) = match rules {
            Rules::One | Rules::Grpc | Rules::Changing => (vec![route("app", prefix("/v1/"))], Vec::new()),
            Rules::Many => (thousand_routes("app"), vec![hundred_policies(&json!({ "any": true }))]),
        };
        let filters = vec![http("hop", routes, policies, vec![telemetry("waypoint")])];
        vec![bootstrap(
            1,
            vec![listener("hop", Some(self.site.outbound().listen), filters, None)],
            vec![cluster("app", address(self.site.backend_afar()), Upstream::Http1, None)],
        )]
    }

    fn hbone_client(&self, peer: SocketAddr) -> Value {
        let mesh = prefix("spiffe://cluster.local/");
        let tls = tls_out(self, "client", mesh, &["h2"], "TLSv1_3");
        let filters = vec![tcp("hbone", Some(tunnelling(self.site.backend().dial)))];
        bootstrap(
            1,
            vec![listener("outbound", Some(self.site.outbound().listen), filters, None)],
            vec![cluster("hbone", address(peer), Upstream::Hbone, Some(tls))],
        )
    }

    fn hbone_server(&self) -> Value {
        let filters = vec![connect_terminate("app", vec![principal("client"), principal("waypoint")])];
        let tls = tls_in(self, "server", &["h2"], "TLSv1_3");
        bootstrap(
            2,
            vec![listener("terminate", Some(self.site.tunnel().listen), filters, Some(tls))],
            vec![cluster("app", address(self.site.backend().dial), Upstream::Http1, None)],
        )
    }
}
