//! A crowd: clients that come at a fixed rate, each with a connection of its own and one request, and do not wait for each
//! other. Who has no reply in time goes away.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::backend::is_later;
use super::client::{LATENCY_MAX_NS, Target};
use super::poll::{Interest, Poll};
use super::{Ask, Body, HEAD_BYTES_MAX, parse_response};
use crate::Failure;
use crate::wire::block;

/// After so long a client gives up.
pub(in crate::compare) const PATIENCE: Duration = Duration::from_secs(1);
/// Clients that are there at once; further ones cannot come.
const CLIENTS_MAX: usize = 32_768;
/// So many come at most before those who are there get their turn.
const ARRIVALS_PER_TURN: usize = 64;

/// How a crowd fared.
#[derive(Debug)]
pub(in crate::compare) struct Fared {
    /// Got their reply in time, whole and right.
    pub(in crate::compare) served: u64,
    /// Those of them who got it before the last had come.
    pub(in crate::compare) served_meanwhile: u64,
    /// Were told by a status, or by the end of the connection, that they get none.
    pub(in crate::compare) refused: u64,
    pub(in crate::compare) gave_up: u64,
    pub(in crate::compare) came: u64,
    /// Of those served, in nanoseconds from when they were due.
    pub(in crate::compare) latencies: Histogram<u64>,
}

#[derive(Debug)]
struct Guest {
    stream: TcpStream,
    sequence: u64,
    due: Instant,
    has_asked: bool,
    taken: Vec<u8>,
}

/// What has become of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waits,
    Served,
    Refused,
}

struct Crowd<'a> {
    target: &'a Target,
    bytes: u64,
    poll: Poll,
    guests: Vec<Option<Guest>>,
    free: Vec<usize>,
    /// Whose patience ends first is first; those who have gone are passed over.
    by_due: VecDeque<(usize, u64, Instant)>,
    block: Vec<u8>,
    scratch: Vec<u8>,
    sequence: u64,
    end: Instant,
    fared: Fared,
}

/// `rate` clients a second for `duration`, each of whom wants `bytes`; at most `clients_max` at once.
pub(in crate::compare) fn come(
    target: &Target,
    bytes: u64,
    rate: f64,
    duration: Duration,
    clients_max: usize,
) -> Result<Fared, Failure> {
    let fared = Fared {
        served: 0,
        served_meanwhile: 0,
        refused: 0,
        gave_up: 0,
        came: 0,
        latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
    };
    let mut crowd = Crowd {
        target,
        bytes,
        poll: Poll::new()?,
        guests: Vec::new(),
        free: (0..clients_max.min(CLIENTS_MAX)).rev().collect(),
        by_due: VecDeque::new(),
        block: block(),
        scratch: vec![0; HEAD_BYTES_MAX],
        sequence: 0,
        end: Instant::now() + duration,
        fared,
    };
    crowd.guests.resize_with(crowd.free.len(), || None);
    crowd.run(Duration::from_secs_f64(1.0 / rate.max(1.0)))?;
    Ok(crowd.fared)
}

impl Crowd<'_> {
    fn run(&mut self, interval: Duration) -> Result<(), Failure> {
        let end = self.end;
        let mut due = Instant::now();
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            for _ in 0..ARRIVALS_PER_TURN {
                if due > now || due >= end {
                    break;
                }
                self.admit(due)?;
                due += interval;
            }
            self.dismiss(Instant::now());
            let leaves = self.by_due.front().map(|(_, _, due)| *due + PATIENCE);
            let Some(next) = leaves.into_iter().chain((due < end).then_some(due)).min() else {
                return Ok(());
            };
            self.poll.alarm(next)?;
            self.poll.wait(None, &mut ready)?;
            for &key in &ready {
                self.attend(key)?;
            }
        }
    }

    /// A client comes; where too many are there already it cannot, and counts for nothing.
    fn admit(&mut self, due: Instant) -> Result<(), Failure> {
        let Some(key) = self.free.pop() else { return Ok(()) };
        self.sequence += 1;
        let address = self.target.address;
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            // Every port is taken by one who came before.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                self.free.push(key);
                return Ok(());
            }
            Err(error) => return Err(format!("{address} cannot be connected to: {error}").into()),
        }
        self.fared.came += 1;
        let stream = TcpStream::from(socket);
        self.poll.add(&stream, key, Interest::Write)?;
        let guest = Guest { stream, sequence: self.sequence, due, has_asked: false, taken: Vec::new() };
        self.by_due.push_back((key, guest.sequence, due));
        if let Some(place) = self.guests.get_mut(key) {
            *place = Some(guest);
        }
        Ok(())
    }

    /// Those whose patience is over go away.
    fn dismiss(&mut self, now: Instant) {
        while let Some(&(key, sequence, due)) = self.by_due.front() {
            let is_there = matches!(self.guests.get(key), Some(Some(guest)) if guest.sequence == sequence);
            if is_there && now < due + PATIENCE {
                return;
            }
            if is_there {
                self.fared.gave_up += 1;
                self.leave(key);
            }
            self.by_due.pop_front();
        }
    }

    fn leave(&mut self, key: usize) {
        if let Some(place) = self.guests.get_mut(key) {
            *place = None;
            self.free.push(key);
        }
    }

    fn attend(&mut self, key: usize) -> Result<(), Failure> {
        let Some(Some(guest)) = self.guests.get_mut(key) else { return Ok(()) };
        let fate = if guest.has_asked {
            guest.listen(&mut self.scratch, &self.block, self.bytes)?
        } else if guest.ask(&self.target.ask, self.bytes) {
            self.poll.change(&guest.stream, key, Interest::Read)?;
            Fate::Waits
        } else {
            Fate::Refused
        };
        match fate {
            Fate::Waits => return Ok(()),
            Fate::Refused => self.fared.refused += 1,
            Fate::Served => {
                self.fared.served += 1;
                self.fared.served_meanwhile += u64::from(Instant::now() < self.end);
                let waited = u64::try_from(guest.due.elapsed().as_nanos()).unwrap_or(LATENCY_MAX_NS);
                self.fared.latencies.saturating_record(waited.min(LATENCY_MAX_NS));
            }
        }
        self.leave(key);
        Ok(())
    }
}

impl Guest {
    /// Whether the connection took the request; a fresh one takes all of it at once.
    fn ask(&mut self, ask: &Ask, bytes: u64) -> bool {
        self.has_asked = true;
        let Ask { host, path, fields } = ask;
        let request = format!("GET {path}{bytes}/{} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n", self.sequence);
        self.stream.write(request.as_bytes()).is_ok_and(|count| count == request.len())
    }

    /// Takes what is there. A reply that is wrong is no refusal but an error.
    fn listen(&mut self, scratch: &mut [u8], block: &[u8], bytes: u64) -> Result<Fate, Failure> {
        match self.stream.read(scratch) {
            Ok(0) => return Ok(Fate::Refused),
            Ok(count) => self.taken.extend_from_slice(scratch.get(..count).unwrap_or_default()),
            Err(error) if is_later(&error) => return Ok(Fate::Waits),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Fate::Refused),
            Err(error) => return Err(error.into()),
        }
        let Some(head) = parse_response(&self.taken)? else { return Ok(Fate::Waits) };
        if head.status >= 500 {
            return Ok(Fate::Refused);
        }
        if head.status != 200 || head.sequence != self.sequence || head.body != bytes {
            return Err(format!("a reply to request {} is wrong: {head:?}", self.sequence).into());
        }
        let mut body = Body { position: 0, rest: bytes };
        let rest = body.take(block, self.taken.get(head.length..).unwrap_or_default())?;
        match (rest.is_empty(), body.rest) {
            (true, 0) => Ok(Fate::Served),
            (true, _) => Ok(Fate::Waits),
            (false, _) => Err("there are bytes after a reply".into()),
        }
    }
}
