//! Acting on the events of one read.
//!
//! Payload of one stream that arrives in several records is gathered and written to the application by one system
//! call: the pieces lie decrypted in the lent buffer until the batch ends.

use std::io::IoSlice;
use std::rc::Rc;

use arrayvec::ArrayVec;
use tunnel::h2::{ErrorCode, Event, Headers, StreamId};
use tunnel::session::{Ingest, Session, SessionError, SessionEvent};

use super::IncomingRequest;
use super::connection::{Link, Peer};
use super::stream::{Stream, StreamEnd};

/// Pieces of payload that one system call writes; a 512 KiB read holds 32 full records.
const PIECES_MAX: usize = 40;

/// The events of one read, in order.
pub(super) struct Batch<'l, 'b> {
    link: &'l Rc<Link>,
    requests: &'l mut Vec<IncomingRequest>,
    gathered: Option<Gathered<'b>>,
}

/// What came of a batch.
pub(super) struct Taken {
    /// Whether the peer has ended the connection.
    pub(super) closed: Result<bool, SessionError>,
    /// How much there was to do.
    pub(super) work: usize,
}

/// Payload of one stream that waits to be delivered together.
struct Gathered<'b> {
    stream: Rc<Stream>,
    pieces: ArrayVec<IoSlice<'b>, PIECES_MAX>,
}

impl<'l, 'b> Batch<'l, 'b> {
    pub(super) fn new(link: &'l Rc<Link>, requests: &'l mut Vec<IncomingRequest>) -> Self {
        Self { link, requests, gathered: None }
    }

    /// Takes all events.
    pub(super) fn run(mut self, mut ingest: Ingest<'_, 'b>) -> Taken {
        let mut closed = false;
        let closed = loop {
            match ingest.next() {
                Ok(Some(event)) => closed |= self.take(event, ingest.session()),
                Ok(None) => break Ok(closed),
                Err(error) => break Err(error),
            }
        };
        // What came before an error or the end still belongs to the application.
        self.deliver(ingest.session());
        Taken { closed, work: ingest.work() }
    }

    fn take(&mut self, event: SessionEvent<'b>, session: &mut Session) -> bool {
        match event {
            SessionEvent::Established { peer, cipher } => {
                let peer = Peer { identity: peer.identity().clone(), cipher, proof: peer };
                // The session says this once.
                drop(self.link.peer.set(peer));
            }
            SessionEvent::Http(event) => self.take_http(event, session),
            SessionEvent::Closed => return true,
        }
        false
    }

    fn take_http(&mut self, event: Event<'b>, session: &mut Session) {
        match event {
            Event::Data { stream, bytes, end_stream } => self.data(stream, bytes, end_stream, session),
            Event::Headers { stream, headers, end_stream } => {
                self.deliver(session);
                self.headers(stream, headers, end_stream, session);
            }
            Event::Trailers { stream, headers } => {
                self.deliver(session);
                // A tunnel's bytes are the payload; trailers only end it.
                if self.link.is_clear() {
                    self.keep_trailers(stream, headers);
                }
                self.end_of_stream(stream, session);
            }
            Event::Reset { stream, code, .. } => {
                self.deliver(session);
                let gone = self.link.streams.borrow_mut().remove(&stream);
                if let Some(gone) = gone {
                    gone.abort(StreamEnd::Reset(code));
                    self.take_back(&gone);
                }
            }
            Event::Writable { stream } => {
                if let Some(stream) = self.link.streams.borrow().get(&stream) {
                    stream.outbound.raise();
                }
            }
            Event::GoAway { .. } => self.link.going_away.set(true),
            Event::SettingsChanged => self.link.introduced.open(),
            Event::Pong { .. } => {}
        }
    }

    /// A request that was reset before anybody has looked at it holds nothing until somebody does.
    fn take_back(&mut self, stream: &Rc<Stream>) {
        if let Some(request) = self.requests.iter_mut().rfind(|request| request.is_on(stream)) {
            request.forget_headers();
        }
        self.link.forget_arrival(stream);
    }

    fn data(&mut self, id: StreamId, bytes: &'b [u8], end_stream: bool, session: &mut Session) {
        let same = self.gathered.as_ref().is_some_and(|gathered| gathered.stream.id() == id);
        if !same {
            self.deliver(session);
            let stream = self.link.streams.borrow().get(&id).cloned();
            match stream {
                Some(stream) => self.gathered = Some(Gathered { stream, pieces: ArrayVec::new() }),
                // Nobody wants it any more, and the connection's window wants it back.
                None => session.release(id, bytes.len()),
            }
        }
        let Some(gathered) = &mut self.gathered else { return };
        if !bytes.is_empty() {
            gathered.pieces.push(IoSlice::new(bytes));
        }
        if end_stream {
            self.deliver(session);
            self.end_of_stream(id, session);
        } else if gathered.pieces.is_full() {
            self.deliver(session);
        }
    }

    fn deliver(&mut self, session: &mut Session) {
        if let Some(gathered) = self.gathered.take() {
            gathered.stream.deliver(&gathered.pieces, session);
        }
    }

    fn end_of_stream(&self, id: StreamId, session: &mut Session) {
        let stream = self.link.streams.borrow().get(&id).cloned();
        if let Some(stream) = stream {
            stream.receive_end(session);
            self.link.forget_if_over(&stream);
        }
    }

    fn keep_trailers(&self, id: StreamId, headers: Headers) {
        if let Some(stream) = self.link.streams.borrow().get(&id) {
            stream.keep_trailers(headers);
        }
    }

    fn interim(&self, id: StreamId, headers: Headers, session: &mut Session) {
        // They say nothing about a tunnel (RFC 9110 section 15.2).
        if !self.link.is_clear() {
            return;
        }
        let stream = self.link.streams.borrow().get(&id).cloned();
        if let Some(stream) = stream
            && !stream.keep_interim(headers)
        {
            session.reset(id, ErrorCode::ENHANCE_YOUR_CALM);
            self.link.streams.borrow_mut().remove(&id);
            stream.abort(StreamEnd::Reset(ErrorCode::ENHANCE_YOUR_CALM));
        }
    }

    fn headers(&mut self, id: StreamId, headers: Headers, end_stream: bool, session: &mut Session) {
        if self.link.is_server() && self.link.is_clear() {
            return self.link.queue(id, headers, end_stream, session);
        }
        if self.link.is_server() {
            let Some(peer) = self.link.peer.get().cloned() else {
                // The session promises the identity first; without one there is nothing to decide by.
                return session.reset(id, ErrorCode::REFUSED_STREAM);
            };
            let stream = Stream::new(self.link, id);
            if end_stream {
                stream.receive_end(session);
            }
            self.link.streams.borrow_mut().insert(id, stream.clone());
            self.requests.push(IncomingRequest::new(stream, headers, peer));
            return;
        }
        if headers.status().is_some_and(|status| (100..200).contains(&status)) {
            return self.interim(id, headers, session);
        }
        let stream = self.link.streams.borrow().get(&id).cloned();
        if let Some(stream) = stream {
            stream.answer(headers);
            if end_stream {
                self.end_of_stream(id, session);
            }
        }
    }
}
