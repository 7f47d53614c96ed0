//! The HTTP/2 engine: heads and payload from one end to the other.

use std::time::Instant;

use tunnel::h2::{Config, Connection, Event, Headers};

use super::Step;

/// A new stream: the head encoded by the client and decoded by the server, and answered.
pub(super) fn connect() -> Step {
    let headers = connect_request();
    let (mut client, mut server) = engines();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    Box::new(move || {
        let stream = client.open(&headers, true, &mut to_server).expect("a stream");
        assert_eq!(drain(&mut server, &to_server, &mut to_client), 1);
        to_server.clear();
        let answer = Headers::response(200).expect("a status");
        server.respond(stream, &answer, true, &mut to_client).expect("an answer");
        drain(&mut client, &to_client, &mut to_server);
        to_client.clear();
    })
}

/// Payload on an open stream, credit included.
pub(super) fn payload(size: usize) -> Step {
    let (mut client, mut server) = engines();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let stream = client.open(&connect_request(), false, &mut to_server).expect("a stream");
    drain(&mut server, &std::mem::take(&mut to_server), &mut to_client);
    let payload = vec![7; size];
    Box::new(move || {
        assert_eq!(client.send_data(stream, &payload, false, &mut to_server).expect("sent"), size);
        drain(&mut server, &to_server, &mut to_client);
        to_server.clear();
        drain(&mut client, &to_client, &mut to_server);
        to_client.clear();
    })
}

/// A client and a server engine that have exchanged their settings.
fn engines() -> (Connection, Connection) {
    let now = Instant::now();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Connection::new(Config::hbone_client(), now, &mut to_server);
    let mut server = Connection::new(Config::hbone_server(), now, &mut to_client);
    for _ in 0..2 {
        drain(&mut server, &std::mem::take(&mut to_server), &mut to_client);
        drain(&mut client, &std::mem::take(&mut to_client), &mut to_server);
    }
    (client, server)
}

fn drain(engine: &mut Connection, mut input: &[u8], out: &mut Vec<u8>) -> usize {
    let mut headers = 0;
    while let Some(event) = engine.next_event(&mut input, Instant::now(), out).expect("sound input") {
        match event {
            Event::Headers { .. } => headers += 1,
            Event::Data { stream, bytes, .. } => engine.release(stream, bytes.len(), out),
            _ => {}
        }
    }
    headers
}

pub(super) fn connect_request() -> Headers {
    let mut headers = Headers::connect("10.244.1.11:8080").expect("sound input");
    let baggage =
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.deployment.name=client,service.name=client";
    headers.push("baggage", baggage).expect("sound input");
    headers
        .push("forwarded", "for=\"10.244.1.10:40000\";host=echo.app.svc.cluster.local")
        .expect("sound input");
    headers
}
