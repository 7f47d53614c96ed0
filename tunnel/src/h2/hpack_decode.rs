//! HPACK decoding (RFC 7541 sections 3 and 6).
//!
//! Bounds: a block decodes in time linear in its length (a reference hands out a borrowed entry, it copies nothing), the
//! table never exceeds what we announced, and how much of the fields is kept is the sink's decision. Decoding goes on
//! when the sink has seen enough, because the table must stay in step with the peer's.

use super::hpack_table::DynamicTable;
use super::hpack_tables::{STATIC_TABLE, huffman_decode};

/// Octets of an integer after its prefix; enough for 32 bits (RFC 7541 section 5.1).
const INTEGER_OCTETS_MAX: usize = 5;
/// Table size updates at the start of a block: the smallest and the last suffice (RFC 7541 section 4.2).
const SIZE_UPDATES_MAX: usize = 2;

/// Receives decoded fields in order.
pub(super) trait FieldSink {
    fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool);
}

/// The block is not HPACK; the connection cannot go on (RFC 9113 section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Decoder of one direction of a connection.
#[derive(Debug)]
pub(super) struct Decoder {
    table: DynamicTable,
    /// The bound we announced.
    size_limit: usize,
    /// The bound was lowered: the next block must start by saying so (RFC 7541 section 4.2).
    update_due: bool,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Scratch space kept between blocks; more is freed, so that one large block does not stay with an idle connection.
const SCRATCH_KEPT: usize = 512;

impl Decoder {
    pub(super) fn new(size_limit: usize) -> Self {
        Self {
            table: DynamicTable::new(size_limit),
            size_limit,
            update_due: false,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Lowers or raises the bound, once the peer has acknowledged it.
    pub(super) fn set_size_limit(&mut self, size_limit: usize) {
        self.size_limit = size_limit;
        self.update_due = self.table.size_max() > size_limit;
    }

    /// Decodes one complete block.
    pub(super) fn decode(&mut self, block: &[u8], sink: &mut impl FieldSink) -> Result<(), Malformed> {
        let mut rest = self.size_updates(block)?;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                // Indexed field (section 6.1).
                let index = integer(&mut rest, 7)?;
                let (name, value) = lookup(&self.table, index)?;
                sink.field(name, value, false);
            } else if first & 0x40 != 0 {
                self.literal(&mut rest, 6, sink)?;
            } else if first & 0x20 != 0 {
                // A size update after a field (section 4.2).
                return Err(Malformed);
            } else {
                self.literal(&mut rest, 4, sink)?;
            }
        }
        if self.value.capacity() > SCRATCH_KEPT || self.name.capacity() > SCRATCH_KEPT {
            self.value = Vec::new();
            self.name = Vec::new();
        }
        Ok(())
    }

    /// Reads the dynamic table size updates at the start of a block (section 6.3).
    fn size_updates<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let mut rest = block;
        let mut updates = 0;
        while rest.first().is_some_and(|first| first & 0xe0 == 0x20) {
            let size = integer(&mut rest, 5)? as usize;
            updates += 1;
            if size > self.size_limit || updates > SIZE_UPDATES_MAX {
                return Err(Malformed);
            }
            self.table.set_size_max(size);
            self.update_due = false;
        }
        if self.update_due { Err(Malformed) } else { Ok(rest) }
    }

    /// A literal field: with indexing for a prefix of 6 bits, without or never for 4 (section 6.2).
    fn literal(&mut self, rest: &mut &[u8], prefix: u32, sink: &mut impl FieldSink) -> Result<(), Malformed> {
        let sensitive = prefix == 4 && rest.first().is_some_and(|first| first & 0x10 != 0);
        let index = integer(rest, prefix)?;
        let Self { table, name: name_scratch, value: value_scratch, .. } = self;
        if prefix == 4 {
            let name = match index {
                0 => string(rest, name_scratch)?,
                _ => lookup(table, index)?.0,
            };
            sink.field(name, string(rest, value_scratch)?, sensitive);
            return Ok(());
        }
        // The name may lie in an entry that the insertion evicts, so it is copied first (section 4.4).
        let name = if index == 0 {
            string(rest, name_scratch)?
        } else {
            let (name, _) = lookup(table, index)?;
            name_scratch.clear();
            name_scratch.extend_from_slice(name);
            name_scratch
        };
        let value = string(rest, value_scratch)?;
        table.insert(name, value, 0, 0);
        sink.field(name, value, false);
        Ok(())
    }
}

/// Entry by index: the static table, then the dynamic one (section 2.3.3).
#[inline]
fn lookup(table: &DynamicTable, index: u32) -> Result<(&[u8], &[u8]), Malformed> {
    let index = (index as usize).checked_sub(1).ok_or(Malformed)?;
    match STATIC_TABLE.get(index) {
        Some(&(name, value)) => Ok((name, value)),
        None => table.get(index - STATIC_TABLE.len()).ok_or(Malformed),
    }
}

/// An integer with a prefix of that many bits (section 5.1).
#[inline]
fn integer(input: &mut &[u8], prefix: u32) -> Result<u32, Malformed> {
    let (&first, mut rest) = input.split_first().ok_or(Malformed)?;
    let mask = (1_u32 << prefix) - 1;
    let mut value = u64::from(u32::from(first) & mask);
    if value == u64::from(mask) {
        let mut shift = 0;
        loop {
            let (&octet, tail) = rest.split_first().ok_or(Malformed)?;
            rest = tail;
            value += u64::from(octet & 0x7f) << shift;
            shift += 7;
            if octet & 0x80 == 0 {
                break;
            }
            if shift >= 7 * INTEGER_OCTETS_MAX {
                return Err(Malformed);
            }
        }
    }
    *input = rest;
    u32::try_from(value).map_err(|_| Malformed)
}

/// A string, borrowed from the block or decoded into the scratch buffer (section 5.2).
#[inline]
fn string<'a, 'b: 'a>(input: &mut &'b [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Malformed> {
    let is_huffman = input.first().is_some_and(|first| first & 0x80 != 0);
    let len = integer(input, 7)? as usize;
    let (text, rest) = input.split_at_checked(len).ok_or(Malformed)?;
    *input = rest;
    if !is_huffman {
        return Ok(text);
    }
    scratch.clear();
    huffman_decode(text, scratch).ok_or(Malformed)?;
    Ok(scratch)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[derive(Default)]
    pub(crate) struct Fields(pub(crate) Vec<(String, String, bool)>);

    impl FieldSink for Fields {
        fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            self.0.push((text(name), text(value), sensitive));
        }
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String, bool)>, Malformed> {
        let mut fields = Fields::default();
        decoder.decode(block, &mut fields).map(|()| fields.0)
    }

    fn names_and_values(fields: &[(String, String, bool)]) -> Vec<(&str, &str)> {
        fields.iter().map(|(name, value, _)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn decodes_the_requests_of_rfc_7541_appendix_c_4() {
        let mut decoder = Decoder::new(4096);
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let base =
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        assert_eq!(names_and_values(&decode(&mut decoder, first).unwrap()), base);
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        let fields = decode(&mut decoder, second).unwrap();
        assert_eq!(names_and_values(&fields)[3..], [base[3], ("cache-control", "no-cache")]);
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let fields = decode(&mut decoder, third).unwrap();
        assert_eq!(
            names_and_values(&fields)[1..],
            [(":scheme", "https"), (":path", "/index.html"), base[3], ("custom-key", "custom-value")]
        );
    }

    #[test]
    fn refuses_what_is_not_hpack() {
        for (block, why) in [
            (b"\x80".as_slice(), "index 0"),
            (b"\xbe", "empty dynamic table"),
            (b"\x3f\xe2\x1f", "table larger than announced"),
            (b"\x82\x20", "size update after a field"),
            (b"\x20\x20\x20", "a storm of size updates"),
            (b"\xff\xff\xff\xff\xff\xff\x00", "integer of more than 32 bits"),
            (b"\xff\x80\x80\x80\x80\x80\x00", "integer of needless octets"),
            (b"\x00\x05abc", "string longer than the block"),
            (b"\x00\x01a", "value missing"),
            (b"\x00\x81\x00\x00", "Huffman padding of zeroes"),
        ] {
            assert_eq!(decode(&mut Decoder::new(4096), block), Err(Malformed), "{why}");
        }
    }

    #[test]
    fn lowered_table_size_must_be_acknowledged_by_the_next_block() {
        let mut decoder = Decoder::new(4096);
        decoder.set_size_limit(100);
        assert_eq!(decode(&mut decoder, b"\x82"), Err(Malformed));
        assert!(decode(&mut decoder, b"\x3f\x45\x82").is_ok());
        assert!(decode(&mut decoder, b"\x82").is_ok());
    }

    #[test]
    fn never_indexed_literals_are_marked() {
        let fields = decode(&mut Decoder::new(4096), b"\x10\x01a\x01b\x00\x01a\x01b").unwrap();
        assert_eq!(fields.iter().map(|field| field.2).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn fuzz_decoder_stands_any_sequence_of_blocks() {
        bolero::check!().with_type::<Vec<Vec<u8>>>().for_each(|blocks| {
            let mut decoder = Decoder::new(256);
            for block in blocks {
                if decode(&mut decoder, block).is_err() {
                    break;
                }
            }
        });
    }
}
