//! What `corelane waypoint` is told by its environment: the variables that the pod of an Istio waypoint has, and those of
//! `corelane proxy` besides. Where both say something, those of `corelane proxy` win.

use std::collections::BTreeMap;

use serde_json::Value;

use super::environment::{ConfigError, Environment};
use super::proxy_config::ProxyConfig;
use super::{Config, Host, Mode, WorkloadName};

/// The pod's labels as Kubernetes mounts them, below the working directory.
pub const LABELS_FILE: &str = "./etc/istio/pod/labels";

/// What we say we are: a control plane asks no feature of us that this release of Istio does not have.
const ISTIO_VERSION: &str = "1.31.0";

/// Variables of a waypoint's pod, and what each is called for a node proxy.
const ALIASES: [(&str, &str); 3] = [
    ("CA_ADDR", "CA_ADDRESS"),
    ("ISTIO_META_NODE_NAME", "NODE_NAME"),
    ("ISTIO_CPU_LIMIT", "ZTUNNEL_CPU_LIMIT"),
];

const LABEL_ALLOWED: &str = "each line must be name=\"value\"";

impl Config {
    /// As [`Config::read`], for a waypoint. `labels` is the text of [`LABELS_FILE`], if it exists.
    pub fn read_waypoint(
        variables: &Environment,
        host: &Host<'_>,
        labels: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let pod = WorkloadName {
            name: required(variables, "POD_NAME")?,
            namespace: required(variables, "POD_NAMESPACE")?,
            service_account: required(variables, "SERVICE_ACCOUNT")?,
        };
        let mut variables = variables.clone();
        for (theirs, ours) in ALIASES {
            variables.alias(theirs, ours);
        }
        if let Some(seconds) =
            variables.number("TERMINATION_DRAIN_DURATION_SECONDS", 0..=u64::from(u32::MAX))?
        {
            variables.set_default("CONNECTION_TERMINATION_DEADLINE", &format!("{seconds}s"));
        }
        // The authority is where the control plane is, unless it is said to be elsewhere.
        let written = ProxyConfig::read(&variables, host.mesh_config)?.discovery_address;
        if let Some(address) = variables.filled("XDS_ADDRESS").map(str::to_owned).or(written) {
            variables.set_default("CA_ADDRESS", &address);
        }
        // Nobody's names are asked here, and no packet of ours is led back to us.
        variables.set_default("ISTIO_META_DNS_CAPTURE", "false");
        variables.set_default("ENABLE_ORIG_SRC", "false");
        let mut config = Self::read_as(&variables, host, Mode::Waypoint(pod.clone()))?;
        let metadata = metadata(&pod, &config.cluster_id, labels)?;
        for (key, value) in metadata {
            config.metadata_json.entry(key.to_owned()).or_insert(value);
        }
        Ok(config)
    }
}

fn required(variables: &Environment, name: &'static str) -> Result<String, ConfigError> {
    let why = "a waypoint is known to the control plane, and gets its certificate, by its pod";
    variables.filled(name).map(str::to_owned).ok_or(ConfigError::Missing { name, why })
}

/// What a control plane is told of a waypoint beside what it is told of every proxy.
fn metadata(
    pod: &WorkloadName,
    cluster_id: &str,
    labels: Option<&str>,
) -> Result<[(&'static str, Value); 4], ConfigError> {
    let labels = labels.map(read_labels).transpose()?.unwrap_or_default();
    let labels = labels.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    Ok([
        ("SERVICE_ACCOUNT", Value::from(pod.service_account.as_str())),
        ("CLUSTER_ID", Value::from(cluster_id)),
        ("ISTIO_VERSION", Value::from(ISTIO_VERSION)),
        ("LABELS", Value::Object(labels)),
    ])
}

/// Lines `name="value"`, the value quoted as Go quotes; JSON reads what a label can hold in the same way.
fn read_labels(text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let read = lines.map(|line| {
        let refused = || ConfigError::value(LABELS_FILE, line, LABEL_ALLOWED);
        let (name, value) = line.split_once('=').ok_or_else(refused)?;
        let value = serde_json::from_str::<String>(value).map_err(|_| refused())?;
        Ok((name.to_owned(), value))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [(&str, &str); 5] = [
        ("POD_NAME", "waypoint-0"),
        ("POD_NAMESPACE", "app"),
        ("SERVICE_ACCOUNT", "waypoint"),
        ("INSTANCE_IP", "10.0.0.9"),
        ("PROXY_CONFIG", r#"{"discoveryAddress": "istiod.istio-system.svc:15012", "concurrency": 2}"#),
    ];

    fn host() -> Host<'static> {
        Host { cpus: 4, mesh_config: None, has_file: |_| false }
    }

    fn read(more: &[(&str, &str)], labels: Option<&str>) -> Result<Config, ConfigError> {
        let pairs = POD.iter().chain(more);
        let variables: Environment =
            pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read_waypoint(&variables, &host(), labels)
    }

    #[test]
    fn a_waypoints_pod_needs_nothing_but_what_istio_gives_it() {
        let labels = "gateway.networking.k8s.io/gateway-name=\"waypoint\"\n\napp=\"a\\\"b\"\n";
        let config =
            read(&[("ISTIO_META_NODE_NAME", "n1"), ("ISTIO_META_CLUSTER_ID", "c1")], Some(labels)).unwrap();
        let Mode::Waypoint(pod) = &config.mode else { panic!("{:?}", config.mode) };
        assert_eq!((&*pod.name, &*pod.namespace, &*pod.service_account), ("waypoint-0", "app", "waypoint"));
        let control = &config.control_plane;
        assert_eq!(control.discovery.as_ref().unwrap().address, "https://istiod.istio-system.svc:15012");
        assert_eq!(control.authority.address, "https://istiod.istio-system.svc:15012");
        assert_eq!((&*config.node_name, config.workers, config.dns.enabled), ("n1", 2, false));
        assert_eq!((config.sockets.mark, config.sockets.keeps_source_address), (None, Some(false)));
        let told = &config.metadata_json;
        assert_eq!(told["LABELS"]["gateway.networking.k8s.io/gateway-name"], "waypoint");
        assert_eq!((&told["LABELS"]["app"], &told["CLUSTER_ID"]), (&Value::from("a\"b"), &Value::from("c1")));
        assert_eq!(told["SERVICE_ACCOUNT"], "waypoint");
    }

    #[test]
    fn what_is_written_for_this_program_wins_and_what_lacks_is_named() {
        let config = read(
            &[
                ("CA_ADDR", "ca.example:1"),
                ("TERMINATION_DRAIN_DURATION_SECONDS", "7"),
                ("HTTP2_STREAM_WINDOW_SIZE", "100000"),
                ("ISTIO_METAJSON_LABELS", r#"{"a": "b"}"#),
            ],
            Some("c=\"d\"\n"),
        );
        let config = config.unwrap();
        assert_eq!(config.control_plane.authority.address, "https://ca.example:1");
        assert_eq!(config.termination_deadline, std::time::Duration::from_secs(7));
        assert_eq!(config.http2.stream_window, 100_000);
        assert_eq!(config.metadata_json["LABELS"]["a"], "b");
        let error = read(&[("SERVICE_ACCOUNT", "")], None).unwrap_err().to_string();
        assert!(error.starts_with("SERVICE_ACCOUNT is not set"), "{error}");
        let error = read(&[], Some("nonsense")).unwrap_err().to_string();
        assert!(error.contains(LABELS_FILE) && error.contains("nonsense"), "{error}");
    }

    #[test]
    fn what_would_have_no_effect_under_istiod_is_refused() {
        for setting in [("XDS_ON_DEMAND", "true"), ("CORELANE_STATE_DIR", "/var/lib/corelane")] {
            let error = read(&[setting], None).unwrap_err().to_string();
            assert!(error.contains(setting.0) && error.contains("leave"), "{error}");
            assert!(read(&[setting, ("CORELANE_LAYER_7", "true")], None).is_ok(), "{}", setting.0);
        }
    }

    #[test]
    fn streams_of_one_tunnel_cannot_use_up_its_window() {
        let config = read(&[], None).unwrap();
        let all = u64::from(config.http2.stream_window) * u64::from(config.pool.streams_per_connection);
        assert!(all <= u64::from(config.http2.connection_window));
    }
}
