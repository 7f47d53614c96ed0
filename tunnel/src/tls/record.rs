//! The record layer of TLS 1.3 (RFC 8446 section 5), and of TLS 1.2 with AES-GCM (RFC 5246 section 6.2, RFC 5288), over
//! extracted secrets: records are sealed and opened in place.
//!
//! Sending: plaintext is appended to one growing buffer, already laid out as records: header, up to 16 KiB of
//! plaintext, content type (TLS 1.3), room for the tag. A record is sealed where it lies when it is full or when the
//! output is asked for, so that the frames of many streams share a record and a whole batch is one run of bytes.
//! Receiving: a record is decrypted inside the buffer that the caller read it into.

mod key;
mod opener;
mod output;

use super::handshake::{KeySchedule, TrafficSecrets};
use super::{AlertCode, TlsError};
pub(super) use key::Form;
use key::RecordKey;
use opener::Opener;
use output::Sealer;
pub use output::{Output, RecordBuilder};

/// type, legacy version, length.
pub const HEADER_BYTES: usize = 5;
/// Most plaintext a record may carry, RFC 8446 section 5.1.
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 14;
const TAG_BYTES: usize = 16;
/// What a record of either form has in front of its plaintext and behind it.
const HEAD_BYTES_MAX: usize = Form::Tls12.head_bytes();
const TRAILER_BYTES_MAX: usize = Form::Tls13.trailer_bytes();
/// RFC 8446 section 5.2: ciphertext may be 256 bytes longer than the plaintext limit. TLS 1.2 grants more, but AES-GCM adds
/// 24 bytes.
const CIPHERTEXT_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + 256;
/// The largest whole record that a peer may send.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + CIPHERTEXT_BYTES_MAX;
const _: () = assert!(
    HEAD_BYTES_MAX - HEADER_BYTES + TRAILER_BYTES_MAX <= 256,
    "our own records must fit the limit that we enforce"
);

/// Records sealed under one key before it is replaced. RFC 8446 section 5.5 allows AES-GCM 2^24.5 full records; half
/// of that leaves room for what one batch adds before the count is looked at.
const RECORDS_PER_KEY_MAX: u64 = 1 << 23;
/// The same for a key that cannot be replaced: the connection ends then.
const RECORDS_PER_FIXED_KEY_MAX: u64 = 1 << 24;
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
        let form = schedule.form();
        let (send_sequence, send) = &secrets.0.tx;
        let (receive_sequence, receive) = &secrets.0.rx;
        Ok(Self {
            sealer: Sealer {
                key: RecordKey::new(form, *send_sequence, send)?,
                failed: false,
                records_per_key_max: match form {
                    Form::Tls13 => RECORDS_PER_KEY_MAX,
                    Form::Tls12 => RECORDS_PER_FIXED_KEY_MAX,
                },
            },
            opener: Opener {
                key: RecordKey::new(form, *receive_sequence, receive)?,
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
        if self.opener.key.form == Form::Tls12 {
            // HelloRequest and ClientHello of RFC 5246 section 7.4.1; HTTP/2 forbids both (RFC 9113 section 9.2.1).
            return Err(unexpected("a renegotiation"));
        }
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
        self.opener.key = RecordKey::new(Form::Tls13, 0, &self.schedule.next_receive()?)?;
        // Several requests before we send anything are answered once, as section 4.6.3 allows.
        self.update_owed |= requested;
        Ok(())
    }

    /// Opens the output for plaintext, updating the sending key first when that is due. With TLS 1.2, which cannot, the
    /// connection is over instead.
    pub(crate) fn builder<'a>(&'a mut self, output: &'a mut Output) -> Result<RecordBuilder<'a>, TlsError> {
        if self.update_owed || self.sealer.key.sequence >= self.sealer.records_per_key_max {
            self.update_sending_key(output)?;
        }
        Ok(RecordBuilder { sealer: &mut self.sealer, output })
    }

    /// Whether half of the records that a key may seal are sealed and it cannot be replaced: time to move what runs on
    /// this connection to another one.
    pub(crate) fn key_wears_out(&self) -> bool {
        self.sealer.key.form == Form::Tls12 && self.sealer.key.sequence >= self.sealer.records_per_key_max / 2
    }

    #[cold]
    fn update_sending_key(&mut self, output: &mut Output) -> Result<(), TlsError> {
        if self.sealer.key.form == Form::Tls12 {
            return Err(TlsError::KeyExhausted);
        }
        self.seal(output)?;
        // update_not_requested: the peer counts its own records.
        output.append_record(&mut self.sealer, CONTENT_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0]);
        self.sealer.check()?;
        self.sealer.key = RecordKey::new(Form::Tls13, 0, &self.schedule.next_send()?)?;
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

    /// A record of any content, as only a peer that breaks the protocol would send it.
    #[cfg(test)]
    pub(crate) fn append(&mut self, output: &mut Output, content: u8, plaintext: &[u8]) {
        output.append_record(&mut self.sealer, content, plaintext);
    }

    /// Makes the peer update its key as well, to test the answer.
    #[cfg(test)]
    pub(crate) fn request_key_update(&mut self, output: &mut Output) {
        self.seal(output).unwrap();
        output.append_record(&mut self.sealer, CONTENT_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 1]);
        self.sealer.key = RecordKey::new(Form::Tls13, 0, &self.schedule.next_send().unwrap()).unwrap();
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
