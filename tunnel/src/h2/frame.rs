//! The frame layer (RFC 9113 sections 4 and 6): headers of frames, their types and flags, the small frames we write.

use super::error::ErrorCode;

/// Length of a frame header.
pub(super) const HEADER_LEN: usize = 9;
/// What a client sends first (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Identifier of a stream: odd, counted up by the client. Never reused within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The largest identifier.
    pub(super) const MAX: u32 = (1 << 31) - 1;
}

/// Where frames are written: a buffer, or the builder of a TLS record, so that frames of many streams share a record.
pub trait FrameSink {
    /// Appends bytes. A frame may arrive in several calls, in order, within one call into the engine.
    fn put(&mut self, bytes: &[u8]);

    /// Appends a DATA frame's header and payload.
    #[inline]
    fn put_data(&mut self, header: &[u8; HEADER_LEN], payload: &[u8]) {
        self.put(header);
        self.put(payload);
    }
}

impl FrameSink for Vec<u8> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline]
    fn put_data(&mut self, header: &[u8; HEADER_LEN], payload: &[u8]) {
        self.reserve(HEADER_LEN + payload.len());
        self.extend_from_slice(header);
        self.extend_from_slice(payload);
    }
}

/// Frame types (RFC 9113 section 6).
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0x0;
    pub(crate) const HEADERS: u8 = 0x1;
    pub(crate) const PRIORITY: u8 = 0x2;
    pub(crate) const RST_STREAM: u8 = 0x3;
    pub(crate) const SETTINGS: u8 = 0x4;
    pub(crate) const PUSH_PROMISE: u8 = 0x5;
    pub(crate) const PING: u8 = 0x6;
    pub(crate) const GOAWAY: u8 = 0x7;
    pub(crate) const WINDOW_UPDATE: u8 = 0x8;
    pub(crate) const CONTINUATION: u8 = 0x9;
}

/// Frame flags (RFC 9113 section 6). ACK and END_STREAM share a bit on different types.
pub(super) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (RFC 9113 section 6.5.2, RFC 8441 section 3).
pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 0x1;
    pub(crate) const ENABLE_PUSH: u16 = 0x2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 0x5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;
}

/// A parsed frame header (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the payload; 24 bits.
    pub(super) len: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 31 bits; the reserved bit is ignored.
    pub(super) stream: u32,
}

impl FrameHeader {
    #[inline]
    pub(super) fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [len_high, len_middle, len_low, kind, flags, stream @ ..] = bytes;
        Self {
            len: u32::from_be_bytes([0, len_high, len_middle, len_low]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & StreamId::MAX,
        }
    }

    #[inline]
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [_, len_high, len_middle, len_low] = self.len.to_be_bytes();
        let [first, second, third, fourth] = self.stream.to_be_bytes();
        [len_high, len_middle, len_low, self.kind, self.flags, first, second, third, fourth]
    }

    #[inline]
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame of at most 55 octets of payload with one call to the sink.
fn put_small(out: &mut impl FrameSink, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let mut frame = [0_u8; 64];
    let len = HEADER_LEN + payload.len();
    let header =
        FrameHeader { len: u32::try_from(payload.len()).unwrap_or(0), kind, flags, stream }.to_bytes();
    debug_assert!(len <= frame.len());
    if let Some((head, tail)) = frame.split_first_chunk_mut::<HEADER_LEN>() {
        *head = header;
        if let Some(body) = tail.get_mut(..payload.len()) {
            body.copy_from_slice(payload);
        }
    }
    out.put(frame.get(..len).unwrap_or_default());
}

pub(super) fn put_window_update(out: &mut impl FrameSink, stream: u32, increment: u32) {
    debug_assert!(increment > 0 && increment <= StreamId::MAX);
    put_small(out, kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

pub(super) fn put_reset(out: &mut impl FrameSink, stream: u32, code: ErrorCode) {
    put_small(out, kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
}

pub(super) fn put_ping(out: &mut impl FrameSink, payload: [u8; 8], flags: u8) {
    put_small(out, kind::PING, flags, 0, &payload);
}

pub(super) fn put_settings_ack(out: &mut impl FrameSink) {
    put_small(out, kind::SETTINGS, flag::ACK, 0, &[]);
}

pub(super) fn put_go_away(out: &mut impl FrameSink, last: u32, code: ErrorCode) {
    let payload = u64::from(last) << 32 | u64::from(code.0);
    put_small(out, kind::GOAWAY, 0, 0, &payload.to_be_bytes());
}

/// Writes SETTINGS; at most 9 settings fit.
pub(super) fn put_settings(out: &mut impl FrameSink, settings: &[(u16, u32)]) {
    let mut payload = [0_u8; 54];
    let mut len = 0;
    for (slot, (id, value)) in payload.chunks_exact_mut(6).zip(settings) {
        if let Some((first, rest)) = slot.split_first_chunk_mut::<2>() {
            *first = id.to_be_bytes();
            rest.copy_from_slice(&value.to_be_bytes());
        }
        len += 6;
    }
    debug_assert_eq!(len, settings.len() * 6);
    put_small(out, kind::SETTINGS, 0, 0, payload.get(..len).unwrap_or_default());
}

/// Writes a header block as HEADERS and as many CONTINUATION frames as the peer's frame size asks for.
pub(super) fn put_header_block(
    out: &mut impl FrameSink,
    stream: u32,
    block: &[u8],
    end_stream: bool,
    frame_size_max: usize,
) {
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    let mut rest = block;
    loop {
        let (part, tail) = rest.split_at(rest.len().min(frame_size_max));
        if tail.is_empty() {
            flags |= flag::END_HEADERS;
        }
        let header = FrameHeader { len: u32::try_from(part.len()).unwrap_or(0), kind, flags, stream };
        out.put_data(&header.to_bytes(), part);
        if tail.is_empty() {
            return;
        }
        rest = tail;
        kind = kind::CONTINUATION;
        flags = 0;
    }
}

/// Reads a big-endian u32 from the front of a payload.
#[inline]
pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|chunk| u32::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_header_survives_a_round_trip() {
        let header = FrameHeader { len: 0x00ab_cdef, kind: 9, flags: 0x2d, stream: 0x7fff_fffe };
        assert_eq!(FrameHeader::parse(header.to_bytes()), header);
    }

    #[test]
    fn reserved_bit_of_the_stream_id_is_ignored() {
        assert_eq!(FrameHeader::parse([0, 0, 0, 0, 0, 0x80, 0, 0, 1]).stream, 1);
    }

    #[test]
    fn header_block_is_split_at_the_frame_size() {
        let mut out = Vec::new();
        put_header_block(&mut out, 3, b"abcdefgh", true, 3);
        assert_eq!(
            out,
            b"\0\0\x03\x01\x01\0\0\0\x03abc\0\0\x03\x09\0\0\0\0\x03def\0\0\x02\x09\x04\0\0\0\x03gh"
        );
    }
}
