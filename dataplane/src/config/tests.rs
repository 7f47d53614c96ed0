//! Every variable: its default, a value, and what is said of an impossible one.

use super::*;

use xds::transport::{Roots, ServerAddress, Token};

const PEM: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

fn read_on(pairs: &[(&str, &str)], has_file: fn(&Path) -> bool) -> Result<Config, ConfigError> {
    let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::read(&variables, &Host { cpus: 8, mesh_config: None, has_file })
}

fn try_read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    read_on(pairs, |_| false)
}

fn read(pairs: &[(&str, &str)]) -> Config {
    try_read(pairs).unwrap()
}

fn refused(name: &str, value: &str) -> String {
    let error = try_read(&[(name, value)]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{name}={value:?} cannot be used: ")), "{error}");
    error
}

#[test]
fn without_variables_everything_is_as_ztunnel_has_it() {
    let config = read(&[]);
    assert!(config.proxies && config.reuses_port && config.ipv6 && config.localhost_app_tunnel);
    assert!(config.response_baggage && config.dns.enabled && !config.control_plane.on_demand);
    assert_eq!(config.mode, Mode::Shared);
    assert_eq!((config.network.as_str(), config.node_name.as_str()), ("", ""));
    assert_eq!((config.cluster_id.as_str(), config.cluster_domain.as_str()), ("Kubernetes", "cluster.local"));
    assert_eq!(config.agent_socket, Path::new("/var/run/ztunnel/ztunnel.sock"));
    let keepalive = Keepalive { time: DEFAULT_KEEPALIVE, interval: DEFAULT_KEEPALIVE, retries: 9 };
    let sockets = Sockets {
        mark: Some(1337),
        keeps_source_address: None,
        keepalive: Some(keepalive),
        user_timeout: false,
    };
    assert_eq!(config.sockets, sockets);
    let pool = PoolSettings { streams_per_connection: 100, unused_release: Duration::from_mins(5) };
    assert_eq!(config.pool, pool);
    let http2 =
        Http2Settings { stream_window: 4_194_304, connection_window: 16_777_216, frame_size: 1_048_576 };
    assert_eq!(config.http2, http2);
    assert_eq!(config.termination_deadline, Duration::from_secs(5));
    assert_eq!(config.ports, OwnPorts { admin: 15000, metrics: 15020, readiness: 15021 });
    assert_eq!(config.dns.at, DnsAddress::Localhost(15053));
    assert_eq!(config.log, Log { filter: "info".into(), json: false, policy_decisions: false });
    assert_eq!(config.this_pod, ThisPod { trust_domain: "cluster.local".into(), ..ThisPod::default() });
    let own = OwnSettings {
        driver: DriverChoice::Auto,
        connections_max: 100_000,
        idle_timeout: None,
        congestion: None,
        endpoint_choice: EndpointChoice::Random,
        tracing: None,
        state_directory: None,
    };
    assert_eq!(config.own, own);
    assert_eq!(config.crypto, CryptoPolicy::Standard);
    assert!(config.crl_file.is_none() && config.local_state.is_none() && config.own_identity().is_none());
    assert!(config.preferred_service_namespace.is_none());
    assert_eq!(config.control_plane.certificate_validity, Duration::from_hours(24));
    let discovery = config.control_plane.discovery.unwrap();
    assert_eq!(discovery.address, "https://localhost:15012");
    assert!(
        matches!(&discovery.server.roots, Roots::File(path) if path == Path::new("./var/run/secrets/istio/root-cert.pem"))
    );
    assert!(matches!(discovery.credentials.token, Token::None), "there is no token file");
    assert_eq!(discovery.credentials.cluster_id, "Kubernetes");
}

#[test]
fn in_kubernetes_the_control_plane_is_istiod_with_the_mounted_token() {
    let token = "./var/run/secrets/tokens/istio-token";
    let config = read_on(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")], |_| true).unwrap();
    for upstream in [config.control_plane.discovery.unwrap(), config.control_plane.authority] {
        assert_eq!(upstream.address, "https://istiod.istio-system.svc:15012");
        assert_eq!(upstream.server.server_name, "istiod.istio-system.svc");
        assert!(matches!(&upstream.credentials.token, Token::File(path) if path == Path::new(token)));
    }
}

#[test]
fn addresses_names_roots_and_headers_are_each_services_own() {
    let config = read(&[
        ("XDS_ADDRESS", "istiod.example:9000"),
        ("ALT_XDS_HOSTNAME", "x.example"),
        ("XDS_ROOT_CA", "SYSTEM"),
        ("XDS_HEADER_x-tenant", "one"),
        ("CA_ADDRESS", "https://[::1]:9001"),
        ("CA_ROOT_CA", PEM),
        ("CA_HEADER_a", "b"),
        ("CLUSTER_ID", "second"),
        ("SECRET_TTL", "1h"),
    ]);
    let discovery = config.control_plane.discovery.unwrap();
    let address = ServerAddress::Tcp { host: "istiod.example".into(), port: 9000 };
    assert_eq!(
        (discovery.server.address, discovery.address),
        (address, "https://istiod.example:9000".into())
    );
    assert_eq!(discovery.server.server_name, "x.example");
    assert!(matches!(discovery.server.roots, Roots::System));
    assert_eq!(discovery.credentials.headers, [("x-tenant".to_owned(), "one".to_owned())]);
    assert_eq!(discovery.credentials.cluster_id, "second");
    let authority = config.control_plane.authority;
    assert_eq!(authority.server.address, ServerAddress::Tcp { host: "::1".into(), port: 9001 });
    assert!(matches!(authority.server.roots, Roots::Pem(_)));
    assert_eq!(authority.credentials.headers, [("a".to_owned(), "b".to_owned())]);
    assert_eq!(config.control_plane.certificate_validity, Duration::from_hours(1));
    assert_eq!(read(&[("ISTIO_META_CLUSTER_ID", "a"), ("CLUSTER_ID", "b")]).cluster_id, "a");
    let socket =
        read(&[("XDS_ADDRESS", "unix:/run/x"), ("ALT_XDS_HOSTNAME", "a")]).control_plane.discovery.unwrap();
    assert_eq!(socket.server.address, ServerAddress::Unix("/run/x".into()));
}

#[test]
fn what_cannot_be_a_control_plane_is_refused() {
    assert!(refused("XDS_ADDRESS", "http://istiod:15010").contains("https://HOST"));
    assert!(refused("XDS_ADDRESS", "unix:/run/x").contains("ALT_XDS_HOSTNAME"));
    assert!(refused("CA_ADDRESS", "https://").contains("https://HOST"));
    refused("SECRET_TTL", "1s");
    refused("SECRET_TTL", "soon");
    refused("XDS_ON_DEMAND", "maybe");
    let error = try_read(&[("CA_ADDRESS", "")]).unwrap_err().to_string();
    assert_eq!(error, "CA_ADDRESS is not set: without certificates there is no mesh");
    let error = try_read(&[("XDS_HEADER_a b", "secret")]).unwrap_err().to_string();
    assert!(error.contains("XDS_HEADER_a b") && !error.contains("secret"), "{error}");
    let error = try_read(&[("XDS_ADDRESS", "")]).unwrap_err().to_string();
    assert!(error.contains("LOCAL_XDS_PATH"), "{error}");
    assert!(read(&[("XDS_ADDRESS", ""), ("LOCAL_XDS", "{}")]).control_plane.discovery.is_none());
}

#[test]
fn a_token_is_a_file_or_itself() {
    let token = |text, has_file| {
        read_on(&[("AUTH_TOKEN", text)], has_file).unwrap().control_plane.authority.credentials.token
    };
    assert!(matches!(token("/not/there/yet", |_| false), Token::File(_)));
    assert!(matches!(token("token", |path| path == "token"), Token::File(_)));
    assert!(matches!(token("eyJhbGci", |_| false), Token::Literal(text) if &*text == "eyJhbGci"));
}

#[test]
fn a_dedicated_proxy_names_its_workload_and_marks_nothing() {
    let config = read(&[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "ns/name/sa")]);
    let workload = WorkloadName { name: "name".into(), namespace: "ns".into(), service_account: "sa".into() };
    assert_eq!(config.mode, Mode::Dedicated(workload));
    assert_eq!(config.sockets.mark, None);
    let error = try_read(&[("PROXY_MODE", "dedicated")]).unwrap_err().to_string();
    assert!(error.starts_with("PROXY_WORKLOAD_INFO is not set"), "{error}");
    refused("PROXY_MODE", "alone");
    for bad in ["ns/name", "ns/name/sa/x", "//", "ns//sa", ""] {
        refused("PROXY_WORKLOAD_INFO", bad);
    }
}

#[test]
fn plain_texts_are_taken_as_they_are() {
    let config = read(&[
        ("NETWORK", "west"),
        ("NODE_NAME", "n1"),
        ("CLUSTER_DOMAIN", "corp.example"),
        ("INPOD_UDS", "/run/agent.sock"),
        ("CRL_PATH", "/etc/crl.pem"),
        ("PREFERED_SERVICE_NAMESPACE", "shared"),
        ("LOCAL_XDS_PATH", "/etc/local.yaml"),
        ("RUST_LOG", "debug"),
        ("LOG_FORMAT", "json"),
        ("INSTANCE_IP", "10.0.0.9"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("TRUST_DOMAIN", "corp"),
        ("ISTIO_METAJSON_LABELS", r#"{"app": "a"}"#),
        ("ISTIO_META_ROLE", "node"),
    ]);
    assert_eq!((config.network.as_str(), config.node_name.as_str()), ("west", "n1"));
    assert_eq!(config.cluster_domain, "corp.example");
    assert_eq!(config.agent_socket, Path::new("/run/agent.sock"));
    assert_eq!(config.crl_file.as_deref(), Some(Path::new("/etc/crl.pem")));
    assert_eq!(config.preferred_service_namespace.as_deref(), Some("shared"));
    assert_eq!(config.local_state, Some(LocalState::File("/etc/local.yaml".into())));
    assert_eq!(config.log, Log { filter: "debug".into(), json: true, policy_decisions: false });
    assert_eq!(config.this_pod.ip, Some(IpAddr::from([10, 0, 0, 9])));
    assert_eq!(config.own_identity().unwrap().uri(), "spiffe://corp/ns/istio-system/sa/ztunnel");
    assert_eq!(config.metadata_json["LABELS"]["app"], "a");
    assert_eq!(config.metadata["ROLE"], "node");
    assert_eq!(
        read(&[("LOCAL_XDS", "workloads: []")]).local_state,
        Some(LocalState::Yaml("workloads: []".into()))
    );
    refused("INSTANCE_IP", "somewhere");
    refused("TRUST_DOMAIN", "a/b");
    refused("LOG_FORMAT", "xml");
    refused("ISTIO_METAJSON_A", "{");
    assert!(try_read(&[("LOCAL_XDS", "a"), ("LOCAL_XDS_PATH", "b")]).is_err());
}

#[test]
fn switches_are_true_or_false() {
    let config = read(&[
        ("ENABLE_PROXY", "false"),
        ("INPOD_PORT_REUSE", "false"),
        ("IPV6_ENABLED", "false"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("KEEPALIVE_ENABLED", "false"),
        ("USER_TIMEOUT_ENABLED", "true"),
        ("TLS12_ENABLED", "true"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ("ENABLE_ORIG_SRC", "true"),
        ("CORELANE_LAYER_7", "true"),
    ]);
    assert!(!config.proxies && !config.reuses_port && !config.ipv6 && !config.localhost_app_tunnel);
    assert!(
        !config.response_baggage
            && config.crypto == CryptoPolicy::StandardAndTls12
            && config.log.policy_decisions
            && config.control_plane.layer_7
    );
    assert_eq!((config.sockets.keepalive, config.sockets.user_timeout), (None, true));
    assert_eq!(config.sockets.keeps_source_address, Some(true));
    assert_eq!(read(&[("ENABLE_ORIG_SRC", "false")]).sockets.keeps_source_address, Some(false));
    for name in
        ["ENABLE_PROXY", "INPOD_PORT_REUSE", "IPV6_ENABLED", "TLS12_ENABLED", "ENABLE_ORIG_SRC", "FAKE_CA"]
    {
        refused(name, "yes");
        refused(name, "");
    }
    refused("UNSTABLE_ENABLE_SOCKS5", "true");
    refused("FAKE_CA", "true");
    assert_eq!(read(&[("COMPLIANCE_POLICY", "pqc")]).crypto, CryptoPolicy::PostQuantum);
    refused("COMPLIANCE_POLICY", "fips");
    assert!(try_read(&[("COMPLIANCE_POLICY", "pqc"), ("TLS12_ENABLED", "true")]).is_err());
}

#[test]
fn numbers_and_durations_have_ranges() {
    let config = read(&[
        ("PACKET_MARK", "7"),
        ("KEEPALIVE_TIME", "1m"),
        ("KEEPALIVE_INTERVAL", "2s"),
        ("KEEPALIVE_RETRIES", "3"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "5"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "10s"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65535"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "2147483647"),
        ("HTTP2_FRAME_SIZE", "16384"),
        ("ZTUNNEL_WORKER_THREADS", "25%"),
    ]);
    let keepalive = Keepalive { time: Duration::from_mins(1), interval: Duration::from_secs(2), retries: 3 };
    assert_eq!((config.sockets.mark, config.sockets.keepalive), (Some(7), Some(keepalive)));
    let pool = PoolSettings { streams_per_connection: 5, unused_release: Duration::from_secs(10) };
    assert_eq!(config.pool, pool);
    let http2 = Http2Settings { stream_window: 65_535, connection_window: 2_147_483_647, frame_size: 16_384 };
    assert_eq!((config.http2, config.workers), (http2, 2));
    assert!(refused("HTTP2_FRAME_SIZE", "16383").contains("from 16384 to 16777215"));
    for (name, value) in [
        ("PACKET_MARK", "0"),
        ("PACKET_MARK", "0x539"),
        ("KEEPALIVE_TIME", "-1s"),
        ("KEEPALIVE_INTERVAL", ""),
        ("KEEPALIVE_RETRIES", "0"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "never"),
        ("HTTP2_STREAM_WINDOW_SIZE", "4M"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "2147483648"),
        ("ZTUNNEL_WORKER_THREADS", "many"),
        ("ZTUNNEL_CPU_LIMIT", "x"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "x"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "x"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "1m"),
        ("CONNECTION_TERMINATION_DEADLINE", "x"),
    ] {
        refused(name, value);
    }
}

#[test]
fn the_deadline_leaves_the_pod_time_to_end() {
    let deadline = |pairs: &[(&str, &str)]| read(pairs).termination_deadline.as_secs();
    for (grace, seconds) in [("30", 25), ("11", 6), ("10", 9), ("1", 0), ("0", 0)] {
        assert_eq!(deadline(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]), seconds);
    }
    let both = [("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "7s")];
    assert_eq!(deadline(&both), 7);
}

#[test]
fn the_proxy_config_sets_ports_dns_and_the_control_plane() {
    let text = "{proxyAdminPort: 1, statsPort: 2, concurrency: 3, discoveryAddress: 'a:4', \
                proxyMetadata: {DNS_CAPTURE: 'False', DNS_PROXY_ADDR: 'localhost:5'}}";
    let config = read(&[("PROXY_CONFIG", text)]);
    assert_eq!((config.ports.admin, config.ports.metrics, config.workers), (1, 2, 3));
    assert_eq!(config.control_plane.discovery.unwrap().address, "https://a:4");
    assert_eq!(config.control_plane.authority.address, "https://localhost:15012");
    assert_eq!(config.dns, Dns { enabled: false, at: DnsAddress::Localhost(5) });
    let dns = read(&[("ISTIO_META_DNS_PROXY_ADDR", "[::1]:15053")]).dns;
    assert_eq!(dns.at.addresses(true), ["[::1]:15053".parse().unwrap()]);
    assert_eq!(DnsAddress::Localhost(1).addresses(false), ["127.0.0.1:1".parse().unwrap()]);
    assert!(try_read(&[("ISTIO_META_DNS_PROXY_ADDR", "here")]).is_err());
    assert!(try_read(&[("XDS_ON_DEMAND", "true")]).unwrap_err().to_string().contains("DNS"));
    assert!(read(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]).control_plane.on_demand);
    let nothing = [("ENABLE_PROXY", "false"), ("ISTIO_META_DNS_CAPTURE", "false")];
    assert!(try_read(&nothing).is_err());
}

#[test]
fn variables_of_our_own_are_spelled_right_or_refused() {
    let config = read(&[
        ("CORELANE_DRIVER", "epoll"),
        ("CORELANE_CONNECTIONS_MAX", "10"),
        ("CORELANE_IDLE_TIMEOUT", "1h"),
        ("CORELANE_CONGESTION", "reno"),
        ("CORELANE_ENDPOINT_CHOICE", "least-loaded"),
        ("CORELANE_LOG", "warn"),
        ("CORELANE_LOG_JSON", "true"),
        ("RUST_LOG", "debug"),
        ("CORELANE_TEST_ENVOY", "/x"),
    ]);
    assert_eq!((config.own.driver, config.own.connections_max), (DriverChoice::Epoll, 10));
    assert_eq!(config.own.idle_timeout, Some(Duration::from_hours(1)));
    assert_eq!(config.own.congestion.unwrap().to_string(), "reno");
    assert_eq!(config.own.endpoint_choice, EndpointChoice::LeastLoaded);
    let kept = read(&[("CORELANE_STATE_DIR", "/var/lib/corelane")]).own.state_directory;
    assert_eq!(kept, Some("/var/lib/corelane".into()));
    assert_eq!(config.log, Log { filter: "warn".into(), json: true, policy_decisions: false });
    assert_eq!(read(&[("CORELANE_IDLE_TIMEOUT", "0s")]).own.idle_timeout, None);
    let error = try_read(&[("CORELANE_DRIVERS", "epoll")]).unwrap_err().to_string();
    assert!(
        error.starts_with("there is no variable CORELANE_DRIVERS: those of corelane are CORELANE_CON"),
        "{error}"
    );
    refused("CORELANE_DRIVER", "kqueue");
    refused("CORELANE_CONNECTIONS_MAX", "0");
    refused("CORELANE_CONGESTION", "a b");
    refused("CORELANE_ENDPOINT_CHOICE", "best");
    refused("CORELANE_IDLE_TIMEOUT", "x");
}

#[test]
fn fuzz_a_configuration_is_read_or_refused() {
    const NAMES: [&str; 8] = [
        "XDS_ADDRESS",
        "PROXY_CONFIG",
        "PROXY_WORKLOAD_INFO",
        "ISTIO_METAJSON_A",
        "XDS_HEADER_A",
        "ISTIO_META_DNS_PROXY_ADDR",
        "CONNECTION_TERMINATION_DEADLINE",
        "TRUST_DOMAIN",
    ];
    bolero::check!().with_type::<(u8, String)>().for_each(|(which, value)| {
        let name = NAMES[usize::from(*which) % NAMES.len()];
        if let Err(error) = try_read(&[(name, value)]) {
            assert!(!error.to_string().is_empty());
        }
    });
}
