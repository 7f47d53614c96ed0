//! PeerAuthentication.

use std::collections::BTreeMap;

use super::super::catalog::{Labels, Meta};
use super::super::istio::{MtlsMode, PeerAuthentication};
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::names;

const MODES: [(&str, MtlsMode); 4] = [
    ("UNSET", MtlsMode::Unset),
    ("DISABLE", MtlsMode::Disable),
    ("PERMISSIVE", MtlsMode::Permissive),
    ("STRICT", MtlsMode::Strict),
];

pub(super) fn peer_authentication(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<PeerAuthentication> {
    let mut policy =
        PeerAuthentication { meta, selector: None, mode: MtlsMode::Unset, ports: BTreeMap::new() };
    let Some(spec) = fields.optional("spec") else {
        return Some(policy);
    };
    let mut fields = spec.fields(findings)?;
    if let Some(selector) = fields.optional("selector") {
        policy.selector =
            names::match_labels(&selector, findings).filter(|labels: &Labels| !labels.is_empty());
    }
    if let Some(item) = fields.optional("mtls") {
        policy.mode = mode(&item, findings)?;
    }
    if let Some(item) = fields.optional("portLevelMtls") {
        if policy.selector.is_none() {
            let message = "portLevelMtls goes only with a selector";
            item.error(findings, message, "add selector.matchLabels, or remove portLevelMtls");
        }
        for (port, item) in item.fields(findings)?.entries() {
            match port.parse::<u16>() {
                Ok(number) if number > 0 => {
                    policy.ports.insert(number, mode(&item, findings)?);
                }
                _ => item.error(findings, format!("{:?} is no port", shortened(port)), "write a port number"),
            }
        }
    }
    fields.finish(findings);
    Some(policy)
}

fn mode(item: &Item<'_>, findings: &mut Findings) -> Option<MtlsMode> {
    let mut fields = item.fields(findings)?;
    let mode = fields.optional("mode").map_or(Some(MtlsMode::Unset), |item| item.one_of(findings, &MODES));
    fields.finish(findings);
    mode
}
