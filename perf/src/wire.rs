//! The protocol of load and backend: small enough to cost nothing, checked enough to notice a lost or wrong byte.
//!
//! A request starts with a head of 16 bytes (kind, sequence number, length of the request body, length of the
//! response body; each u32, little endian). The response is the sequence number followed by its body. Bodies are
//! a pattern of their position; the backend and the client both check what they receive.

pub(crate) const HEAD_BYTES: usize = 16;
pub(crate) const RESPONSE_HEAD_BYTES: usize = 4;

/// Longest body of one request or response.
pub(crate) const BODY_BYTES_MAX: u32 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) sequence: u32,
    pub(crate) request_body: u32,
    pub(crate) response_body: u32,
}

const MAGIC: u32 = 0x434f_5245;

impl RequestHead {
    pub(crate) fn encode(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        for (slot, word) in
            bytes.chunks_exact_mut(4).zip([MAGIC, self.sequence, self.request_body, self.response_body])
        {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// `None` if these bytes are no head of this protocol.
    pub(crate) fn decode(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes(chunk.try_into().ok()?);
        }
        let [magic, sequence, request_body, response_body] = words;
        let valid = magic == MAGIC && request_body <= BODY_BYTES_MAX && response_body <= BODY_BYTES_MAX;
        valid.then_some(Self { sequence, request_body, response_body })
    }
}

/// One period of the pattern, long enough that a shift or a repeated block shows.
const PERIOD: usize = 251;

/// Bodies are slices of this block; its length is a multiple of the period, so that it can be sent over and over.
pub(crate) const BLOCK_BYTES: usize = PERIOD * 1024;

/// The block that bodies are made of.
pub(crate) fn block() -> Vec<u8> {
    (0..BLOCK_BYTES).map(|at| pattern(at as u64)).collect()
}

fn pattern(position: u64) -> u8 {
    u8::try_from(position % PERIOD as u64).unwrap_or_default()
}

/// True if `bytes` are the body's bytes from `position` on.
pub(crate) fn is_pattern(block: &[u8], position: u64, bytes: &[u8]) -> bool {
    let offset = usize::try_from(position % PERIOD as u64).unwrap_or_default();
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let run = rest.len().min(block.len() - at);
        let (head, tail) = rest.split_at(run);
        if block.get(at..at + run) != Some(head) {
            return false;
        }
        rest = tail;
        at = 0;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_survive_the_wire() {
        let head = RequestHead { sequence: 7, request_body: 48, response_body: 1024 };
        assert_eq!(RequestHead::decode(head.encode()), Some(head));
        assert_eq!(RequestHead::decode([1; HEAD_BYTES]), None);
    }

    #[test]
    fn a_wrong_or_shifted_byte_shows() {
        let block = block();
        let long: Vec<u8> = block.iter().chain(&block).copied().collect();
        assert!(is_pattern(&block, 0, &long));
        assert!(is_pattern(&block, 251 * 5 + 3, &long[3..]));
        assert!(!is_pattern(&block, 1, &long));
        let mut wrong = long;
        wrong[BLOCK_BYTES + 1] ^= 1;
        assert!(!is_pattern(&block, 0, &wrong));
    }
}
