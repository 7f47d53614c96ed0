//! What is told of traffic, as resources: for the mesh, for namespaces, for the workloads that something selects, and for
//! the destinations behind a waypoint.

use std::fmt::Display;

use l7::ir;

use super::Context;
use super::policies::problem;
use crate::control::desired::{DesiredState, WaypointState};
use crate::decode::TelemetrySubject;
use crate::kube::convert::telemetry::{Waypoint, of_destination, of_mesh, of_namespaces, of_workload};
use crate::kube::convert::{ServiceRef, Subject};
use crate::kube::{Meta, Problem, Severity};
use crate::proto::l7 as wire;

/// Adds what holds for the mesh and for namespaces.
pub(super) fn publish(context: &Context<'_>, desired: &mut DesiredState, problems: &mut Vec<Problem>) {
    let (catalog, mesh) = (context.catalog, &context.settings.mesh);
    let of_mesh = of_mesh(catalog, mesh).map(|telemetry| (TelemetrySubject::Mesh, telemetry));
    let of_namespaces = of_namespaces(catalog, mesh).into_iter();
    let of_namespaces = of_namespaces.map(|(name, telemetry)| (TelemetrySubject::Namespace(name), telemetry));
    for (subject, telemetry) in of_mesh.into_iter().chain(of_namespaces) {
        if let Some(message) = encoded(&subject, &telemetry, problems) {
            desired.insert_telemetry(&subject.to_string(), &message);
        }
    }
}

/// Adds what is said of a workload and of nobody else.
pub(super) fn publish_of_workload(
    context: &Context<'_>,
    uid: &str,
    meta: &Meta,
    services: &[ServiceRef],
    desired: &mut DesiredState,
    problems: &mut Vec<Problem>,
) {
    let subject = Subject { namespace: &meta.namespace, labels: &meta.labels, services };
    let Some(telemetry) = of_workload(context.catalog, &context.settings.mesh, subject) else { return };
    let subject = TelemetrySubject::Workload(uid.into());
    if let Some(message) = encoded(&subject, &telemetry, problems) {
        desired.insert_telemetry(&subject.to_string(), &message);
    }
}

/// Adds what is said of traffic through a waypoint to one of its destinations.
pub(super) fn publish_of_destination(
    context: &Context<'_>,
    destination: &str,
    waypoint: &Waypoint<'_>,
    state: &mut WaypointState,
    problems: &mut Vec<Problem>,
) {
    let telemetry = of_destination(context.catalog, &context.settings.mesh, waypoint);
    let Some(telemetry) = telemetry else { return };
    let name = TelemetrySubject::destination_name(destination);
    if let Some(message) = encoded(&name, &telemetry, problems) {
        state.insert_telemetry(&name, &message);
    }
}

fn encoded(
    name: &impl Display,
    telemetry: &ir::Telemetry,
    problems: &mut Vec<Problem>,
) -> Option<wire::Telemetry> {
    match serde_json::to_vec(telemetry) {
        Ok(ir) => Some(wire::Telemetry { ir: ir.into() }),
        Err(error) => {
            problems.push(problem(Severity::Error, format!("telemetry of {name}: {error}")));
            None
        }
    }
}
