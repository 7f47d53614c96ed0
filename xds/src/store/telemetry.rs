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

#[cfg(test)]
mod tests {
    use l7::ir;
    use prost::Message;
    use prost_types::Any;

    use super::super::fixtures::{store, workload};
    use crate::delta::Sink;
    use crate::proto::{TELEMETRY_TYPE, l7 as wire};
    use crate::snapshot::dump;

    fn any(filter: &str) -> Any {
        let mut telemetry = ir::Telemetry::default();
        telemetry.server.log.filter = Some(filter.into());
        let message = wire::Telemetry { ir: serde_json::to_vec(&telemetry).unwrap().into() };
        Any { type_url: TELEMETRY_TYPE.to_owned(), value: message.encode_to_vec() }
    }

    #[test]
    fn the_most_special_counts_until_it_goes_and_is_shown() {
        let pod = workload("app/web", "10.0.0.1");
        let mut store = store(vec![pod.clone()], Vec::new());
        let mut of_pod = |name: &str, filter: Option<&str>| {
            match filter {
                Some(filter) => store.upsert(TELEMETRY_TYPE, name, &any(filter)).unwrap(),
                None => store.remove(TELEMETRY_TYPE, name),
            }
            let snapshot = store.snapshot().unwrap();
            let state = dump::state(&snapshot);
            let shown = state.get("telemetry").map(|it| it.as_object().unwrap().len());
            let own = snapshot.telemetry().of_workload(&pod);
            (own.and_then(|it| it.server.rules().log.filter.clone()).map(|it| it.to_string()), shown)
        };
        let own = format!("workload/{}", pod.uid);
        let says = |text: &str, shown| (Some(text.to_owned()), Some(shown));
        assert_eq!(of_pod("mesh", Some("true")), says("true", 1));
        assert_eq!(of_pod(&own, Some("connection.mtls")), says("connection.mtls", 2));
        assert_eq!(of_pod("namespace/app", Some("false")), says("connection.mtls", 3));
        assert_eq!(of_pod("namespace/other", Some("false")), says("connection.mtls", 4));
        assert_eq!(of_pod(&own, None), says("false", 3));
        assert_eq!(of_pod("namespace/app", None), says("true", 2));
        assert_eq!(of_pod("namespace/other", None), says("true", 1));
        assert_eq!(of_pod("mesh", None), (None, None));
    }

    #[test]
    fn what_is_held_already_changes_nothing_and_what_does_not_compile_is_refused() {
        let mut store = store(Vec::new(), Vec::new());
        store.upsert(TELEMETRY_TYPE, "mesh", &any("true")).unwrap();
        assert_eq!(store.snapshot().unwrap().generation(), 1);
        store.upsert(TELEMETRY_TYPE, "mesh", &any("true")).unwrap();
        assert!(store.snapshot().is_none());
        let error = store.upsert(TELEMETRY_TYPE, "mesh", &any("response.kode > 1")).unwrap_err();
        assert!(error.contains("\"response.kode\" is not known here"), "{error}");
        let error = store.upsert(TELEMETRY_TYPE, "nobody", &any("true")).unwrap_err();
        assert!(error.contains("names nobody"), "{error}");
        assert!(store.snapshot().is_none());
    }
}
