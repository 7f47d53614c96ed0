//! What a client lacks of one type, and the responses that tell it.

use std::sync::Arc;

use super::RESPONSE_BYTES_MAX;
use crate::control::desired::{DesiredResource, ResourceKind};
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};

/// The difference between what a client holds and what it should hold.
#[derive(Debug, Default)]
pub(super) struct Difference<'a> {
    pub(super) upserts: Vec<&'a Arc<DesiredResource>>,
    /// Policies that reach fewer than the version that the client holds.
    pub(super) narrowed: Vec<&'a Arc<DesiredResource>>,
    pub(super) removed: Vec<Arc<str>>,
    pub(super) with_aliases: bool,
    pub(super) answer_owed: bool,
}

// === impl Difference ===

impl Difference<'_> {
    pub(super) fn emit_upserts(
        &mut self,
        kind: ResourceKind,
        upserts: Vec<&Arc<DesiredResource>>,
        responses: &mut Vec<DeltaDiscoveryResponse>,
    ) {
        let mut response = DeltaDiscoveryResponse::default();
        let mut bytes = 0;
        for resource in upserts {
            if bytes > 0 && bytes + resource.body.len() > RESPONSE_BYTES_MAX {
                responses.push(std::mem::take(&mut response));
                bytes = 0;
            }
            bytes += resource.body.len();
            kind.type_url().clone_into(&mut response.type_url);
            response.resources.push(Resource {
                name: resource.name.to_string(),
                version: resource.version.to_string(),
                resource: Some(resource.to_any(kind)),
                aliases: if self.with_aliases {
                    resource.aliases.iter().map(ToString::to_string).collect()
                } else {
                    Vec::new()
                },
                ..Default::default()
            });
        }
        if !response.resources.is_empty() {
            self.answer_owed = false;
            responses.push(response);
        }
    }

    pub(super) fn emit_removals(&mut self, kind: ResourceKind, responses: &mut Vec<DeltaDiscoveryResponse>) {
        if self.removed.is_empty() && !self.answer_owed {
            return;
        }
        let removed_resources = self.removed.drain(..).map(|name| name.to_string()).collect();
        // Upserts of the same type that nothing stands between travel together with the removals.
        if let Some(last) = responses.last_mut().filter(|last| last.type_url == kind.type_url()) {
            last.removed_resources = removed_resources;
        } else {
            responses.push(DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                removed_resources,
                ..Default::default()
            });
        }
    }
}
