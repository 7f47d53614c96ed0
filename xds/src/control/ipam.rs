//! Assigns addresses to pods, Services and ServiceEntries that carry none of their own.
//!
//! An address follows from the name of its owner, so that it is the same after a reload, in another order of files
//! and, collisions apart, after a restart. Within one process an owner keeps its address as long as it exists.
//! Addresses written in the configuration are never handed out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

/// One block of addresses and who holds which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressBlock {
    network: Ipv4Net,
    held: BTreeMap<Arc<str>, Ipv4Addr>,
}

/// The block has no address left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no address is left in {network} for {owner}; configure a larger network or remove objects")]
pub struct BlockExhausted {
    network: Ipv4Net,
    owner: Arc<str>,
}

impl BlockExhausted {
    /// Who got nothing.
    pub fn owner(&self) -> &str {
        &self.owner
    }
}

impl AddressBlock {
    pub fn new(network: Ipv4Net) -> Self {
        Self { network, held: BTreeMap::new() }
    }

    /// Gives each of `owners` its address and forgets everyone else. `taken` are addresses in use elsewhere: an
    /// owner whose address is among them moves.
    pub fn assign(
        &mut self,
        owners: &BTreeSet<Arc<str>>,
        taken: &BTreeSet<IpAddr>,
    ) -> (BTreeMap<Arc<str>, IpAddr>, Vec<BlockExhausted>) {
        self.held.retain(|owner, ip| owners.contains(owner) && !taken.contains(&IpAddr::V4(*ip)));
        let mut used: BTreeSet<Ipv4Addr> = self.held.values().copied().collect();
        let mut exhausted = Vec::new();
        for owner in owners {
            if self.held.contains_key(owner) {
                continue;
            }
            let free = |ip: &Ipv4Addr| !used.contains(ip) && !taken.contains(&IpAddr::V4(*ip));
            if let Some(ip) = self.candidates(owner).find(free) {
                used.insert(ip);
                self.held.insert(owner.clone(), ip);
            } else {
                exhausted.push(BlockExhausted { network: self.network, owner: owner.clone() });
            }
        }
        let assigned = self.held.iter().map(|(owner, ip)| (owner.clone(), IpAddr::V4(*ip))).collect();
        (assigned, exhausted)
    }

    /// Every usable address once, beginning at the one the owner's name points to. Addresses ending in 0, 1 and
    /// 255 stay free for networks, gateways and broadcasts of whatever subnets the block is cut into.
    fn candidates(&self, owner: &str) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let digest = Sha256::digest(owner.as_bytes());
        let hash = digest.iter().take(8).fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
        let first = u64::from(u32::from(self.network.network()));
        let size = u64::from(u32::from(self.network.broadcast())) - first + 1;
        (0..size).filter_map(move |step| {
            let ip = Ipv4Addr::from(u32::try_from(first + (hash % size + step) % size).ok()?);
            let [.., last] = ip.octets();
            (!matches!(last, 0 | 1 | 255)).then_some(ip)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn block(text: &str) -> AddressBlock {
        AddressBlock::new(text.parse().unwrap())
    }

    #[test]
    fn address_is_the_same_whoever_else_is_there() {
        let none = BTreeSet::new();
        let (alone, _) = block("10.244.0.0/16").assign(&owners(&["app/a"]), &none);
        let (crowd, _) = block("10.244.0.0/16").assign(&owners(&["app/a", "app/b", "x/y"]), &none);
        assert_eq!(alone["app/a"], crowd["app/a"]);
        assert_eq!(crowd.values().collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn newcomer_never_moves_a_holder() {
        let none = BTreeSet::new();
        // 5 usable addresses: collisions are certain.
        let mut block = block("10.0.0.0/29");
        let (before, _) = block.assign(&owners(&["d", "e"]), &none);
        let (after, exhausted) = block.assign(&owners(&["a", "b", "c", "d", "e"]), &none);
        assert!(exhausted.is_empty());
        assert_eq!(before["d"], after["d"]);
        assert_eq!(before["e"], after["e"]);
    }

    #[test]
    fn written_address_is_not_handed_out_and_moves_its_holder() {
        let mut block = block("10.244.0.0/16");
        let (before, _) = block.assign(&owners(&["app/a"]), &BTreeSet::new());
        let (after, _) = block.assign(&owners(&["app/a"]), &[before["app/a"]].into());
        assert_ne!(before["app/a"], after["app/a"]);
    }

    #[test]
    fn full_block_names_who_got_nothing() {
        let mut block = block("10.0.0.0/30");
        let (assigned, exhausted) = block.assign(&owners(&["a", "b", "c"]), &BTreeSet::new());
        // .2 and .3: .0 and .1 are kept free.
        assert_eq!(assigned.len(), 2);
        assert_eq!(exhausted.len(), 1);
        assert!(exhausted[0].to_string().contains("10.0.0.0/30"));
        let (assigned, exhausted) = block.assign(&owners(&["c"]), &BTreeSet::new());
        assert_eq!((assigned.len(), exhausted.len()), (1, 0));
    }

    #[test]
    fn addresses_stay_inside_the_block() {
        let names: Vec<String> = (0..500).map(|n| format!("ns/pod-{n}")).collect();
        let owners: BTreeSet<Arc<str>> = names.iter().map(|name| Arc::from(name.as_str())).collect();
        let network: Ipv4Net = "10.1.2.0/23".parse().unwrap();
        let (assigned, exhausted) = AddressBlock::new(network).assign(&owners, &BTreeSet::new());
        assert!(exhausted.is_empty());
        for ip in assigned.values() {
            let IpAddr::V4(ip) = ip else { panic!("IPv4 block") };
            assert!(network.contains(ip) && !matches!(ip.octets()[3], 0 | 1 | 255), "{ip}");
        }
    }
}
