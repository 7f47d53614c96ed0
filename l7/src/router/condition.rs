//! What a match asks of a request besides its path: method, headers, query parameters, who sends it.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::pattern::{Pattern, PatternError};
use super::{Asked, Sender};
use crate::ir::{HttpMatch, RequestHead, SourceMatch, ValueTest};

/// All must hold. Most matches have at most one, which then lies beside the path: with many routes a lookup costs what
/// it touches of memory.
#[derive(Debug)]
pub(super) struct Conditions(SmallVec<[Condition; 1]>);

#[derive(Debug)]
enum Condition {
    Method(Box<str>),
    Field(FieldCondition),
    Source(Box<SourceMatch>),
}

#[derive(Debug)]
struct FieldCondition {
    name: Arc<str>,
    test: CompiledTest,
    field: Field,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Header,
    Query,
    /// A header of which the test may not hold.
    WithoutHeader,
}

/// Names of headers and query parameters, each held once for all routes: so it stays in the cache.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<Arc<str>, RandomState>);

#[derive(Debug)]
enum CompiledTest {
    Exact(Text),
    Prefix(Text),
    Suffix(Text),
    Present,
    Pattern(Pattern),
}

/// Short ones lie in place.
type Text = SmallVec<[u8; 16]>;

/// Lines of a repeated header up to this size are joined without allocation.
type Joined = SmallVec<[u8; 512]>;

/// Without a method, headers, query parameters: smaller ranks higher.
pub(super) type Rank = (bool, Reverse<usize>, Reverse<usize>);

/// Whether two entries speak of the same field.
type SameName = fn(&str, &str) -> bool;

impl Conditions {
    pub(super) fn compile(entry: &HttpMatch, names: &mut Names) -> Result<Self, PatternError> {
        let mut list = SmallVec::new();
        list.extend(entry.method.as_deref().map(|method| Condition::Method(method.into())));
        let any_case: SameName = str::eq_ignore_ascii_case;
        for (field, entries, same_name) in [
            (Field::Header, &entry.headers, any_case),
            (Field::Query, &entry.query, |left, right| left == right),
            (Field::WithoutHeader, &entry.without_headers, |_, _| false),
        ] {
            for (at, own) in entries.iter().enumerate() {
                // Of entries with equivalent names only the first counts (Gateway API, HTTPHeaderMatch and
                // HTTPQueryParamMatch).
                if entries.iter().take(at).any(|earlier| same_name(&earlier.name, &own.name)) {
                    continue;
                }
                let (name, test) = (names.share(&own.name), CompiledTest::compile(&own.value)?);
                list.push(Condition::Field(FieldCondition { name, test, field }));
            }
        }
        list.extend(entry.source.clone().map(|source| Condition::Source(Box::new(source))));
        Ok(Self(list))
    }

    pub(super) fn rank(&self) -> Rank {
        let has_method = self.0.iter().any(|condition| matches!(condition, Condition::Method(_)));
        let count = |of| self.fields().filter(|condition| condition.field == of).count();
        (!has_method, Reverse(count(Field::Header)), Reverse(count(Field::Query)))
    }

    fn fields(&self) -> impl Iterator<Item = &FieldCondition> {
        self.0.iter().filter_map(|condition| match condition {
            Condition::Field(condition) => Some(condition),
            Condition::Method(_) | Condition::Source(_) => None,
        })
    }

    /// Names and values of the headers that must have one value.
    pub(super) fn exact_headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields().filter_map(|condition| match (condition.field, &condition.test) {
            (Field::Header, CompiledTest::Exact(text)) => Some((&*condition.name, &**text)),
            _ => None,
        })
    }

    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Method(method) => **method == *asked.head.method,
            Condition::Field(condition) => condition.holds(asked.head),
            Condition::Source(source) => is_from(source, asked.sender),
        })
    }
}

impl Names {
    fn share(&mut self, name: &Arc<str>) -> Arc<str> {
        if let Some(shared) = self.0.get(name) {
            return shared.clone();
        }
        self.0.insert(name.clone());
        name.clone()
    }
}

impl FieldCondition {
    fn holds(&self, head: &RequestHead<'_>) -> bool {
        match self.field {
            Field::Header => self.holds_for_header(head),
            Field::Query => self.holds_for_query(head.query),
            Field::WithoutHeader => !self.holds_for_header(head),
        }
    }

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
    fn compile(test: &ValueTest) -> Result<Self, PatternError> {
        let text = |text: &Arc<str>| Text::from_slice(text.as_bytes());
        Ok(match test {
            ValueTest::Exact(own) => Self::Exact(text(own)),
            ValueTest::Prefix(own) => Self::Prefix(text(own)),
            ValueTest::Suffix(own) => Self::Suffix(text(own)),
            ValueTest::Present => Self::Present,
            ValueTest::Regex(own) => Self::Pattern(Pattern::compile(own)?),
        })
    }

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
