//! The way of one request: what the routes make of it, by the code that serves.

use std::time::Duration;

use l7::filter::{Chain, CorsVerdict};
use l7::ir::{BackendTarget, HttpRule, RequestHead};
use l7::path::Normalization;
use l7::retry::{Tries, TryEnd};
use l7::router::{RouteMatch, Router, Taken};

use super::effect::{self, Seen};
use super::request::{Headers, Sent};
use super::routing::Request;

/// What the client's proxy knows of a connection, and what the backend will do.
pub(super) struct Way {
    pub(super) router: Router,
    /// Namespace and name of the Service, where a request goes if no route governs it. A gateway has none.
    pub(super) plain: Option<(String, String)>,
    pub(super) port: u16,
    pub(super) has_tls: bool,
    /// How long the backend waits before it answers.
    pub(super) delay: Duration,
    pub(super) behaviour: Behaviour,
}

/// How the backend fails before it serves.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub(super) struct Behaviour {
    #[serde(default)]
    fail_first: u32,
    fail_with_status: Option<u16>,
    /// Without a response.
    fail_with: Option<String>,
    delay_failures: Option<String>,
}

/// Where a request went.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Went {
    /// Pods of this Service: namespace and name; and what filters made of the messages.
    To(String, String, Seen),
    /// The client is sent elsewhere.
    Redirected(Seen),
    /// In the backend's place.
    Answered(Seen),
    Refused(u16),
}

/// Namespaces and names of the Services that got a copy.
pub(super) type Copies = Vec<(String, String)>;

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let milliseconds = match text.strip_suffix("ms") {
        Some(number) => number.parse().ok(),
        None => text.strip_suffix('s').and_then(|number| number.parse::<u64>().ok()).map(|it| it * 1000),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is no delay"))
}

impl Way {
    /// Routes one request. Every choice that is left to chance is made by `random`.
    pub(super) fn send(&self, request: &Request, random: u64) -> Result<(Went, Copies), String> {
        let query: Vec<_> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let target = match query.as_slice() {
            [] => request.path.clone(),
            pairs => format!("{}?{}", request.path, pairs.join("&")),
        };
        let authority = request.authority.replace("{GATEWAY_ADDRESS}", "gateway.test");
        let sent = Sent {
            method: &request.method,
            target: &target,
            authority: &authority,
            headers: request.headers.as_ref(),
            token: None,
        };
        let answer = request.backend_sets_response_headers.as_ref();
        sent.receive(Normalization::Base, |received, head| self.route(received, head, random, answer))
            .unwrap_or_else(|status| Ok((Went::Refused(status), Copies::new())))
    }

    fn route(
        &self,
        received: &l7::http1::Request<'_, '_>,
        head: &RequestHead<'_>,
        random: u64,
        answer: Option<&Headers>,
    ) -> Result<(Went, Copies), String> {
        let alone = |went| Ok((went, Copies::new()));
        if self.router.is_empty() {
            let Some((namespace, name)) = self.plain.clone() else {
                return alone(Went::Refused(404));
            };
            let seen = effect::forwarded(received, head, &Chain::default(), answer)?;
            return alone(Went::To(namespace, name, seen));
        }
        let RouteMatch::Matched(found) = self.router.route(head) else {
            return alone(Went::Refused(404));
        };
        let verdict = found.judge_origin(head);
        if let CorsVerdict::Answer(fields) = &verdict {
            return alone(Went::Answered(effect::answered(fields)?));
        }
        match found.take(random) {
            Taken::Failed(_) => alone(Went::Refused(500)),
            Taken::Redirected(filters) => {
                alone(Went::Redirected(effect::redirected(head, &filters, self.has_tls, self.port)?))
            }
            Taken::Forwarded { service, backend, mut filters, .. } => {
                for verdict in [verdict, found.judge_origin_at(backend, head)] {
                    match verdict {
                        CorsVerdict::Pass => {}
                        CorsVerdict::Share(edits) => filters.edit_response(edits),
                        CorsVerdict::Answer(fields) => {
                            return alone(Went::Answered(effect::answered(&fields)?));
                        }
                    }
                }
                let copies = filters.mirrors(|| random).filter_map(|mirror| match &mirror.target {
                    BackendTarget::Service { service, .. } => Some(names(service)),
                    BackendTarget::Invalid(_) => None,
                });
                let copies = copies.collect();
                let status = self.try_until_answered(found.rule)?;
                if status != 200 {
                    return Ok((Went::Refused(status), copies));
                }
                let (namespace, name) = names(service);
                Ok((Went::To(namespace, name, effect::forwarded(received, head, &filters, answer)?), copies))
            }
        }
    }

    /// The status that the client gets in the end. Time is counted and not waited for: that the limits are kept on
    /// sockets is shown elsewhere; here, that they are the right ones.
    fn try_until_answered(&self, rule: &HttpRule) -> Result<u16, String> {
        let failing = self.behaviour.delay_failures.as_deref().map_or(Ok(Duration::ZERO), duration)?;
        let (whole, per_try) = (rule.timeouts.whole(), rule.timeouts.per_try());
        let mut elapsed = Duration::ZERO;
        let mut tries = Tries::default();
        loop {
            let fails = tries.made() < self.behaviour.fail_first;
            let takes = if fails { failing } else { self.delay };
            if whole.is_some_and(|limit| elapsed + takes.min(per_try.unwrap_or(takes)) > limit) {
                return Ok(504);
            }
            let (end, status) = match (per_try, self.behaviour.fail_with_status) {
                (Some(limit), _) if takes > limit => (TryEnd::TimedOut, 504),
                _ if !fails => return Ok(200),
                (_, Some(status)) => (TryEnd::Answered { status, grpc: None }, status),
                (_, None) if self.behaviour.fail_with.is_some() => (TryEnd::Reset { sent: true }, 503),
                (_, None) => return Err(String::from("the case does not say how the backend fails")),
            };
            let Some(wait) = rule.retry.as_ref().and_then(|retry| tries.again(retry, end, 0)) else {
                return Ok(status);
            };
            elapsed += takes.min(per_try.unwrap_or(takes)) + wait;
        }
    }
}

fn names(service: &model::NamespacedHostname) -> (String, String) {
    let name = service.hostname.split('.').next().unwrap_or_default();
    (service.namespace.to_string(), name.to_owned())
}
