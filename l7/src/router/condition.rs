//! What a match asks of a request besides its path: method, headers, query parameters, who sends it.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::pattern::{Pattern, PatternError};
use super::{Asked, Sender};
use crate::ir::{HttpMatch, RequestHead, SourceMatch, ValueMatch, ValueTest};

/// All must hold.
#[derive(Debug)]
pub(super) struct Conditions {
    method: Option<Box<str>>,
    headers: Box<[ValueCondition]>,
    query: Box<[ValueCondition]>,
    /// None may hold.
    without_headers: Box<[ValueCondition]>,
    source: Option<SourceMatch>,
}

#[derive(Debug)]
struct ValueCondition {
    name: Box<str>,
    test: CompiledTest,
}

#[derive(Debug)]
enum CompiledTest {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Present,
    Pattern(Pattern),
}

/// Lines of a repeated header up to this size are joined without allocation.
type Joined = SmallVec<[u8; 512]>;

/// Without a method, headers, query parameters: smaller ranks higher.
pub(super) type Rank = (bool, Reverse<usize>, Reverse<usize>);

impl Conditions {
    pub(super) const RANK_OF_NONE: Rank = (true, Reverse(0), Reverse(0));

    pub(super) fn compile(entry: &HttpMatch) -> Result<Self, PatternError> {
        Ok(Self {
            method: entry.method.as_deref().map(Box::from),
            headers: compile_all(&entry.headers, str::eq_ignore_ascii_case)?,
            query: compile_all(&entry.query, |left, right| left == right)?,
            without_headers: compile_all(&entry.without_headers, |_, _| false)?,
            source: entry.source.clone(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rank() == Self::RANK_OF_NONE && self.without_headers.is_empty() && self.source.is_none()
    }

    pub(super) fn rank(&self) -> Rank {
        (self.method.is_none(), Reverse(self.headers.len()), Reverse(self.query.len()))
    }

    /// Names and values of the headers that must have one value.
    pub(super) fn exact_headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().filter_map(|condition| match &condition.test {
            CompiledTest::Exact(text) => Some((&*condition.name, &**text)),
            _ => None,
        })
    }

    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        let head = asked.head;
        self.method.as_deref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|condition| condition.holds_for_header(head))
            && self.query.iter().all(|condition| condition.holds_for_query(head.query))
            && !self.without_headers.iter().any(|condition| condition.holds_for_header(head))
            && self.source.as_ref().is_none_or(|source| is_from(source, asked.sender))
    }
}

/// Of entries with equivalent names only the first counts (Gateway API, HTTPHeaderMatch and HTTPQueryParamMatch).
fn compile_all(
    entries: &[ValueMatch],
    same_name: impl Fn(&str, &str) -> bool,
) -> Result<Box<[ValueCondition]>, PatternError> {
    let mut compiled: Vec<ValueCondition> = Vec::with_capacity(entries.len());
    for entry in entries {
        if compiled.iter().any(|earlier| same_name(&earlier.name, &entry.name)) {
            continue;
        }
        let test = match &entry.value {
            ValueTest::Exact(text) => CompiledTest::Exact(text.as_bytes().into()),
            ValueTest::Prefix(text) => CompiledTest::Prefix(text.as_bytes().into()),
            ValueTest::Suffix(text) => CompiledTest::Suffix(text.as_bytes().into()),
            ValueTest::Present => CompiledTest::Present,
            ValueTest::Regex(text) => CompiledTest::Pattern(Pattern::compile(text)?),
        };
        compiled.push(ValueCondition { name: entry.name.as_ref().into(), test });
    }
    Ok(compiled.into())
}

impl ValueCondition {
    fn holds_for_header(&self, head: &RequestHead<'_>) -> bool {
        with_header(head, &self.name, |value| value.is_some_and(|value| self.test.holds(value)))
    }

    /// Of a repeated parameter the first value counts. Values are compared as sent, percent signs and all.
    fn holds_for_query(&self, query: Option<&str>) -> bool {
        let pairs = query.unwrap_or_default().split('&');
        let mut values = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        values
            .find(|(name, _)| **name == *self.name)
            .is_some_and(|(_, value)| self.test.holds(value.as_bytes()))
    }
}

/// Hands the value of a header to `look`. A repeated header is one value: its lines joined by a comma (RFC 9110
/// section 5.3).
pub(super) fn with_header<T>(head: &RequestHead<'_>, name: &str, look: impl FnOnce(Option<&[u8]>) -> T) -> T {
    if let Some(pseudo) = name.strip_prefix(':') {
        return look(pseudo_field(head, pseudo).map(str::as_bytes));
    }
    let named = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let mut lines = named.map(|header| header.value);
    let (first, second) = (lines.next(), lines.next());
    let (Some(first), Some(second)) = (first, second) else { return look(first) };
    let mut joined = Joined::from_slice(first);
    for line in std::iter::once(second).chain(lines) {
        joined.push(b',');
        joined.extend_from_slice(line);
    }
    look(Some(&joined))
}

/// A field that HTTP/2 writes with a colon (RFC 9113 section 8.3.1). Requests arrive here in the clear.
fn pseudo_field<'a>(head: &RequestHead<'a>, name: &str) -> Option<&'a str> {
    match name {
        "authority" => Some(head.authority),
        "method" => Some(head.method),
        "scheme" => Some("http"),
        _ => None,
    }
}

fn is_from(source: &SourceMatch, sender: Sender<'_>) -> bool {
    let has = |(key, value)| sender.labels.is_some_and(|labels| labels.get(key) == Some(value));
    source.namespace.as_deref().is_none_or(|own| own == sender.namespace) && source.labels.iter().all(has)
}

impl CompiledTest {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => **text == *value,
            Self::Prefix(text) => value.starts_with(text),
            Self::Suffix(text) => value.ends_with(text),
            Self::Present => true,
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}
