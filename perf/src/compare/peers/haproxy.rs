//! HAProxy and nginx: the strongest conventional proxies, with as few words of configuration as their manuals need.

use std::fmt::Write;
use std::net::SocketAddr;

use super::super::site::Site;
use super::Rules;
use crate::certificates::Certificates;

/// The protocol between the two of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::compare) enum Between {
    Http1,
    Http2,
    Bytes,
}

fn file(mode: &str, frontend: &str, backend: &str) -> String {
    format!(
        "global
  nbthread 1
  tune.ssl.default-dh-param 2048
defaults
  mode {mode}
  timeout connect 5s
  timeout client 600s
  timeout server 600s
{}
frontend f
{frontend}  default_backend b
backend b
{backend}",
        if mode == "http" { "  http-reuse always" } else { "" }
    )
}

/// Client and server of a pair with mutual TLS between them; the HTTP ones have a rule, and a policy of a few paths.
pub(super) fn pair(site: &Site, certificates: &Certificates, between: Between, rules: Rules) -> Vec<String> {
    let (mode, offered) = match between {
        Between::Http1 => ("http", " alpn http/1.1"),
        Between::Http2 => ("http", " alpn h2"),
        Between::Bytes => ("tcp", ""),
    };
    let root = certificates.root().display().to_string();
    let bundle = |name: &str| certificates.bundle(name).display().to_string();
    let (rule, policy) = match (between, rules) {
        (Between::Bytes, _) => (String::new(), String::new()),
        (_, Rules::Many) => (thousand_routes(), hundred_policies()),
        (_, Rules::One | Rules::Grpc | Rules::Changing) => (
            "  http-request set-header x-route v1 if { path_beg /v1/ }\n".to_owned(),
            "  http-request deny if !{ method GET POST }\n  http-request deny if !{ path / } !{ path_beg /api/ } !{ path_end /healthz } !{ path_reg ^/v1/[^/]+/users/ }\n".to_owned(),
        ),
    };
    // Prior knowledge of HTTP/2 in the clear.
    let clear = if rules == Rules::Grpc { " proto h2" } else { "" };
    let out = format!("  bind {}{clear}\n{rule}", site.outbound().listen);
    let to_peer = format!(
        "  server s {} ssl verify required ca-file {root} crt {}{offered}\n",
        site.inbound().dial,
        bundle("client")
    );
    let inbound = format!(
        "  bind {} ssl crt {} ca-file {root} verify required{offered}\n{policy}",
        site.inbound().listen,
        bundle("server")
    );
    let app = format!("  server s {}{clear}\n", site.backend().dial);
    vec![file(mode, &out, &to_peer), file(mode, &inbound, &app)]
}

/// A hundred lists of regular expressions; what is asked for is allowed by the last one only.
fn hundred_policies() -> String {
    let mut text = String::new();
    for number in 0..99 {
        // Writing into a String cannot fail.
        let _ =
            writeln!(text, "  acl allowed path_reg ^/team-{number}/[^/]+/users/ ^/team-{number}/.*/edit$");
    }
    text.push_str("  acl allowed path_reg ^/svc/[^/]+/api/\n  http-request deny if !allowed\n");
    text
}

/// A thousand rules, each of a prefix and a header; the last one fits.
fn thousand_routes() -> String {
    let mut text = String::new();
    for number in 0..1000 {
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "  use_backend b if {{ path_beg /svc/{number}/api/ }} {{ hdr(x-tenant) -m str tenant-{number} }}"
        );
    }
    text
}

/// One HTTP hop without TLS.
pub(super) fn hop(site: &Site, rules: Rules) -> String {
    let rules = match rules {
        Rules::One | Rules::Grpc | Rules::Changing => {
            "  http-request return status 404 if !{ path_beg /v1/ }\n".to_owned()
        }
        Rules::Many => hundred_policies() + &thousand_routes(),
    };
    let frontend = format!("  bind {}\n{rules}", site.outbound().listen);
    file("http", &frontend, &format!("  server s {}\n", site.backend_afar()))
}

/// nginx as one hop; it has no policies of this kind.
pub(super) fn nginx(listen: SocketAddr, to: SocketAddr, folder: &str) -> String {
    // A single process, so that all of it is measured; a worker of a master would do the same work.
    format!(
        "daemon off; master_process off; error_log stderr warn; pid {folder}/nginx.pid;
events {{ worker_connections 32768; }}
http {{
 access_log off; keepalive_requests 1000000000;
 client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy; fastcgi_temp_path {folder}/nginx-fastcgi;
 uwsgi_temp_path {folder}/nginx-uwsgi; scgi_temp_path {folder}/nginx-scgi;
 client_max_body_size 0; proxy_max_temp_file_size 0; proxy_request_buffering off;
 upstream b {{ server {to}; keepalive 256; keepalive_requests 1000000000; }}
 server {{
  listen {listen} backlog=4096;
  location /v1/ {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  location / {{ return 404; }}
 }}
}}
"
    )
}
