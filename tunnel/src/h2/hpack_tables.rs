//! HPACK's fixed tables (RFC 7541 appendices A and B) and the Huffman code in both directions.
//!
//! The Huffman code is canonical: symbols sorted by code length, then by value, have consecutive codes. So the lengths
//! alone define it, and all tables are computed from them at compile time.

/// Entry of the static table: name and value.
pub(super) type StaticEntry = (&'static [u8], &'static [u8]);

/// The static table (RFC 7541 appendix A); index 1 is the first entry.
pub(super) const STATIC_TABLE: [StaticEntry; 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// Index of the first entry of the static table with that name.
pub(super) fn static_name_index(name: &[u8]) -> Option<usize> {
    Some(match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    })
}

/// Index of the static entry with that name and value; only few entries have a value.
pub(super) fn static_index(name: &[u8], value: &[u8]) -> Option<usize> {
    Some(match (name, value) {
        (b":method", b"GET") => 2,
        (b":method", b"POST") => 3,
        (b":path", b"/") => 4,
        (b":path", b"/index.html") => 5,
        (b":scheme", b"http") => 6,
        (b":scheme", b"https") => 7,
        (b":status", b"200") => 8,
        (b":status", b"204") => 9,
        (b":status", b"206") => 10,
        (b":status", b"304") => 11,
        (b":status", b"400") => 12,
        (b":status", b"404") => 13,
        (b":status", b"500") => 14,
        (b"accept-encoding", b"gzip, deflate") => 16,
        _ => return None,
    })
}

/// Symbols of the Huffman code: the octets and EOS.
const SYMBOLS: usize = 257;
/// The symbol that must not occur in a string (RFC 7541 section 5.2).
const EOS: u16 = 256;
/// Longest code.
const CODE_BITS_MAX: usize = 30;
/// Codes up to this length are decoded with one look-up.
const FAST_BITS: u32 = 10;

/// Code length of each symbol (RFC 7541 appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// What the canonical order gives: codes by symbol, and for decoding by length.
struct Canonical {
    codes: [u32; SYMBOLS],
    /// Symbols by length, then by value.
    sorted: [u16; SYMBOLS],
    /// First code of each length.
    first_code: [u32; CODE_BITS_MAX + 1],
    /// Where each length starts in `sorted`.
    offset: [u16; CODE_BITS_MAX + 1],
    /// Codes of each length.
    count: [u16; CODE_BITS_MAX + 1],
}

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // evaluated at compile time
const fn canonical() -> Canonical {
    let mut table = Canonical {
        codes: [0; SYMBOLS],
        sorted: [0; SYMBOLS],
        first_code: [0; CODE_BITS_MAX + 1],
        offset: [0; CODE_BITS_MAX + 1],
        count: [0; CODE_BITS_MAX + 1],
    };
    let mut code = 0_u32;
    let mut position = 0;
    let mut length = 1;
    while length <= CODE_BITS_MAX {
        code <<= 1;
        table.first_code[length] = code;
        table.offset[length] = position as u16;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                table.codes[symbol] = code;
                table.sorted[position] = symbol as u16;
                table.count[length] += 1;
                code += 1;
                position += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    // The code is complete: every bit string starts with some code.
    assert!(code == 1 << CODE_BITS_MAX && position == SYMBOLS);
    table
}

static CANONICAL: Canonical = canonical();

/// For each string of `FAST_BITS` bits: symbol << 4 | length of the code it starts with; 0 if that is longer.
#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // evaluated at compile time
static FAST: [u16; 1 << FAST_BITS] = {
    let table = canonical();
    let mut fast = [0; 1 << FAST_BITS];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        let length = LENGTHS[symbol] as u32;
        if length <= FAST_BITS {
            let first = table.codes[symbol] << (FAST_BITS - length);
            let mut index = first;
            while index < first + (1 << (FAST_BITS - length)) {
                fast[index as usize] = ((symbol as u16) << 4) | length as u16;
                index += 1;
            }
        }
        symbol += 1;
    }
    fast
};

/// Length of the encoded string in octets.
pub(super) fn huffman_len(text: &[u8]) -> usize {
    let bits: usize = text
        .iter()
        .map(|&byte| LENGTHS.get(usize::from(byte)).map_or(0, |&length| usize::from(length)))
        .sum();
    bits.div_ceil(8)
}

/// Appends the encoded string, padded with ones (RFC 7541 section 5.2).
pub(super) fn huffman_encode(text: &[u8], out: &mut Vec<u8>) {
    let mut accumulator = 0_u64;
    let mut bits = 0_u32;
    for &byte in text {
        let symbol = usize::from(byte);
        let (Some(&code), Some(&length)) = (CANONICAL.codes.get(symbol), LENGTHS.get(symbol)) else { return };
        accumulator = (accumulator << length) | u64::from(code);
        bits += u32::from(length);
        // At most 31 + 30 bits are ever held.
        if bits >= 32 {
            bits -= 32;
            #[allow(clippy::cast_possible_truncation)] // the lower 32 bits after the shift are what is meant
            out.extend_from_slice(&((accumulator >> bits) as u32).to_be_bytes());
        }
    }
    let padding = (8 - bits % 8) % 8;
    accumulator = (accumulator << padding) | ((1 << padding) - 1);
    bits += padding;
    while bits > 0 {
        bits -= 8;
        #[allow(clippy::cast_possible_truncation)] // one octet is what is meant
        out.push((accumulator >> bits) as u8);
    }
}

/// Appends the decoded string. `None` for EOS in the string or padding that is not up to seven ones
/// (RFC 7541 section 5.2).
pub(super) fn huffman_decode(encoded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.reserve(encoded.len() * 8 / 5);
    let mut input = encoded.iter();
    let mut accumulator = 0_u64;
    let mut bits = 0_u32;
    loop {
        while bits <= 56 {
            let Some(&byte) = input.next() else { break };
            accumulator |= u64::from(byte) << (56 - bits);
            bits += 8;
        }
        let entry = *FAST.get((accumulator >> (64 - FAST_BITS)) as usize)?;
        let (symbol, length) =
            if entry == 0 { long_code(accumulator)? } else { (entry >> 4, u32::from(entry & 15)) };
        if length > bits {
            // Only padding can be left: fewer than eight ones.
            let padding = (1_u64 << bits) - 1;
            let complete = bits < 8 && (bits == 0 || accumulator >> (64 - bits) == padding);
            return complete.then_some(());
        }
        if symbol == EOS {
            return None;
        }
        #[allow(clippy::cast_possible_truncation)] // every symbol but EOS is an octet
        out.push(symbol as u8);
        accumulator <<= length;
        bits -= length;
    }
}

/// Symbol and length of a code longer than `FAST_BITS` at the top of the accumulator.
#[cold]
fn long_code(accumulator: u64) -> Option<(u16, u32)> {
    for length in FAST_BITS + 1..=30 {
        let index = length as usize;
        #[allow(clippy::cast_possible_truncation)] // at most 30 bits remain after the shift
        let code = (accumulator >> (64 - length)) as u32;
        let rank = code.checked_sub(*CANONICAL.first_code.get(index)?)?;
        if rank < u32::from(*CANONICAL.count.get(index)?) {
            let position = usize::from(*CANONICAL.offset.get(index)?) + rank as usize;
            return CANONICAL.sorted.get(position).map(|&symbol| (symbol, length));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        huffman_encode(text, &mut out);
        assert_eq!(out.len(), huffman_len(text));
        out
    }

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        huffman_decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn encodes_the_examples_of_rfc_7541_appendix_c() {
        assert_eq!(encoded(b"www.example.com"), b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff");
        assert_eq!(encoded(b"no-cache"), b"\xa8\xeb\x10\x64\x9c\xbf");
        assert_eq!(encoded(b"302"), b"\x64\x02");
    }

    #[test]
    fn every_octet_survives_a_round_trip_alone_and_repeated() {
        for byte in 0..=255_u8 {
            for count in 1..9 {
                let text = vec![byte; count];
                assert_eq!(decoded(&encoded(&text)), Some(text), "octet {byte}");
            }
        }
    }

    #[test]
    fn wrong_padding_and_eos_are_refused() {
        assert_eq!(decoded(b""), Some(vec![]));
        assert_eq!(decoded(b"\x64\x02\xff"), None, "eight bits of padding");
        assert_eq!(decoded(b"\x00\x00\x00"), None, "four zeroes of padding after four symbols");
        assert_eq!(decoded(b"\xff\xff\xff\xff"), None, "EOS");
        assert_eq!(decoded(b"\xff\xff\xff\xfc"), None, "EOS and padding");
    }

    #[test]
    fn static_indexes_agree_with_the_table() {
        for (position, (name, value)) in STATIC_TABLE.iter().enumerate() {
            let first = static_name_index(name).unwrap();
            assert!(first <= position + 1 && STATIC_TABLE[first - 1].0 == *name);
            if !value.is_empty() {
                assert_eq!(static_index(name, value), Some(position + 1));
            }
        }
        assert_eq!(static_name_index(b"baggage"), None);
    }

    #[test]
    fn fuzz_huffman_decoding_never_fails_on_what_was_encoded() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|text| {
            assert_eq!(decoded(&encoded(text)).as_ref(), Some(text));
            if let Some(plain) = decoded(text) {
                assert_eq!(&encoded(&plain), text, "the code is a bijection on what it accepts");
            }
        });
    }
}
