//! One pass over received bytes: record by record, event by event.

use std::time::Instant;

use super::layer::{Layer, Tls};
use super::{Open, Phase, Session, SessionError, SessionEvent};
use crate::h2;
use crate::tls::record::{Opened, Records, record_length};
use crate::tls::{Established, Progress, TlsError};

/// Walks through a lent buffer. Between two calls of [`Self::next`] the session can be written to through
/// [`Self::session`]; events borrow from the buffer only.
///
/// Dropped before its end, it ends the session: records that were passed over cannot be asked for again.
#[derive(Debug)]
pub struct Ingest<'s, 'b> {
    session: &'s mut Session,
    /// Received and not yet decrypted.
    rest: &'b mut [u8],
    /// Decrypted and not yet taken by the HTTP/2 engine.
    plaintext: &'b [u8],
    now: Instant,
    state: State,
    work: usize,
}

/// What opening a record weighs beside one event.
const RECORD_WORK: usize = 8;

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nothing was taken yet.
    Fresh,
    Running,
    Done,
}

impl<'s, 'b> Ingest<'s, 'b> {
    pub(super) fn new(session: &'s mut Session, filled: &'b mut [u8], now: Instant) -> Self {
        Self { session, rest: filled, plaintext: &[], now, state: State::Fresh, work: 0 }
    }

    /// The session, for writing between events.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// How much was found so far, in events; a record weighs as much as some.
    pub fn work(&self) -> usize {
        self.work
    }

    /// The next event. None: all input is used up, the start of an unfinished record is kept. After an error the
    /// session is over.
    #[allow(clippy::should_implement_trait)] // It lends: an iterator could not give the session out in between.
    pub fn next(&mut self) -> Result<Option<SessionEvent<'b>>, SessionError> {
        if self.state == State::Done {
            return Ok(None);
        }
        // Bytes that came without the start of their record in front would be read as another record.
        let unprepared = self.state == State::Fresh && !self.rest.is_empty() && self.session.holds_input();
        self.state = State::Running;
        let step = if unprepared {
            Err(self.session.fail(TlsError::Internal("the input was not prepared".to_owned()).into()))
        } else {
            self.step()
        };
        match step {
            Ok(Some(_)) => {}
            Ok(None) => {
                self.state = State::Done;
                self.keep_tail();
            }
            Err(_) => self.state = State::Done,
        }
        step
    }

    fn step(&mut self) -> Result<Option<SessionEvent<'b>>, SessionError> {
        self.session.take_fault()?;
        if matches!(self.session.phase, Phase::Over) {
            return if self.rest.is_empty() { Ok(None) } else { Err(SessionError::Over) };
        }
        loop {
            // Also with nothing to read: timers and writes leave events behind in the engine.
            if let Some(event) = self.http_event()? {
                self.work += 1;
                return Ok(Some(SessionEvent::Http(event)));
            }
            if self.take_clear() {
                continue;
            }
            let Some(record) = self.next_record()? else { return Ok(None) };
            self.work += RECORD_WORK;
            match &mut self.session.phase {
                Phase::Handshake(handshaking) => {
                    let output = self.session.output.handshake_bytes();
                    match handshaking.handshake.feed(record, output) {
                        Ok(Progress::NeedMore) => {}
                        Ok(Progress::Established(established)) => {
                            let http = handshaking.http;
                            return self.establish(*established, http).map(Some);
                        }
                        Err(error) => return Err(self.session.fail(error.into())),
                    }
                }
                Phase::Open(open) => {
                    let Layer::Tls(tls) = &mut open.layer else { return Ok(None) };
                    match tls.records.open(record) {
                        Ok(Opened::Data(plaintext)) => self.plaintext = plaintext,
                        Ok(Opened::Nothing) => {}
                        Ok(Opened::Closed) => {
                            tls.peer_closed = true;
                            return Ok(Some(SessionEvent::Closed));
                        }
                        Err(error) => return Err(self.session.fail(error.into())),
                    }
                }
                Phase::Over => return Err(SessionError::Over),
            }
        }
    }

    fn http_event(&mut self) -> Result<Option<h2::Event<'b>>, SessionError> {
        let plaintext = &mut self.plaintext;
        let now = self.now;
        match self.session.with_http(|http, out| http.next_event(plaintext, now, out)) {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.session.fail(error.into())),
            None => self.session.take_fault().map(|()| None),
        }
    }

    /// Without TLS all that has arrived is the engine's. Whether there was anything.
    fn take_clear(&mut self) -> bool {
        let is_clear = self.session.opened().is_some_and(|open| open.layer.tls().is_none());
        if !is_clear || self.rest.is_empty() {
            return false;
        }
        let arrived: &'b mut [u8] = std::mem::take(&mut self.rest);
        self.plaintext = arrived;
        true
    }

    /// Cuts the next whole record off. After close_notify whatever follows is ignored (RFC 8446 section 6.1).
    fn next_record(&mut self) -> Result<Option<&'b mut [u8]>, SessionError> {
        if self.session.opened().and_then(|open| open.layer.tls()).is_some_and(|tls| tls.peer_closed) {
            self.rest = &mut [];
            return Ok(None);
        }
        let length = match record_length(self.rest) {
            Ok(Some(length)) if length <= self.rest.len() => length,
            Ok(_) => return Ok(None),
            Err(error) => return Err(self.refuse(error)),
        };
        let (record, rest) = std::mem::take(&mut self.rest).split_at_mut(length);
        self.rest = rest;
        Ok(Some(record))
    }

    /// What cannot be a record goes to rustls while the handshake is on, since only it can write an alert then.
    fn refuse(&mut self, error: TlsError) -> SessionError {
        if let Phase::Handshake(handshaking) = &mut self.session.phase {
            let output = self.session.output.handshake_bytes();
            let header = self.rest.get(..crate::tls::record::HEADER_BYTES).unwrap_or_default();
            // The error at hand is the clearer one; this call is for the alert.
            let _alert = handshaking.handshake.feed(header, output);
        }
        self.session.fail(error.into())
    }

    fn establish(
        &mut self,
        established: Established,
        config: h2::Config,
    ) -> Result<SessionEvent<'b>, SessionError> {
        let Established { peer, cipher, secrets, schedule } = established;
        let opened = Records::new(secrets, schedule).and_then(|records| {
            let mut layer = Layer::Tls(Tls { records, peer: peer.clone(), cipher, peer_closed: false });
            let http = h2::Connection::new(config, self.now, &mut layer.sink(&mut self.session.output)?);
            Ok(Open { layer, http, fault: None })
        });
        match opened {
            Ok(open) => {
                self.session.phase = Phase::Open(Box::new(open));
                Ok(SessionEvent::Established { peer, cipher })
            }
            Err(error) => Err(self.session.fail(error.into())),
        }
    }

    /// Keeps the start of an unfinished record, in exactly as much memory as it needs.
    fn keep_tail(&mut self) {
        if !self.rest.is_empty() && self.session.closed.is_none() {
            self.session.tail.extend_from_slice(self.rest);
        }
    }
}

impl Drop for Ingest<'_, '_> {
    fn drop(&mut self) {
        if self.state == State::Running {
            let lost = TlsError::Internal("received records were not all taken".to_owned());
            self.session.fail(lost.into());
        }
    }
}
