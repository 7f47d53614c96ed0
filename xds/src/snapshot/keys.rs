//! Keys of the snapshot's tables, each with a borrowed twin, so that a lookup allocates nothing.
//!
//! Invariant: a key and its twin hash alike. Both derive `Hash` over the same fields in the same order, and
//! `Arc<str>` hashes as the `str` that it holds.

use std::net::IpAddr;
use std::sync::Arc;

use equivalent::Equivalent;
use model::NamespacedHostname;

/// An address within a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AddressKey {
    pub(crate) network: Arc<str>,
    pub(crate) ip: IpAddr,
}

#[derive(Hash)]
pub(super) struct AddressQuery<'a> {
    pub(super) network: &'a str,
    pub(super) ip: IpAddr,
}

impl Equivalent<AddressKey> for AddressQuery<'_> {
    fn equivalent(&self, key: &AddressKey) -> bool {
        self.ip == key.ip && self.network == &*key.network
    }
}

/// Twin of [`NamespacedHostname`].
#[derive(Hash)]
pub(super) struct HostQuery<'a> {
    pub(super) namespace: &'a str,
    pub(super) hostname: &'a str,
}

impl Equivalent<NamespacedHostname> for HostQuery<'_> {
    fn equivalent(&self, key: &NamespacedHostname) -> bool {
        self.hostname == &*key.hostname && self.namespace == &*key.namespace
    }
}

/// What decides which policies concern a workload: its namespace and the policies that it names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PolicySetKey {
    pub(crate) namespace: Arc<str>,
    pub(crate) names: Arc<[Arc<str>]>,
}

#[derive(Hash)]
pub(super) struct PolicySetQuery<'a> {
    pub(super) namespace: &'a str,
    pub(super) names: &'a [Arc<str>],
}

impl Equivalent<PolicySetKey> for PolicySetQuery<'_> {
    fn equivalent(&self, key: &PolicySetKey) -> bool {
        self.namespace == &*key.namespace && self.names == &*key.names
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn fuzz_a_key_and_its_borrowed_twin_hash_alike() {
        bolero::check!().with_type::<(String, String, u32, Vec<String>)>().for_each(
            |(one, two, ip, many)| {
                let state = foldhash::fast::FixedState::default();
                let ip = IpAddr::from(ip.to_ne_bytes());
                let key = AddressKey { network: one.as_str().into(), ip };
                assert_eq!(state.hash_one(&key), state.hash_one(AddressQuery { network: one, ip }));
                let key = NamespacedHostname::new(one.as_str(), two.as_str());
                assert_eq!(state.hash_one(&key), state.hash_one(HostQuery { namespace: one, hostname: two }));
                let names: Arc<[Arc<str>]> = many.iter().map(|name| Arc::from(name.as_str())).collect();
                let key = PolicySetKey { namespace: one.as_str().into(), names: Arc::clone(&names) };
                assert_eq!(
                    state.hash_one(&key),
                    state.hash_one(PolicySetQuery { namespace: one, names: &names })
                );
            },
        );
    }
}
