//! Exact lines, and the safety of lines made of hostile text.

use std::sync::Arc;
use std::time::Duration;

use model::{Identity, NamespacedHostname, Service, Workload};
use time::OffsetDateTime;

use super::super::cause::CloseCause;
use super::super::record::{
    Authority, Direction, DryRun, HttpFacts, Observed, Party, Path, Record, Stage, TlsFacts, kept, method,
};
use crate::metrics::{GrpcStatus, RequestProtocol};
use crate::trace::{SpanFacts, SpanId, TraceContext, TraceId};

pub(crate) fn workload(namespace: &str, name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        identity: Identity::new("cluster.local", namespace, name).unwrap(),
        addresses: Vec::new(),
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: model::TunnelProtocol::Hbone,
        native_tunnel: false,
        network_mode: model::NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        authorization_policies: Vec::new(),
        services: model::Services::default(),
        health: model::Health::Healthy,
        locality: model::Locality::default(),
        node: "node-a".into(),
        cluster_id: "Kubernetes".into(),
        capacity: 1,
        workload_name: name.into(),
        workload_type: model::WorkloadType::Deployment,
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
    })
}

pub(crate) fn service(namespace: &str, name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        key: NamespacedHostname {
            namespace: namespace.into(),
            hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        },
        vips: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: None,
        ip_families: model::IpFamilies::default(),
        canonical: true,
        visibility: model::Visibility::default(),
    })
}

fn party(namespace: &str, name: &str, address: &str) -> Party {
    let workload = workload(namespace, name);
    Party {
        address: address.parse().ok(),
        identity: Some(workload.identity.clone()),
        workload: Some(workload),
    }
}

pub(crate) fn plain_record() -> Record {
    Record {
        stage: Stage::Ended,
        direction: Direction::Outbound,
        source: Party { address: "10.0.0.1:4000".parse().ok(), ..Party::default() },
        destination: Party { address: "10.0.0.2:80".parse().ok(), ..Party::default() },
        hbone_authority: None,
        service: None,
        tls: None,
        worker: 0,
        bytes_sent: 1,
        bytes_received: 2,
        duration: Duration::from_millis(3),
        cause: CloseCause::Finished,
        http: None,
        telemetry: None,
    }
}

pub(crate) fn tunnel_record() -> Record {
    Record {
        source: party("app", "client", "10.0.0.1:4000"),
        destination: party("app", "web", "10.0.0.2:15008"),
        hbone_authority: Some(Authority::Address("10.0.0.2:8080".parse().unwrap())),
        service: Some(service("app", "web")),
        tls: Some(TlsFacts::from(tunnel::tls::CipherSuite::Aes256GcmSha384)),
        worker: 1,
        ..plain_record()
    }
}

fn line(form: fn(&mut String, OffsetDateTime, &Record, Option<u64>), record: &Record) -> String {
    let mut out = String::new();
    form(&mut out, OffsetDateTime::UNIX_EPOCH, record, None);
    out
}

#[test]
fn plain_connection_in_text() {
    assert_eq!(
        line(super::text, &plain_record()),
        "1970-01-01T00:00:00.000000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4000 dst.addr=10.0.0.2:80 \
         direction=\"outbound\" bytes_sent=1 bytes_recv=2 duration=\"3ms\" worker=0"
    );
}

#[test]
fn tunnelled_connection_in_text() {
    assert_eq!(
        line(super::text, &tunnel_record()),
        "1970-01-01T00:00:00.000000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4000 src.workload=\"client\" \
         src.namespace=\"app\" src.identity=\"spiffe://cluster.local/ns/app/sa/client\" src.cluster=\"Kubernetes\" \
         dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service=\"web.app.svc.cluster.local\" \
         dst.workload=\"web\" dst.namespace=\"app\" dst.identity=\"spiffe://cluster.local/ns/app/sa/web\" \
         dst.cluster=\"Kubernetes\" direction=\"outbound\" bytes_sent=1 bytes_recv=2 duration=\"3ms\" \
         tls.version=\"TLSv1.3\" tls.cipher=\"TLS_AES_256_GCM_SHA384\" worker=1"
    );
}

#[test]
fn denied_request_in_json() {
    let record = Record {
        direction: Direction::Inbound,
        cause: CloseCause::PolicyDenied,
        http: Some(Box::new(HttpFacts {
            method: method("GET"),
            path: Path::new("/v1/admin?\"x\"\n"),
            status: 403,
            route: Some(("app/web".into(), 2)),
            policy: Some("app/paths".into()),
            authority: kept("web:80"),
            user_agent: kept("test \"1\""),
            request_id: kept("an-id"),
            caller: TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ..HttpFacts::default()
        })),
        ..plain_record()
    };
    assert_eq!(
        line(super::json, &record),
        r#"{"level":"error","time":"1970-01-01T00:00:00.000000Z","scope":"access","message":"request complete","src.addr":"10.0.0.1:4000","dst.addr":"10.0.0.2:80","direction":"inbound","bytes_sent":1,"bytes_recv":2,"duration":"3ms","http.method":"GET","http.path":"/v1/admin?\"x\"\n","http.authority":"web:80","http.user_agent":"test \"1\"","http.request_id":"an-id","http.status":403,"http.route":"app/web","http.route_rule":2,"policy":"app/paths","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","worker":0,"response_flags":"-","close_cause":"policy_denied","error":"connection closed by policy: denied"}"#
    );
}

#[test]
fn answered_request_in_text() {
    let span = SpanFacts {
        trace: TraceId::of(1, 2),
        span: SpanId::of(3),
        parent: None,
        began: std::time::SystemTime::UNIX_EPOCH,
    };
    let http = HttpFacts {
        method: method("POST"),
        path: Path::new("/a.B/C"),
        status: 200,
        protocol: RequestProtocol::Grpc,
        grpc_status: Some(GrpcStatus::of_field(b"5")),
        span: Some(span),
        ..HttpFacts::default()
    };
    let line = line(super::text, &Record { http: Some(Box::new(http)), ..plain_record() });
    assert!(
        line.ends_with(
            "duration=\"3ms\" http.method=\"POST\" http.path=\"/a.B/C\" http.status=200 grpc.status=5 \
             trace_id=\"00000000000000010000000000000002\" span_id=\"0000000000000003\" worker=0 response_flags=\"-\""
        ),
        "{line}"
    );
}

/// The documentation lists every key of a line, and no other.
#[test]
fn the_keys_are_those_that_are_documented() {
    let documented = include_str!("../../../docs/operations.md");
    let section = documented.split("## Access log").nth(1).unwrap().split("\n## ").next().unwrap();
    let span = Some(SpanFacts {
        trace: TraceId::of(1, 2),
        span: SpanId::of(3),
        parent: None,
        began: std::time::SystemTime::UNIX_EPOCH,
    });
    let http = HttpFacts {
        path: Path::new(&"/x".repeat(1_000)),
        route: Some(("app/web".into(), 2)),
        policy: Some("app/paths".into()),
        observed: Some(Box::new(Observed {
            dry_run: Some(DryRun { allowed: false, policy: Some("app/trial".into()) }),
            audit: Some("app/audit".into()),
        })),
        authority: kept("web"),
        user_agent: kept("agent"),
        request_id: kept("id"),
        span,
        grpc_status: Some(GrpcStatus::of_field(b"0")),
        ..HttpFacts::default()
    };
    let record = Record { http: Some(Box::new(http)), cause: CloseCause::ServerReset, ..tunnel_record() };
    let parsed: serde_json::Value = serde_json::from_str(&line(super::json, &record)).unwrap();
    for key in parsed.as_object().unwrap().keys() {
        assert!(section.contains(&format!("`{key}`")), "{key} is not documented");
    }
}

#[test]
fn failed_connection_in_text() {
    let record = Record { cause: CloseCause::TunnelRefused, ..tunnel_record() };
    let line = line(super::text, &record);
    assert!(
        line.starts_with("1970-01-01T00:00:00.000000Z\terror\taccess\tconnection complete\tsrc.addr="),
        "{line}"
    );
    assert!(
        line.ends_with(
            " worker=1 response_flags=\"CONNECT\" close_cause=\"tunnel_refused\" \
             error=\"the peer's proxy refused the tunnel\""
        ),
        "{line}"
    );
}

#[test]
fn early_denials_in_both_forms() {
    let record = Record { cause: CloseCause::UnknownWorkload, ..plain_record() };
    assert_eq!(
        line(super::text, &record),
        "1970-01-01T00:00:00.000000Z\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:4000 dst.addr=10.0.0.2:80 \
         direction=\"outbound\" error=\"the workload is not known to the control plane\" \
         close_cause=\"unknown_workload\" worker=0"
    );
    let mut repeated = String::new();
    super::json(&mut repeated, OffsetDateTime::UNIX_EPOCH, &record, Some(7));
    assert_eq!(
        repeated,
        r#"{"level":"warn","time":"1970-01-01T00:00:00.000000Z","scope":"access","message":"connection failed","src.addr":"10.0.0.1:4000","dst.addr":"10.0.0.2:80","direction":"outbound","error":"the workload is not known to the control plane","close_cause":"unknown_workload","worker":0,"repeated":7}"#
    );
}

#[test]
fn openings_have_no_bytes_and_no_duration() {
    let record = Record { stage: Stage::Opened, service: None, ..tunnel_record() };
    assert_eq!(
        line(super::text, &record),
        "1970-01-01T00:00:00.000000Z\tdebug\taccess\tconnection opened\tsrc.addr=10.0.0.1:4000 \
         src.workload=\"client\" src.namespace=\"app\" src.identity=\"spiffe://cluster.local/ns/app/sa/client\" \
         src.cluster=\"Kubernetes\" dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.workload=\"web\" \
         dst.namespace=\"app\" dst.identity=\"spiffe://cluster.local/ns/app/sa/web\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" worker=1"
    );
}

#[test]
fn fuzz_hostile_text_stays_in_its_value() {
    bolero::check!().with_type::<String>().for_each(|path| {
        let record = Record {
            http: Some(Box::new(HttpFacts { path: Path::new(path), ..HttpFacts::default() })),
            ..plain_record()
        };
        let text = line(super::text, &record);
        assert_eq!(text.lines().count(), 1, "{text:?}");
        let json = line(super::json, &record);
        assert_eq!(json.lines().count(), 1, "{json:?}");
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["http.path"].as_str().unwrap(), Path::new(path).as_str());
        assert_eq!(parsed["worker"], 0);
    });
}
