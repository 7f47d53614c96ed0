//! A header block as it is passed around: pseudo-header fields apart, the rest in order, all text in one allocation.
//!
//! Invariant: every value of this type is well-formed by RFC 9113 section 8.2.1 (lower-case token names, values without
//! CR, LF, NUL or outer white space) because both ways to make one, the constructors here and the decoder's
//! [`super::message`], check each field. So a header can be forwarded without being looked at again.

use thiserror::Error;

/// Why a field cannot be part of a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Names are lower-case tokens (RFC 9113 section 8.2.1).
    #[error("invalid HTTP/2 field name: it must be a non-empty lower-case token")]
    Name,
    /// Values have no CR, LF, NUL and no outer white space (RFC 9113 section 8.2.1).
    #[error("invalid HTTP/2 field value: control characters or white space at its ends")]
    Value,
    /// `connection`, `transfer-encoding` and the like do not exist in HTTP/2 (RFC 9113 section 8.2.2).
    #[error("a connection-specific field is not allowed in HTTP/2")]
    ConnectionSpecific,
    /// Pseudo-header values are visible characters; the status has three digits.
    #[error("invalid value of an HTTP/2 pseudo-header field")]
    Pseudo,
    /// The block's text would not fit.
    #[error("header block larger than 16 MiB")]
    TooLarge,
}

/// Most text in one header block.
const TEXT_BYTES_MAX: usize = 16 << 20;
/// Spare space that is not worth an allocation.
const SPARE_MAX: usize = 1_024;
/// Octets added to each field's size (RFC 9113 section 6.5.2).
pub(super) const FIELD_OVERHEAD: usize = 32;
/// Marks a value that must never enter a compression table (RFC 7541 section 7.1.3).
const SENSITIVE: u32 = 1 << 31;

/// Where a pseudo-header's value lies in the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    /// Length + 1; 0 stands for an absent field.
    len_plus_one: u32,
}

/// The five textual pseudo-header fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
}

/// A header block: request, response or trailers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Pseudo-header values, then for each field: name length, value length (with the sensitive bit), name, value.
    text: Vec<u8>,
    pseudo: [Span; 5],
    fields_start: u32,
    field_count: u32,
    /// 0 if absent.
    status: u16,
}

/// One field of a header block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Lower-case name.
    pub name: &'a [u8],
    /// Value without outer white space.
    pub value: &'a [u8],
    /// Must never enter a compression table, here or further on (RFC 7541 section 7.1.3).
    pub sensitive: bool,
}

/// The fields of a header block in order, without pseudo-header fields.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl Headers {
    /// A CONNECT request (RFC 9113 section 8.5).
    pub fn connect(authority: impl AsRef<[u8]>) -> Result<Self, HeaderError> {
        let mut headers = Self::default();
        let authority = authority.as_ref();
        headers.text.reserve(authority.len() + 256);
        headers.set_pseudo(Pseudo::Method, b"CONNECT")?;
        headers.set_pseudo(Pseudo::Authority, authority)?;
        Ok(headers)
    }

    /// Any other request. An empty authority is left out.
    pub fn request(
        method: impl AsRef<[u8]>,
        scheme: impl AsRef<[u8]>,
        authority: impl AsRef<[u8]>,
        path: impl AsRef<[u8]>,
    ) -> Result<Self, HeaderError> {
        let mut headers = Self::default();
        headers.set_pseudo(Pseudo::Method, method.as_ref())?;
        headers.set_pseudo(Pseudo::Scheme, scheme.as_ref())?;
        if !authority.as_ref().is_empty() {
            headers.set_pseudo(Pseudo::Authority, authority.as_ref())?;
        }
        headers.set_pseudo(Pseudo::Path, path.as_ref())?;
        Ok(headers)
    }

    /// A response. The status is 100 to 999.
    pub fn response(status: u16) -> Result<Self, HeaderError> {
        if !(100..=999).contains(&status) {
            return Err(HeaderError::Pseudo);
        }
        Ok(Self { status, ..Self::default() })
    }

    /// Trailers.
    pub fn trailers() -> Self {
        Self::default()
    }

    /// Sets `:protocol`, making a CONNECT an extended one (RFC 8441). Only before the first field.
    pub fn set_protocol(&mut self, protocol: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.set_pseudo(Pseudo::Protocol, protocol.as_ref())
    }

    /// Appends a field.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.push_checked(Field { name: name.as_ref(), value: value.as_ref(), sensitive: false })
    }

    /// Appends a field whose value must never enter a compression table.
    pub fn push_sensitive(
        &mut self,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<(), HeaderError> {
        self.push_checked(Field { name: name.as_ref(), value: value.as_ref(), sensitive: true })
    }

    /// Appends a field as it came from another header block.
    pub fn push_field(&mut self, field: Field<'_>) -> Result<(), HeaderError> {
        self.push_checked(field)
    }

    /// `:method`
    pub fn method(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Method)
    }

    /// `:scheme`
    pub fn scheme(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Scheme)
    }

    /// `:authority`
    pub fn authority(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Authority)
    }

    /// `:path`
    pub fn path(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Path)
    }

    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Protocol)
    }

    /// `:status` of a response.
    pub fn status(&self) -> Option<u16> {
        (self.status != 0).then_some(self.status)
    }

    /// Whether this is a plain CONNECT request, as HBONE uses it.
    pub fn is_connect(&self) -> bool {
        self.method() == Some(b"CONNECT") && self.protocol().is_none()
    }

    /// The first field of that (lower-case) name.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = name.as_ref();
        self.fields().find(|field| field.name == name).map(|field| field.value)
    }

    /// All fields in order, without pseudo-header fields.
    pub fn fields(&self) -> Fields<'_> {
        Fields { rest: self.text.get(self.fields_start as usize..).unwrap_or_default() }
    }

    /// How many fields there are, without pseudo-header fields.
    pub fn field_count(&self) -> usize {
        self.field_count as usize
    }

    /// The size as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 section 6.5.2).
    pub fn list_size(&self) -> usize {
        const NAMES: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":protocol"];
        let pseudo: usize = self
            .pseudo
            .iter()
            .zip(NAMES)
            .filter(|(span, _)| span.len_plus_one > 0)
            .map(|(span, name)| span.len_plus_one as usize - 1 + name.len() + FIELD_OVERHEAD)
            .sum();
        let status = if self.status == 0 { 0 } else { ":status".len() + 3 + FIELD_OVERHEAD };
        let fields: usize =
            self.fields().map(|field| field.name.len() + field.value.len() + FIELD_OVERHEAD).sum();
        pseudo + status + fields
    }

    pub(super) fn pseudo(&self, which: Pseudo) -> Option<&[u8]> {
        let span = self.pseudo.get(which as usize)?;
        let len = span.len_plus_one.checked_sub(1)?;
        self.text.get(span.start as usize..(span.start + len) as usize)
    }

    pub(super) fn has_pseudo(&self, which: Pseudo) -> bool {
        self.pseudo.get(which as usize).is_some_and(|span| span.len_plus_one > 0)
    }

    pub(super) fn has_any_pseudo(&self) -> bool {
        self.status != 0 || self.pseudo.iter().any(|span| span.len_plus_one > 0)
    }

    /// Length of all text, as a hint for the next message.
    pub(super) fn text_len(&self) -> usize {
        self.text.len()
    }

    /// Gives spare space back if there is much of it, since a block may be held for long.
    pub(super) fn trim(&mut self) {
        if self.text.capacity() - self.text.len() > SPARE_MAX {
            self.text.shrink_to_fit();
        }
    }

    pub(super) fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    pub(super) fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// Sets a pseudo-header field; only before the first ordinary field, as on the wire (RFC 9113 section 8.3).
    pub(super) fn set_pseudo(&mut self, which: Pseudo, value: &[u8]) -> Result<(), HeaderError> {
        if self.field_count > 0 || !pseudo_value_is_valid(which, value) {
            return Err(HeaderError::Pseudo);
        }
        if self.text.len() + value.len() > TEXT_BYTES_MAX {
            return Err(HeaderError::TooLarge);
        }
        let start = len_u32(self.text.len());
        self.text.extend_from_slice(value);
        self.fields_start = len_u32(self.text.len());
        if let Some(span) = self.pseudo.get_mut(which as usize) {
            *span = Span { start, len_plus_one: len_u32(value.len()) + 1 };
        }
        Ok(())
    }

    /// Appends a field after checking it (RFC 9113 sections 8.2.1 and 8.2.2).
    #[inline]
    pub(super) fn push_checked(&mut self, field: Field<'_>) -> Result<(), HeaderError> {
        if !name_is_valid(field.name) {
            return Err(HeaderError::Name);
        }
        if !value_is_valid(field.value) {
            return Err(HeaderError::Value);
        }
        if is_connection_specific(field.name, field.value) {
            return Err(HeaderError::ConnectionSpecific);
        }
        if self.text.len() + field.name.len() + field.value.len() + 8 > TEXT_BYTES_MAX {
            return Err(HeaderError::TooLarge);
        }
        let sensitive = if field.sensitive { SENSITIVE } else { 0 };
        self.text.extend_from_slice(&len_u32(field.name.len()).to_ne_bytes());
        self.text.extend_from_slice(&(len_u32(field.value.len()) | sensitive).to_ne_bytes());
        self.text.extend_from_slice(field.name);
        self.text.extend_from_slice(field.value);
        self.field_count += 1;
        Ok(())
    }
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = formatter.debug_map();
        if self.status != 0 {
            list.entry(&":status", &self.status);
        }
        for (which, name) in [
            (Pseudo::Method, ":method"),
            (Pseudo::Scheme, ":scheme"),
            (Pseudo::Authority, ":authority"),
            (Pseudo::Path, ":path"),
            (Pseudo::Protocol, ":protocol"),
        ] {
            if let Some(value) = self.pseudo(which) {
                list.entry(&name, &String::from_utf8_lossy(value));
            }
        }
        for field in self.fields() {
            let value =
                if field.sensitive { "<sensitive>".into() } else { String::from_utf8_lossy(field.value) };
            list.entry(&String::from_utf8_lossy(field.name), &value);
        }
        list.finish()
    }
}

// === impl Field ===

impl std::fmt::Debug for Field<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.sensitive { "<sensitive>".into() } else { String::from_utf8_lossy(self.value) };
        write!(formatter, "{}: {value}", String::from_utf8_lossy(self.name))
    }
}

// === impl Fields ===

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    #[inline]
    fn next(&mut self) -> Option<Field<'a>> {
        let (name_len, rest) = self.rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let value_len = u32::from_ne_bytes(*value_len);
        let (name, rest) = rest.split_at_checked(u32::from_ne_bytes(*name_len) as usize)?;
        let (value, rest) = rest.split_at_checked((value_len & !SENSITIVE) as usize)?;
        self.rest = rest;
        Some(Field { name, value, sensitive: value_len & SENSITIVE != 0 })
    }
}

// === Character rules ===

/// Whether all octets are of a kind. Looks at each whatever the others are, which lets the compiler take many at a time.
#[inline]
fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, &byte| so_far & is(byte))
}

/// Of a lower-case token (RFC 9110 section 5.6.2).
#[inline]
fn is_token(byte: u8) -> bool {
    // `^`, `_` and the accent stand before the letters.
    matches!(byte, b'^'..=b'z' | b'0'..=b'9' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'!' | b'|' | b'~')
}

/// Visible, and no space.
#[inline]
fn is_visible(byte: u8) -> bool {
    byte > 0x20 && byte != 0x7f
}

fn name_is_valid(name: &[u8]) -> bool {
    !name.is_empty() && all(name, is_token)
}

fn value_is_valid(value: &[u8]) -> bool {
    let outer = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !outer(value.first()) && !outer(value.last()) && all(value, |byte| !matches!(byte, 0 | b'\r' | b'\n'))
}

fn pseudo_value_is_valid(which: Pseudo, value: &[u8]) -> bool {
    match which {
        // A method is a token; methods are case-sensitive, so upper case is allowed here.
        Pseudo::Method | Pseudo::Protocol => {
            !value.is_empty() && value.iter().all(|&byte| byte.is_ascii_uppercase() || is_token(byte))
        }
        Pseudo::Scheme => {
            value.first().is_some_and(u8::is_ascii_alphabetic)
                && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
        }
        // User information is deprecated and must not be sent (RFC 9113 section 8.3.1).
        Pseudo::Authority => all(value, is_visible) && value.is_ascii() && !value.contains(&b'@'),
        Pseudo::Path => all(value, is_visible),
    }
}

/// Fields that only mean something to one HTTP/1.1 connection (RFC 9113 section 8.2.2).
#[inline]
fn is_connection_specific(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => true,
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

#[inline]
fn len_u32(len: usize) -> u32 {
    // Every length here is at most `TEXT_BYTES_MAX`.
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_pseudo_headers_apart_and_fields_in_order() {
        let mut headers = Headers::connect("10.0.0.1:80").unwrap();
        headers.push("baggage", "k8s.namespace.name=a").unwrap();
        headers.push_sensitive("authorization", "secret").unwrap();
        headers.push("baggage", "").unwrap();
        assert!(headers.is_connect());
        assert_eq!(headers.authority(), Some(b"10.0.0.1:80".as_slice()));
        assert_eq!((headers.scheme(), headers.path(), headers.status()), (None, None, None));
        let names: Vec<_> =
            headers.fields().map(|field| (field.name, field.value.len(), field.sensitive)).collect();
        assert_eq!(
            names,
            [(b"baggage".as_slice(), 20, false), (b"authorization", 6, true), (b"baggage", 0, false)]
        );
        assert_eq!(headers.get("authorization"), Some(b"secret".as_slice()));
        assert_eq!(headers.list_size(), (7 + 7) + (10 + 11) + (7 + 20) + (13 + 6) + 7 + 5 * 32);
        assert!(!format!("{headers:?}").contains("secret"));
    }

    #[test]
    fn names_and_values_are_made_of_their_octets_and_no_others() {
        for byte in 0..=u8::MAX {
            let in_name =
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(name_is_valid(&[byte]), in_name, "{byte:#x}");
            assert_eq!(value_is_valid(&[b'a', byte, b'a']), !b"\0\r\n".contains(&byte), "{byte:#x}");
        }
    }

    #[test]
    fn refuses_what_would_be_malformed_on_the_wire() {
        let mut headers = Headers::response(200).unwrap();
        for name in ["", "Upper", "sp ace", "co:lon", ":path", "nul\0", "caf\u{e9}"] {
            assert_eq!(headers.push(name, "v"), Err(HeaderError::Name), "{name:?}");
        }
        for value in [" lead", "trail ", "\ttab", "a\rb", "a\nb", "a\0b"] {
            assert_eq!(headers.push("x", value), Err(HeaderError::Value), "{value:?}");
        }
        for name in ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "te"] {
            assert_eq!(headers.push(name, "gzip"), Err(HeaderError::ConnectionSpecific), "{name:?}");
        }
        assert_eq!(headers.push("te", "trailers"), Ok(()));
        assert_eq!(Headers::response(99).unwrap_err(), HeaderError::Pseudo);
        assert_eq!(Headers::connect("a b").unwrap_err(), HeaderError::Pseudo);
        assert_eq!(Headers::connect("user@host:1").unwrap_err(), HeaderError::Pseudo);
        assert_eq!(Headers::request("GE T", "http", "a", "/").unwrap_err(), HeaderError::Pseudo);
    }
}
