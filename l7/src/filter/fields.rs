//! The field lines of a head while filters edit them.

use std::borrow::Cow;

use crate::http1::end_to_end;
use crate::ir::{Header, HeaderEdits};

/// Field lines that go to the next hop, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields<'a> {
    lines: Vec<Line<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line<'a> {
    name: &'a str,
    value: Cow<'a, [u8]>,
}

impl<'a> Fields<'a> {
    /// Those of a head that was received, less what concerns only its connection.
    pub fn received(headers: &'a [Header<'a>]) -> Self {
        let line = |header: &Header<'a>| Line { name: header.name, value: Cow::Borrowed(header.value) };
        Self { lines: end_to_end(headers).map(line).collect() }
    }

    pub fn edit(&mut self, edits: &'a HeaderEdits) {
        let goes = |name: &str| {
            let names = edits.remove.iter().chain(edits.set.iter().map(|header| &header.name));
            names.into_iter().any(|own| own.eq_ignore_ascii_case(name))
        };
        if !(edits.remove.is_empty() && edits.set.is_empty()) {
            self.lines.retain(|line| !goes(line.name));
        }
        for header in &edits.set {
            self.lines.push(Line { name: &header.name, value: Cow::Borrowed(header.value.as_bytes()) });
        }
        for header in &edits.add {
            self.add(&header.name, header.value.as_bytes());
        }
    }

    /// One line in place of all of that name.
    pub fn set(&mut self, name: &'a str, value: &'a [u8]) {
        self.lines.retain(|line| !line.name.eq_ignore_ascii_case(name));
        self.lines.push(Line { name, value: Cow::Borrowed(value) });
    }

    /// Appends to the last line of the name, so that a reader of one line sees all values.
    fn add(&mut self, name: &'a str, value: &'a [u8]) {
        let last = self.lines.iter_mut().rev().find(|line| line.name.eq_ignore_ascii_case(name));
        match (last, separator(name)) {
            (Some(line), Some(_)) if line.value.is_empty() => line.value = Cow::Borrowed(value),
            (Some(line), Some(separator)) => {
                let joined = line.value.to_mut();
                joined.extend_from_slice(separator);
                joined.extend_from_slice(value);
            }
            _ => self.lines.push(Line { name, value: Cow::Borrowed(value) }),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Header<'_>> {
        self.lines.iter().map(|line| Header { name: line.name, value: &line.value })
    }
}

/// What stands between the values of a header; `None` where each needs a line of its own (RFC 9110 section 5.3).
fn separator(name: &str) -> Option<&'static [u8]> {
    if name.eq_ignore_ascii_case("set-cookie") {
        None
    } else if name.eq_ignore_ascii_case("cookie") {
        Some(b"; ") // RFC 6265 section 4.2.1
    } else {
        Some(b",")
    }
}
