//! Receiving: records are decrypted inside the buffer that they were read into.

use aws_lc_rs::aead::{Aad, Nonce};

use super::key::{EXPLICIT_NONCE_BYTES, Form, RecordKey, tls12_associated_data};
use super::{CONTENT_APPLICATION_DATA, HEADER_BYTES, PLAINTEXT_BYTES_MAX, TAG_BYTES, internal, unexpected};
use crate::tls::{AlertCode, TlsError};

/// Post-handshake records without application data in between. KeyUpdate costs us a key derivation and empty
/// records cost a decryption; a peer has no honest reason for many.
const BARREN_RECORDS_IN_ROW_MAX: u32 = 64;

pub(super) struct Opener {
    pub(super) key: RecordKey,
    /// The unfinished part of a post-handshake message.
    pub(super) message: Vec<u8>,
    pub(super) barren_in_row: u32,
}

impl Opener {
    /// The content type and the plaintext.
    pub(super) fn open<'b>(&mut self, record: &'b mut [u8]) -> Result<(u8, &'b [u8]), TlsError> {
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(internal("a record shorter than its header"));
        };
        let (content, plaintext) = match self.key.form {
            Form::Tls13 => self.open_tls13(*header, body)?,
            Form::Tls12 => self.open_tls12(*header, body)?,
        };
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(TlsError::protocol("a record is longer than allowed", AlertCode::RECORD_OVERFLOW));
        }
        Ok((content, plaintext))
    }

    fn open_tls13<'b>(
        &mut self,
        header: [u8; HEADER_BYTES],
        body: &'b mut [u8],
    ) -> Result<(u8, &'b [u8]), TlsError> {
        let [content, ..] = header;
        if content != CONTENT_APPLICATION_DATA {
            // RFC 8446 section 5: nothing is sent in the clear after the handshake.
            return Err(unexpected("an unprotected record after the handshake"));
        }
        let sequence = self.key.next_sequence()?;
        let nonce = Nonce::assume_unique_for_key(self.key.nonce(sequence));
        let inner =
            self.key.aead.open_in_place(nonce, Aad::from(header), body).map_err(|_| TlsError::BadRecord)?;
        // Section 5.4: zeros behind the content type are padding.
        let end = inner.iter().rposition(|byte| *byte != 0);
        let Some((content, plaintext)) = end.and_then(|end| inner.get(..=end)).and_then(<[u8]>::split_last)
        else {
            return Err(unexpected("a record of padding only"));
        };
        Ok((*content, plaintext))
    }

    /// The header is authenticated, and with it the content type: one that was sent in the clear fails like any forged one.
    fn open_tls12<'b>(
        &mut self,
        header: [u8; HEADER_BYTES],
        body: &'b mut [u8],
    ) -> Result<(u8, &'b [u8]), TlsError> {
        let (explicit, sealed) =
            body.split_first_chunk_mut::<EXPLICIT_NONCE_BYTES>().ok_or(TlsError::BadRecord)?;
        let plaintext = sealed.len().checked_sub(TAG_BYTES).ok_or(TlsError::BadRecord)?;
        let sequence = self.key.next_sequence()?;
        let associated = Aad::from(tls12_associated_data(sequence, header, plaintext)?);
        let nonce = self.key.nonce_with(*explicit);
        let plaintext =
            self.key.aead.open_in_place(nonce, associated, sealed).map_err(|_| TlsError::BadRecord)?;
        let [content, ..] = header;
        Ok((content, plaintext))
    }

    pub(super) fn count_barren(&mut self) -> Result<(), TlsError> {
        self.barren_in_row += 1;
        if self.barren_in_row > BARREN_RECORDS_IN_ROW_MAX {
            return Err(unexpected("too many records without data"));
        }
        Ok(())
    }
}
