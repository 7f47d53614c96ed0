//! HPACK encoding (RFC 7541 sections 3 and 6).
//!
//! What enters the dynamic table: a field whose name no table knows (so that later values can refer to the name), and a
//! field that was seen a short while ago. What changes with each request (a trace id, a client's port) therefore never
//! pushes out what repeats (baggage, authority). Credentials never enter, because clients that do not trust each other
//! may share the connection (RFC 7541 section 7.1).

use super::headers::{Field, Headers, Pseudo};
use super::hpack_table::DynamicTable;
use super::hpack_tables::{STATIC_TABLE, huffman_encode, huffman_len, static_index, static_name_index};

/// Remembered hashes of fields; a power of two.
const RECENT: usize = 64;
const _: () = assert!(RECENT.is_power_of_two());

/// Encoder of one direction of a connection.
#[derive(Debug)]
pub(super) struct Encoder {
    table: DynamicTable,
    /// The most we want to use, whatever the peer allows.
    size_wanted: usize,
    /// Smallest bound since the last block, to be announced first if it is below the current one
    /// (RFC 7541 section 4.2).
    smallest_pending: Option<usize>,
    /// Hashes of fields seen lately; allocated with the first literal.
    recent: Option<Box<[u32; RECENT]>>,
}

impl Encoder {
    pub(super) fn new(size_wanted: usize, size_initial: usize) -> Self {
        let mut encoder = Self {
            table: DynamicTable::new(size_initial),
            size_wanted,
            smallest_pending: None,
            recent: None,
        };
        encoder.set_size_limit(size_initial);
        encoder
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub(super) fn set_size_limit(&mut self, limit: usize) {
        let size = limit.min(self.size_wanted);
        if size != self.table.size_max() {
            self.smallest_pending = Some(self.smallest_pending.map_or(size, |smallest| smallest.min(size)));
            self.table.set_size_max(size);
        }
    }

    /// Appends one complete block.
    pub(super) fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        if let Some(smallest) = self.smallest_pending.take() {
            if smallest < self.table.size_max() {
                put_integer(out, 0x20, 5, smallest);
            }
            put_integer(out, 0x20, 5, self.table.size_max());
        }
        if let Some(status) = headers.status() {
            self.status(status, out);
        }
        for (which, name) in [
            (Pseudo::Method, b":method".as_slice()),
            (Pseudo::Scheme, b":scheme"),
            (Pseudo::Authority, b":authority"),
            (Pseudo::Path, b":path"),
            (Pseudo::Protocol, b":protocol"),
        ] {
            if let Some(value) = headers.pseudo(which) {
                self.field(Field { name, value, sensitive: false }, out);
            }
        }
        for field in headers.fields() {
            self.field(field, out);
        }
    }

    fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let digit = |divisor: u16| b'0' + u8::try_from(status / divisor % 10).unwrap_or(0);
        let value = [digit(100), digit(10), digit(1)];
        self.field(Field { name: b":status", value: &value, sensitive: false }, out);
    }

    fn field(&mut self, field: Field<'_>, out: &mut Vec<u8>) {
        let Field { name, value, .. } = field;
        if let Some(index) = static_index(name, value) {
            put_integer(out, 0x80, 7, index);
            return;
        }
        let sensitive = field.sensitive || is_credential(name);
        let name_hash = hash(name, 0);
        let hash = hash(value, name_hash);
        if !sensitive && let Some(age) = self.table.find(hash, name, value) {
            put_integer(out, 0x80, 7, STATIC_TABLE.len() + 1 + age);
            return;
        }
        let name_index = static_name_index(name)
            .or_else(|| self.table.find_name(name_hash, name).map(|age| STATIC_TABLE.len() + 1 + age));
        if sensitive {
            put_integer(out, 0x10, 4, name_index.unwrap_or(0));
        } else if self.is_worth_indexing(name, value, hash, name_index.is_none()) {
            put_integer(out, 0x40, 6, name_index.unwrap_or(0));
            self.table.insert(name, value, name_hash, hash);
        } else {
            put_integer(out, 0, 4, name_index.unwrap_or(0));
        }
        if name_index.is_none() {
            put_string(out, name);
        }
        put_string(out, value);
    }

    fn is_worth_indexing(&mut self, name: &[u8], value: &[u8], hash: u32, name_is_new: bool) -> bool {
        // A large entry would push out too many others.
        if name.len() + value.len() + 32 > self.table.size_max() / 4 {
            return false;
        }
        let recent = self.recent.get_or_insert_with(|| Box::new([0; RECENT]));
        let Some(slot) = recent.get_mut(hash as usize % RECENT) else { return false };
        let seen = std::mem::replace(slot, hash) == hash;
        seen || name_is_new
    }
}

fn is_credential(name: &[u8]) -> bool {
    matches!(name, b"authorization" | b"proxy-authorization" | b"cookie" | b"set-cookie")
}

/// Hash for look-ups in our own table. Collisions cost a comparison, never correctness.
fn hash(bytes: &[u8], seed: u32) -> u32 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = u64::from(seed) ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state = (state.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(MULTIPLIER);
    }
    let mut last = [0; 8];
    for (slot, byte) in last.iter_mut().zip(tail) {
        *slot = *byte;
    }
    state = (state.rotate_left(23) ^ u64::from_le_bytes(last)).wrapping_mul(MULTIPLIER);
    #[allow(clippy::cast_possible_truncation)] // the upper half is the better mixed one
    let hash = (state >> 32) as u32;
    hash
}

/// An integer with a prefix of that many bits (RFC 7541 section 5.1).
fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    let octet = |value: usize| u8::try_from(value & 0xff).unwrap_or(0);
    if value < mask {
        out.push(pattern | octet(value));
        return;
    }
    out.push(pattern | octet(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(octet(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(octet(rest));
}

/// A string, Huffman-coded if that is shorter (RFC 7541 section 5.2).
fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let encoded_len = huffman_len(text);
    if encoded_len < text.len() {
        put_integer(out, 0x80, 7, encoded_len);
        huffman_encode(text, out);
    } else {
        put_integer(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::hpack_decode::Decoder;
    use super::super::hpack_decode::tests::Fields;
    use super::*;

    fn tunnel_request(port: u32) -> Headers {
        let mut headers = Headers::connect("10.244.1.7:8080").unwrap();
        headers
            .push("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web")
            .unwrap();
        headers.push("forwarded", format!("for=\"10.244.0.3:{port}\"")).unwrap();
        headers.push("traceparent", format!("00-{port:032x}-{port:016x}-00")).unwrap();
        headers
    }

    #[test]
    fn repeated_tunnel_headers_become_references() {
        let mut encoder = Encoder::new(4096, 4096);
        let mut decoder = Decoder::new(4096);
        let mut sizes = Vec::new();
        for port in 40_000..40_100 {
            let mut block = Vec::new();
            encoder.encode(&tunnel_request(port), &mut block);
            let mut fields = Fields::default();
            decoder.decode(&block, &mut fields).unwrap();
            assert_eq!(fields.0[1].1, "10.244.1.7:8080");
            assert_eq!(fields.0[4].1, format!("00-{port:032x}-{port:016x}-00"));
            sizes.push(block.len());
        }
        // Method, authority and baggage take three octets; what differs each time takes the rest.
        assert!(sizes[0] > 120 && sizes[3..].iter().all(|&size| size < 70), "{sizes:?}");
    }

    #[test]
    fn credentials_never_enter_the_table() {
        let mut encoder = Encoder::new(4096, 4096);
        let mut headers = Headers::request("GET", "https", "shop", "/").unwrap();
        headers.push("cookie", "session=1").unwrap();
        headers.push_sensitive("x-token", "secret").unwrap();
        let mut decoder = Decoder::new(4096);
        for _ in 0..4 {
            let mut block = Vec::new();
            encoder.encode(&headers, &mut block);
            let mut fields = Fields::default();
            decoder.decode(&block, &mut fields).unwrap();
            assert!(fields.0[4].2 && fields.0[5].2);
        }
        assert_eq!(encoder.table.find_name(hash(b"cookie", 0), b"cookie"), None);
        assert_eq!(encoder.table.find_name(hash(b"x-token", 0), b"x-token"), None);
    }

    #[test]
    fn changed_table_sizes_are_announced_smallest_first() {
        let mut encoder = Encoder::new(4096, 4096);
        encoder.set_size_limit(0);
        encoder.set_size_limit(100);
        let mut block = Vec::new();
        encoder.encode(&Headers::response(200).unwrap(), &mut block);
        assert_eq!(block, b"\x20\x3f\x45\x88");
        block.clear();
        encoder.encode(&Headers::response(200).unwrap(), &mut block);
        assert_eq!(block, b"\x88");
    }

    #[test]
    fn fuzz_what_is_encoded_is_decoded_the_same() {
        // Few letters, so that names and values repeat.
        let letters = |seed: &[u8]| -> Vec<u8> { seed.iter().map(|byte| b'a' + byte % 4).collect() };
        type Block = Vec<(Vec<u8>, Vec<u8>, bool)>;
        bolero::check!().with_type::<(u16, Vec<Block>)>().for_each(|(size, blocks)| {
            let mut encoder = Encoder::new(usize::from(*size), 4096);
            let mut decoder = Decoder::new(4096);
            for fields in blocks {
                let mut headers = Headers::connect("a:1").unwrap();
                for (name, value, sensitive) in fields {
                    let name = letters(&[name.as_slice(), &[0]].concat());
                    headers
                        .push_field(Field { name: &name, value: &letters(value), sensitive: *sensitive })
                        .unwrap();
                }
                let mut block = Vec::new();
                encoder.encode(&headers, &mut block);
                let mut decoded = Fields::default();
                decoder.decode(&block, &mut decoded).unwrap();
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let expected: Vec<_> =
                    headers.fields().map(|field| (text(field.name), text(field.value))).collect();
                let got: Vec<_> =
                    decoded.0.into_iter().skip(2).map(|(name, value, _)| (name, value)).collect();
                assert_eq!(got, expected);
            }
        });
    }
}
