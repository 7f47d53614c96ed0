//! Objects of a case, through the YAML front end and into the engine.

use std::sync::Arc;

use l7::authz::PolicySet;
use serde_json::{Value, json};
use xds::kube::convert::authorization;
use xds::kube::load::load_documents;
use xds::kube::{Catalog, Loaded, MeshSettings, Problem};

/// Reads objects as the front end reads a folder; any error of any of them is the answer then.
pub(super) fn read<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Result<Catalog, String> {
    let loaded = load(objects);
    first_error(&loaded.problems).map_or(Ok(loaded.catalog), Err)
}

fn load<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Loaded {
    let documents = objects
        .into_iter()
        .enumerate()
        .map(|(index, object)| (format!("object {index}"), object.to_string()));
    load_documents(documents.collect())
}

fn first_error(problems: &[Problem]) -> Option<String> {
    let error = problems.iter().find(|problem| problem.is_error())?;
    Some(format!("{}: {}: {}", error.object, error.field, error.message))
}

/// As [`read`], for policies that are in force: one with an error keeps what remains of it on the safe side, as istiod
/// translates what admission let through.
pub(super) fn read_in_force<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Result<Catalog, String> {
    let mut loaded = load(objects);
    let names: Vec<_> = loaded.refused.iter().map(|(_, name)| name).collect();
    match first_error(&loaded.problems) {
        Some(error) if !names.iter().all(|name| loaded.degraded.contains_key(*name)) => Err(error),
        _ => {
            loaded.catalog.authorization_policies.extend(loaded.degraded);
            Ok(loaded.catalog)
        }
    }
}

/// An AuthorizationPolicy as the front end wants it: cases leave out what is the same for all.
pub(super) fn policy(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.entry("apiVersion").or_insert_with(|| json!("security.istio.io/v1"));
        fields.entry("kind").or_insert_with(|| json!("AuthorizationPolicy"));
    }
    object
}

/// Policies of a catalog, complete.
pub(super) fn compile(catalog: &Catalog, mesh: &MeshSettings) -> Result<PolicySet, String> {
    let converted =
        catalog.authorization_policies.values().map(|policy| authorization::convert(policy, mesh));
    let converted: Vec<_> = converted.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    PolicySet::compile(converted.into_iter().map(Arc::new)).map_err(|error| error.to_string())
}

/// Policies of a catalog as a proxy gets them that sees only connections.
pub(super) fn compile_reduced(catalog: &Catalog) -> Result<PolicySet, String> {
    let mut reduced = Vec::new();
    for policy in catalog.authorization_policies.values() {
        reduced.extend(authorization::convert_reduced(policy).map_err(|error| error.to_string())?);
    }
    PolicySet::compile(reduced.into_iter().map(Arc::new)).map_err(|error| error.to_string())
}
