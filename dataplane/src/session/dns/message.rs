//! DNS messages (RFC 1035, EDNS of RFC 6891): a query read from a client's bytes, a reply made to fit its transport.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::metrics::DnsProtocol as Protocol;

/// Longest query that is read; what clients send has a few dozen bytes.
pub(super) const QUERY_BYTES_MAX: usize = 4_096;
/// Size of a UDP message where the client names none (RFC 1035 section 2.3.4).
const UDP_BYTES_DEFAULT: u16 = 512;
/// Largest UDP answer of our own, however large a client may take; nothing on loopback cuts it up.
const UDP_BYTES_MAX: u16 = 4_096;
/// Header of a message.
const HEADER_BYTES: usize = 12;
/// Seconds that our answers may be kept.
const TTL_SECONDS: u32 = 30;

/// What a client asks.
#[derive(Debug, Clone)]
pub(super) struct Query {
    metadata: Metadata,
    question: Question,
    edns: Option<Edns>,
    /// The name asked for, in lower case and without the final dot; `None` if it is no host name.
    pub(super) host: Option<String>,
    pub(super) protocol: Protocol,
}

/// Why a message is not a query that can be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// No answer: it is none of a client's, and an answer to it could be answered again.
    Ignored,
    /// The whole answer.
    Refused(Vec<u8>),
}

/// The family of addresses that a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The addresses are those of the asked name without its last labels: so many are left.
    pub(super) alias: Option<usize>,
    pub(super) addresses: Vec<IpAddr>,
}

// === impl Family ===

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub(super) fn record_type(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

// === impl Query ===

impl Query {
    /// Reads a client's message.
    pub(super) fn read(bytes: &[u8], protocol: Protocol) -> Result<Self, Unusable> {
        let Some(header) = Header::of(bytes) else { return Err(Unusable::Ignored) };
        if header.is_response() || bytes.len() > QUERY_BYTES_MAX {
            return Err(Unusable::Ignored);
        }
        if header.op_code() != u8::from(OpCode::Query) {
            return Err(Unusable::Refused(header.refusal(ResponseCode::NotImp)));
        }
        let malformed = || Unusable::Refused(header.refusal(ResponseCode::FormErr));
        // Checked before the parser, which makes room for as many questions as the header announces.
        if header.questions() != 1 {
            return Err(malformed());
        }
        let mut message = Message::from_vec(bytes).map_err(|_| malformed())?;
        let question = message.queries.pop().ok_or_else(malformed)?;
        let host = host_text(question.name());
        let query = Self { metadata: message.metadata, question, edns: message.edns, host, protocol };
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Err(Unusable::Refused(query.error(ResponseCode::BADVERS)));
        }
        Ok(query)
    }

    /// The addresses that are asked for; `None` for any other kind of question.
    pub(super) fn family(&self) -> Option<Family> {
        if self.question.query_class() != DNSClass::IN {
            return None;
        }
        match self.question.query_type() {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The type asked for, for metrics; 0 stands for all that have no name, so that a client cannot make up series.
    pub(super) fn type_code(&self) -> u16 {
        match self.question.query_type() {
            RecordType::Unknown(_) => 0,
            named => named.into(),
        }
    }

    /// The reply of an authority, as long as the client may take it.
    pub(super) fn answer(&self, answer: &Answer) -> Vec<u8> {
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let mut owner = self.question.name().clone();
        if let Some(kept) = answer.alias.filter(|_| !answer.addresses.is_empty())
            && let Ok(target) = Name::from_labels(owner.iter().take(kept))
        {
            let record = RData::CNAME(CNAME(target.clone()));
            message.add_answer(Record::from_rdata(owner, TTL_SECONDS, record));
            owner = target;
        }
        let addresses = answer.addresses.iter().map(|address| {
            let data = match address {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            Record::from_rdata(owner.clone(), TTL_SECONDS, data)
        });
        message.add_answers(addresses);
        self.fit(message)
    }

    /// A reply without records.
    pub(super) fn error(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.reply(code))
    }

    /// What another server has answered, as the client may take it: whole, or the word that it was too long.
    pub(super) fn relay(&self, mut answer: Vec<u8>) -> Vec<u8> {
        if answer.len() > self.limit() {
            let mut short = self.reply(ResponseCode::NoError);
            short.metadata.truncation = true;
            return encode(&short);
        }
        set_id(&mut answer, self.metadata.id);
        answer
    }

    /// Longest answer that this client takes.
    fn limit(&self) -> usize {
        let named = self.edns.as_ref().map_or(UDP_BYTES_DEFAULT, Edns::max_payload);
        match self.protocol {
            Protocol::Udp => usize::from(named.max(UDP_BYTES_DEFAULT)),
            Protocol::Tcp => usize::from(u16::MAX),
        }
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message
    }

    /// Leaves out as many of the last records as it must, and says so.
    fn fit(&self, mut message: Message) -> Vec<u8> {
        let own_limit = match self.protocol {
            Protocol::Udp => usize::from(UDP_BYTES_MAX),
            Protocol::Tcp => usize::MAX,
        };
        let limit = self.limit().min(own_limit);
        loop {
            let bytes = encode(&message);
            if bytes.len() <= limit || message.answers.is_empty() {
                return bytes;
            }
            message.metadata.truncation = true;
            // Proportional, so that a second turn nearly always fits; always one less, so that it ends.
            let count = message.answers.len();
            message.answers.truncate((count * limit / bytes.len()).min(count - 1));
        }
    }
}

/// Encoding into memory fails only for names or messages that are too long, and those of a reply were read from, or are
/// cut down to, a message; an empty message is answered to nobody.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}

/// The bytes of a question about the addresses of a host, for another server.
pub(super) fn address_query(name: Name, family: Family, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, family.record_type()));
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    message.set_edns(edns);
    encode(&message)
}

pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
}

/// Labels of letters, digits, hyphens and underscores, in lower case; anything else is the name of no service.
fn host_text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*')) {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The fixed part of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; HEADER_BYTES]);

impl<'a> Header<'a> {
    pub(super) fn of(message: &'a [u8]) -> Option<Self> {
        message.first_chunk().map(Self)
    }

    pub(super) fn id(self) -> u16 {
        let [high, low, ..] = *self.0;
        u16::from_be_bytes([high, low])
    }

    pub(super) fn is_response(self) -> bool {
        let [_, _, flags, ..] = *self.0;
        flags & 0x80 != 0
    }

    pub(super) fn is_truncated(self) -> bool {
        let [_, _, flags, ..] = *self.0;
        flags & 0x02 != 0
    }

    pub(super) fn response_code(self) -> u8 {
        let [_, _, _, flags, ..] = *self.0;
        flags & 0x0f
    }

    pub(super) fn questions(self) -> u16 {
        let [_, _, _, _, high, low, ..] = *self.0;
        u16::from_be_bytes([high, low])
    }

    fn op_code(self) -> u8 {
        let [_, _, flags, ..] = *self.0;
        (flags >> 3) & 0x0f
    }

    /// A header alone, for a message of which nothing more can be said.
    fn refusal(self, code: ResponseCode) -> Vec<u8> {
        let [id_high, id_low, flags, ..] = *self.0;
        let mut reply = vec![0; HEADER_BYTES];
        // Response bit, the client's operation and wish for recursion.
        reply.splice(..4, [id_high, id_low, 0x80 | (flags & 0x79), code.low()]);
        reply
    }
}
