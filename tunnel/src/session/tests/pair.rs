//! Two sessions joined by pipes that cut the bytes where they like.

use std::collections::VecDeque;

use super::*;
use crate::tls::{ClientContext, ServerContext};

/// What a session told its shell, payload copied out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Established,
    Headers(StreamId, Headers),
    Data(StreamId, Vec<u8>, bool),
    Reset(StreamId, ErrorCode),
    Writable(StreamId),
    GoAway,
    Other,
    Closed,
}

/// A session with what it has told so far, and the bytes on their way to it.
pub(super) struct End {
    pub(super) session: Session,
    pub(super) seen: Vec<Seen>,
    pub(super) incoming: VecDeque<u8>,
    /// Payload that was received and not yet given back to the windows, if that is held back.
    pub(super) unreleased: Option<Vec<(StreamId, usize)>>,
}

impl End {
    pub(super) fn new(session: Session) -> Self {
        Self { session, seen: Vec::new(), incoming: VecDeque::new(), unreleased: None }
    }

    /// Lends a buffer, as a shell would, and takes all events.
    pub(super) fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        let mut buffer = vec![0; bytes.len() + crate::tls::record::RECORD_BYTES_MAX];
        let kept = self.session.prepare_input(&mut buffer);
        buffer[kept..kept + bytes.len()].copy_from_slice(bytes);
        let mut ingest = self.session.ingest(&mut buffer[..kept + bytes.len()], now);
        while let Some(event) = ingest.next()? {
            self.seen.push(match event {
                SessionEvent::Established { .. } => Seen::Established,
                SessionEvent::Closed => Seen::Closed,
                SessionEvent::Http(event) => match event {
                    h2::Event::Headers { stream, headers, .. } => Seen::Headers(stream, headers),
                    h2::Event::Data { stream, bytes, end_stream } => {
                        match &mut self.unreleased {
                            Some(unreleased) => unreleased.push((stream, bytes.len())),
                            None => ingest.session().release(stream, bytes.len()),
                        }
                        Seen::Data(stream, bytes.to_vec(), end_stream)
                    }
                    h2::Event::Reset { stream, code, .. } => Seen::Reset(stream, code),
                    h2::Event::Writable { stream } => Seen::Writable(stream),
                    h2::Event::GoAway { .. } => Seen::GoAway,
                    _ => Seen::Other,
                },
            });
        }
        Ok(())
    }

    /// The head that arrived on a stream.
    pub(super) fn headers(&self, stream: StreamId) -> Headers {
        let head = self.seen.iter().find_map(|seen| match seen {
            Seen::Headers(of, headers) if *of == stream => Some(headers.clone()),
            _ => None,
        });
        head.expect("headers")
    }

    /// All payload of a stream so far, and whether it has ended.
    pub(super) fn received(&self, stream: StreamId) -> (Vec<u8>, bool) {
        let (mut payload, mut ended) = (Vec::new(), false);
        for seen in &self.seen {
            if let Seen::Data(of, bytes, end) = seen
                && *of == stream
            {
                assert!(!ended, "data behind the end of the stream");
                payload.extend_from_slice(bytes);
                ended = *end;
            }
        }
        (payload, ended)
    }
}

/// A small generator: the same seed gives the same history.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound.max(1)
    }

    /// Mostly small, at times large: sizes that hit header and record borders.
    fn chunk(&mut self) -> usize {
        match self.below(4) {
            0 => 1 + self.below(8),
            1 => 1 + self.below(300),
            2 => 1 + self.below(20_000),
            _ => 1 + self.below(600_000),
        }
    }
}

pub(super) struct Pair {
    pub(super) client: End,
    pub(super) server: End,
    pub(super) now: Instant,
    pub(super) random: Random,
}

impl Pair {
    pub(super) fn new(seed: u64) -> Self {
        let authority = CertificateAuthority::new();
        Self::between(seed, &client(&authority.identity(CLIENT)), &server(&authority.identity(SERVER)))
    }

    pub(super) fn between(seed: u64, client: &ClientContext, server: &ServerContext) -> Self {
        let now = Instant::now();
        let expected = expecting(&[SERVER]);
        Self {
            client: End::new(Session::client(client, &expected, Config::hbone_client(), now).unwrap()),
            server: End::new(Session::server(server, Config::hbone_server(), now).unwrap()),
            now,
            random: Random::new(seed),
        }
    }

    pub(super) fn established(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.settle();
        assert_eq!(pair.client.seen.first(), Some(&Seen::Established));
        assert_eq!(pair.server.seen.first(), Some(&Seen::Established));
        pair
    }

    /// The client and the server, or the other way round.
    pub(super) fn ends(&mut self, client_first: bool) -> (&mut End, &mut End) {
        if client_first { (&mut self.client, &mut self.server) } else { (&mut self.server, &mut self.client) }
    }

    /// One random move of bytes in one direction; false if there was nothing to move.
    pub(super) fn step(&mut self, to_server: bool) -> Result<bool, SessionError> {
        let (sent, delivered) = (self.random.chunk(), self.random.chunk());
        let now = self.now;
        let (from, to) = self.ends(to_server);
        let output = from.session.output();
        let count = output.len().min(sent);
        to.incoming.extend(&output[..count]);
        from.session.consumed(count);
        let bytes: Vec<u8> = to.incoming.drain(..to.incoming.len().min(delivered)).collect();
        if count == 0 && bytes.is_empty() {
            return Ok(false);
        }
        to.take(&bytes, now).map(|()| true)
    }

    /// Moves bytes until nothing moves any more.
    pub(super) fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 2 {
            let to_server = self.random.below(2) == 0;
            let moved = [to_server, !to_server].map(|direction| self.step(direction).expect("a living pair"));
            quiet = if moved.contains(&true) { 0 } else { quiet + 1 };
        }
    }

    /// Like `settle`, for pairs that may end.
    pub(super) fn run(&mut self) -> (Result<(), SessionError>, Result<(), SessionError>) {
        let mut outcomes = (Ok(()), Ok(()));
        for _ in 0..10_000 {
            if outcomes.1.is_ok()
                && let Err(error) = self.step(true)
            {
                outcomes.1 = Err(error);
            }
            if outcomes.0.is_ok()
                && let Err(error) = self.step(false)
            {
                outcomes.0 = Err(error);
            }
        }
        outcomes
    }

    /// Lets time pass to the next deadline of either end.
    pub(super) fn sleep_to_deadline(&mut self) -> Result<(), SessionError> {
        let deadlines = [self.client.session.next_deadline(), self.server.session.next_deadline()];
        self.now = deadlines.into_iter().flatten().min().expect("a deadline").max(self.now);
        for end in [&mut self.client, &mut self.server] {
            end.session.on_timer(self.now)?;
            end.take(&[], self.now)?;
        }
        Ok(())
    }
}
