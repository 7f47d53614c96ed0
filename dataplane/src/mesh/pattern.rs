//! Bytes that both ends of a transfer can make for themselves: any loss, repetition or swap changes their checksum.

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

/// Bytes made at a time.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Yields the first `length` bytes of the sequence of `seed` in chunks.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    remaining: u64,
}

impl Pattern {
    pub fn new(seed: u64, length: u64) -> Self {
        Self { state: seed, remaining: length }
    }

    /// SHA-256 of all that is still to come, in hexadecimal.
    pub fn checksum(self) -> String {
        let mut hasher = Sha256::new();
        for chunk in self {
            hasher.update(&chunk);
        }
        hexadecimal(&hasher.finalize())
    }

    /// splitmix64: every eight bytes differ from every others of the sequence.
    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.remaining == 0 {
            return None;
        }
        let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = BytesMut::with_capacity(length + size_of::<u64>());
        while chunk.len() < length {
            chunk.extend_from_slice(&self.next_word().to_le_bytes());
        }
        chunk.truncate(length);
        self.remaining -= length as u64;
        Some(chunk.freeze())
    }
}

/// Lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_its_length_and_depends_on_its_seed() {
        for length in [0, 1, 8, 9, CHUNK_BYTES as u64, CHUNK_BYTES as u64 + 3] {
            assert_eq!(Pattern::new(1, length).map(|c| c.len() as u64).sum::<u64>(), length);
        }
        assert_ne!(Pattern::new(1, 100).checksum(), Pattern::new(2, 100).checksum());
        assert_eq!(Pattern::new(1, 100_000).checksum(), Pattern::new(1, 100_000).checksum());
    }

    #[test]
    fn checksums_are_written_in_hexadecimal() {
        // FIPS 180-4, empty message.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Pattern::new(1, 0).checksum(), empty);
    }
}
