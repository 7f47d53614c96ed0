//! The tables and the JSON of a dump that holds something of everything.

use serde_json::{Value, json};
use time::macros::datetime;

use super::filter::{Filter, Way};
use super::*;

const NOW: time::OffsetDateTime = datetime!(2026-11-24 00:00 UTC);

fn dump() -> Value {
    serde_json::from_str(include_str!("../../../testdata/dump.json")).unwrap()
}

fn shown(subject: Subject, output: Output, filter: &Filter) -> String {
    show(subject, &dump(), None, filter, NOW).written(output).unwrap()
}

fn table(subject: Subject) -> String {
    shown(subject, Output::Table, &Filter::default())
}

#[test]
fn tables_are_as_they_were_agreed() {
    for (name, subject, expected) in [
        ("workloads", Subject::Workloads, include_str!("../../../testdata/workloads.txt")),
        ("services", Subject::Services, include_str!("../../../testdata/services.txt")),
        ("policies", Subject::Policies, include_str!("../../../testdata/policies.txt")),
        ("connections", Subject::Connections, include_str!("../../../testdata/connections.txt")),
        ("certs", Subject::Certificates, include_str!("../../../testdata/certs.txt")),
    ] {
        let both = table(subject) + "\n" + &shown(subject, Output::Wide, &Filter::default());
        assert_eq!(both, expected, "{name}:\n{both}");
    }
}

#[test]
fn filters_leave_what_they_name() {
    let names = |subject, filter: Filter| {
        let json: Value = serde_json::from_str(&shown(subject, Output::Json, &filter)).unwrap();
        let names = json.as_array().unwrap().iter().map(|it| text(it, "name").to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    let filter = Filter::default;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(names(Subject::Workloads, Filter { namespace: some("Other"), ..filter() }), "old");
    assert_eq!(names(Subject::Workloads, Filter { node: some("b"), ..filter() }), "web web-2 old");
    assert_eq!(names(Subject::Workloads, Filter { workload: some("app/web"), ..filter() }), "web");
    assert_eq!(names(Subject::Workloads, Filter { workload: some("other/web"), ..filter() }), "");
    assert_eq!(names(Subject::Workloads, Filter { address: some("FD00::7"), ..filter() }), "old");
    assert_eq!(names(Subject::Services, Filter { address: some("10.96.0.9"), ..filter() }), "gate");
    assert_eq!(names(Subject::Policies, Filter { namespace: some("app"), ..filter() }), "only");
    let inbound = Filter { direction: Some(Way::Inbound), ..filter() };
    assert_eq!(shown(Subject::Connections, Output::Table, &inbound).lines().count(), 2);
    let of_address = Filter { address: some("fd00::7"), raw: true, ..filter() };
    let rows = shown(Subject::Connections, Output::Table, &of_address);
    assert!(rows.lines().count() == 2 && rows.contains("10.244.1.1:4001"), "{rows}");
    let of_namespace = Filter { namespace: some("other"), ..filter() };
    assert!(
        shown(Subject::Certificates, Output::Wide, &of_namespace).contains("the authority does not answer")
    );
    assert_eq!(shown(Subject::Certificates, Output::Table, &of_namespace).lines().count(), 2);
}

#[test]
fn live_connections_show_identities_and_bytes() {
    let live = json!([{
        "workload": "c1//Pod/app/client", "direction": "outbound", "src": "10.244.1.1:4000",
        "originalDst": "10.96.0.1:80", "actualDst": "10.244.1.2:15008", "protocol": "HBONE",
        "dstIdentity": "spiffe://cluster.local/ns/app/sa/web", "bytesSent": 5, "bytesReceived": 7, "worker": 1,
    }]);
    let shown = show(Subject::Connections, &dump(), Some(&live), &Filter::default(), NOW);
    let rows = shown.written(Output::Wide).unwrap();
    let row: Vec<_> = rows.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row,
        [
            "client.app",
            "Outbound",
            "client.app:4000",
            "web.app:15008",
            "web.app.svc.cluster.local:80",
            "HBONE",
            "spiffe://cluster.local/ns/app/sa/web",
            "5",
            "7",
            "1"
        ]
    );
}

#[test]
fn workers_are_told_apart_by_whether_they_answer() {
    let page = json!([
        { "worker": 0, "answers": true, "connections": 2, "tunnels": 1, "streamsOpened": 3, "streamsAccepted": 1,
          "generation": 9, "meanTurnMicros": 120, "cpuMillis": 15, "spareBufferBytes": 4096, "sparePipes": 2,
          "silentMillis": 3 },
        { "worker": 1, "answers": false, "generation": 8 },
    ]);
    let rows = workers::show(&page).written(Output::Table).unwrap();
    let rows: Vec<Vec<_>> = rows.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["0", "Serving", "2", "1", "4", "9", "120us", "15ms"]);
    assert_eq!(rows[2][..2], ["1", "Silent"]);
}

#[test]
fn serial_numbers_become_hexadecimal() {
    for (decimal, hexadecimal) in [("0", "0"), ("255", "ff"), ("4294967296", "100000000")] {
        assert_eq!(certs::hexadecimal(decimal).as_deref(), Some(hexadecimal));
    }
    assert_eq!(certs::hexadecimal("NA"), None);
    assert_eq!(certs::hexadecimal(""), None);
}

#[test]
fn fuzz_any_dump_is_shown_without_failing() {
    bolero::check!().with_type::<(String, String)>().for_each(|(name, value)| {
        let entry = json!({
            "name": value, "namespace": name, "identity": value, "state": value, "vips": [value, 1, null],
            "workloadIps": [value], "waypoint": { "destination": value }, "endpoints": { name.as_str(): value },
            "certChain": [{ "serialNumber": value, "validFrom": value }], "rules": value,
        });
        let state = json!({ "info": entry, "connections": { "inbound": [{ "src": value }], "outbound": value } });
        let dump = json!({
            "workloads": [entry, value], "services": [entry, null], "policies": [entry], "certificates": [entry],
            "workloadState": { name.as_str(): state },
        });
        for subject in
            [Subject::Workloads, Subject::Services, Subject::Policies, Subject::Connections, Subject::Certificates]
        {
            assert!(show(subject, &dump, None, &Filter::default(), NOW).written(Output::Wide).is_ok());
        }
    });
}
