//! The file: what it is of, when it was written, the resources, and a digest of all that.
//!
//! All numbers are little endian. `magic | version u32 | written u64 (seconds since 1970) | scope | count u64 | records |
//! SHA-256 of everything before`. A text or a body is its length as u32 and its bytes; a record is the type as u8, the
//! name, the version, the body. Records are sorted by type and name, each once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::proto::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, MESH_WIDE_TYPE,
    REQUEST_AUTHENTICATION_TYPE, TELEMETRY_TYPE, TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE,
    WORKLOAD_LABELS_TYPE, WORKLOAD_TYPE,
};

const MAGIC: &[u8; 16] = b"corelane-state\n\0";
const VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;

/// The types that are kept; a type's place in it is its number in the file.
pub(super) const TYPES: [&str; 11] = [
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    HTTP_ROUTE_TYPE,
    AUTHORIZATION_POLICY_TYPE,
    WORKLOAD_TYPE,
    REQUEST_AUTHENTICATION_TYPE,
    WAYPOINT_POLICIES_TYPE,
    TRAFFIC_POLICY_TYPE,
    WORKLOAD_LABELS_TYPE,
    MESH_WIDE_TYPE,
    TELEMETRY_TYPE,
];

/// Why a file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it is no state of a node proxy")]
    Magic,
    #[error("it has format {0}, and this program reads {VERSION}")]
    Version(u32),
    #[error("its digest does not match: it was damaged or cut short")]
    Digest,
    #[error("it ends in the middle of a record")]
    Short,
    #[error("record {0} is not text where text must be, of an unknown type, or out of order")]
    Record(u64),
    #[error("a name or body of {0} bytes does not fit")]
    Long(usize),
}

/// The head of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) written: SystemTime,
    /// Control plane and node that the state is of.
    pub(super) scope: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) body: &'a [u8],
}

impl Record<'_> {
    pub(super) fn type_url(&self) -> &'static str {
        TYPES.get(usize::from(self.kind)).copied().unwrap_or_default()
    }

    pub(super) fn key(&self) -> (u8, &str) {
        (self.kind, self.name)
    }
}

/// Collects a file. Records must be given in order.
pub(super) struct Encoder {
    bytes: Vec<u8>,
    count_at: usize,
    count: u64,
}

impl Encoder {
    pub(super) fn new(head: &Head) -> Result<Self, FormatError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let seconds = head.written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        bytes.extend_from_slice(&seconds.to_le_bytes());
        put(&mut bytes, head.scope.as_bytes())?;
        let count_at = bytes.len();
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        Ok(Self { bytes, count_at, count: 0 })
    }

    pub(super) fn record(&mut self, record: Record<'_>) -> Result<(), FormatError> {
        self.bytes.push(record.kind);
        put(&mut self.bytes, record.name.as_bytes())?;
        put(&mut self.bytes, record.version.as_bytes())?;
        put(&mut self.bytes, record.body)?;
        self.count += 1;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(place) = self.bytes.get_mut(self.count_at..self.count_at + size_of::<u64>()) {
            place.copy_from_slice(&self.count.to_le_bytes());
        }
        let digest = Sha256::digest(&self.bytes);
        self.bytes.extend_from_slice(&digest);
        self.bytes
    }
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) -> Result<(), FormatError> {
    let length = u32::try_from(part.len()).map_err(|_| FormatError::Long(part.len()))?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(part);
    Ok(())
}

/// Reads a whole file; nothing of it is given out unless its digest matches.
pub(super) fn decode(bytes: &[u8]) -> Result<(Head, Vec<Record<'_>>), FormatError> {
    let mut rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or(FormatError::Magic)?;
    let version = u32::from_le_bytes(array(&mut rest)?);
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let content = bytes.len().checked_sub(DIGEST_BYTES).ok_or(FormatError::Short)?;
    let (content, digest) = bytes.split_at_checked(content).ok_or(FormatError::Short)?;
    if Sha256::digest(content).as_slice() != digest {
        return Err(FormatError::Digest);
    }
    let seconds = u64::from_le_bytes(array(&mut rest)?);
    let written = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(FormatError::Short)?;
    let scope = std::str::from_utf8(part(&mut rest)?).map_err(|_| FormatError::Record(0))?.to_owned();
    let count = u64::from_le_bytes(array(&mut rest)?);
    let mut records = Vec::<Record<'_>>::new();
    for number in 1..=count {
        let [kind] = array(&mut rest)?;
        let mut text = || std::str::from_utf8(part(&mut rest)?).map_err(|_| FormatError::Record(number));
        let (name, version) = (text()?, text()?);
        let record = Record { kind, name, version, body: part(&mut rest)? };
        let in_order = records.last().is_none_or(|last| last.key() < record.key());
        if usize::from(kind) >= TYPES.len() || !in_order {
            return Err(FormatError::Record(number));
        }
        records.push(record);
    }
    if rest.len() == DIGEST_BYTES { Ok((Head { written, scope }, records)) } else { Err(FormatError::Short) }
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], FormatError> {
    let length = u32::from_le_bytes(array(rest)?);
    let length = usize::try_from(length).map_err(|_| FormatError::Short)?;
    let (part, after) = rest.split_at_checked(length).ok_or(FormatError::Short)?;
    *rest = after;
    Ok(part)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FormatError> {
    let (head, after) = rest.split_first_chunk::<N>().ok_or(FormatError::Short)?;
    *rest = after;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { written: UNIX_EPOCH + Duration::from_secs(1_700_000_000), scope: "control node-a".into() }
    }

    fn encoded(records: &[Record<'_>]) -> Vec<u8> {
        let mut encoder = Encoder::new(&head()).unwrap();
        for record in records {
            encoder.record(*record).unwrap();
        }
        encoder.finish()
    }

    fn two() -> [Record<'static>; 2] {
        [
            Record { kind: 0, name: "a", version: "1", body: b"body" },
            Record { kind: 1, name: "a", version: "", body: b"" },
        ]
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bytes = encoded(&two());
        assert_eq!(decode(&bytes), Ok((head(), two().to_vec())));
        assert_eq!(decode(&encoded(&[])), Ok((head(), vec![])));
    }

    #[test]
    fn no_single_changed_or_missing_byte_goes_unnoticed() {
        let bytes = encoded(&two());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(decode(&changed).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn records_out_of_order_are_refused() {
        let [one, two] = two();
        assert_eq!(decode(&encoded(&[two, one])), Err(FormatError::Record(2)));
        assert_eq!(decode(&encoded(&[one, one])), Err(FormatError::Record(2)));
        assert_eq!(decode(&encoded(&[Record { kind: 99, ..one }])), Err(FormatError::Record(1)));
    }

    #[test]
    fn fuzz_no_file_makes_the_reader_panic() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            assert!(decode(bytes).is_err(), "nobody guesses a digest");
            // The same as the content of a file whose digest is right.
            let mut file = MAGIC.to_vec();
            file.extend_from_slice(&VERSION.to_le_bytes());
            file.extend_from_slice(bytes);
            let digest = Sha256::digest(&file);
            file.extend_from_slice(&digest);
            if let Ok((_, records)) = decode(&file) {
                assert!(records.is_sorted_by(|one, other| one.key() < other.key()));
            }
        });
    }
}
