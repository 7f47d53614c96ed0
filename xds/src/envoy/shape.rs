//! Finds what a message holds that we do not know.
//!
//! Decoding drops fields that the `.proto` files do not declare. Each of them may be a condition or a limit, so bytes are
//! first compared with the table of fields that the build makes of those files: what is neither declared nor listed
//! there as known to be harmless (`reserved`) is refused with its path. Bytes of an `Any` are looked at when they are
//! unpacked.

use prost::Name;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::Refusal;

/// Messages nest no deeper than that.
const DEPTH_MAX: usize = 64;

/// Largest number of a field (Protocol Buffers language guide, "Assigning field numbers").
type Number = i32;

struct Shape {
    name: &'static str,
    fields: &'static [Field],
    /// From, and up to but not including.
    skipped: &'static [(Number, Number)],
}

struct Field {
    number: Number,
    name: &'static str,
    kind: Kind,
}

enum Kind {
    Leaf,
    /// Position in [`SHAPES`].
    Message(usize),
}

/// By name.
static SHAPES: &[Shape] = include!(concat!(env!("OUT_DIR"), "/envoy_shapes.rs"));

/// Fails if `bytes`, a message of type `M`, hold a field that is not known.
pub(super) fn check<M: Name>(bytes: &[u8]) -> Result<(), Refusal> {
    let name = M::full_name();
    let position = SHAPES.binary_search_by(|shape| shape.name.cmp(&name));
    let shape = position.ok().and_then(|position| SHAPES.get(position));
    shape.map_or_else(
        || Err(Refusal::new(format!("message {name} is not known"))),
        |shape| walk(shape, bytes, 0),
    )
}

fn walk(shape: &Shape, mut bytes: &[u8], depth: usize) -> Result<(), Refusal> {
    if depth > DEPTH_MAX {
        return Err(Refusal::new(format!("messages are nested deeper than {DEPTH_MAX}")));
    }
    // How often the field that is read has occurred, for paths into lists: fields of a list lie side by side.
    let mut counted = (0, 0_usize);
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).map_err(malformed)?;
        let number = Number::try_from(number).unwrap_or(Number::MAX);
        counted = if counted.0 == number { (number, counted.1 + 1) } else { (number, 0) };
        let Some(field) = shape.fields.iter().find(|field| field.number == number) else {
            if !shape.skipped.iter().any(|(from, end)| (*from..*end).contains(&number)) {
                let message = shape.name.rsplit('.').next().unwrap_or_default();
                return Err(Refusal::new(format!("field {number} of {message} is not supported")));
            }
            skip(wire_type, number, &mut bytes)?;
            continue;
        };
        match &field.kind {
            Kind::Message(position) if wire_type == WireType::LengthDelimited => {
                let inner = take(&mut bytes)?;
                let Some(shape) = SHAPES.get(*position) else { continue };
                walk(shape, inner, depth + 1)
                    .map_err(|refusal| refusal.within_item(field.name, counted.1))?;
            }
            Kind::Message(_) | Kind::Leaf => skip(wire_type, number, &mut bytes)?,
        }
    }
    Ok(())
}

fn skip(wire_type: WireType, number: Number, bytes: &mut &[u8]) -> Result<(), Refusal> {
    skip_field(wire_type, number.unsigned_abs(), bytes, DecodeContext::default()).map_err(malformed)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Refusal> {
    let length = decode_varint(bytes).map_err(malformed)?;
    let taken = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    let (inner, rest) = taken.ok_or_else(|| Refusal::new("the message ends too early"))?;
    *bytes = rest;
    Ok(inner)
}

fn malformed(error: prost::DecodeError) -> Refusal {
    Refusal::new(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::waypoint::{Cluster, Metadata, RouteConfiguration};

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(SHAPES.is_sorted_by_key(|shape| shape.name));
        assert!(SHAPES.len() > 80, "{}", SHAPES.len());
        let known = |shape: &Shape| {
            shape.fields.iter().all(|field| match field.kind {
                Kind::Leaf => true,
                Kind::Message(position) => position < SHAPES.len(),
            })
        };
        assert!(SHAPES.iter().all(known));
    }

    #[test]
    fn what_is_not_known_is_named_with_its_path() {
        // virtual_hosts { domains: "*" } virtual_hosts { routes { match { field 9 } } }
        let bytes = [0x12, 3, 0x12, 1, b'*', 0x12, 6, 0x1a, 4, 0x0a, 2, 0x4a, 0];
        let refusal = check::<RouteConfiguration>(&bytes).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "virtual_hosts[1].routes.match: field 9 of RouteMatch is not supported"
        );
    }

    #[test]
    fn what_is_listed_as_harmless_is_skipped() {
        // alt_stat_name: "x"
        assert!(check::<Cluster>(&[0xe2, 1, 1, b'x']).is_ok());
        assert!(check::<Metadata>(&[0x12, 0]).is_ok());
    }

    #[test]
    fn broken_bytes_are_refused() {
        for bytes in [&[0x12_u8, 200, 1][..], &[0xff; 12], &[0x12], &[0x0b]] {
            assert!(check::<RouteConfiguration>(bytes).is_err(), "{bytes:?}");
        }
    }
}
