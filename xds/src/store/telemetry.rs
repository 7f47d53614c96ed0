//! What is told of traffic, in the store.

use std::sync::Arc;

use l7::telemetry::Telemetry;

use super::Store;
use crate::decode::{TelemetrySubject, telemetry_subject};

impl Store {
    pub(super) fn upsert_telemetry(&mut self, subject: TelemetrySubject, telemetry: Telemetry) {
        if self.state.telemetry.get(&subject) == Some(&telemetry) {
            return;
        }
        Arc::make_mut(&mut self.state.telemetry).insert(subject, telemetry);
        self.changed = true;
    }

    pub(super) fn remove_telemetry(&mut self, name: &str) {
        // What has no such name was never taken.
        let Ok(subject) = telemetry_subject(name) else { return };
        if self.state.telemetry.get(&subject).is_some() {
            Arc::make_mut(&mut self.state.telemetry).remove(&subject);
            self.changed = true;
        }
    }
}
