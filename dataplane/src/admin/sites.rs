//! The three sites and what they show.

use std::rc::Rc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;

use super::page::{Ask, Page};
use super::readiness::Readiness;
use super::server::Site;
use super::{logging, memory, negotiation, profile};
use crate::metrics::Metrics;
use crate::metrics::plain::plain_text;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// What a node proxy shows of itself.
pub trait Inspect: 'static {
    /// In the shape that ztunnel has and `istioctl ztunnel-config` reads.
    fn config_dump(&self) -> impl Future<Output = Value>;
    fn workers(&self) -> impl Future<Output = Value>;
    fn connections(&self) -> impl Future<Output = Value>;
    /// The bounds in force, with how often each was reached.
    fn limits(&self) -> Value;
    /// Begins to end the program in order; what is still open after `grace` is cut, where that is sooner than the
    /// program's own deadline.
    fn drain(&self, grace: Duration);
    /// Begins to end the program in order.
    fn quit(&self);
}

/// Port 15000.
#[derive(Debug)]
pub struct AdminSite<I> {
    inspect: Rc<I>,
}

/// Port 15020.
#[derive(Debug)]
pub struct MetricsSite {
    metrics: Rc<Metrics>,
}

/// Port 15021.
#[derive(Debug)]
pub struct ReadinessSite {
    readiness: Readiness,
}

const INDEX: &str = "corelane admin

GET  /config_dump            what this proxy knows: workloads, services, policies, certificates
GET  /connections            open connections
GET  /workers                the workers, what they carry and how they are
GET  /limits                 the bounds in force and how often each was reached
GET  /memory                 the memory of the process
GET  /debug/pprof/profile    a CPU profile for pprof (?seconds=10&frequency=100)
GET  /debug/pprof/heap       why there is none
POST /logging                the log filter
POST /logging?level=LEVEL    change it (LEVEL or TARGET:LEVEL,...)
POST /logging?reset          back to that of the start
POST /quitquitquit           end in order
POST /drain?seconds=N        end in order, cutting what is open after N seconds at the latest
";

// === impl AdminSite ===

impl<I: Inspect> AdminSite<I> {
    pub fn new(inspect: Rc<I>) -> Self {
        Self { inspect }
    }
}

impl<I: Inspect> Site for AdminSite<I> {
    async fn answer(&self, ask: Ask) -> Page {
        match ask.path.as_str() {
            "/" => Page::text(StatusCode::OK, INDEX),
            "/config_dump" => Page::json(&self.inspect.config_dump().await),
            "/connections" => Page::json(&self.inspect.connections().await),
            "/workers" => Page::json(&self.inspect.workers().await),
            "/limits" => Page::json(&self.inspect.limits()),
            "/memory" => Page::json(&memory::memory()),
            "/debug/pprof/profile" => profile::cpu(&ask).await,
            "/debug/pprof/heap" | "/debug/pprof/heap/profiling" => {
                Page::text(StatusCode::NOT_IMPLEMENTED, memory::NO_HEAP_PROFILE)
            }
            "/logging" => log_filter(&ask),
            "/quitquitquit" if ask.method == Method::POST => {
                self.inspect.quit();
                Page::text(StatusCode::OK, "shutdown now\n")
            }
            "/drain" if ask.method == Method::POST => self.drain(&ask),
            "/quitquitquit" | "/drain" => Page::post_only(),
            _ => Page::not_found(),
        }
    }
}

impl<I: Inspect> AdminSite<I> {
    fn drain(&self, ask: &Ask) -> Page {
        let Some(text) = ask.parameter("seconds") else {
            self.inspect.quit();
            return Page::text(StatusCode::OK, "draining\n");
        };
        let Ok(seconds) = text.parse::<u32>() else {
            return Page::text(StatusCode::BAD_REQUEST, format!("seconds={text}: give a whole number\n"));
        };
        self.inspect.drain(Duration::from_secs(seconds.into()));
        Page::text(StatusCode::OK, format!("draining; what is open after {seconds} s is cut\n"))
    }
}

fn log_filter(ask: &Ask) -> Page {
    let Some(filter) = logging::installed() else {
        return Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", logging::LogFilterError::Fixed));
    };
    let wanted = ask.parameter("level").filter(|level| !level.is_empty());
    let changed = match (wanted, ask.parameter("reset")) {
        (None, None) => {
            return Page::text(StatusCode::OK, format!("current log level is {}\n", filter.current()));
        }
        _ if ask.method != Method::POST => return Page::post_only(),
        (Some(level), _) => filter.set(level),
        (None, Some(_)) => filter.reset(),
    };
    match changed {
        Ok(current) => Page::text(StatusCode::OK, format!("current log level is {current}\n")),
        Err(error) => Page::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

// === impl MetricsSite ===

impl MetricsSite {
    pub fn new(metrics: Rc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl Site for MetricsSite {
    async fn answer(&self, ask: Ask) -> Page {
        if !matches!(ask.path.as_str(), "/metrics" | "/stats/prometheus") {
            return Page::not_found();
        }
        match self.metrics.text() {
            Ok(text) => {
                let (content_type, body) = if negotiation::accepts(&ask.accept, OPEN_METRICS) {
                    ("application/openmetrics-text;charset=utf-8;version=1.0.0", text)
                } else {
                    ("text/plain;charset=utf-8;version=0.0.4", plain_text(&text))
                };
                Page { status: StatusCode::OK, content_type, body: body.into() }
            }
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

// === impl ReadinessSite ===

impl ReadinessSite {
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness }
    }
}

impl Site for ReadinessSite {
    async fn answer(&self, ask: Ask) -> Page {
        if ask.path != "/healthz/ready" {
            return Page::not_found();
        }
        let pending = self.readiness.tasks();
        if pending.is_empty() {
            Page::text(StatusCode::OK, format!("{}\n", self.readiness.text()))
        } else {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Page::text(status, format!("not ready, pending: {}\n", pending.join(", ")))
        }
    }
}
