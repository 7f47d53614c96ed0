//! Works in which a neighbour's requests go on while something else happens: floods, and changes of the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::churn::{Churn, EVERY};
use super::flood::{Flooder, Victim, block, floods};
use super::http::Load;
use super::http::client::{Client, Outcome, status_of, until_status};
use super::peers::Running;
use super::result::names;
use super::site::Site;
use super::work::{RATE, SMALL, Sample, Scale};
use crate::Failure;
use crate::process::Process;
use crate::tls::client_config;

const CONNECTIONS: usize = 16;
/// Of one flood; a p99 of fewer requests says nothing.
const FLOOD_SECONDS_MIN: Duration = Duration::from_millis(300);
/// For a change to show everywhere.
const PATIENCE: Duration = Duration::from_secs(10);

/// A neighbour's requests at a fixed rate.
pub(super) fn neighbour(site: &Site, running: &Running, duration: Duration) -> Result<Outcome, Failure> {
    let load: Load = SMALL;
    site.client
        .within(|| Client::new(&running.target)?.open_loop(CONNECTIONS, load, RATE, duration, || {}))?
}

pub(super) fn p99(outcome: &Outcome) -> f64 {
    outcome.latencies.value_at_quantile(0.99) as f64 / 1e3
}

/// How long each flood goes on.
pub(super) fn flood_duration(scale: &Scale) -> Duration {
    (scale.duration / 2).max(FLOOD_SECONDS_MIN)
}

/// Where a hostile client goes, and the fields of a request that is taken there.
pub(super) fn victim(site: &Site, running: &Running) -> Result<(Victim, Vec<u8>), Failure> {
    let ask = &running.target.ask;
    let (address, head, tls) = if let Some(tunnel) = &running.tunnel {
        let authority = site.backend().dial.to_string();
        let head = block(&[(":method", "CONNECT"), (":authority", &authority)]);
        (tunnel.address, head, Some(Arc::new(client_config(&tunnel.client)?)))
    } else {
        // What a policy at the server refuses: it passes both proxies and does not burden the backend.
        let head =
            [(":method", "POST"), (":scheme", "http"), (":path", "/v1/denied/"), (":authority", &ask.host)];
        (running.target.address, block(&head), None)
    };
    Ok((Victim { network: site.client.clone(), address, tls }, head))
}

/// Each kind of flood in turn, beside a neighbour; first the neighbour alone.
pub(super) fn flood(site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
    let (victim, head) = victim(site, running)?;
    let duration = flood_duration(scale);
    let quiet = p99(&neighbour(site, running, duration)?);
    let (mut worst, mut growth, mut failures) = (0_f64, 0_f64, 0.0);
    let mut sample = Sample::default();
    let mut peaks = vec![BTreeMap::from([(names::RESIDENT_PEAK, 0_f64)]); running.processes.len()];
    for flood in floods(&head) {
        running.processes.iter().try_for_each(Process::forget_peak)?;
        let before: Vec<u64> = running.processes.iter().map(Process::resident_bytes).collect();
        let flooder = Flooder::start(&victim, &flood);
        let outcome = neighbour(site, running, duration);
        let rate = flooder.stop()?;
        let mut grown = 0_f64;
        for (process, before) in running.processes.iter().zip(before) {
            grown = grown.max(process.peak_bytes().saturating_sub(before) as f64);
        }
        for (process, peak) in running.processes.iter().zip(&mut peaks) {
            let peak = peak.entry(names::RESIDENT_PEAK).or_insert(0.0);
            *peak = peak.max(process.peak_bytes() as f64);
        }
        sample.figures.insert(flood.growth, grown);
        sample.figures.extend(flood.rate.map(|name| (name, rate)));
        growth = growth.max(grown);
        match outcome {
            Ok(outcome) => {
                let p99 = p99(&outcome);
                worst = worst.max(p99 / quiet.max(1.0));
                sample.figures.insert(flood.p99, p99);
            }
            // That is a finding about the proxies, not a fault of the run.
            Err(error) => {
                eprintln!("    {}: a neighbour is not answered: {error}", flood.p99);
                failures += 1.0;
            }
        }
    }
    sample.processes = peaks;
    sample.figures.insert(names::FLOOD_FAILURES, failures);
    sample.figures.insert(names::FLOOD_QUIET_P99, quiet);
    sample.figures.insert(names::FLOOD_WORST, worst);
    sample.figures.insert(names::FLOOD_GROWTH, growth);
    Ok(sample)
}

/// Requests while routes and endpoints change; first while they do not. The last change must show in the end.
pub(super) fn churn(site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
    let changes = running.changes.clone().ok_or("nothing of this topology can be changed")?;
    let quiet = neighbour(site, running, scale.duration)?;
    let churn = Churn::start(changes.clone());
    let busy = neighbour(site, running, scale.duration);
    let number = churn.stop()?;
    let busy = busy?;
    let (path, status) = changes.proof(number);
    let mut target = running.target.clone();
    target.ask.path = path;
    site.client
        .within(|| until_status(status, PATIENCE, || status_of(&target)))?
        .map_err(|error| format!("change {number} does not show: {error}"))?;
    let at = |outcome: &Outcome, quantile: f64| outcome.latencies.value_at_quantile(quantile) as f64 / 1e3;
    let mut sample = Sample::default();
    sample.figures.extend([
        (names::LATENCY_P50, at(&busy, 0.5)),
        (names::LATENCY_P90, at(&busy, 0.9)),
        (names::LATENCY_P99, at(&busy, 0.99)),
        (names::LATENCY_P999, at(&busy, 0.999)),
        (names::CHURN_QUIET_P99, p99(&quiet)),
        (names::CHURN_OVER_QUIET, p99(&busy) / p99(&quiet).max(1.0)),
        (names::CHANGES_PER_SECOND, 1.0 / EVERY.as_secs_f64()),
    ]);
    Ok(sample)
}
