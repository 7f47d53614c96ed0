//! `x-request-id`: kept where a request has one, made at the first proxy that reads it, in Envoy's form.

use arrayvec::ArrayString;

/// Characters of a UUID.
const LENGTH: usize = 36;
/// Digits after which a hyphen stands.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

/// A random UUID (RFC 9562 section 5.4) of two random numbers.
pub fn random(high: u64, low: u64) -> ArrayString<LENGTH> {
    // Version 4, and the variant of the RFC.
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | (0b10 << 62);
    let mut text = ArrayString::new();
    // Made for most requests, hence without the formatter. It has exactly the room that a UUID takes.
    for (index, byte) in high.to_be_bytes().into_iter().chain(low.to_be_bytes()).enumerate() {
        if HYPHENS.contains(&index) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_uuids_of_version_4() {
        assert_eq!(&*random(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(&*random(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            &*random(0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef),
            "01234567-89ab-4def-8123-456789abcdef"
        );
    }
}
