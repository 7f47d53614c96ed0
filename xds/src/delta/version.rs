//! The version of a resource as its server named it, small.

use std::fmt;

/// Digits of the usual version: a hash of 64 bits.
const HASH_DIGITS: usize = 16;

/// Gives back exactly the text that it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    /// Sixteen lower-case hexadecimal digits.
    Hash(u64),
    Text(Box<str>),
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let is_hash =
            text.len() == HASH_DIGITS && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if is_hash => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash:016x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_a_version_reads_back_as_it_was_written() {
        bolero::check!().with_type::<(String, u64)>().for_each(|(text, hash)| {
            let (lower, upper) = (format!("{hash:016x}"), format!("{hash:016X}"));
            for text in [text, &lower, &upper] {
                assert_eq!(Version::from(text.as_str()).to_string(), *text);
            }
            assert_eq!(Version::from(lower.as_str()), Version::Hash(*hash));
        });
    }
}
