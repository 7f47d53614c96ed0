//! A waypoint: a pod whose own process takes HBONE, and what the control plane says of what is behind it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use l7::ir;
use prost::Message;
use prost_types::Any;
use xds::decode::{TelemetrySubject, route_name, traffic_policy_name};
use xds::kube::{MeshSettings, convert, load_documents};
use xds::proto::workload::AppProtocol;
use xds::proto::{
    AUTHORIZATION_POLICY_TYPE, HTTP_ROUTE_TYPE, TELEMETRY_TYPE, TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE,
    WORKLOAD_TYPE, l7 as wire, security,
};

use super::control::Resource;
use super::node::Node;
use super::resources::{NAMESPACE, gateway_of_service, hostname};
use super::{Bed, Pod, traffic};

/// The waypoint's name, as pod, Service, Gateway and service account.
pub const WAYPOINT: &str = "waypoint";
const HBONE_PORT: u16 = 15008;

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Bed {
    /// A waypoint process with two workers, and its service. Nothing is behind it yet.
    pub fn waypoint(&mut self, prepare: impl FnOnce(&mut Node)) -> Pod {
        let pod = self.place(None, WAYPOINT);
        self.control.put([self.workload(WAYPOINT).into()]);
        // As istiod tells a waypoint of workloads.
        let own = self.workload(WAYPOINT);
        self.control.put([resource(&own.uid, WORKLOAD_TYPE, &own)]);
        self.service(WAYPOINT, &[WAYPOINT], HBONE_PORT, true);
        self.change_service(WAYPOINT, |service| service.ports[0].service_port = HBONE_PORT.into());
        self.change(WAYPOINT, |workload| {
            for ports in workload.services.values_mut() {
                ports.ports[0].service_port = HBONE_PORT.into();
            }
        });
        let environment = self.control.environment();
        let mut node = Node::new(WAYPOINT, pod.network.clone(), &pod.ips, self.folder.path(), environment);
        node.role = "waypoint";
        node.set("POD_NAME", WAYPOINT);
        node.set("POD_NAMESPACE", NAMESPACE);
        node.set("SERVICE_ACCOUNT", WAYPOINT);
        node.set("CORELANE_LAYER_7", true);
        prepare(&mut node);
        node.start();
        node.until_ready(true);
        self.nodes.insert(WAYPOINT.to_owned(), node);
        self.settle();
        pod
    }

    /// Puts services behind the waypoint, with the routes and policies of `yaml`, which names them as Services of the
    /// namespace, and waits until everybody knows.
    pub fn stand_before(&self, services: &[&str], protocol: AppProtocol, yaml: &str) {
        self.enforce(services, yaml);
        for service in services {
            self.change_service(service, |service| {
                service.ports[0].app_protocol = protocol.into();
                service.waypoint = Some(gateway_of_service(WAYPOINT, HBONE_PORT));
            });
        }
    }

    /// Has the pods of these names behind the waypoint, by their own addresses.
    pub fn stand_before_pods(&self, pods: &[&str], yaml: &str) {
        self.enforce(&[], yaml);
        for pod in pods {
            let waypoint = Some(gateway_of_service(WAYPOINT, HBONE_PORT));
            self.change(pod, |workload| workload.waypoint.clone_from(&waypoint));
        }
    }

    /// The routes of the YAML, and its policies: for services those that name them or the Gateway, for pods the latter.
    pub fn enforce(&self, services: &[&str], yaml: &str) {
        let known = services.iter().map(|service| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: {service}, namespace: {NAMESPACE}}}, \
                 spec: {{ports: [{{port: 80}}]}}}}\n---\n"
            )
        });
        let loaded = load_documents(vec![("a.yaml", &*(known.collect::<String>() + yaml))]);
        assert!(loaded.problems.iter().all(|problem| !problem.is_error()), "{:?}", loaded.problems);
        let (catalog, mesh) = (loaded.catalog, MeshSettings::default());
        let routes = convert::routes(&catalog, &mesh);
        let (policies, errors) = convert::policies(&catalog, &mesh);
        assert!(errors.is_empty(), "{errors:?}");
        let gateway = xds::kube::ObjectName::new(NAMESPACE, WAYPOINT);
        let names = |service: Option<&str>| -> BTreeSet<String> {
            let destination = xds::kube::ObjectName::new(NAMESPACE, service.unwrap_or("nobody"));
            let destination = convert::ServiceRef::Service(destination);
            let waypoint = convert::attachment::Waypoint {
                gateway: &gateway,
                class: "istio-waypoint",
                destination: &destination,
            };
            let attached = catalog
                .authorization_policies
                .values()
                .filter(|policy| convert::attachment::attaches_to_waypoint(&***policy, &waypoint, &mesh));
            attached.map(|policy| policy.meta.object_name().to_string()).collect()
        };
        let mut resources: Vec<_> = routes.iter().map(route).collect();
        resources.extend(policies.iter().map(|policy| request_policy(&policy.policy)));
        resources.extend(convert::traffic_policies(&catalog, &mesh).iter().map(traffic_policy));
        resources.push(enforced("/", names(None)));
        for service in services {
            resources.push(enforced(&format!("{NAMESPACE}/{}", hostname(service)), names(Some(service))));
        }
        resources.extend(std::iter::once(None).chain(services.iter().map(|it| Some(*it))).filter_map(
            |service| {
                let destination = service
                    .map(|name| convert::ServiceRef::Service(xds::kube::ObjectName::new(NAMESPACE, name)));
                let destination = destination.as_ref();
                let waypoint =
                    convert::telemetry::Waypoint { gateway: &gateway, class: "istio-waypoint", destination };
                let telemetry = convert::telemetry::of_destination(&catalog, &mesh, &waypoint)?;
                Some(telemetry_of(service, &telemetry))
            },
        ));
        self.apply(resources);
    }

    /// Answers each HTTP/1.1 request in a pod with the pod's name, its client's address, and the request's head. A path
    /// that ends in `/bytes/N` is answered with so many bytes.
    pub fn http_echo(&self, pod: &str, port: u16) {
        let name = pod.to_owned();
        traffic::serve(self.network(pod), port, move |socket, peer| {
            // The peer may break off.
            drop(answer_requests(&name, socket, peer));
        });
    }

    /// One request on a connection of its own.
    pub fn http(
        &self,
        pod: &str,
        to: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Answer> {
        ask(&self.connect(pod, to)?, "GET", path, headers)
    }

    /// Waits until a request is answered with this status.
    pub fn until_status(&self, pod: &str, to: SocketAddr, path: &str, status: u16) -> Answer {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        loop {
            let answer = self.http(pod, to, path, &[]);
            match answer {
                Ok(answer) if answer.status == status => return answer,
                other => assert!(
                    std::time::Instant::now() < deadline,
                    "{pod} to {to}{path}: {other:?} is not {status}\n{}",
                    self.nodes[WAYPOINT].log()
                ),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// One request; its answer must have a length.
pub fn ask(mut socket: &TcpStream, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    write!(socket, "{method} {path} HTTP/1.1\r\nhost: web\r\n")?;
    for (name, value) in headers {
        write!(socket, "{name}: {value}\r\n")?;
    }
    socket.write_all(b"\r\n")?;
    let head = read_head(socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length(&head)];
    socket.read_exact(&mut body)?;
    Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

pub fn read_head(mut socket: &TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte)? == 0 {
            return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData)?.to_lowercase()))
}

fn length(head: &str) -> usize {
    let line = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    line.map_or(0, |text| text.trim().parse().unwrap())
}

fn answer_requests(name: &str, mut socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
    socket.set_nodelay(true)?;
    while let Some(head) = read_head(&socket)? {
        let mut body = vec![0; length(&head)];
        socket.read_exact(&mut body)?;
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = match path.rsplit_once("/bytes/") {
            Some((_, count)) => "x".repeat(count.parse().unwrap()),
            None => format!("{name} {} {head}", peer.ip()),
        };
        write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())?;
    }
    Ok(())
}

/// The address that a server saw as its client's.
pub fn client_of(answer: &Answer) -> IpAddr {
    answer.body.split(' ').nth(1).unwrap().parse().unwrap()
}

fn route(route: &ir::HttpRoute) -> Resource {
    let body = wire::HttpRoute { ir: serde_json::to_vec(route).unwrap().into() };
    resource(&route_name(route), HTTP_ROUTE_TYPE, &body)
}

fn request_policy(policy: &ir::AuthorizationPolicy) -> Resource {
    let scope = security::Scope::WorkloadSelector.into();
    let body = wire::AuthorizationPolicy { scope, ir: serde_json::to_vec(policy).unwrap().into() };
    resource(&format!("{}/{}", policy.namespace, policy.name), AUTHORIZATION_POLICY_TYPE, &body)
}

fn traffic_policy(policy: &ir::TrafficPolicy) -> Resource {
    let body = wire::TrafficPolicy { ir: serde_json::to_vec(policy).unwrap().into() };
    resource(&traffic_policy_name(policy), TRAFFIC_POLICY_TYPE, &body)
}

fn enforced(destination: &str, names: BTreeSet<String>) -> Resource {
    let body = wire::WaypointPolicies { names: names.into_iter().collect() };
    resource(destination, WAYPOINT_POLICIES_TYPE, &body)
}

fn telemetry_of(service: Option<&str>, telemetry: &ir::Telemetry) -> Resource {
    let destination = service.map_or("/".to_owned(), |name| format!("{NAMESPACE}/{}", hostname(name)));
    let body = wire::Telemetry { ir: serde_json::to_vec(telemetry).unwrap().into() };
    resource(&TelemetrySubject::destination_name(&destination), TELEMETRY_TYPE, &body)
}

pub fn resource(name: &str, type_url: &str, message: &impl Message) -> Resource {
    let body = Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    Resource { name: name.to_owned(), body, ..Resource::default() }
}
