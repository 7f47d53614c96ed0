//! Sending: plaintext grows into records in one buffer and is sealed where it lies.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};

use super::key::{EXPLICIT_NONCE_BYTES, Form, RecordKey, explicit_part, tls12_associated_data};
use super::{
    CONTENT_APPLICATION_DATA, HEAD_BYTES_MAX, HEADER_BYTES, PLAINTEXT_BYTES_MAX, TAG_BYTES,
    TRAILER_BYTES_MAX, internal,
};
use crate::tls::TlsError;

/// A sent-out prefix longer than this is cut off rather than kept until all is sent.
const COMPACT_BYTES_MIN: usize = 256 * 1024;

pub(super) struct Sealer {
    pub(super) key: RecordKey,
    /// Sealing failed; what was written since must not be sent.
    pub(super) failed: bool,
    pub(super) records_per_key_max: u64,
}

impl Sealer {
    pub(super) fn check(&self) -> Result<(), TlsError> {
        if self.failed { Err(internal("a record could not be sealed")) } else { Ok(()) }
    }

    /// Seals `record`: header room, plaintext, and behind it what the form of the key wants.
    fn seal(&mut self, content: u8, record: &mut [u8]) -> Result<(), TlsError> {
        let length = record.len().saturating_sub(HEADER_BYTES);
        let length = u16::try_from(length).map_err(|_| internal("the length of a record"))?;
        let [high, low] = length.to_be_bytes();
        let (head, body) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or_else(layout)?;
        let sequence = self.key.next_sequence()?;
        *head = match self.key.form {
            Form::Tls13 => {
                let header = [CONTENT_APPLICATION_DATA, 3, 3, high, low];
                self.encrypt(self.key.nonce(sequence), Aad::from(header), body)?;
                header
            }
            Form::Tls12 => {
                let header = [content, 3, 3, high, low];
                self.seal_tls12(sequence, header, body)?;
                header
            }
        };
        Ok(())
    }

    /// `body`: room for the explicit nonce, plaintext, room for the tag.
    fn seal_tls12(&self, sequence: u64, header: [u8; HEADER_BYTES], body: &mut [u8]) -> Result<(), TlsError> {
        let nonce = self.key.nonce(sequence);
        let (explicit, rest) = body.split_first_chunk_mut::<EXPLICIT_NONCE_BYTES>().ok_or_else(layout)?;
        let plaintext = rest.len().checked_sub(TAG_BYTES).ok_or_else(layout)?;
        let associated = tls12_associated_data(sequence, header, plaintext)?;
        self.encrypt(nonce, Aad::from(associated), rest)?;
        *explicit = explicit_part(nonce);
        Ok(())
    }

    /// Encrypts all of `bytes` but the last, which are room for the tag.
    fn encrypt<A: AsRef<[u8]>>(
        &self,
        nonce: [u8; NONCE_LEN],
        associated: Aad<A>,
        bytes: &mut [u8],
    ) -> Result<(), TlsError> {
        let (inner, tag_room) = bytes.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(layout)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .aead
            .seal_in_place_separate_tag(nonce, associated, inner)
            .map_err(|_| internal("sealing"))?;
        *tag_room = <[u8; TAG_BYTES]>::try_from(tag.as_ref()).map_err(|_| internal("the length of a tag"))?;
        Ok(())
    }
}

fn layout() -> TlsError {
    internal("the layout of a record")
}

/// Bytes on their way to the peer: sealed records, and at the end at most one that is still open.
#[derive(Debug, Default)]
pub struct Output {
    buffer: Vec<u8>,
    /// Prefix of `buffer` that has been sent. Never reaches into the open record.
    sent: usize,
    /// Where the open record starts.
    open: Option<usize>,
}

impl Output {
    /// Bytes not sent yet, those of the open record included.
    pub fn backlog(&self) -> usize {
        self.buffer.len() - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.backlog() == 0
    }

    /// Everything sealed and not sent.
    pub fn ready(&self) -> &[u8] {
        let end = self.open.unwrap_or(self.buffer.len());
        self.buffer.get(self.sent..end).unwrap_or_default()
    }

    /// The first `count` bytes of [`Self::ready`] have been sent.
    pub fn consumed(&mut self, count: usize) {
        let end = self.open.unwrap_or(self.buffer.len());
        self.sent = self.sent.saturating_add(count).min(end);
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_BYTES_MIN && self.sent >= self.buffer.len() / 2 {
            // At most as many bytes move as were sent since the last time, so this is linear over all.
            self.buffer.drain(..self.sent);
            self.open = self.open.map(|start| start - self.sent);
            self.sent = 0;
        }
    }

    /// Gives the allocation of `spare` to an output that has none.
    pub fn lend(&mut self, spare: &mut Vec<u8>) {
        if self.buffer.capacity() == 0 {
            spare.clear();
            std::mem::swap(&mut self.buffer, spare);
        }
    }

    /// Takes the allocation back once nothing is pending, and keeps the larger of the two in `spare`.
    pub fn reclaim(&mut self, spare: &mut Vec<u8>) {
        if self.buffer.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            if buffer.capacity() > spare.capacity() {
                *spare = buffer;
            }
        }
    }

    /// Unprotected bytes: those of the handshake.
    pub(crate) fn handshake_bytes(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// All bytes of a connection without TLS.
    pub(crate) fn clear_bytes(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.open.is_none(), "no record is opened where there is no TLS");
        &mut self.buffer
    }

    pub(super) fn append_record(&mut self, sealer: &mut Sealer, content: u8, plaintext: &[u8]) {
        self.open_record(sealer.key.form);
        self.buffer.extend_from_slice(plaintext);
        self.seal_open(sealer, content);
    }

    /// Starts a record if none is open, and says how much plaintext it still takes.
    fn open_record(&mut self, form: Form) -> usize {
        let head = form.head_bytes();
        let start = *self.open.get_or_insert_with(|| {
            let start = self.buffer.len();
            self.buffer.resize(start + head, 0);
            start
        });
        (start + head + PLAINTEXT_BYTES_MAX).saturating_sub(self.buffer.len())
    }

    pub(super) fn seal_open(&mut self, sealer: &mut Sealer, content: u8) {
        let Some(start) = self.open.take() else { return };
        let form = sealer.key.form;
        let end = self.buffer.len();
        self.buffer.resize(end + form.trailer_bytes(), 0);
        if form == Form::Tls13
            && let Some(inner_content) = self.buffer.get_mut(end)
        {
            *inner_content = content;
        }
        let sealed = match self.buffer.get_mut(start..) {
            Some(record) => sealer.seal(content, record),
            None => Err(internal("the layout of the output")),
        };
        if sealed.is_err() {
            // Plaintext must never leave: it is cut off, and the connection ends with the error.
            self.buffer.truncate(start);
            sealer.failed = true;
        }
    }
}

/// Takes plaintext into records. Everything put in before the output is asked for shares records.
pub struct RecordBuilder<'a> {
    pub(super) sealer: &'a mut Sealer,
    pub(super) output: &'a mut Output,
}

impl RecordBuilder<'_> {
    /// Appends plaintext; a record that is full is sealed at once, while it is in the cache.
    pub fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.output.open_record(self.sealer.key.form);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.output.buffer.extend_from_slice(now);
            if now.len() == room {
                self.output.seal_open(self.sealer, CONTENT_APPLICATION_DATA);
            }
            bytes = later;
        }
    }

    /// Makes room for so much plaintext at once, records' overhead included.
    pub fn reserve(&mut self, plaintext: usize) {
        let records = plaintext / PLAINTEXT_BYTES_MAX + 2;
        self.output.buffer.reserve(plaintext + records * (HEAD_BYTES_MAX + TRAILER_BYTES_MAX));
    }

    /// Bytes in the output that are not sent yet.
    pub fn backlog(&self) -> usize {
        self.output.backlog()
    }
}

impl std::fmt::Debug for RecordBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBuilder").field("backlog", &self.backlog()).finish()
    }
}
