//! The record layer of TLS 1.3 (RFC 8446 section 5) over extracted secrets: records are sealed and opened in place.
//!
//! Sending: plaintext is appended to one growing buffer, already laid out as records: header, up to 16 KiB of
//! plaintext, content type, room for the tag. A record is sealed where it lies when it is full or when the
//! output is asked for, so that the frames of many streams share a record and a whole batch is one run of bytes.
//! Receiving: a record is decrypted inside the buffer that the caller read it into.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::handshake::{KeySchedule, TrafficSecrets};
use super::{AlertCode, TlsError};

/// type, legacy version, length.
pub const HEADER_BYTES: usize = 5;
/// Most plaintext a record may carry, RFC 8446 section 5.1.
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 14;
const TAG_BYTES: usize = 16;
/// Behind the plaintext: the inner content type and the tag.
const TRAILER_BYTES: usize = 1 + TAG_BYTES;
/// RFC 8446 section 5.2: ciphertext may be 256 bytes longer than the plaintext limit.
const CIPHERTEXT_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + 256;
/// The largest whole record that a peer may send.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + CIPHERTEXT_BYTES_MAX;
const _: () = assert!(TRAILER_BYTES <= 256, "our own records must fit the limit that we enforce");

/// Records sealed under one key before it is replaced. RFC 8446 section 5.5 allows AES-GCM 2^24.5 full records; half
/// of that leaves room for what one batch adds before the count is looked at.
const RECORDS_PER_KEY_MAX: u64 = 1 << 23;
/// A sent-out prefix longer than this is cut off rather than kept until all is sent.
const COMPACT_BYTES_MIN: usize = 256 * 1024;

const CONTENT_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_ALERT: u8 = 21;
const CONTENT_HANDSHAKE: u8 = 22;
const CONTENT_APPLICATION_DATA: u8 = 23;

const HANDSHAKE_NEW_SESSION_TICKET: u8 = 4;
const HANDSHAKE_KEY_UPDATE: u8 = 24;
const ALERT_LEVEL_WARNING: u8 = 1;
const ALERT_LEVEL_FATAL: u8 = 2;

/// Post-handshake records without application data in between. KeyUpdate costs us a key derivation and empty
/// records cost a decryption; a peer has no honest reason for many.
const BARREN_RECORDS_IN_ROW_MAX: u32 = 64;
/// Longest post-handshake message that is put together over several records: a ticket of RFC 8446 section 4.6.1.
const HANDSHAKE_MESSAGE_BYTES_MAX: usize = 4 + (1 << 16) + 1_024;

/// Length of the record that starts `bytes`, header included; none if the header is not complete yet.
pub fn record_length(bytes: &[u8]) -> Result<Option<usize>, TlsError> {
    let [content, major, minor, high, low, ..] = *bytes else {
        // What cannot become a record is refused at its first byte: a plaintext client must not wait.
        return match bytes.first() {
            Some(content) if !is_content(*content) => Err(not_tls()),
            _ => Ok(None),
        };
    };
    if !is_content(content) || major != 3 || minor > 4 {
        return Err(not_tls());
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > CIPHERTEXT_BYTES_MAX {
        return Err(TlsError::protocol("a record is longer than allowed", AlertCode::RECORD_OVERFLOW));
    }
    Ok(Some(HEADER_BYTES + length))
}

const fn is_content(byte: u8) -> bool {
    matches!(byte, CONTENT_CHANGE_CIPHER_SPEC..=CONTENT_APPLICATION_DATA)
}

fn not_tls() -> TlsError {
    TlsError::protocol("the bytes are not TLS", AlertCode::DECODE_ERROR)
}

/// An AEAD key with its counter, for one direction.
struct RecordKey {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl RecordKey {
    fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, TlsError> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(internal("an AEAD that was never offered")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| internal("the length of a key"))?;
        let iv = <[u8; NONCE_LEN]>::try_from(iv.as_ref()).map_err(|_| internal("the length of a nonce"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// RFC 8446 section 5.3: the counter, padded to the left, xor the static IV. Each value is given out once.
    fn next_nonce(&mut self) -> Result<Nonce, TlsError> {
        let mut nonce = self.iv;
        for (byte, count) in nonce.iter_mut().skip(NONCE_LEN - 8).zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence = self.sequence.checked_add(1).ok_or_else(|| internal("the record counter"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn internal(what: &str) -> TlsError {
    TlsError::Internal(what.to_owned())
}

/// Both directions of an established connection.
pub struct Records {
    sealer: Sealer,
    opener: Opener,
    schedule: KeySchedule,
    /// The peer asked us to update our sending key (RFC 8446 section 4.6.3); done before the next record.
    update_owed: bool,
}

/// What a received record held.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'b> {
    Data(&'b [u8]),
    /// Handled here: a ticket, a key update, padding.
    Nothing,
    /// The peer has said that nothing more will come (close_notify).
    Closed,
}

impl Records {
    pub(crate) fn new(secrets: TrafficSecrets, schedule: KeySchedule) -> Result<Self, TlsError> {
        let (send_sequence, send) = &secrets.0.tx;
        let (receive_sequence, receive) = &secrets.0.rx;
        Ok(Self {
            sealer: Sealer {
                key: RecordKey::new(*send_sequence, send)?,
                failed: false,
                records_per_key_max: RECORDS_PER_KEY_MAX,
            },
            opener: Opener {
                key: RecordKey::new(*receive_sequence, receive)?,
                message: Vec::new(),
                barren_in_row: 0,
            },
            schedule,
            update_owed: false,
        })
    }

    /// Decrypts one whole record, as cut by [`record_length`].
    pub fn open<'b>(&mut self, record: &'b mut [u8]) -> Result<Opened<'b>, TlsError> {
        let (content, plaintext) = self.opener.open(record)?;
        match content {
            CONTENT_APPLICATION_DATA if plaintext.is_empty() => {
                self.opener.count_barren()?;
                Ok(Opened::Nothing)
            }
            CONTENT_APPLICATION_DATA => {
                if !self.opener.message.is_empty() {
                    // RFC 8446 section 5.1: handshake messages are not interleaved with other records.
                    return Err(unexpected("data inside a handshake message"));
                }
                self.opener.barren_in_row = 0;
                Ok(Opened::Data(plaintext))
            }
            CONTENT_HANDSHAKE => {
                self.opener.count_barren()?;
                self.post_handshake(plaintext)?;
                Ok(Opened::Nothing)
            }
            CONTENT_ALERT => read_alert(plaintext),
            _ => Err(unexpected("an unknown content type")),
        }
    }

    fn post_handshake(&mut self, fragment: &[u8]) -> Result<(), TlsError> {
        if fragment.is_empty() {
            return Err(unexpected("an empty handshake record"));
        }
        let mut message = std::mem::take(&mut self.opener.message);
        message.extend_from_slice(fragment);
        if message.len() > HANDSHAKE_MESSAGE_BYTES_MAX {
            return Err(unexpected("a handshake message that is too long"));
        }
        let mut rest = message.as_slice();
        while let [kind, a, b, c, body @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > HANDSHAKE_MESSAGE_BYTES_MAX {
                return Err(unexpected("a handshake message that is too long"));
            }
            let Some((body, behind)) = body.split_at_checked(length) else { break };
            match *kind {
                // We never resume (see the module above), so a ticket is read over.
                HANDSHAKE_NEW_SESSION_TICKET if self.schedule.peer_may_send_tickets() => {}
                HANDSHAKE_KEY_UPDATE => self.key_update(body, behind)?,
                _ => return Err(unexpected("a handshake message that does not belong after the handshake")),
            }
            rest = behind;
        }
        self.opener.message = rest.to_vec();
        Ok(())
    }

    fn key_update(&mut self, body: &[u8], behind: &[u8]) -> Result<(), TlsError> {
        // RFC 8446 section 5.1: the record that changes the key must end with the message.
        if !behind.is_empty() {
            return Err(unexpected("bytes behind a key update"));
        }
        let requested = match body {
            [0] => false,
            [1] => true,
            _ => return Err(TlsError::protocol("a malformed key update", AlertCode::ILLEGAL_PARAMETER)),
        };
        self.opener.key = RecordKey::new(0, &self.schedule.next_receive()?)?;
        // Several requests before we send anything are answered once, as section 4.6.3 allows.
        self.update_owed |= requested;
        Ok(())
    }

    /// Opens the output for plaintext, updating the sending key first when that is due.
    pub(crate) fn builder<'a>(&'a mut self, output: &'a mut Output) -> Result<RecordBuilder<'a>, TlsError> {
        if self.update_owed || self.sealer.key.sequence >= self.sealer.records_per_key_max {
            self.update_sending_key(output)?;
        }
        Ok(RecordBuilder { sealer: &mut self.sealer, output })
    }

    fn update_sending_key(&mut self, output: &mut Output) -> Result<(), TlsError> {
        self.seal(output)?;
        // update_not_requested: the peer counts its own records.
        output.append_record(&mut self.sealer, CONTENT_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0]);
        self.sealer.check()?;
        self.sealer.key = RecordKey::new(0, &self.schedule.next_send()?)?;
        self.update_owed = false;
        Ok(())
    }

    /// Seals the record that is still open; everything in `output` may then be sent.
    pub(crate) fn seal(&mut self, output: &mut Output) -> Result<(), TlsError> {
        output.seal_open(&mut self.sealer, CONTENT_APPLICATION_DATA);
        self.sealer.check()
    }

    /// Appends an alert and nothing may follow it.
    pub(crate) fn alert(&mut self, output: &mut Output, alert: AlertCode) -> Result<(), TlsError> {
        self.seal(output)?;
        let level = if alert == AlertCode::CLOSE_NOTIFY { ALERT_LEVEL_WARNING } else { ALERT_LEVEL_FATAL };
        output.append_record(&mut self.sealer, CONTENT_ALERT, &[level, alert.0]);
        self.sealer.check()
    }

    #[cfg(test)]
    pub(crate) fn update_key_after(&mut self, records: u64) {
        self.sealer.records_per_key_max = records;
    }

    /// Makes the peer update its key as well, to test the answer.
    #[cfg(test)]
    pub(crate) fn request_key_update(&mut self, output: &mut Output) {
        self.seal(output).unwrap();
        output.append_record(&mut self.sealer, CONTENT_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 1]);
        self.sealer.key = RecordKey::new(0, &self.schedule.next_send().unwrap()).unwrap();
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("sent", &self.sealer.key.sequence)
            .field("received", &self.opener.key.sequence)
            .finish_non_exhaustive()
    }
}

fn unexpected(what: &str) -> TlsError {
    TlsError::protocol(what, AlertCode::UNEXPECTED_MESSAGE)
}

fn read_alert(plaintext: &[u8]) -> Result<Opened<'static>, TlsError> {
    let [_level, code] = *plaintext else {
        return Err(TlsError::protocol("a malformed alert", AlertCode::DECODE_ERROR));
    };
    match AlertCode(code) {
        AlertCode::CLOSE_NOTIFY => Ok(Opened::Closed),
        // RFC 8446 section 6.1: a close_notify follows it.
        AlertCode::USER_CANCELED => Ok(Opened::Nothing),
        // Section 6.2: all others are fatal, whatever their level says.
        AlertCode(code) => Err(TlsError::AlertReceived {
            code,
            description: format!("{:?}", rustls::AlertDescription::from(code)),
        }),
    }
}

// === Receiving ===

struct Opener {
    key: RecordKey,
    /// The unfinished part of a post-handshake message.
    message: Vec<u8>,
    barren_in_row: u32,
}

impl Opener {
    fn open<'b>(&mut self, record: &'b mut [u8]) -> Result<(u8, &'b [u8]), TlsError> {
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(internal("a record shorter than its header"));
        };
        let [content, ..] = *header;
        if content != CONTENT_APPLICATION_DATA {
            // RFC 8446 section 5: nothing is sent in the clear after the handshake.
            return Err(unexpected("an unprotected record after the handshake"));
        }
        let nonce = self.key.next_nonce()?;
        let inner =
            self.key.key.open_in_place(nonce, Aad::from(*header), body).map_err(|_| TlsError::BadRecord)?;
        // Section 5.4: zeros behind the content type are padding.
        let end = inner.iter().rposition(|byte| *byte != 0);
        let Some((content, plaintext)) = end.and_then(|end| inner.get(..=end)).and_then(<[u8]>::split_last)
        else {
            return Err(unexpected("a record of padding only"));
        };
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(TlsError::protocol("a record is longer than allowed", AlertCode::RECORD_OVERFLOW));
        }
        Ok((*content, plaintext))
    }

    fn count_barren(&mut self) -> Result<(), TlsError> {
        self.barren_in_row += 1;
        if self.barren_in_row > BARREN_RECORDS_IN_ROW_MAX {
            return Err(unexpected("too many records without data"));
        }
        Ok(())
    }
}

// === Sending ===

struct Sealer {
    key: RecordKey,
    /// Sealing failed; what was written since must not be sent.
    failed: bool,
    records_per_key_max: u64,
}

impl Sealer {
    fn check(&self) -> Result<(), TlsError> {
        if self.failed { Err(internal("a record could not be sealed")) } else { Ok(()) }
    }

    /// Seals `record`: header room, plaintext, content type, room for the tag.
    fn seal(&mut self, record: &mut [u8]) -> Result<(), TlsError> {
        let length = record.len().saturating_sub(HEADER_BYTES);
        let length = u16::try_from(length).map_err(|_| internal("the length of a record"))?;
        let [high, low] = length.to_be_bytes();
        let header = [CONTENT_APPLICATION_DATA, 3, 3, high, low];
        let nonce = self.key.next_nonce()?;
        let room = || internal("the layout of a record");
        let (head, body) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or_else(room)?;
        let (inner, tag_room) = body.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(room)?;
        let tag = self
            .key
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), inner)
            .map_err(|_| internal("sealing"))?;
        *tag_room = <[u8; TAG_BYTES]>::try_from(tag.as_ref()).map_err(|_| internal("the length of a tag"))?;
        *head = header;
        Ok(())
    }
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

    fn append_record(&mut self, sealer: &mut Sealer, content: u8, plaintext: &[u8]) {
        self.open_record();
        self.buffer.extend_from_slice(plaintext);
        self.seal_open(sealer, content);
    }

    /// Starts a record if none is open, and says how much plaintext it still takes.
    fn open_record(&mut self) -> usize {
        let start = *self.open.get_or_insert_with(|| {
            let start = self.buffer.len();
            self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
            start
        });
        (start + HEADER_BYTES + PLAINTEXT_BYTES_MAX).saturating_sub(self.buffer.len())
    }

    fn seal_open(&mut self, sealer: &mut Sealer, content: u8) {
        let Some(start) = self.open.take() else { return };
        let mut trailer = [0; TRAILER_BYTES];
        trailer[0] = content;
        self.buffer.extend_from_slice(&trailer);
        let sealed = match self.buffer.get_mut(start..) {
            Some(record) => sealer.seal(record),
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
    sealer: &'a mut Sealer,
    output: &'a mut Output,
}

impl RecordBuilder<'_> {
    /// Appends plaintext; a record that is full is sealed at once, while it is in the cache.
    pub fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.output.open_record();
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
        self.output.buffer.reserve(plaintext + records * (HEADER_BYTES + TRAILER_BYTES));
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
