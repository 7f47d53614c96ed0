//! The stand-in for kube-proxy: in the router, connections to a Service's virtual address go on to one of its
//! endpoints. Only pods outside the mesh need it; those inside have their node proxy choose.

use std::fmt::Write;
use std::net::SocketAddr;

/// Most endpoints of one virtual port; more would make rule sets that nobody wants in a demonstration network.
const ENDPOINTS_MAX: usize = 256;
const NFT_TABLE: &str = "inet corelane_services";

/// One port of a Service's virtual address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualPort {
    pub address: SocketAddr,
    /// Of the address's own family; others are left out.
    pub endpoints: Vec<SocketAddr>,
}

/// Replaces the whole rule set. A virtual port without endpoint refuses connections, as kube-proxy does.
pub(super) fn script(ports: &[VirtualPort]) -> String {
    let mut forward = String::new();
    let mut refuse = String::new();
    let mut hairpin = String::new();
    for port in ports {
        let family = word(port.address);
        let same_family = |e: &&SocketAddr| e.is_ipv4() == port.address.is_ipv4();
        let endpoints: Vec<_> = port.endpoints.iter().filter(same_family).take(ENDPOINTS_MAX).collect();
        let target = format!("{family} daddr {} tcp dport {}", port.address.ip(), port.address.port());
        // Writing into a String cannot fail.
        if endpoints.is_empty() {
            let _ = writeln!(refuse, "    {target} reject with tcp reset");
            continue;
        }
        let map: Vec<_> =
            endpoints.iter().enumerate().map(|(i, e)| format!("{i} : {} . {}", e.ip(), e.port())).collect();
        let _ = writeln!(
            forward,
            "    {target} dnat {family} to numgen random mod {} map {{ {} }}",
            map.len(),
            map.join(", ")
        );
        for endpoint in endpoints {
            // A pod that reaches itself through its Service must see another source than itself.
            let ip = endpoint.ip();
            let rule = format!("    {family} saddr {ip} {family} daddr {ip} masquerade\n");
            if !hairpin.contains(&rule) {
                hairpin.push_str(&rule);
            }
        }
    }
    format!(
        "add table {NFT_TABLE}
delete table {NFT_TABLE}
table {NFT_TABLE} {{
  chain forward_to_endpoint {{
    type nat hook prerouting priority -100; policy accept;
{forward}  }}
  chain refuse {{
    type filter hook prerouting priority -110; policy accept;
{refuse}  }}
  chain hairpin {{
    type nat hook postrouting priority 100; policy accept;
{hairpin}  }}
}}
"
    )
}

fn word(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_chosen_at_random_and_none_is_a_refusal() {
        let script = script(&[
            VirtualPort {
                address: "10.96.0.1:80".parse().unwrap(),
                endpoints: vec!["10.244.0.1:8080".parse().unwrap(), "10.244.0.2:8080".parse().unwrap()],
            },
            VirtualPort {
                address: "10.96.0.2:80".parse().unwrap(),
                endpoints: vec!["[fd00::1]:80".parse().unwrap()],
            },
        ]);
        assert!(script.contains(
            "ip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.244.0.1 . 8080, 1 : 10.244.0.2 . 8080 }\n"
        ));
        assert!(script.contains("ip saddr 10.244.0.2 ip daddr 10.244.0.2 masquerade\n"));
        assert!(script.contains("ip daddr 10.96.0.2 tcp dport 80 reject with tcp reset\n"));
    }
}
