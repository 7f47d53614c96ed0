//! Services whose virtual address is a block: found by longest prefix.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::NamespacedHostname;

use super::{AddressQuery, Few, Map};
use crate::snapshot::AddressKey;

/// Blocks by prefix length, the longest first. Only lengths in use are held, so that a lookup costs one probe for
/// each of them: none at all in the usual mesh without blocks.
#[derive(Clone, Default)]
pub(crate) struct VipBlocks {
    lengths: Arc<Vec<LengthTable>>,
}

#[derive(Clone)]
struct LengthTable {
    ipv4: bool,
    prefix_len: u8,
    /// By the block's first address.
    services: Map<AddressKey, Few<NamespacedHostname>>,
}

impl VipBlocks {
    pub(crate) fn insert(&mut self, network: &Arc<str>, block: IpNet, service: &NamespacedHostname) {
        let lengths = Arc::make_mut(&mut self.lengths);
        let ipv4 = block.addr().is_ipv4();
        let position =
            lengths.iter().position(|table| table.ipv4 == ipv4 && table.prefix_len == block.prefix_len());
        let position = position.unwrap_or_else(|| {
            let at = lengths.partition_point(|table| table.prefix_len > block.prefix_len());
            lengths
                .insert(at, LengthTable { ipv4, prefix_len: block.prefix_len(), services: Map::default() });
            at
        });
        if let Some(table) = lengths.get_mut(position) {
            let key = AddressKey { network: Arc::clone(network), ip: block.network() };
            let owners = table.services.entry(key).or_default();
            if !owners.contains(service) {
                owners.push(service.clone());
            }
        }
    }

    pub(crate) fn remove(&mut self, network: &Arc<str>, block: IpNet, service: &NamespacedHostname) {
        let lengths = Arc::make_mut(&mut self.lengths);
        let key = AddressKey { network: Arc::clone(network), ip: block.network() };
        for table in lengths.iter_mut() {
            if table.prefix_len != block.prefix_len() || table.ipv4 != block.addr().is_ipv4() {
                continue;
            }
            if let Some(owners) = table.services.get_mut(&key) {
                owners.retain(|owner| owner != service);
                if owners.is_empty() {
                    table.services.remove(&key);
                }
            }
        }
        lengths.retain(|table| !table.services.is_empty());
    }

    /// The owners of every block that covers an address, the longest prefix first.
    pub(super) fn covering<'a>(
        &'a self,
        network: &'a str,
        ip: IpAddr,
    ) -> impl Iterator<Item = &'a Few<NamespacedHostname>> {
        self.lengths.iter().filter(move |table| table.ipv4 == ip.is_ipv4()).filter_map(move |table| {
            let block = IpNet::new(ip, table.prefix_len).ok()?;
            table.services.get(&AddressQuery { network, ip: block.network() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covering(blocks: &VipBlocks, ip: &str) -> Vec<String> {
        blocks.covering("", ip.parse().unwrap()).flatten().map(ToString::to_string).collect()
    }

    #[test]
    fn the_longest_prefix_comes_first_and_families_do_not_mix() {
        let network: Arc<str> = "".into();
        let mut blocks = VipBlocks::default();
        let service = |name: &str| NamespacedHostname::new("n", name);
        blocks.insert(&network, "10.0.0.0/8".parse().unwrap(), &service("wide"));
        blocks.insert(&network, "10.1.0.0/16".parse().unwrap(), &service("narrow"));
        blocks.insert(&network, "10.1.0.0/16".parse().unwrap(), &service("second"));
        blocks.insert(&network, "::/8".parse().unwrap(), &service("six"));
        assert_eq!(covering(&blocks, "10.1.2.3"), ["n/narrow", "n/second", "n/wide"]);
        assert_eq!(covering(&blocks, "10.2.2.3"), ["n/wide"]);
        assert_eq!(covering(&blocks, "11.2.2.3"), [""; 0]);
        assert_eq!(covering(&blocks, "::a01:203"), ["n/six"]);
        blocks.remove(&network, "10.1.0.0/16".parse().unwrap(), &service("narrow"));
        assert_eq!(covering(&blocks, "10.1.2.3"), ["n/second", "n/wide"]);
        blocks.remove(&network, "10.1.0.0/16".parse().unwrap(), &service("second"));
        blocks.remove(&network, "10.0.0.0/8".parse().unwrap(), &service("wide"));
        blocks.remove(&network, "::/8".parse().unwrap(), &service("six"));
        assert!(blocks.lengths.is_empty());
    }
}
