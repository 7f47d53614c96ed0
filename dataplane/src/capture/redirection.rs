//! What is redirected where, and the nft script that says so.

use std::fmt::Write;
use std::net::IpAddr;

/// Mark of every packet that the proxy itself sends; such packets are never captured.
pub const PROXY_MARK: u32 = 0x539;
/// Mark of connections whose packets are led back through loopback: those that the proxy opened to the application
/// under the client's address.
const RETURN_MARK: u32 = 0x111;
/// The bits of a mark that are ours.
const MARK_MASK: u32 = 0xfff;
/// The bits that are not.
const MARK_REST: u32 = !MARK_MASK;
/// Routing table that delivers everything locally.
const TABLE: u32 = 100;
/// Preference of the rule that leads to it.
pub(super) const RULE_PREFERENCE: &str = "32764";
/// Our table of rules in the pod's namespace.
const NFT_TABLE: &str = "inet corelane_capture";

pub(super) const FAMILIES: [&str; 2] = ["-4", "-6"];

/// Redirection of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Where the pod's own connections go.
    pub outbound_port: u16,
    /// Where plain-text connections to the pod go.
    pub inbound_port: u16,
    /// Where tunnels to the pod arrive, undiverted.
    pub tunnel_port: u16,
    /// Where the pod's name queries go; `None` leaves them alone.
    pub dns_port: Option<u16>,
    /// Addresses from which the node's agent probes the pod, undiverted.
    pub host_probes: Vec<IpAddr>,
    /// Also IPv6.
    pub ipv6: bool,
}

impl Default for Redirection {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            dns_port: None,
            host_probes: vec![IpAddr::from([169, 254, 7, 127])],
            ipv6: true,
        }
    }
}

impl Redirection {
    pub(super) fn families(&self) -> impl Iterator<Item = &'static str> {
        FAMILIES.into_iter().take(if self.ipv6 { 2 } else { 1 })
    }

    /// The whole transaction: an older table is replaced. Rules keep the order of Istio's chains.
    pub(super) fn script(&self) -> String {
        let mut script = removal_script();
        // What the proxy sends goes to the pod itself: looking its way up a second time would cost each packet for nothing.
        let unmarked = unmarked();
        // Writing into a String cannot fail.
        let _ = write!(
            script,
            "table {NFT_TABLE} {{
  chain note_proxy {{
    type filter hook prerouting priority mangle; policy accept;
    meta mark & {MARK_MASK:#x} == {PROXY_MARK:#x} ct mark set ct mark & {MARK_REST:#x} | {RETURN_MARK:#x}
  }}
  chain lead_back {{
    type route hook output priority mangle; policy accept;
    {unmarked} ct mark & {MARK_MASK:#x} == {RETURN_MARK:#x} meta mark set meta mark & {MARK_REST:#x} | {RETURN_MARK:#x}
  }}
  chain redirect_outbound {{
    type nat hook output priority -100; policy accept;
{}  }}
  chain redirect_inbound {{
    type nat hook prerouting priority -100; policy accept;
{}  }}
}}
",
            self.outbound(),
            self.inbound()
        );
        script
    }

    fn outbound(&self) -> String {
        let unmarked = unmarked();
        let mut rules = String::new();
        for probe in &self.host_probes {
            let _ = writeln!(rules, "    {} daddr {probe} meta l4proto tcp accept", ip_word(*probe));
        }
        if let Some(port) = self.dns_port {
            let _ = writeln!(rules, "    oifname != \"lo\" udp dport 53 {unmarked} redirect to :{port}");
            for not_loopback in self.not_loopback() {
                let _ = writeln!(rules, "    {not_loopback} tcp dport 53 {unmarked} redirect to :{port}");
            }
        }
        let _ = writeln!(rules, "    meta l4proto tcp meta mark & {MARK_MASK:#x} == {RETURN_MARK:#x} accept");
        for not_loopback in self.not_loopback() {
            let _ = writeln!(rules, "    oifname \"lo\" {not_loopback} accept");
        }
        for not_loopback in self.not_loopback() {
            let port = self.outbound_port;
            let _ = writeln!(rules, "    {not_loopback} meta l4proto tcp {unmarked} redirect to :{port}");
        }
        rules
    }

    fn inbound(&self) -> String {
        let mut rules = String::new();
        for probe in &self.host_probes {
            let _ = writeln!(rules, "    {} saddr {probe} meta l4proto tcp accept", ip_word(*probe));
        }
        for not_loopback in self.not_loopback() {
            let _ = writeln!(
                rules,
                "    {not_loopback} tcp dport != {} {} redirect to :{}",
                self.tunnel_port,
                unmarked(),
                self.inbound_port
            );
        }
        rules
    }

    fn not_loopback(&self) -> impl Iterator<Item = &'static str> {
        ["ip daddr != 127.0.0.1", "ip6 daddr != ::1"].into_iter().take(if self.ipv6 { 2 } else { 1 })
    }
}

/// Matches what the proxy has not sent.
fn unmarked() -> String {
    format!("meta mark & {MARK_MASK:#x} != {PROXY_MARK:#x}")
}

/// `add` before `delete` makes the deletion succeed whether or not the table is there.
pub(super) fn removal_script() -> String {
    format!("add table {NFT_TABLE}\ndelete table {NFT_TABLE}\n")
}

/// Empties the chains that redirect and leaves them in place. `add` makes it succeed whether or not they are there.
pub(super) fn stop_script() -> String {
    let mut script = format!("add table {NFT_TABLE}\n");
    for chain in ["redirect_outbound", "redirect_inbound"] {
        // Writing into a String cannot fail.
        let _ = writeln!(script, "add chain {NFT_TABLE} {chain}\nflush chain {NFT_TABLE} {chain}");
    }
    script
}

/// Packets of marked connections are looked up in the table that delivers locally.
pub(super) fn mark_rule(verb: &str) -> String {
    format!("rule {verb} pref {RULE_PREFERENCE} fwmark {RETURN_MARK:#x}/{MARK_MASK:#x} lookup {TABLE}\n")
}

pub(super) fn loopback_route(family: &str) -> String {
    route("replace", family)
}

pub(super) fn loopback_route_removal(family: &str) -> String {
    route("del", family)
}

fn route(verb: &str, family: &str) -> String {
    let everything = if family == "-6" { "::/0" } else { "0.0.0.0/0" };
    format!("route {verb} local {everything} dev lo table {TABLE}\n")
}

fn ip_word(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_holds_the_rules_in_order() {
        let redirection = Redirection { dns_port: Some(15053), ipv6: false, ..Redirection::default() };
        let expected = "add table inet corelane_capture
delete table inet corelane_capture
table inet corelane_capture {
  chain note_proxy {
    type filter hook prerouting priority mangle; policy accept;
    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
  }
  chain lead_back {
    type route hook output priority mangle; policy accept;
    meta mark & 0xfff != 0x539 ct mark & 0xfff == 0x111 meta mark set meta mark & 0xfffff000 | 0x111
  }
  chain redirect_outbound {
    type nat hook output priority -100; policy accept;
    ip daddr 169.254.7.127 meta l4proto tcp accept
    oifname != \"lo\" udp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
    ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
    meta l4proto tcp meta mark & 0xfff == 0x111 accept
    oifname \"lo\" ip daddr != 127.0.0.1 accept
    ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
  }
  chain redirect_inbound {
    type nat hook prerouting priority -100; policy accept;
    ip saddr 169.254.7.127 meta l4proto tcp accept
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
  }
}
";
        assert_eq!(redirection.script(), expected);
    }

    #[test]
    fn ipv6_has_the_same_rules() {
        let script = Redirection::default().script();
        for rule in [
            "oifname \"lo\" ip6 daddr != ::1 accept",
            "ip6 daddr != ::1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001",
            "ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006",
        ] {
            assert!(script.contains(rule), "{rule} not in {script}");
        }
    }
}
