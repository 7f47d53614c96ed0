//! Who suffers a flood: a process whose memory is bounded, and a neighbour who goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Flood, PATIENCE, Peer};

/// Somebody else's work, which goes on for as long as this lives.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    waits: Arc<Mutex<Vec<Duration>>>,
    working: std::thread::JoinHandle<()>,
}

impl Neighbour {
    /// `work` is one exchange, which panics if it fails.
    pub fn new(mut work: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let waits = Arc::<Mutex<Vec<Duration>>>::default();
        let told = waits.clone();
        let working = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                work();
                told.lock().unwrap().push(start.elapsed());
            }
        });
        Self { stop, waits, working }
    }

    /// Waits until it has been answered since it was last asked, as nobody may be kept waiting for ever; how often it was,
    /// and the longest wait.
    fn answered(&self) -> (usize, Duration) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waits = std::mem::take(&mut *self.waits.lock().unwrap());
            if let Some(longest) = waits.iter().max() {
                return (waits.len(), *longest);
            }
            assert!(
                Instant::now() < deadline && !self.working.is_finished(),
                "the neighbour is not answered"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.working.join().expect("the neighbour's work goes on");
    }
}

/// Runs all floods one after the other, each on a connection of its own, against a process.
pub fn withstand(
    neighbour: Neighbour,
    process: u32,
    floods: Vec<Flood>,
    memory_max: usize,
    connect: impl Fn() -> Peer,
) {
    let mut failures = Vec::new();
    // What a connection costs at all is paid once.
    drop(connect());
    for flood in floods {
        let name = flood.name;
        let before = anonymous_memory(process);
        match flood.run(connect(), || anonymous_memory(process)) {
            Ok(peak) => {
                let grown = peak.saturating_sub(before);
                let (answered, longest) = neighbour.answered();
                println!(
                    "{name}: {} KiB; a neighbour was answered {answered} times, at the longest in {longest:?}",
                    grown >> 10
                );
                if grown > memory_max {
                    failures.push(format!("{name}: {grown} bytes more are held"));
                }
            }
            Err(complaint) => failures.push(complaint),
        }
    }
    neighbour.end();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Memory of a process that no file backs, in bytes.
fn anonymous_memory(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
