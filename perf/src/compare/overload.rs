//! More clients than can be served: what is answered nevertheless, what memory that takes, and how soon all is well again.

use std::time::{Duration, Instant};

use super::http::client::{Client, Target};
use super::http::crowd;
use super::peers::Running;
use super::result::names;
use super::site::Site;
use super::work::{NEW_CONNECTION_LOOPS, REPLY_BYTES, SMALL, Sample, Scale};
use crate::{Failure, machine};

/// So many times what the proxies can serve.
pub(super) const EXCESS: f64 = 3.0;
/// Queues need longer than the patience of a client to become as long as they get.
const SECONDS_MIN: Duration = Duration::from_secs(3);
/// So many requests in a row show that all is well.
const CALM: usize = 20;
/// For all to be well; only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the crowd comes.
pub(super) fn duration(scale: &Scale) -> Duration {
    scale.duration.max(SECONDS_MIN)
}

/// The peak of closed loops, then a crowd, then silence.
pub(super) fn overload(site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
    let target = &running.target;
    let duration = duration(scale);
    // One descriptor a client in each process, and some beside.
    let clients_max = machine::descriptor_limit().saturating_sub(500);
    site.client.within(|| {
        let quiet = median((0..CALM).map(|_| ask(target)).collect::<Result<_, _>>()?);
        let peak =
            Client::new(target)?.new_connections(NEW_CONNECTION_LOOPS, SMALL, scale.duration, || {})?;
        let peak = peak.requests as f64 / peak.elapsed.as_secs_f64();
        let from = Instant::now();
        let fared = crowd::come(target, REPLY_BYTES, EXCESS * peak, duration, clients_max)?;
        let calm = until_calm(target, quiet)?.saturating_duration_since(from + duration);
        let goodput = fared.served_meanwhile as f64 / duration.as_secs_f64();
        let share = |count: u64| count as f64 / fared.came.max(1) as f64;
        let mut sample = Sample::default();
        sample.figures.extend([
            (names::OVERLOAD_PEAK, peak),
            (names::OVERLOAD_OFFERED, fared.came as f64 / duration.as_secs_f64() / peak),
            (names::OVERLOAD_GOODPUT, goodput),
            (names::OVERLOAD_LOST, (1.0 - goodput / peak).max(0.0)),
            (names::OVERLOAD_REFUSED, share(fared.refused)),
            (names::OVERLOAD_GAVE_UP, share(fared.gave_up)),
            (names::OVERLOAD_RECOVERY, calm.as_secs_f64() * 1e6),
            (names::LATENCY_P50, fared.latencies.value_at_quantile(0.5) as f64 / 1e3),
            (names::LATENCY_P99, fared.latencies.value_at_quantile(0.99) as f64 / 1e3),
        ]);
        Ok(sample)
    })?
}

/// What a client alone waits: a new connection, two requests.
fn ask(target: &Target) -> Result<Duration, Failure> {
    let from = Instant::now();
    Client::new(target)?.closed_loop(1, SMALL, Duration::ZERO, || {})?;
    Ok(from.elapsed())
}

fn median(mut waits: Vec<Duration>) -> Duration {
    waits.sort_unstable();
    waits.get(waits.len() / 2).copied().unwrap_or_default()
}

/// From when on a client alone is answered as soon as before, give or take what chance does.
fn until_calm(target: &Target, quiet: Duration) -> Result<Instant, Failure> {
    let soon = 5 * quiet + Duration::from_millis(5);
    let deadline = Instant::now() + PATIENCE;
    let (mut calm_from, mut in_a_row) = (Instant::now(), 0);
    while in_a_row < CALM {
        let now = Instant::now();
        match ask(target) {
            Ok(wait) if wait <= soon => in_a_row += 1,
            _ if now < deadline => in_a_row = 0,
            Ok(_) => return Err("after an overload clients are not answered as soon as before".into()),
            Err(error) => return Err(format!("after an overload clients are not answered: {error}").into()),
        }
        if in_a_row == 1 {
            calm_from = now;
        }
    }
    Ok(calm_from)
}
