//! What a node proxy shows of itself on the admin page.

use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::getrlimit;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use xds::snapshot::dump;

use super::certificates::rfc3339;
use super::node::{NodeProxy, Shared};
use super::workers::on_this_worker;
use crate::access_log::queue::RECORDS_MAX;
use crate::admin::Inspect;
use crate::metrics::{Limit, SERIES_MAX};
use crate::session::{COPIES_MAX, DEMANDS_WAITING_MAX, DNS_CONNECTIONS_MAX, DNS_QUERIES_MAX, Node};

/// How long a worker may take to answer.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// What `/config_dump` shows of a connection; `/connections` shows more.
const DUMPED: [&str; 4] = ["src", "originalDst", "actualDst", "protocol"];

/// The admin view of a node proxy.
#[derive(Debug)]
pub struct NodeInspect {
    shared: Rc<Shared>,
}

impl NodeProxy {
    /// What the admin page shows.
    pub fn inspect(&self) -> NodeInspect {
        NodeInspect { shared: Rc::clone(&self.shared) }
    }
}

impl NodeInspect {
    /// Asks every worker; one that does not answer in time is `null`.
    async fn ask_workers(&self, question: fn(&Node) -> Value) -> Vec<Value> {
        let mut answers = Vec::new();
        for worker in &self.shared.workers {
            let (reply, answer) = oneshot::channel();
            let posted = worker.post(move |_| {
                // Nobody waits any more if the answer is late.
                let _ = reply.send(on_this_worker(question));
            });
            answers.push(posted.ok().map(|()| tokio::time::timeout(WORKER_PATIENCE, answer)));
        }
        let mut values = Vec::new();
        for answer in answers {
            let value = match answer {
                Some(answer) => answer.await.ok().and_then(Result::ok).flatten(),
                None => None,
            };
            values.push(value.unwrap_or(Value::Null));
        }
        values
    }
}

impl Inspect for NodeInspect {
    async fn config_dump(&self) -> Value {
        let connections = self.connections().await;
        let of = |uid: &str, direction: &str| {
            let all = connections.as_array().into_iter().flatten();
            let own = all.filter(|it| it["workload"] == uid && it["direction"] == direction);
            let entry = |it: &Value| -> Value { DUMPED.iter().map(|key| (*key, it[*key].clone())).collect() };
            own.map(entry).collect::<Value>()
        };
        let snapshot = self.shared.snapshot();
        let mut dump = dump::state(&snapshot);
        let workers = self.shared.workers.len();
        let states: serde_json::Map<_, _> = self
            .shared
            .book
            .borrow()
            .listening()
            .map(|(pod, listening)| {
                let state = if listening == workers { "Up" } else { "Pending" };
                let info =
                    json!({ "name": &*pod.name, "namespace": &*pod.namespace, "serviceAccount": &*pod.service_account });
                let open = json!({ "inbound": of(&pod.uid, "inbound"), "outbound": of(&pod.uid, "outbound") });
                (pod.uid.to_string(), json!({ "state": state, "connections": open, "info": info }))
            })
            .collect();
        if let Some(fields) = dump.as_object_mut() {
            fields.insert("certificates".to_owned(), self.shared.certificates.borrow().dump());
            fields.insert("workloadState".to_owned(), Value::Object(states));
            if let Some(since) = snapshot.stale_since() {
                fields.insert("staleSince".to_owned(), rfc3339(since).into());
            }
            fields.insert("version".to_owned(), version());
            fields.insert("config".to_owned(), self.shared.shown.clone());
            fields.insert("stagedServices".to_owned(), dump::staged_services(&snapshot));
            let written = dump::static_config(&self.shared.written);
            fields.insert("staticConfig".to_owned(), written);
        }
        dump
    }

    async fn workers(&self) -> Value {
        // The worker's own count is exact; the metrics are as of its last tick.
        let answers = self.ask_workers(|node| node.live_connections().into()).await;
        let health = self.shared.metrics.workers(Instant::now());
        let rows = answers.into_iter().zip(health).enumerate().map(|(index, (live, health))| {
            let mut row = serde_json::to_value(health).unwrap_or_default();
            if let Some(row) = row.as_object_mut() {
                row.insert("worker".to_owned(), index.into());
                row.insert("answers".to_owned(), (!live.is_null()).into());
                if !live.is_null() {
                    row.insert("connections".to_owned(), live);
                }
            }
            row
        });
        rows.collect()
    }

    fn limits(&self) -> Value {
        let metrics = &self.shared.metrics;
        let reached = metrics.limit_hits().into_iter().map(|(limit, hits)| {
            let options = &self.shared.options;
            let (value, of) = match limit {
                Limit::Connections => (json!(options.connections_max), "worker"),
                Limit::MetricSeries => (json!(SERIES_MAX), "worker"),
                Limit::DnsQueries => (json!(DNS_QUERIES_MAX), "worker and pod"),
                Limit::DnsConnections => (json!(DNS_CONNECTIONS_MAX), "worker and pod"),
                Limit::Demands => (json!(DEMANDS_WAITING_MAX), "worker"),
                Limit::Memory => (json!(options.memory_max), "worker, in bytes"),
                Limit::TunnelsOfClient => (json!(options.tunnels_of_client_max), "worker and client address"),
                Limit::Handshakes => (json!(options.handshakes_max), "worker"),
                Limit::Copies => (json!(COPIES_MAX), "worker"),
                Limit::Descriptors => {
                    (json!(getrlimit(rustix::process::Resource::Nofile).current), "process")
                }
                Limit::IdleTime => {
                    (json!(options.idle_timeout.map(|it| it.as_secs_f64())), "connection, in seconds")
                }
            };
            json!({ "limit": limit.label(), "value": value, "of": of, "hits": hits })
        });
        let log = json!({
            "limit": "access_log_records", "value": RECORDS_MAX, "of": "process", "hits": metrics.log_dropped()
        });
        reached.chain([log]).collect()
    }

    fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        for worker in &self.shared.workers {
            // One that has ended already has nothing to cut.
            let _ = worker.drain(deadline);
        }
        self.quit();
    }

    async fn connections(&self) -> Value {
        let answers = self.ask_workers(|node| node.connections().into_iter().collect()).await;
        answers.into_iter().flat_map(|answer| answer.as_array().cloned().unwrap_or_default()).collect()
    }

    fn quit(&self) {
        self.shared.quit.send_replace(true);
    }
}

/// Which build this is, in ztunnel's words.
fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("CORELANE_GIT_REVISION").unwrap_or("unknown"),
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "buildStatus": "unknown",
        "istioVersion": "unknown",
        "cryptoProvider": "tls-aws-lc",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_described_with_the_keys_of_ztunnel() {
        let dump = include_str!("../../../xds/testdata/ztunnel-config_dump.json");
        let theirs: Value = serde_json::from_str(dump).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&version()), keys(&theirs["version"]));
        assert!(version().as_object().unwrap().values().all(Value::is_string));
    }
}
