//! The network between the pods: a namespace for each pod, and one router namespace that joins them.
//!
//! Each pod has one link, to the router, and a host route there for each of its addresses; its default route leads to
//! a link-local address that the router has on every link. So pods need no common subnet and IPv4 and IPv6 look
//! alike. The router forwards, and stands in for kube-proxy ([`super::service_proxy`]) for pods outside the mesh.
//!
//! All namespaces are anonymous: they live as long as the [`Fabric`], or as the process if that ends first.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::sandbox::{self, SandboxError};
use super::service_proxy::{self, VirtualPort};
use crate::capture::{Tool, ToolError, tool};
use crate::net::{NamespaceError, NetworkNamespace};

/// The router's address on every link.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// The pod's end of its link, named as in Kubernetes.
const POD_LINK: &str = "eth0";
/// Congestion controls for connections between processes of one machine, the first that the kernel lets us have: a
/// pacing one, such as bbr, costs much and gains nothing there.
const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Why the network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the kernel setting {path} cannot be set to {value}: {source}")]
    Setting { path: String, value: &'static str, source: io::Error },
    #[error("pod {0} has no address")]
    NoAddress(Arc<str>),
    #[error("pod {uid} cannot have {ip}: pod {owner} has it")]
    AddressTaken { uid: Arc<str>, ip: IpAddr, owner: Arc<str> },
}

/// A pod as the network sees it.
#[derive(Debug)]
pub struct PodNetwork {
    pub namespace: NetworkNamespace,
    pub ips: Vec<IpAddr>,
    /// The router's end of its link.
    link: String,
}

/// All pods and the router.
#[derive(Debug)]
pub struct Fabric {
    router: NetworkNamespace,
    pods: BTreeMap<Arc<str>, PodNetwork>,
    links_made: u64,
    virtual_ports: Vec<VirtualPort>,
}

impl Fabric {
    /// The router, and no pod yet.
    pub fn new() -> Result<Self, FabricError> {
        let router = sandbox::new_network_namespace()?;
        let up = tool::run(Tool::Ip, &["-batch", "-"], "link set lo up\n", Some(&router));
        up.map_err(|error| match error {
            // Some systems let anybody make a user namespace, but take away every right inside it.
            ToolError::Refused { complaint, .. } if complaint.contains("not permitted") => {
                SandboxError::Refused { source: io::Error::other(complaint) }.into()
            }
            error => FabricError::Tool(error),
        })?;
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            set(&router, path, "1")?;
        }
        loosen(&router)?;
        Ok(Self { router, pods: BTreeMap::new(), links_made: 0, virtual_ports: Vec::new() })
    }

    pub fn router(&self) -> &NetworkNamespace {
        &self.router
    }

    pub fn pod(&self, uid: &str) -> Option<&PodNetwork> {
        self.pods.get(uid)
    }

    /// Uid and network of each pod.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<str>, &PodNetwork)> {
        self.pods.iter()
    }

    /// Makes the pod's namespace and link. A pod that is there with other addresses is made anew.
    pub fn add_pod(&mut self, uid: &Arc<str>, ips: &[IpAddr]) -> Result<&PodNetwork, FabricError> {
        if self.pods.get(uid).is_some_and(|pod| pod.ips != ips) {
            self.remove_pod(uid)?;
        }
        if !self.pods.contains_key(uid) {
            let pod = self.make_pod(uid, ips)?;
            self.pods.insert(Arc::clone(uid), pod);
        }
        // The entry was found or made just above.
        self.pods.get(uid).ok_or_else(|| FabricError::NoAddress(Arc::clone(uid)))
    }

    /// Takes the pod's link away. Its namespace goes with the last descriptor of it.
    pub fn remove_pod(&mut self, uid: &str) -> Result<(), FabricError> {
        if let Some(pod) = self.pods.remove(uid) {
            let script = format!("link del {}\n", pod.link);
            tool::run(Tool::Ip, &["-batch", "-"], &script, Some(&self.router))?;
        }
        Ok(())
    }

    /// Has the router send connections to virtual addresses on to their endpoints. Does nothing if nothing changed.
    pub fn set_virtual_ports(&mut self, ports: Vec<VirtualPort>) -> Result<(), FabricError> {
        if self.virtual_ports != ports {
            tool::run(Tool::Nft, &["-f", "-"], &service_proxy::script(&ports), Some(&self.router))?;
            self.virtual_ports = ports;
        }
        Ok(())
    }

    fn make_pod(&mut self, uid: &Arc<str>, ips: &[IpAddr]) -> Result<PodNetwork, FabricError> {
        if ips.is_empty() {
            return Err(FabricError::NoAddress(Arc::clone(uid)));
        }
        if let Some((ip, owner)) = ips.iter().find_map(|ip| Some((*ip, self.owner(*ip)?))) {
            return Err(FabricError::AddressTaken { uid: Arc::clone(uid), ip, owner });
        }
        let namespace = sandbox::new_network_namespace()?;
        loosen(&namespace)?;
        for control in CONGESTION_CONTROLS {
            if set(&namespace, "net/ipv4/tcp_congestion_control", control).is_ok() {
                break;
            }
        }
        self.links_made += 1;
        let link = format!("pod{}", self.links_made);
        // `ip` finds the namespace among this process's descriptors.
        let peer = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        let router_script = router_script(&link, &peer, ips);
        tool::run(Tool::Ip, &["-batch", "-"], &router_script, Some(&self.router))?;
        tool::run(Tool::Ip, &["-batch", "-"], &pod_script(ips), Some(&namespace))?;
        Ok(PodNetwork { namespace, ips: ips.to_vec(), link })
    }

    fn owner(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.pods.iter().find(|(_, pod)| pod.ips.contains(&ip)).map(|(uid, _)| Arc::clone(uid))
    }
}

/// The router's side: the link, its gateway addresses, the way to the pod.
fn router_script(link: &str, peer: &str, ips: &[IpAddr]) -> String {
    let mut script = format!(
        "link add {link} type veth peer name {POD_LINK} netns {peer}
address add {GATEWAY_V4}/32 dev {link}
address add {GATEWAY_V6}/64 dev {link} nodad
link set {link} up
"
    );
    for ip in ips {
        let _ = writeln!(script, "route add {} dev {link}", host(*ip));
    }
    script
}

/// The pod's side. The pod's own address is the source of what it sends; the gateway is on the link by decree.
fn pod_script(ips: &[IpAddr]) -> String {
    let mut script = format!("link set lo up\nlink set {POD_LINK} up\n");
    for ip in ips {
        // Duplicate address detection would keep an IPv6 address unusable for a second.
        let duplicate_check = if ip.is_ipv6() { " nodad" } else { "" };
        let _ = writeln!(script, "address add {} dev {POD_LINK}{duplicate_check}", host(*ip));
    }
    if ips.iter().any(IpAddr::is_ipv4) {
        let _ = writeln!(script, "route add {GATEWAY_V4} dev {POD_LINK} scope link");
        let _ = writeln!(script, "route add default via {GATEWAY_V4} dev {POD_LINK}");
    }
    if ips.iter().any(IpAddr::is_ipv6) {
        let _ = writeln!(script, "route add ::/0 via {GATEWAY_V6} dev {POD_LINK}");
    }
    script
}

fn host(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

/// Reverse-path filters judge a packet by the route to its source, and here a proxy answers under addresses of others.
fn loosen(namespace: &NetworkNamespace) -> Result<(), FabricError> {
    for scope in ["all", "default", "lo"] {
        set(namespace, &format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

/// Writes a setting of the namespace: /proc/sys/net shows the thread's own.
fn set(namespace: &NetworkNamespace, path: &str, value: &'static str) -> Result<(), FabricError> {
    let path = format!("/proc/sys/{path}");
    namespace.within(|| std::fs::write(&path, value))?.map_err(|source| FabricError::Setting {
        path,
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_hold_addresses_and_routes_of_both_families() {
        let ips = ["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(
            router_script("pod7", "/proc/1/fd/9", &ips),
            "link add pod7 type veth peer name eth0 netns /proc/1/fd/9
address add 169.254.1.1/32 dev pod7
address add fe80::1/64 dev pod7 nodad
link set pod7 up
route add 10.244.0.5/32 dev pod7
route add fd00::5/128 dev pod7
"
        );
        assert_eq!(
            pod_script(&ips),
            "link set lo up
link set eth0 up
address add 10.244.0.5/32 dev eth0
address add fd00::5/128 dev eth0 nodad
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1 dev eth0
route add ::/0 via fe80::1 dev eth0
"
        );
    }
}
