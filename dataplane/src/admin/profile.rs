//! CPU profiles of the whole process, workers included, in pprof's protobuf form.
//!
//! While a profile is taken, and only then, the kernel interrupts whichever thread has used CPU time, and the handler
//! notes its stack. It costs some microseconds a sample; between profiles nothing at all. A thread of its own waits and
//! then looks up the names of the functions, which may take seconds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::StatusCode;
use pprof::protos::Message;
use tokio::sync::oneshot;

use super::page::{Ask, Page};

const SECONDS: Wanted = Wanted { name: "seconds", default: 10, max: 300 };
/// Samples for each second of CPU time.
const FREQUENCY: Wanted = Wanted { name: "frequency", default: 100, max: 1_000 };
/// How often the waiting thread looks whether the client is still there.
const PATIENCE: Duration = Duration::from_millis(100);
/// Libraries whose insides cannot be unwound safely from a signal handler.
const NOT_UNWOUND: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// One profile at a time: the timer is the process's.
static BUSY: AtomicBool = AtomicBool::new(false);

/// A parameter of the query, from 1 on.
struct Wanted {
    name: &'static str,
    default: u16,
    max: u16,
}

/// Held while a profile is taken.
struct Turn;

impl Turn {
    fn take() -> Option<Self> {
        (!BUSY.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

impl Wanted {
    fn of(&self, ask: &Ask) -> Result<u16, Page> {
        let Some(text) = ask.parameter(self.name) else { return Ok(self.default) };
        let value = text.parse().ok().filter(|value| (1..=self.max).contains(value));
        value.ok_or_else(|| {
            let Self { name, max, .. } = self;
            Page::text(StatusCode::BAD_REQUEST, format!("{name}={text}: give a number from 1 to {max}\n"))
        })
    }
}

/// Takes a profile as the query asks.
pub(super) async fn cpu(ask: &Ask) -> Page {
    let (seconds, frequency) = match (SECONDS.of(ask), FREQUENCY.of(ask)) {
        (Ok(seconds), Ok(frequency)) => (seconds, frequency),
        (Err(page), _) | (_, Err(page)) => return page,
    };
    let Some(turn) = Turn::take() else {
        return Page::text(
            StatusCode::CONFLICT,
            "another profile is being taken; ask again when it is done\n",
        );
    };
    let (reply, answer) = oneshot::channel();
    let work = move || {
        let _turn = turn;
        let profile = take(Duration::from_secs(seconds.into()), frequency, &reply);
        // A client that has gone needs no answer.
        let _ = reply.send(profile);
    };
    let failed =
        |reason: String| Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("no profile: {reason}\n"));
    if let Err(error) = thread::Builder::new().name("profile".into()).spawn(work) {
        return failed(error.to_string());
    }
    match answer.await {
        Ok(Ok(body)) => {
            Page { status: StatusCode::OK, content_type: "application/octet-stream", body: body.into() }
        }
        Ok(Err(reason)) => failed(reason),
        Err(gone) => failed(gone.to_string()),
    }
}

/// Profiles for `time`, or until nobody waits for the answer any more.
fn take(
    time: Duration,
    frequency: u16,
    reply: &oneshot::Sender<Result<Vec<u8>, String>>,
) -> Result<Vec<u8>, String> {
    let builder = pprof::ProfilerGuardBuilder::default().frequency(frequency.into()).blocklist(&NOT_UNWOUND);
    let guard = builder.build().map_err(|error| error.to_string())?;
    let end = Instant::now() + time;
    while !reply.is_closed() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let report = guard.report().build().map_err(|error| error.to_string())?;
            // No more samples while names are looked up.
            drop(guard);
            let profile = report.pprof().map_err(|error| error.to_string())?;
            return profile.write_to_bytes().map_err(|error| error.to_string());
        }
        thread::sleep(left.min(PATIENCE));
    }
    Err("the client has gone".to_owned())
}
