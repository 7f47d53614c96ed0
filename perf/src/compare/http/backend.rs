//! The backend: answers each request with as many bytes as it asks for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::poll::{Interest, Poll};
use super::{Body, READ_BYTES, parse_request};
use crate::wire::block;
use crate::{Failure, machine};

/// Responses up to this go out in one write with their head.
const ONE_WRITE_BYTES: u64 = 16 * 1024;
const LISTENER: usize = usize::MAX - 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    machine::raise_descriptor_limit();
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(args.listen), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&args.listen.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Backend::new(socket.into())?.serve()
}

/// A connection: what came of a head, the body under way, what is still to be sent.
#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    head: Vec<u8>,
    upload: Option<(Body, u64)>,
    output: Vec<u8>,
    body: Body,
    interest: Interest,
    closes: bool,
}

#[derive(Debug)]
pub(super) struct Backend {
    listener: TcpListener,
    poll: Poll,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    block: Vec<u8>,
    scratch: Vec<u8>,
}

impl Backend {
    pub(super) fn new(listener: TcpListener) -> Result<Self, Failure> {
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, Interest::Read)?;
        let scratch = vec![0; READ_BYTES];
        Ok(Self { listener, poll, peers: Vec::new(), free: Vec::new(), block: block(), scratch })
    }

    pub(super) fn serve(&mut self) -> Result<(), Failure> {
        let mut ready = Vec::new();
        loop {
            self.poll.wait(None, &mut ready)?;
            for &key in &ready {
                if key == LISTENER {
                    self.accept()?;
                } else {
                    self.turn(key)?;
                }
            }
        }
    }

    fn accept(&mut self) -> Result<(), Failure> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let key = self.free.pop().unwrap_or(self.peers.len());
            self.poll.add(&stream, key, Interest::Read)?;
            let peer = Peer {
                stream,
                head: Vec::new(),
                upload: None,
                output: Vec::new(),
                body: Body::default(),
                interest: Interest::Read,
                closes: false,
            };
            match self.peers.get_mut(key) {
                Some(slot) => *slot = Some(peer),
                None => self.peers.push(Some(peer)),
            }
        }
    }

    /// One read or as many writes as go; a connection that breaks is the client's affair.
    fn turn(&mut self, key: usize) -> Result<(), Failure> {
        let Some(Some(peer)) = self.peers.get_mut(key) else { return Ok(()) };
        let stays = match peer.interest {
            Interest::Read => peer.read(&mut self.scratch, &self.block),
            Interest::Write => peer.flush(&self.block),
        };
        let stays = stays.unwrap_or_else(|error| {
            // The client sees a refusal that no proxy of the comparison would write.
            eprintln!("perf backend: {error}");
            let _ =
                peer.stream.write_all(b"HTTP/1.1 418 Refused By The Backend\r\ncontent-length: 0\r\n\r\n");
            false
        });
        if !stays || (peer.closes && peer.is_flushed()) {
            if let Some(slot) = self.peers.get_mut(key) {
                *slot = None;
            }
            self.free.push(key);
            return Ok(());
        }
        let wanted = if peer.is_flushed() { Interest::Read } else { Interest::Write };
        if wanted != peer.interest {
            peer.interest = wanted;
            self.poll.change(&peer.stream, key, wanted)?;
        }
        Ok(())
    }
}

impl Peer {
    fn is_flushed(&self) -> bool {
        self.output.is_empty() && self.body.rest == 0
    }

    /// Whether the connection goes on.
    fn read(&mut self, scratch: &mut [u8], block: &[u8]) -> Result<bool, Failure> {
        let count = match self.stream.read(scratch) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if is_later(&error) => return Ok(true),
            Err(_) => return Ok(false),
        };
        let mut bytes = scratch.get(..count).unwrap_or_default();
        while !bytes.is_empty() {
            bytes = match &mut self.upload {
                Some((body, _)) => body.take(block, bytes)?,
                None => self.take_head(bytes)?,
            };
            if let Some((Body { rest: 0, .. }, sequence)) = self.upload {
                self.upload = None;
                self.respond(sequence, 0);
            }
        }
        self.flush(block)
    }

    /// What is left of `bytes` after a head; nothing if the head is not whole.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        let held = self.head.len();
        let parsed = if held == 0 {
            parse_request(bytes)?
        } else {
            self.head.extend_from_slice(bytes);
            parse_request(&self.head)?
        };
        let Some(head) = parsed else {
            if held == 0 {
                self.head.extend_from_slice(bytes);
            }
            return Ok(&[]);
        };
        self.head.clear();
        self.closes |= head.closes;
        if head.body > 0 {
            self.upload = Some((Body { position: 0, rest: head.body }, head.sequence));
        }
        let rest = bytes.get(head.length.saturating_sub(held)..).unwrap_or_default();
        if head.body == 0 {
            if !self.is_flushed() {
                return Err("a request came before the response to the one before was taken".into());
            }
            self.respond(head.sequence, head.wanted);
        }
        Ok(rest)
    }

    fn respond(&mut self, sequence: u64, bytes: u64) {
        // Writing into a Vec cannot fail.
        let _ = write!(
            self.output,
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nx-sequence: {sequence}\r\ncontent-length: {bytes}\r\n\r\n"
        );
        self.body = Body { position: 0, rest: bytes };
    }

    /// Writes until nothing is left or the socket is full; false if the client has gone.
    fn flush(&mut self, block: &[u8]) -> Result<bool, Failure> {
        if !self.output.is_empty() && self.body.rest <= ONE_WRITE_BYTES {
            while self.body.rest > 0 {
                let piece = self.body.piece(block);
                self.output.extend_from_slice(piece);
                let count = piece.len();
                self.body.advance(count);
            }
        }
        loop {
            let (bytes, is_head) = if self.output.is_empty() {
                (self.body.piece(block), false)
            } else {
                (self.output.as_slice(), true)
            };
            if bytes.is_empty() {
                return Ok(true);
            }
            match self.stream.write(bytes) {
                Ok(count) if is_head => drop(self.output.drain(..count)),
                Ok(count) => self.body.advance(count),
                Err(error) if is_later(&error) => return Ok(true),
                Err(_) => return Ok(false),
            }
        }
    }
}

pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
