//! DestinationRule: subsets, and how traffic is spread and bounded.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{Balancing, ConnectionLimits, HashOn, HashPolicy, HashTable, Labels, OutlierDetection};

use super::super::catalog::Meta;
use super::super::reader::{Fields, Findings, Item};
use super::super::traffic::{DestinationRule, WrittenPolicy, WrittenSettings, WrittenSubset};
use super::super::yaml::shortened;
use super::{duration, virtual_service};

// Bounds of our own.
const SUBSETS_MAX: usize = 256;
const PORTS_MAX: usize = 256;
const RING_MAX: i64 = 1 << 16;
const MAGLEV_MAX: i64 = 262_139;

/// Places of a ring, and of a Maglev table, where none are written.
const RING: u32 = 1024;
const MAGLEV: u32 = 65_537;

pub(super) fn destination_rule(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<DestinationRule> {
    let spec = fields.required(findings, "spec")?;
    let mut fields = spec.fields(findings)?;
    let host = fields.required(findings, "host").and_then(|item| virtual_service::host(&item, findings));
    let policy = policy(&mut fields, findings);
    let mut subsets: Vec<WrittenSubset> = Vec::new();
    if let Some(list) = fields.optional("subsets") {
        let items = list.list(findings);
        if items.len() > SUBSETS_MAX {
            list.error(findings, "there are too many subsets", format!("keep at most {SUBSETS_MAX}"));
        }
        for item in &items {
            let Some(subset) = subset(item, findings) else { continue };
            if subsets.iter().any(|other| other.name == subset.name) {
                item.error(findings, "two subsets bear this name", "rename one of the two");
            }
            subsets.push(subset);
        }
    }
    let export_to = virtual_service::export_to(&mut fields, &meta, findings);
    if let Some(item) = fields.optional("workloadSelector") {
        item.error(
            findings,
            "workloadSelector is not supported",
            "remove it, or limit the rule with exportTo",
        );
    }
    fields.finish(findings);
    Some(DestinationRule { meta, host: host?, export_to: export_to?, policy, subsets })
}

fn subset(item: &Item<'_>, findings: &mut Findings) -> Option<WrittenSubset> {
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let labels = fields.optional("labels").map_or_else(Labels::new, |item| item.labels(findings));
    let policy = policy(&mut fields, findings);
    fields.finish(findings);
    Some(WrittenSubset { name: Arc::from(name?), labels, policy })
}

fn policy(fields: &mut Fields<'_>, findings: &mut Findings) -> WrittenPolicy {
    let Some(item) = fields.optional("trafficPolicy") else {
        return WrittenPolicy::default();
    };
    let Some(mut fields) = item.fields(findings) else {
        return WrittenPolicy::default();
    };
    let parts = settings(&mut fields, findings);
    let mut ports = Vec::new();
    if let Some(list) = fields.optional("portLevelSettings") {
        let items = list.list(findings);
        if items.len() > PORTS_MAX {
            list.error(findings, "there are too many ports", format!("keep at most {PORTS_MAX}"));
        }
        ports.extend(items.iter().filter_map(|item| port(item, findings)));
    }
    for unsupported in ["tunnel", "proxyProtocol", "retryBudget"] {
        fields.refuse(findings, unsupported);
    }
    fields.finish(findings);
    WrittenPolicy { parts, ports }
}

fn port(item: &Item<'_>, findings: &mut Findings) -> Option<(u16, WrittenSettings)> {
    let mut fields = item.fields(findings)?;
    let port = fields.required(findings, "port")?;
    let mut port = port.fields(findings)?;
    let number = port.required(findings, "number").and_then(|item| item.port(findings));
    port.finish(findings);
    let settings = settings(&mut fields, findings);
    fields.finish(findings);
    Some((number?, settings))
}

fn settings(fields: &mut Fields<'_>, findings: &mut Findings) -> WrittenSettings {
    if let Some(item) = fields.optional("tls") {
        tls(&item, findings);
    }
    WrittenSettings {
        balancing: fields.optional("loadBalancer").and_then(|item| balancing(&item, findings)),
        outliers: fields.optional("outlierDetection").and_then(|item| outliers(&item, findings)),
        limits: fields.optional("connectionPool").and_then(|item| limits(&item, findings)),
    }
}

/// Traffic in the mesh is sealed whatever is written; what is written must not ask for something else.
fn tls(item: &Item<'_>, findings: &mut Findings) {
    let Some(mut fields) = item.fields(findings) else { return };
    if let Some(mode) = fields.required(findings, "mode")
        && mode.text(findings).is_some_and(|mode| mode != "ISTIO_MUTUAL")
    {
        let message = "only ISTIO_MUTUAL is supported: the mesh seals its traffic itself";
        mode.error(findings, message, "remove tls, or use a BackendTLSPolicy for backends that want TLS");
    }
    fields.finish(findings);
}

// === Load balancing ===

fn balancing(item: &Item<'_>, findings: &mut Findings) -> Option<Balancing> {
    const SIMPLE: [(&str, Balancing); 6] = [
        ("UNSPECIFIED", Balancing::Unset),
        ("ROUND_ROBIN", Balancing::RoundRobin),
        ("LEAST_REQUEST", Balancing::LeastRequest),
        ("LEAST_CONN", Balancing::LeastRequest),
        ("RANDOM", Balancing::Random),
        ("PASSTHROUGH", Balancing::Passthrough),
    ];
    let mut fields = item.fields(findings)?;
    let names: Vec<(&str, usize)> = SIMPLE.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
    let simple = fields.optional("simple").and_then(|item| item.one_of(findings, &names));
    let simple = simple.and_then(|at| SIMPLE.get(at)).map(|(_, balancing)| balancing.clone());
    let hash = fields.optional("consistentHash");
    let hashed = hash.as_ref().and_then(|item| hash_policy(item, findings)).map(Balancing::Hash);
    for unsupported in ["localityLbSetting", "warmupDurationSecs", "warmup"] {
        fields.refuse(findings, unsupported);
    }
    fields.finish(findings);
    if simple.is_some() && hash.is_some() {
        item.error(findings, "simple and consistentHash exclude each other", "keep one of them");
    }
    hashed.or(simple)
}

fn hash_policy(item: &Item<'_>, findings: &mut Findings) -> Option<HashPolicy> {
    let mut fields = item.fields(findings)?;
    let mut keys: Vec<Option<HashOn>> = Vec::new();
    if let Some(item) = fields.optional("httpHeaderName") {
        let name = item.filled(findings).map(|name| Arc::from(name.to_ascii_lowercase()));
        keys.push(name.map(HashOn::Header));
    }
    if let Some(item) = fields.optional("httpCookie") {
        keys.push(cookie(&item, findings));
    }
    if let Some(item) = fields.optional("useSourceIp") {
        keys.extend(item.boolean(findings).filter(|used| *used).map(|_| Some(HashOn::SourceIp)));
    }
    if let Some(item) = fields.optional("httpQueryParameterName") {
        keys.push(item.filled(findings).map(|name| HashOn::QueryParameter(Arc::from(name))));
    }
    let older = fields.optional("minimumRingSize").and_then(|item| size(&item, RING_MAX, findings));
    let ring = fields.optional("ringHash").map(|item| {
        let Some(mut fields) = item.fields(findings) else { return RING };
        let minimum = fields.optional("minimumRingSize").and_then(|item| size(&item, RING_MAX, findings));
        fields.finish(findings);
        minimum.unwrap_or(RING)
    });
    let maglev = fields.optional("maglev").map(|item| maglev(&item, findings));
    fields.finish(findings);
    if ring.is_some() && maglev.is_some() {
        item.error(findings, "ringHash and maglev exclude each other", "keep one of them");
    }
    if keys.len() != 1 {
        let message = format!("a hash is over one thing, and this is over {}", keys.len());
        let fix = "write one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
        item.error(findings, message, fix);
    }
    let table = match maglev {
        Some(size) => HashTable::Maglev(size?),
        None => HashTable::Ring(ring.or(older).unwrap_or(RING)),
    };
    Some(HashPolicy { on: vec![keys.pop().flatten()?], table })
}

fn maglev(item: &Item<'_>, findings: &mut Findings) -> Option<u32> {
    let mut fields = item.fields(findings)?;
    let size = match fields.optional("tableSize") {
        Some(item) => {
            let size = size(&item, MAGLEV_MAX, findings)?;
            let is_prime = size > 1 && (2..size).take_while(|it| it * it <= size).all(|it| size % it != 0);
            if !is_prime {
                item.error(
                    findings,
                    format!("{size} is no prime number"),
                    format!("write one such as {MAGLEV}"),
                );
                return None;
            }
            size
        }
        None => MAGLEV,
    };
    fields.finish(findings);
    Some(size)
}

fn size(item: &Item<'_>, most: i64, findings: &mut Findings) -> Option<u32> {
    item.integer(findings, 1, most).and_then(|size| u32::try_from(size).ok())
}

fn cookie(item: &Item<'_>, findings: &mut Findings) -> Option<HashOn> {
    let mut fields = item.fields(findings)?;
    let name_item = fields.required(findings, "name");
    let name = name_item.as_ref().and_then(|item| item.filled(findings));
    let path = fields.optional("path").and_then(|item| item.shared(findings));
    let lifetime = fields.optional("ttl").and_then(|item| duration::duration_or_zero(&item, findings));
    fields.refuse(findings, "attributes");
    fields.finish(findings);
    let is_good = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b";,\"\\".contains(&byte));
    if let (Some(item), Some(name)) = (&name_item, name)
        && !name.bytes().all(l7::http1::is_token)
    {
        item.error(findings, format!("{:?} cannot be the name of a cookie", shortened(name)), "");
    }
    let path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| Arc::from("/"));
    if !is_good(&path) {
        item.error(findings, format!("{:?} cannot be the path of a cookie", shortened(&path)), "");
    }
    let lifetime_s = lifetime.map(|milliseconds| milliseconds / 1000);
    Some(HashOn::Cookie { name: Arc::from(name?), path, lifetime_s })
}

// === Outliers and limits ===

fn outliers(item: &Item<'_>, findings: &mut Findings) -> Option<OutlierDetection> {
    const SECOND: u32 = 1000;
    let mut fields = item.fields(findings)?;
    let mut count = |name| fields.optional(name).and_then(|item| item.integer(findings, 0, 1 << 20));
    let (server, older) = (count("consecutive5xxErrors"), count("consecutiveErrors"));
    let gateway = count("consecutiveGatewayErrors");
    let (ejection_max, health_min) = (count("maxEjectionPercent"), count("minHealthPercent"));
    let interval_ms = duration::optional(&mut fields, "interval", findings);
    let base_ejection_ms = duration::optional(&mut fields, "baseEjectionTime", findings);
    let local = fields.optional("consecutiveLocalOriginFailures");
    let local = local.and_then(|item| item.integer(findings, 0, 1 << 20));
    let split = fields.optional("splitExternalLocalOriginErrors").and_then(|item| item.boolean(findings));
    fields.finish(findings);
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let percent = |value: Option<i64>, usual| number(value).unwrap_or(usual).min(100);
    let seconds = |count: u32| NonZeroU32::new(count * SECOND);
    Some(OutlierDetection {
        consecutive_5xx: number(server.or(older)).unwrap_or(5),
        consecutive_gateway_errors: number(gateway).unwrap_or(0),
        split_local_origin: split.unwrap_or_default(),
        consecutive_local_origin: number(local).unwrap_or(5),
        interval_ms: interval_ms.or(seconds(10))?,
        base_ejection_ms: base_ejection_ms.or(seconds(30))?,
        ejection_percent_max: percent(ejection_max, 10),
        health_percent_min: percent(health_min, 0),
    })
}

fn limits(item: &Item<'_>, findings: &mut Findings) -> Option<ConnectionLimits> {
    let mut fields = item.fields(findings)?;
    let mut limits = ConnectionLimits::default();
    if let Some(item) = fields.optional("tcp") {
        let mut fields = item.fields(findings)?;
        limits.connections = limit(&mut fields, "maxConnections", findings);
        limits.connect_timeout_ms = duration::optional(&mut fields, "connectTimeout", findings);
        for unsupported in ["tcpKeepalive", "maxConnectionDuration", "idleTimeout"] {
            fields.refuse(findings, unsupported);
        }
        fields.finish(findings);
    }
    if let Some(item) = fields.optional("http") {
        let mut fields = item.fields(findings)?;
        limits.pending_requests = limit(&mut fields, "http1MaxPendingRequests", findings);
        limits.requests = limit(&mut fields, "http2MaxRequests", findings);
        limits.retries = limit(&mut fields, "maxRetries", findings);
        limits.requests_per_connection =
            limit(&mut fields, "maxRequestsPerConnection", findings).and_then(NonZeroU32::new);
        limits.idle_timeout_ms = duration::optional(&mut fields, "idleTimeout", findings);
        if let Some(item) = fields.optional("h2UpgradePolicy") {
            item.one_of(findings, &[("DEFAULT", ()), ("DO_NOT_UPGRADE", ())]);
        }
        for unsupported in ["useClientProtocol", "maxConcurrentStreams"] {
            fields.refuse(findings, unsupported);
        }
        fields.finish(findings);
    }
    fields.finish(findings);
    Some(limits)
}

/// Zero, as Istio has it, is the default, which is no limit.
fn limit(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Option<u32> {
    let found = fields.optional(name)?.integer(findings, 0, i64::from(i32::MAX))?;
    u32::try_from(found).ok().filter(|limit| *limit > 0)
}
