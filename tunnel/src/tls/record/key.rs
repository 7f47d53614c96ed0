//! The key of one direction: its AEAD, its counter, and the form of the records that it protects.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::{HEADER_BYTES, TAG_BYTES, internal};
use crate::tls::TlsError;

/// The part of the nonce that TLS 1.2 sends with each record (RFC 5288 section 3).
pub(super) const EXPLICIT_NONCE_BYTES: usize = 8;
/// The part that both sides know from the handshake.
const SALT_BYTES: usize = NONCE_LEN - EXPLICIT_NONCE_BYTES;

/// How a record is laid out around its plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 8446 section 5.2: the content type is encrypted with the plaintext; the nonce is not sent.
    Tls13,
    /// RFC 5246 section 6.2.3.3 with RFC 5288: the content type is in the header; part of the nonce follows it.
    Tls12,
}

impl Form {
    /// In front of the plaintext.
    pub(super) const fn head_bytes(self) -> usize {
        match self {
            Self::Tls13 => HEADER_BYTES,
            Self::Tls12 => HEADER_BYTES + EXPLICIT_NONCE_BYTES,
        }
    }

    /// Behind it.
    pub(super) const fn trailer_bytes(self) -> usize {
        match self {
            Self::Tls13 => 1 + TAG_BYTES,
            Self::Tls12 => TAG_BYTES,
        }
    }
}

/// An AEAD key with its counter, for one direction.
pub(super) struct RecordKey {
    pub(super) aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    pub(super) sequence: u64,
    pub(super) form: Form,
}

impl RecordKey {
    pub(super) fn new(
        form: Form,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<Self, TlsError> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(internal("an AEAD that was never offered")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| internal("the length of a key"))?;
        let iv = <[u8; NONCE_LEN]>::try_from(iv.as_ref()).map_err(|_| internal("the length of a nonce"))?;
        Ok(Self { aead: LessSafeKey::new(key), iv, sequence, form })
    }

    /// The number of the next record. Each value is given out once.
    pub(super) fn next_sequence(&mut self) -> Result<u64, TlsError> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or_else(|| internal("the record counter"))?;
        Ok(sequence)
    }

    /// RFC 8446 section 5.3: the counter, padded to the left, xor the static IV. TLS 1.2 leaves the explicit part to the
    /// sender; made in the same way it goes on where rustls stopped, and no value comes twice.
    pub(super) fn nonce(&self, sequence: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, count) in nonce.iter_mut().skip(SALT_BYTES).zip(sequence.to_be_bytes()) {
            *byte ^= count;
        }
        nonce
    }

    /// The nonce of a received record of TLS 1.2.
    pub(super) fn nonce_with(&self, explicit: [u8; EXPLICIT_NONCE_BYTES]) -> Nonce {
        let mut nonce = self.iv;
        nonce.iter_mut().skip(SALT_BYTES).zip(explicit).for_each(|(byte, sent)| *byte = sent);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What the sender of a nonce sends of it.
pub(super) fn explicit_part(nonce: [u8; NONCE_LEN]) -> [u8; EXPLICIT_NONCE_BYTES] {
    let [_, _, _, _, explicit @ ..] = nonce;
    explicit
}

/// What TLS 1.2 authenticates beside the plaintext: the number of the record, and its header with the length of the
/// plaintext (RFC 5246 section 6.2.3.3).
pub(super) fn tls12_associated_data(
    sequence: u64,
    header: [u8; HEADER_BYTES],
    plaintext: usize,
) -> Result<[u8; 8 + HEADER_BYTES], TlsError> {
    let length = u16::try_from(plaintext).map_err(|_| internal("the length of a record"))?;
    let [content, major, minor, ..] = header;
    let [high, low] = length.to_be_bytes();
    let parts = sequence.to_be_bytes().into_iter().chain([content, major, minor, high, low]);
    let mut data = [0; 8 + HEADER_BYTES];
    data.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn associated_data_of_tls12_is_the_number_and_the_header_with_the_length_of_the_plaintext() {
        let made = tls12_associated_data(0x0102, [23, 3, 3, 0xff, 0xff], 0x0304).unwrap();
        assert_eq!(made, [0, 0, 0, 0, 0, 0, 1, 2, 23, 3, 3, 3, 4]);
        assert!(tls12_associated_data(0, [23, 3, 3, 0, 0], 1 << 16).is_err());
    }
}
