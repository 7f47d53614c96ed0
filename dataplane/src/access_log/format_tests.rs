//! Exact lines, and the safety of lines made of hostile text.

use std::sync::Arc;
use std::time::Duration;

use model::{Identity, NamespacedHostname, Service, Workload};
use time::OffsetDateTime;

use super::super::cause::CloseCause;
use super::super::record::{Authority, Direction, HttpFacts, Party, Path, Record, Stage, TlsFacts, method};

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
    }
}

fn tunnel_record() -> Record {
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
            ..HttpFacts::default()
        })),
        ..plain_record()
    };
    assert_eq!(
        line(super::json, &record),
        r#"{"level":"error","time":"1970-01-01T00:00:00.000000Z","scope":"access","message":"request complete","src.addr":"10.0.0.1:4000","dst.addr":"10.0.0.2:80","direction":"inbound","bytes_sent":1,"bytes_recv":2,"duration":"3ms","http.method":"GET","http.path":"/v1/admin?\"x\"\n","http.status":403,"http.route":"app/web","http.route_rule":2,"policy":"app/paths","worker":0,"response_flags":"-","close_cause":"policy_denied","error":"connection closed by policy: denied"}"#
    );
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
