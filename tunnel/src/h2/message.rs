//! From decoded fields to a well-formed message (RFC 9113 section 8): what a request, a response and trailers must and
//! must not have, and the bounds on their size.

use super::frame::StreamId;
use super::headers::{FIELD_OVERHEAD, Field, Headers, Pseudo};
use super::hpack_decode::FieldSink;

/// What kind of header block is due on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Request,
    Response,
    Trailers,
    /// The block is only decoded to keep the table in step.
    Nothing,
}

/// Why a header block is not delivered. Each ends the stream, not the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    TooLarge,
    /// It is no larger than it may be, but others are held already.
    NoRoom,
}

/// Bounds on one header block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) list_size_max: usize,
    /// What may be held beside the header blocks that are.
    pub(super) room: usize,
    pub(super) fields_max: u32,
    pub(super) connect_protocol: bool,
}

/// A checked header block.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) headers: Headers,
    pub(super) content_length: Option<u64>,
}

/// Collects the fields of one block. After the first fault nothing more is kept.
#[derive(Debug)]
pub(super) struct MessageBuilder {
    expected: Expected,
    bounds: Bounds,
    headers: Headers,
    /// Of all fields, those after a fault, too.
    list_size: usize,
    /// Of those that were kept, if only until a fault.
    kept: usize,
    fields: u32,
    content_length: Option<u64>,
    has_host: bool,
    fault: Option<Fault>,
}

impl MessageBuilder {
    pub(super) fn new(expected: Expected, bounds: Bounds, text_hint: usize) -> Self {
        let mut headers = Headers::default();
        if expected != Expected::Nothing {
            headers.reserve(text_hint);
        }
        Self {
            expected,
            bounds,
            headers,
            list_size: 0,
            kept: 0,
            fields: 0,
            content_length: None,
            has_host: false,
            fault: None,
        }
    }

    /// The size of the list, as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
    pub(super) fn list_size(&self) -> usize {
        self.list_size
    }

    /// How much of it was copied.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// The message, if all rules hold that concern the block as a whole.
    pub(super) fn finish(self) -> Result<Message, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let headers = &self.headers;
        let complete = match self.expected {
            Expected::Request => self.is_complete_request(),
            // 101 does not exist in HTTP/2 (RFC 9113 section 8.6).
            Expected::Response => headers.status().is_some_and(|status| status != 101),
            Expected::Trailers | Expected::Nothing => true,
        };
        if complete {
            Ok(Message { headers: self.headers, content_length: self.content_length })
        } else {
            Err(Fault::Malformed)
        }
    }

    /// RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4.
    fn is_complete_request(&self) -> bool {
        let headers = &self.headers;
        let Some(method) = headers.method() else { return false };
        if method == b"CONNECT" && !headers.has_pseudo(Pseudo::Protocol) {
            return headers.authority().is_some_and(|authority| !authority.is_empty())
                && !headers.has_pseudo(Pseudo::Scheme)
                && !headers.has_pseudo(Pseudo::Path);
        }
        if headers.has_pseudo(Pseudo::Protocol) && !(method == b"CONNECT" && self.bounds.connect_protocol) {
            return false;
        }
        let (Some(scheme), Some(path)) = (headers.scheme(), headers.path()) else { return false };
        let is_http = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
        !is_http || path.first() == Some(&b'/') || (path == b"*" && method == b"OPTIONS")
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        let which = match (name, self.expected) {
            (b":method", Expected::Request) => Pseudo::Method,
            (b":scheme", Expected::Request) => Pseudo::Scheme,
            (b":authority", Expected::Request) => Pseudo::Authority,
            (b":path", Expected::Request) => Pseudo::Path,
            (b":protocol", Expected::Request) => Pseudo::Protocol,
            (b":status", Expected::Response) => return self.status(value),
            _ => return Err(Fault::Malformed),
        };
        if self.headers.has_pseudo(which) {
            return Err(Fault::Malformed);
        }
        // Refuses a pseudo-header field after an ordinary one, too.
        self.headers.set_pseudo(which, value).map_err(|_| Fault::Malformed)
    }

    fn status(&mut self, value: &[u8]) -> Result<(), Fault> {
        let &[a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = value else {
            return Err(Fault::Malformed);
        };
        if self.headers.status().is_some() || self.headers.field_count() > 0 {
            return Err(Fault::Malformed);
        }
        let digit = |byte: u8| u16::from(byte - b'0');
        self.headers.set_status(digit(a) * 100 + digit(b) * 10 + digit(c));
        Ok(())
    }

    fn ordinary(&mut self, field: Field<'_>) -> Result<(), Fault> {
        match field.name {
            b"content-length" => self.content_length(field.value)?,
            b"host" if self.expected == Expected::Request => self.host(field.value)?,
            _ => {}
        }
        self.headers.push_checked(field).map_err(|_| Fault::Malformed)
    }

    /// One value, or the same one repeated (RFC 9110 section 8.6).
    fn content_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        let parsed = parse_u64(value).ok_or(Fault::Malformed)?;
        if self.content_length.is_some_and(|before| before != parsed) {
            return Err(Fault::Malformed);
        }
        self.content_length = Some(parsed);
        Ok(())
    }

    /// Host must occur once and agree with `:authority`, or two readers would see two destinations
    /// (RFC 9113 section 8.3.1).
    fn host(&mut self, value: &[u8]) -> Result<(), Fault> {
        let agrees = self.headers.authority().is_none_or(|authority| is_same_host(authority, value));
        if self.has_host || !agrees {
            return Err(Fault::Malformed);
        }
        self.has_host = true;
        Ok(())
    }
}

impl FieldSink for MessageBuilder {
    #[inline]
    fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        self.list_size = self.list_size.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
        if self.fault.is_some() || self.expected == Expected::Nothing {
            return;
        }
        self.fields += 1;
        let result = if self.list_size > self.bounds.list_size_max || self.fields > self.bounds.fields_max {
            Err(Fault::TooLarge)
        } else if self.list_size > self.bounds.room {
            Err(Fault::NoRoom)
        } else if name.first() == Some(&b':') {
            self.pseudo(name, value)
        } else {
            self.ordinary(Field { name, value, sensitive })
        };
        match result {
            Ok(()) => self.kept = self.list_size,
            Err(fault) => {
                self.fault = Some(fault);
                // What was collected is of no more use; a refused block holds no memory.
                self.headers = Headers::default();
            }
        }
    }
}

/// Same authority but for case and a default port on one side.
fn is_same_host(authority: &[u8], host: &[u8]) -> bool {
    let without_port = |text: &[u8]| -> usize {
        let default = text.strip_suffix(b":80").or_else(|| text.strip_suffix(b":443"));
        default.map_or(text.len(), <[u8]>::len)
    };
    authority.eq_ignore_ascii_case(host)
        || authority.get(..without_port(authority)).is_some_and(|bare| bare.eq_ignore_ascii_case(host))
        || host.get(..without_port(host)).is_some_and(|bare| bare.eq_ignore_ascii_case(authority))
}

/// Digits only: no sign, no space, no overflow.
fn parse_u64(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Stream identifiers of requests are odd (RFC 9113 section 5.1.1).
pub(super) fn is_request_stream(stream: u32) -> bool {
    stream % 2 == 1 && stream <= StreamId::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { list_size_max: 1_000, room: 1_000_000, fields_max: 10, connect_protocol: false };

    fn build(expected: Expected, bounds: Bounds, fields: &[(&str, &str)]) -> Result<Message, Fault> {
        let mut builder = MessageBuilder::new(expected, bounds, 0);
        for (name, value) in fields {
            builder.field(name.as_bytes(), value.as_bytes(), false);
        }
        builder.finish()
    }

    fn outcome(expected: Expected, fields: &[(&str, &str)]) -> Option<Fault> {
        build(expected, BOUNDS, fields).err()
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

    fn get_with(extra: &[(&'static str, &'static str)]) -> Option<Fault> {
        outcome(Expected::Request, &[&GET[..], extra].concat())
    }

    #[test]
    fn requests_need_exactly_their_pseudo_headers() {
        assert_eq!(get_with(&[]), None);
        for missing in [0, 1, 3] {
            let mut fields = GET.to_vec();
            fields.remove(missing);
            assert_eq!(outcome(Expected::Request, &fields), Some(Fault::Malformed), "without {missing}");
        }
        for twice in GET {
            assert_eq!(get_with(&[twice]), Some(Fault::Malformed), "{twice:?} twice");
        }
        assert_eq!(get_with(&[(":status", "200")]), Some(Fault::Malformed));
        assert_eq!(get_with(&[(":unknown", "1")]), Some(Fault::Malformed));
        assert_eq!(get_with(&[("x", "1"), (":protocol", "p")]), Some(Fault::Malformed));
        assert_eq!(
            outcome(Expected::Request, &[(":method", "GET"), (":scheme", "http"), (":path", "")]),
            Some(Fault::Malformed)
        );
        assert_eq!(
            outcome(Expected::Request, &[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")]),
            None
        );
        assert_eq!(
            outcome(Expected::Request, &[(":method", "GET"), (":scheme", "http"), (":path", "*")]),
            Some(Fault::Malformed)
        );
        assert_eq!(
            outcome(
                Expected::Request,
                &[(":method", "GET"), ("x", "1"), (":scheme", "http"), (":path", "/")]
            ),
            Some(Fault::Malformed)
        );
    }

    #[test]
    fn connect_has_an_authority_and_nothing_else() {
        let connect = (":method", "CONNECT");
        let authority = (":authority", "10.0.0.1:80");
        assert_eq!(outcome(Expected::Request, &[connect, authority]), None);
        assert_eq!(outcome(Expected::Request, &[connect]), Some(Fault::Malformed));
        assert_eq!(outcome(Expected::Request, &[connect, (":authority", "")]), Some(Fault::Malformed));
        for extra in [(":scheme", "http"), (":path", "/"), (":protocol", "websocket")] {
            assert_eq!(outcome(Expected::Request, &[connect, authority, extra]), Some(Fault::Malformed));
        }
        let extended =
            [connect, authority, (":scheme", "https"), (":path", "/chat"), (":protocol", "websocket")];
        assert_eq!(outcome(Expected::Request, &extended), Some(Fault::Malformed));
        let bounds = Bounds { connect_protocol: true, ..BOUNDS };
        let message = build(Expected::Request, bounds, &extended).unwrap();
        assert!(!message.headers.is_connect());
        assert_eq!(message.headers.protocol(), Some(b"websocket".as_slice()));
    }

    #[test]
    fn responses_have_a_status_of_three_digits_first() {
        assert_eq!(outcome(Expected::Response, &[(":status", "200"), ("x", "1")]), None);
        for status in ["", "20", "2000", "+20", "2x0", "099", "101"] {
            assert_eq!(
                outcome(Expected::Response, &[(":status", status)]),
                Some(Fault::Malformed),
                "{status}"
            );
        }
        assert_eq!(outcome(Expected::Response, &[]), Some(Fault::Malformed));
        assert_eq!(outcome(Expected::Response, &[("x", "1"), (":status", "200")]), Some(Fault::Malformed));
        assert_eq!(
            outcome(Expected::Response, &[(":status", "200"), (":status", "200")]),
            Some(Fault::Malformed)
        );
    }

    #[test]
    fn trailers_have_no_pseudo_headers() {
        assert_eq!(outcome(Expected::Trailers, &[("grpc-status", "0")]), None);
        assert_eq!(outcome(Expected::Trailers, &[(":status", "200")]), Some(Fault::Malformed));
        assert_eq!(outcome(Expected::Trailers, &[(":method", "GET")]), Some(Fault::Malformed));
    }

    #[test]
    fn host_must_agree_with_the_authority() {
        assert_eq!(get_with(&[("host", "A")]), None);
        assert_eq!(get_with(&[("host", "a:80")]), None);
        assert_eq!(get_with(&[("host", "b")]), Some(Fault::Malformed));
        assert_eq!(get_with(&[("host", "a:8080")]), Some(Fault::Malformed));
        assert_eq!(get_with(&[("host", "a"), ("host", "a")]), Some(Fault::Malformed));
    }

    #[test]
    fn content_length_is_one_number() {
        assert_eq!(get_with(&[("content-length", "10"), ("content-length", "10")]), None);
        for value in ["", "-1", "+1", "1 ", "1,1", "0x1", "18446744073709551616"] {
            assert_eq!(get_with(&[("content-length", value)]), Some(Fault::Malformed), "{value}");
        }
        assert_eq!(get_with(&[("content-length", "1"), ("content-length", "2")]), Some(Fault::Malformed));
    }

    #[test]
    fn size_and_number_of_fields_are_bounded() {
        let many = vec![("cookie", "a=b"); 7];
        assert_eq!(get_with(&many), Some(Fault::TooLarge));
        assert_eq!(get_with(&many[..6]), None);
        let base: usize = GET.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let fits = "v".repeat(1_000 - base - 33);
        assert!(build(Expected::Request, BOUNDS, &[&GET[..], &[("x", &fits)]].concat()).is_ok());
        let over = fits + "v";
        assert_eq!(
            build(Expected::Request, BOUNDS, &[&GET[..], &[("x", &over)]].concat()).unwrap_err(),
            Fault::TooLarge
        );
    }

    #[test]
    fn what_fits_a_list_and_not_the_room_that_is_left_is_told_apart() {
        let size: usize = GET.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let left = |room| build(Expected::Request, Bounds { room, ..BOUNDS }, &GET).err();
        assert_eq!((left(size), left(size - 1), left(0)), (None, Some(Fault::NoRoom), Some(Fault::NoRoom)));
    }

    #[test]
    fn a_list_is_measured_to_its_end_whatever_is_kept_of_it() {
        let fields = [&GET[..], &[("Bad", "name"), ("x", "y")]].concat();
        for (expected, kept) in [(Expected::Request, 166), (Expected::Nothing, 0)] {
            let mut builder = MessageBuilder::new(expected, BOUNDS, 0);
            for (name, value) in &fields {
                builder.field(name.as_bytes(), value.as_bytes(), false);
            }
            assert_eq!((builder.list_size(), builder.kept()), (166 + 39 + 34, kept), "{expected:?}");
        }
    }
}
