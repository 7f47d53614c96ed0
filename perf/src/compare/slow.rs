//! Clients that are there and say next to nothing: handshakes and heads that do not end, HTTP/2 that does not begin, bodies
//! of one octet a second. What each of them costs, how soon those end that must, and what a neighbour notices.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::flood::{SETTINGS_ACKNOWLEDGED, Victim, Wire, block, data, request};
use super::handshake::PREFACE;
use super::hardship::{neighbour, p99, victim};
use super::peers::Running;
use super::result::names;
use super::site::Site;
use super::work::{Sample, Scale};
use crate::Failure;
use crate::process::Process;
use crate::wire;

/// Between two octets.
const DRIP: Duration = Duration::from_secs(1);
/// Between two looks at all clients.
const LOOK: Duration = Duration::from_millis(50);
/// What must end and has not ended by then never does: bounds are 10 s.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of a body in the clear: more than trickle while anybody looks.
const BODY_BYTES: usize = 1_000;
/// For the other side to say what it says first.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// One kind of them.
struct Kind {
    /// Names of what one costs and of how long the last one lived; `None` where it may live on.
    cost: &'static str,
    life: Option<&'static str>,
    /// In TLS, where the door asks for that.
    has_handshake: bool,
    /// Said at once.
    opening: Vec<u8>,
    /// Said then, once the other side has spoken.
    reply: Vec<u8>,
    /// Said then one by one, again and again.
    drips: Vec<Vec<u8>>,
}

fn kinds(running: &Running, site: &Site) -> Vec<Kind> {
    let one = |octet: u8| vec![vec![octet]];
    let (cost, life) = (names::SLOW_HALF_OPEN_COST, Some(names::SLOW_HALF_OPEN_LIFE));
    let opening = PREFACE.get(..20).unwrap_or(PREFACE).to_vec();
    let half_open = Kind { cost, life, has_handshake: true, opening, reply: Vec::new(), drips: Vec::new() };
    let unproved = |opening, drips| {
        let (cost, life) = (names::SLOW_UNPROVED_COST, Some(names::SLOW_UNPROVED_LIFE));
        Kind { cost, life, has_handshake: false, opening, reply: Vec::new(), drips }
    };
    let body = |opening, reply, drips| {
        let (cost, life) = (names::SLOW_BODIES_COST, None);
        Kind { cost, life, has_handshake: true, opening, reply, drips }
    };
    if running.tunnel.is_some() {
        let authority = site.backend().dial.to_string();
        let asked = request(&block(&[(":method", "CONNECT"), (":authority", &authority)]));
        let begun = [SETTINGS_ACKNOWLEDGED.to_vec(), asked, data(b"GET / HTTP/1.1\r\nx: ")].concat();
        // The beginning of a ClientHello of 512 octets; and a CONNECT whose client then asks without end.
        return vec![
            unproved(vec![22, 3, 1, 2, 0, 1], one(0)),
            half_open,
            body(PREFACE.to_vec(), begun, vec![data(b"y")]),
        ];
    }
    let ask = &running.target.ask;
    let head =
        format!("POST {}0/1 HTTP/1.1\r\nhost: {}\r\n{}content-length: ", ask.path, ask.host, ask.fields);
    // The backend checks what a body says.
    let pattern = wire::block().into_iter().take(BODY_BYTES).map(|octet| vec![octet]).collect();
    vec![
        unproved(format!("{head}1").into_bytes(), one(b'0')),
        half_open,
        body(format!("{head}{BODY_BYTES}\r\n\r\n").into_bytes(), Vec::new(), pattern),
    ]
}

struct Slow {
    wire: Box<dyn Wire>,
    since: Instant,
    /// How long it lived, once the other side has ended it.
    lived: Option<Duration>,
}

impl Slow {
    fn open(victim: &Victim, kind: &Kind) -> Result<Self, Failure> {
        let mut wire =
            if kind.has_handshake { victim.connect()? } else { victim.in_the_clear().connect()? };
        wire.write_all(&kind.opening)?;
        if !kind.reply.is_empty() {
            let deadline = Instant::now() + ANSWER_PATIENCE;
            while matches!(wire.read(&mut [0; 1024]), Err(error) if error.kind() == ErrorKind::WouldBlock) {
                if Instant::now() > deadline {
                    return Err("the other side of a connection says nothing".into());
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            wire.write_all(&kind.reply)?;
        }
        Ok(Self { wire, since: Instant::now(), lived: None })
    }

    /// Takes what came, and says one octet more.
    fn turn(&mut self, drip: &[u8]) {
        if self.lived.is_some() {
            return;
        }
        let is_later = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        let goes_on = loop {
            match self.wire.read(&mut [0; 4096]) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break is_later(&error),
            }
        };
        let goes_on = goes_on
            && (drip.is_empty() || self.wire.write(drip).map_or_else(|error| is_later(&error), |_| true));
        if !goes_on {
            self.lived = Some(self.since.elapsed());
        }
    }
}

/// Looks after them until they have all ended, or until a stop; those with a bound get as long as they need.
fn keep(clients: &mut [Slow], kind: &Kind, stop: &AtomicBool) {
    let deadline = Instant::now() + PATIENCE;
    let mut next_drip = Instant::now();
    let mut drips = kind.drips.iter().cycle();
    loop {
        let now = Instant::now();
        let mut drip: &[u8] = &[];
        if now >= next_drip {
            next_drip = now + DRIP;
            drip = drips.next().map_or(&[], Vec::as_slice);
        }
        for client in clients.iter_mut() {
            client.turn(drip);
        }
        let is_over = clients.iter().all(|client| client.lived.is_some());
        let is_stopped = kind.life.is_none() && stop.load(Ordering::Relaxed);
        if is_over || is_stopped || now > deadline {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// Each kind in turn, as many as idle connections, beside a neighbour; first the neighbour alone.
pub(super) fn slow(site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
    let victim = victim(site, running)?.0;
    let mut sample = Sample::default();
    let quiet = p99(&neighbour(site, running, scale.duration)?);
    let (mut worst, mut failures) = (0_f64, 0.0);
    let memory = || running.processes.iter().map(Process::private_bytes).collect::<Vec<_>>();
    // What an earlier kind has left behind counts for the next one as well.
    let before = memory();
    for kind in kinds(running, site) {
        let open = |_| Slow::open(&victim, &kind);
        let clients = site.client.within(|| (0..scale.idle).map(open).collect::<Result<Vec<_>, _>>())?;
        let mut clients: Vec<Slow> = clients.map_err(|error| format!("{}: {error}", kind.cost))?;
        // Those that have ended already cost nothing any more.
        for client in &mut clients {
            client.turn(&[]);
        }
        let there = clients.iter().filter(|client| client.lived.is_none()).count();
        let grown = memory().into_iter().zip(&before).map(|(now, before)| now.saturating_sub(*before)).max();
        sample.figures.insert(kind.cost, grown.unwrap_or(0) as f64 / there.max(1) as f64);
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| keep(&mut clients, &kind, &stop));
            let outcome = neighbour(site, running, scale.duration);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        match outcome {
            Ok(outcome) => worst = worst.max(p99(&outcome) / quiet.max(1.0)),
            // That is a finding about the proxies, not a fault of the run.
            Err(error) => {
                eprintln!("    {}: a neighbour is not answered: {error}", kind.cost);
                failures += 1.0;
            }
        }
        let lives = || clients.iter().map(|client| client.lived);
        if let Some(life) = kind.life {
            let longest = lives().map(|lived| lived.unwrap_or(Duration::MAX)).max().unwrap_or_default();
            if longest == Duration::MAX {
                let there = lives().filter(Option::is_none).count();
                return Err(format!("{life}: {there} of {} clients are never ended", clients.len()).into());
            }
            sample.figures.insert(life, longest.as_secs_f64() * 1e6);
        } else {
            let cut = lives().flatten().count();
            sample.figures.insert(names::SLOW_BODIES_CUT, cut as f64);
        }
    }
    sample.figures.extend([
        (names::SLOW_QUIET_P99, quiet),
        (names::SLOW_WORST, worst),
        (names::SLOW_FAILURES, failures),
    ]);
    Ok(sample)
}
