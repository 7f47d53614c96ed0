//! The record layer of TLS 1.3 (RFC 8446 section 5) over extracted secrets: records are sealed and opened in place.
//!
//! Sending: plaintext is appended to one growing buffer, already laid out as records: header, up to 16 KiB of
//! plaintext, content type, room for the tag. A record is sealed where it lies when it is full or when the
//! output is asked for, so that the frames of many streams share a record and a whole batch is one run of bytes.
//! Receiving: a record is decrypted inside the buffer that the caller read it into.

mod opener;
mod output;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::handshake::{KeySchedule, TrafficSecrets};
use super::{AlertCode, TlsError};
use opener::Opener;
use output::Sealer;
pub use output::{Output, RecordBuilder};

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
const CONTENT_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_ALERT: u8 = 21;
const CONTENT_HANDSHAKE: u8 = 22;
const CONTENT_APPLICATION_DATA: u8 = 23;

const HANDSHAKE_NEW_SESSION_TICKET: u8 = 4;
const HANDSHAKE_KEY_UPDATE: u8 = 24;
const ALERT_LEVEL_WARNING: u8 = 1;
const ALERT_LEVEL_FATAL: u8 = 2;

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
