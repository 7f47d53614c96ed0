//! As the waypoint decides that stands before a destination.

use std::sync::Arc;

use model::Workload;
use xds::snapshot::Served;
use xds::snapshot::resolve::{Candidate, Client};

use super::client::{Asking, Reads, Said, Share};
use super::report::{self, Decision, Policy};
use super::server::Arrival;
use super::{ExplainError, Source};
use crate::session::fronted;

impl Asking<'_> {
    /// The client's node sends it to an instance of the waypoint, and does nothing else with it.
    pub(super) fn through_waypoint(
        &self,
        client: Client<'_>,
        instance: Candidate,
    ) -> Result<Said, ExplainError> {
        let own = &instance.workload;
        let (transport, asked_for) = match &instance.way {
            Ok(route) => self.transport(&route.transport),
            Err(reason) => return Ok(Said::refused(reason.to_string())),
        };
        // Nobody captures what a waypoint sends, and it proves who it is for all that.
        let pod = report::Pod { identity: Some(own.identity.uri().to_owned()), ..self.pod_of(own) };
        let mut waypoint = report::Waypoint { pod, transport, policy: None };
        let (Some(snapshot), Some(asked_for)) = (self.world.snapshot_of_waypoint(own)?, asked_for) else {
            let (decision, name) = (Decision::Waypoint, &waypoint.pod.name);
            let reason =
                format!("the routes and policies of the waypoint {name} decide, which are not known here");
            return Ok(Said { decision, waypoint: Some(waypoint), ..Said::refused(reason) });
        };
        let identity = self.source.identity.as_ref().unwrap_or(&client.workload.identity);
        let found = match fronted(Arc::clone(&snapshot), own, asked_for, identity.namespace()) {
            Ok(found) => found,
            Err(reason) => return Ok(Said { waypoint: Some(waypoint), ..Said::refused(reason) }),
        };
        let Source { identity, ip } = self.source;
        let arrival =
            Arrival { world: self.world, source: identity.as_ref(), source_ip: *ip, to: found.address };
        let Some((policy, reads)) = self.enforced(&found.served, &arrival)? else {
            let reason = String::from("the waypoint serves nothing at this port");
            return Ok(Said { waypoint: Some(waypoint), ..Said::refused(reason) });
        };
        let (allowed, status, reason) = (policy.allowed, policy.status, policy.reason.clone());
        waypoint.policy = Some(policy);
        if !allowed {
            let decision = Decision::Denied;
            return Ok(Said { decision, status, waypoint: Some(waypoint), ..Said::refused(reason) });
        }
        let address = own.addresses.first().copied().unwrap_or(self.ip);
        let asking = Asking {
            snapshot: &snapshot,
            source: &Source { identity: Some(own.identity.clone()), ip: address },
            sender: self.source.ip,
            tunnels: true,
            ..*self
        };
        let said = asking.onwards(own, &found.served, found.workload.as_ref(), reads)?;
        Ok(Said { waypoint: Some(waypoint), ..said })
    }

    /// What its policies say; `None` where it serves nothing.
    fn enforced(
        &self,
        served: &Served,
        arrival: &Arrival<'_>,
    ) -> Result<Option<(Policy, Reads)>, ExplainError> {
        Ok(match (&served.http, &served.tcp) {
            (Some(http), _) => Some((arrival.decide_request(&http.policies, self.asked)?, Reads::Requests)),
            (None, Some(tcp)) => Some((arrival.decide_connection(&tcp.policies), Reads::Bytes)),
            (None, None) => None,
        })
    }

    /// From the waypoint, `self`, to an endpoint.
    fn onwards(
        &self,
        own: &Workload,
        served: &Served,
        addressed: Option<&Arc<Workload>>,
        reads: Reads,
    ) -> Result<Said, ExplainError> {
        let client = Client { workload: own, ip: self.sender };
        if let Some(router) = served.http.as_ref().and_then(|http| http.router.as_ref()) {
            return self.routed(client, router);
        }
        let candidates = match (&served.service, addressed) {
            (Some(service), _) => self.snapshot.candidates(client, service, served.port, None),
            (None, Some(workload)) => {
                match self.snapshot.resolve_fronted(client, workload, self.destination.to) {
                    Ok(route) => vec![Candidate { workload: Arc::clone(workload), way: Ok(route) }],
                    Err(refusal) => return Ok(Said::refused(refusal.to_string())),
                }
            }
            (None, None) => Vec::new(),
        };
        let whole = Share { target: None, part: 1.0, asked: self.asked, reads };
        Ok(Said::of(vec![self.backend(candidates, whole)?]))
    }
}
