//! The `baggage` header (W3C Baggage): a workload's description, for the metrics and logs of the other side.

use std::fmt::Write as _;
use std::sync::Arc;

use model::{Health, Identity, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType};

/// Limits of the W3C recommendation, section 3.3.2. What goes beyond is not read.
const BAGGAGE_BYTES_MAX: usize = 8_192;
const MEMBERS_MAX: usize = 64;
/// Kubernetes names have at most 253 bytes; a longer value is left out, as it would end up in metric labels.
const VALUE_BYTES_MAX: usize = 253;

/// What one side tells about its workload. Empty texts stand for what it does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baggage {
    pub cluster: Arc<str>,
    pub namespace: Arc<str>,
    pub workload_type: WorkloadType,
    pub workload_name: Arc<str>,
    pub service_name: Arc<str>,
    pub service_version: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
}

impl Default for Baggage {
    fn default() -> Self {
        let empty: Arc<str> = Arc::from("");
        Self {
            cluster: Arc::clone(&empty),
            namespace: Arc::clone(&empty),
            workload_type: WorkloadType::Deployment,
            workload_name: Arc::clone(&empty),
            service_name: Arc::clone(&empty),
            service_version: Arc::clone(&empty),
            region: Arc::clone(&empty),
            zone: empty,
        }
    }
}

const WORKLOAD_KEYS: [(WorkloadType, &str); 4] = [
    (WorkloadType::Deployment, "k8s.deployment.name"),
    (WorkloadType::CronJob, "k8s.cronjob.name"),
    (WorkloadType::Pod, "k8s.pod.name"),
    (WorkloadType::Job, "k8s.job.name"),
];

impl Baggage {
    pub fn of_workload(workload: &Workload) -> Self {
        Self {
            cluster: Arc::clone(&workload.cluster_id),
            namespace: Arc::clone(&workload.namespace),
            workload_type: workload.workload_type,
            workload_name: Arc::clone(&workload.workload_name),
            service_name: Arc::clone(&workload.canonical_name),
            service_version: Arc::clone(&workload.canonical_revision),
            region: Arc::clone(&workload.locality.region),
            zone: Arc::clone(&workload.locality.zone),
        }
    }

    /// A workload as far as it has described itself, for the books. Nothing of it is proved but the identity.
    pub fn to_workload(&self, identity: &Identity) -> Workload {
        let nothing: Arc<str> = Arc::from("");
        let namespace = if self.namespace.is_empty() {
            Arc::from(identity.namespace())
        } else {
            Arc::clone(&self.namespace)
        };
        Workload {
            uid: Arc::from(format!("baggage/{}", self.encode())),
            name: Arc::clone(&self.workload_name),
            namespace,
            identity: identity.clone(),
            addresses: Vec::new(),
            hostname: Arc::clone(&nothing),
            network: Arc::clone(&nothing),
            tunnel_protocol: TunnelProtocol::Hbone,
            native_tunnel: false,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            services: model::Services::default(),
            health: Health::Healthy,
            locality: Locality {
                region: Arc::clone(&self.region),
                zone: Arc::clone(&self.zone),
                subzone: Arc::clone(&nothing),
            },
            node: nothing,
            cluster_id: Arc::clone(&self.cluster),
            capacity: 1,
            workload_name: Arc::clone(&self.workload_name),
            workload_type: self.workload_type,
            canonical_name: Arc::clone(&self.service_name),
            canonical_revision: Arc::clone(&self.service_version),
        }
    }

    /// The header's value. Worth keeping: a workload's description changes rarely.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let mut member = |key: &str, value: &str| {
            if value.is_empty() {
                return;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            percent_encode(value, &mut text);
        };
        let workload_key = WORKLOAD_KEYS.iter().find(|(kind, _)| *kind == self.workload_type);
        member("k8s.cluster.name", &self.cluster);
        member("k8s.namespace.name", &self.namespace);
        member(workload_key.map_or("k8s.deployment.name", |(_, key)| key), &self.workload_name);
        member("service.name", &self.service_name);
        member("service.version", &self.service_version);
        member("cloud.region", &self.region);
        member("cloud.availability_zone", &self.zone);
        text
    }

    /// Reads the values of all `baggage` headers of a request, in order. Unknown members are passed over, the first of
    /// several equal ones counts, and what is malformed counts as not there.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut baggage = Self::default();
        let (mut bytes, mut members) = (0, 0);
        for value in values {
            bytes += value.len();
            if bytes > BAGGAGE_BYTES_MAX {
                break;
            }
            for member in value.split(|byte| *byte == b',') {
                members += 1;
                if members > MEMBERS_MAX {
                    return baggage;
                }
                baggage.read_member(member);
            }
        }
        baggage
    }

    fn read_member(&mut self, member: &[u8]) {
        // Properties behind a semicolon say nothing that is used here.
        let member = member.split(|byte| *byte == b';').next().unwrap_or_default();
        let Some(equals) = memchr::memchr(b'=', member) else { return };
        let (key, value) = member.split_at(equals);
        let (key, value) = (key.trim_ascii(), value.get(1..).unwrap_or_default().trim_ascii());
        let workload_type =
            WORKLOAD_KEYS.iter().find(|(_, name)| name.as_bytes() == key).map(|(kind, _)| *kind);
        let field = match key {
            b"k8s.cluster.name" => &mut self.cluster,
            b"k8s.namespace.name" => &mut self.namespace,
            b"service.name" => &mut self.service_name,
            b"service.version" => &mut self.service_version,
            b"cloud.region" => &mut self.region,
            b"cloud.availability_zone" => &mut self.zone,
            _ if workload_type.is_some() => &mut self.workload_name,
            _ => return,
        };
        if !field.is_empty() {
            return;
        }
        if let Some(decoded) = percent_decode(value) {
            *field = Arc::from(decoded);
            if let Some(kind) = workload_type {
                self.workload_type = kind;
            }
        }
    }
}

/// `baggage-octet` of the recommendation, without the percent sign that starts an escape.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x24 | 0x26..=0x2B | 0x2D..=0x3A | 0x3C..=0x5B | 0x5D..=0x7E)
}

fn percent_encode(value: &str, text: &mut String) {
    for byte in value.bytes() {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
}

/// The decoded value; none if it is too long, no UTF-8, or holds what does not belong into logs and labels.
fn percent_decode(value: &[u8]) -> Option<String> {
    let mut decoded = Vec::new();
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let plain = match byte {
            b'%' => {
                let high = char::from(*bytes.next()?).to_digit(16)?;
                let low = char::from(*bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            byte => *byte,
        };
        if decoded.len() == VALUE_BYTES_MAX {
            return None;
        }
        decoded.push(plain);
    }
    String::from_utf8(decoded).ok().filter(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Baggage {
        Baggage {
            cluster: "Kubernetes".into(),
            namespace: "app".into(),
            workload_type: WorkloadType::CronJob,
            workload_name: "a,b;c=d %".into(),
            service_name: "caf\u{e9}".into(),
            service_version: "v1".into(),
            region: "r".into(),
            zone: "z".into(),
        }
    }

    #[test]
    fn members_stand_in_the_order_that_peers_expect() {
        assert_eq!(
            sample().encode(),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.cronjob.name=a%2Cb%3Bc=d%20%25,\
             service.name=caf%C3%A9,service.version=v1,cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(Baggage::default().encode(), "");
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Baggage::parse([sample().encode().as_bytes()]), sample());
    }

    #[test]
    fn malformed_and_unknown_members_are_passed_over() {
        let values: [&[u8]; 2] = [
            b" k8s.namespace.name = a ;prop=1, =x, junk, unknown=1,k8s.namespace.name=b,service.name=%zz",
            b"service.version=%00,cloud.region=%ff,service.name=ok",
        ];
        let read = Baggage::parse(values);
        assert_eq!((&*read.namespace, &*read.service_name), ("a", "ok"));
        assert_eq!((&*read.service_version, &*read.region), ("", ""));
    }

    #[test]
    fn bounds_hold() {
        let long = format!("cloud.region={}", "a".repeat(VALUE_BYTES_MAX + 1));
        assert_eq!(Baggage::parse([long.as_bytes()]), Baggage::default());
        let many = format!("{}cloud.region=r", "x=1,".repeat(MEMBERS_MAX));
        assert_eq!(Baggage::parse([many.as_bytes()]), Baggage::default());
        let huge = format!("cloud.region=r;{}", "p".repeat(BAGGAGE_BYTES_MAX));
        assert_eq!(Baggage::parse([huge.as_bytes()]), Baggage::default());
    }
}
