//! Services in the store, and the tables that find them.

use std::sync::Arc;

use ipnet::IpNet;
use model::{NamespacedHostname, Service, ServiceVip};

use super::Store;
use crate::snapshot::{AddressKey, ServiceEntry};

impl Store {
    pub(super) fn upsert_service(&mut self, service: Service) {
        let old = self.state.services.get(&service.key).cloned();
        if old.as_ref().is_some_and(|old| *old.service == service) {
            return;
        }
        self.changed = true;
        let key = service.key.clone();
        let old_vips: &[ServiceVip] = old.as_ref().map_or(&[], |old| &old.service.vips);
        for vip in old_vips.iter().filter(|vip| !service.vips.contains(vip)) {
            self.unlink_vip(vip, &key);
        }
        for vip in service.vips.iter().filter(|vip| !old_vips.contains(vip)) {
            self.link_vip(vip, &key);
        }
        if old.is_none() {
            let hosts = self.state.services_by_host.entry(Arc::clone(&key.hostname)).or_default();
            hosts.push(key.clone());
        }
        let endpoints = match old {
            Some(old) => old.endpoints.clone(),
            None => self.claim_endpoints(&key),
        };
        let capacity_max = endpoints.iter().map(|endpoint| endpoint.workload.capacity).max().unwrap_or(1);
        let entry = ServiceEntry { service: Arc::new(service), endpoints, capacity_max };
        self.state.services.insert(key, Arc::new(entry));
    }

    /// Removes the service `namespace/hostname`, if there is one.
    pub(super) fn remove_service(&mut self, name: &str) {
        let Some(key) = NamespacedHostname::parse(name) else { return };
        let Some(entry) = self.state.services.remove(&key) else { return };
        self.changed = true;
        for vip in &entry.service.vips {
            self.unlink_vip(vip, &key);
        }
        if let Some(hosts) = self.state.services_by_host.get_mut(&key.hostname) {
            hosts.retain(|host| *host != key);
            if hosts.is_empty() {
                self.state.services_by_host.remove(&key.hostname);
            }
        }
        self.leave_endpoints(&entry);
    }

    fn link_vip(&mut self, vip: &ServiceVip, service: &NamespacedHostname) {
        if let Some(block) = block(vip) {
            self.state.vip_blocks.insert(&vip.network, block, service);
            return;
        }
        let owners = self.state.services_by_vip.entry(address_key(vip)).or_default();
        if !owners.contains(service) {
            owners.push(service.clone());
        }
    }

    fn unlink_vip(&mut self, vip: &ServiceVip, service: &NamespacedHostname) {
        if let Some(block) = block(vip) {
            self.state.vip_blocks.remove(&vip.network, block, service);
            return;
        }
        let key = address_key(vip);
        if let Some(owners) = self.state.services_by_vip.get_mut(&key) {
            owners.retain(|owner| owner != service);
            if owners.is_empty() {
                self.state.services_by_vip.remove(&key);
            }
        }
    }
}

/// `None` for a single address.
fn block(vip: &ServiceVip) -> Option<IpNet> {
    if vip.is_single() { None } else { IpNet::new(vip.ip, vip.prefix_len).ok().map(|block| block.trunc()) }
}

fn address_key(vip: &ServiceVip) -> AddressKey {
    AddressKey { network: Arc::clone(&vip.network), ip: vip.ip.to_canonical() }
}
