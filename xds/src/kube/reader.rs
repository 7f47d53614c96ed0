//! Access to the fields of an object, with a finding for everything that is not as it must be.
//!
//! An [`Item`] is a node together with its field path; [`Fields`] is a map whose fields are asked for one by one.
//! Whatever was not asked for is unknown: an error for strict kinds, tolerated for lenient ones. Nothing stops at
//! the first finding; a reading function that returns `None` has reported why.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::catalog::{Labels, Position};
use super::problem::{Problem, Severity};
use super::yaml::{Entry, Node, Value, shortened};

/// Most problems kept for one text; a file that is wrong from end to end says so once.
const PROBLEMS_MAX: usize = 1000;

/// Collects the findings of one file.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) file: Arc<str>,
    /// `KIND NAMESPACE/NAME` of the object being read.
    pub(super) object: String,
    /// Lines of the file before the text being read, where one text lies in another.
    pub(super) lines_before: u32,
    /// Unknown fields are errors.
    pub(super) strict: bool,
    /// Errors since the object was begun.
    pub(super) errors: usize,
    pub(super) problems: Vec<Problem>,
}

impl Findings {
    pub(super) fn new(file: Arc<str>) -> Self {
        Self { file, object: String::new(), lines_before: 0, strict: false, errors: 0, problems: Vec::new() }
    }

    /// Starts the next object: what is found from now on concerns it.
    pub(super) fn begin(&mut self, object: String, strict: bool) {
        self.object = object;
        self.strict = strict;
        self.errors = 0;
    }

    /// A position of the text being read as one of the file.
    pub(super) fn shifted(&self, at: Position) -> Position {
        Position { line: at.line.saturating_add(self.lines_before), ..at }
    }

    pub(super) fn add(
        &mut self,
        severity: Severity,
        at: Position,
        field: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if severity == Severity::Error {
            self.errors += 1;
        }
        if self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        let at = self.shifted(at);
        self.problems.push(Problem {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            object: self.object.clone(),
            field: field.to_owned(),
            message: message.into(),
            fix: fix.into(),
            severity,
        });
    }
}

/// A node and the path that leads to it.
#[derive(Debug, Clone)]
pub(super) struct Item<'n> {
    pub(super) node: &'n Node,
    pub(super) path: String,
}

impl<'n> Item<'n> {
    pub(super) fn error(&self, findings: &mut Findings, message: impl Into<String>, fix: impl Into<String>) {
        findings.add(Severity::Error, self.node.at, &self.path, message, fix);
    }

    pub(super) fn warning(
        &self,
        findings: &mut Findings,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        findings.add(Severity::Warning, self.node.at, &self.path, message, fix);
    }

    fn wrong_type(&self, findings: &mut Findings, expected: &str) {
        let fix = match (&self.node.value, expected) {
            (Value::Bool(value), "a text") => format!("quote it: \"{value}\""),
            (Value::Integer(value), "a text") => format!("quote it: \"{value}\""),
            (Value::Float(value), "a text") => format!("quote it: \"{value}\""),
            (Value::Text(text), "a number") if text.parse::<i64>().is_ok() => {
                format!("write {text} without quotes")
            }
            (Value::Text(text), "true or false") if matches!(text.as_str(), "yes" | "on" | "true") => {
                String::from("write true")
            }
            (Value::Text(text), "true or false") if matches!(text.as_str(), "no" | "off" | "false") => {
                String::from("write false")
            }
            (Value::Map(_), "a list") => String::from("begin each entry with `- `"),
            (Value::Text(_), "a list") => String::from("write one entry per line, each begun with `- `"),
            _ => String::new(),
        };
        self.error(findings, format!("this must be {expected}, but it is {}", self.node.describe()), fix);
    }

    pub(super) fn fields(&self, findings: &mut Findings) -> Option<Fields<'n>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type(findings, "a map");
            return None;
        };
        let mut lines = BTreeMap::new();
        for entry in entries {
            let first = *lines.entry(entry.key.as_str()).or_insert(entry.at);
            if first != entry.at {
                findings.add(
                    Severity::Error,
                    entry.at,
                    &joined(&self.path, &entry.key),
                    format!("this field is given twice; the first stands at line {}", first.line),
                    "keep one of the two",
                );
            }
        }
        self.fields_again(findings)
    }

    /// The fields once more: repeated keys are reported by the first call of [`Item::fields`] only.
    pub(super) fn fields_again(&self, findings: &mut Findings) -> Option<Fields<'n>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type(findings, "a map");
            return None;
        };
        Some(Fields { at: self.node.at, entries, path: self.path.clone(), asked: Vec::new() })
    }

    pub(super) fn list(&self, findings: &mut Findings) -> Vec<Self> {
        let Value::List(nodes) = &self.node.value else {
            self.wrong_type(findings, "a list");
            return Vec::new();
        };
        nodes
            .iter()
            .enumerate()
            .map(|(index, node)| Item { node, path: format!("{}[{index}]", self.path) })
            .collect()
    }

    pub(super) fn text(&self, findings: &mut Findings) -> Option<&'n str> {
        if let Value::Text(text) = &self.node.value {
            return Some(text);
        }
        self.wrong_type(findings, "a text");
        None
    }

    /// A text that says something.
    pub(super) fn filled(&self, findings: &mut Findings) -> Option<&'n str> {
        let text = self.text(findings)?;
        if text.is_empty() {
            self.error(findings, "this must not be empty", "");
            return None;
        }
        Some(text)
    }

    pub(super) fn shared(&self, findings: &mut Findings) -> Option<Arc<str>> {
        self.text(findings).map(Arc::from)
    }

    pub(super) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.wrong_type(findings, "true or false");
        None
    }

    pub(super) fn integer(&self, findings: &mut Findings, least: i64, most: i64) -> Option<i64> {
        let Value::Integer(value) = self.node.value else {
            self.wrong_type(findings, "a number");
            return None;
        };
        match i64::try_from(value) {
            Ok(value) if (least..=most).contains(&value) => Some(value),
            _ => {
                self.error(
                    findings,
                    format!("{value} is out of range"),
                    format!("write a number from {least} to {most}"),
                );
                None
            }
        }
    }

    /// A port number from 1 on.
    pub(super) fn port(&self, findings: &mut Findings) -> Option<u16> {
        self.integer(findings, 1, i64::from(u16::MAX)).and_then(|value| u16::try_from(value).ok())
    }

    pub(super) fn ip(&self, findings: &mut Findings) -> Option<IpAddr> {
        let text = self.text(findings)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.error(findings, format!("{:?} is not an IP address", shortened(text)), "");
        }
        parsed
    }

    /// One of a closed set of spellings.
    pub(super) fn one_of<T: Copy>(&self, findings: &mut Findings, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(findings)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names = choices.iter().map(|(name, _)| *name);
        let fix = match closest(text, names.clone()) {
            Some(name) => format!("did you mean {name}?"),
            None => format!("write one of {}", names.collect::<Vec<_>>().join(", ")),
        };
        self.error(findings, format!("{:?} is not known here", shortened(text)), fix);
        None
    }

    /// A map of texts to texts, as labels and annotations are.
    pub(super) fn labels(&self, findings: &mut Findings) -> Labels {
        let Some(fields) = self.fields(findings) else {
            return Labels::new();
        };
        let mut labels = Labels::new();
        for item in fields.entries() {
            if let Some(value) = item.1.text(findings) {
                labels.insert(Arc::from(item.0), Arc::from(value));
            }
        }
        labels
    }

    /// A list of non-empty texts.
    pub(super) fn texts(&self, findings: &mut Findings) -> Vec<Arc<str>> {
        let items = self.list(findings);
        items.iter().filter_map(|item| item.filled(findings)).map(Arc::from).collect()
    }
}

/// The fields of a map, asked for by name.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    pub(super) at: Position,
    pub(super) path: String,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// A field that may be absent; an explicit null is an absence, as for the Kubernetes API.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<Item<'n>> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        if entry.node.value == Value::Null {
            return None;
        }
        Some(Item { node: &entry.node, path: joined(&self.path, name) })
    }

    pub(super) fn required(&mut self, findings: &mut Findings, name: &'static str) -> Option<Item<'n>> {
        let item = self.optional(name);
        if item.is_none() {
            let near = closest(name, self.entries.iter().map(|entry| entry.key.as_str()));
            let fix = near.map_or_else(String::new, |near| format!("is {near} meant to be {name}?"));
            let field = joined(&self.path, name);
            findings.add(Severity::Error, self.at, &field, format!("the field {name} is missing"), fix);
        }
        item
    }

    /// Fields that are legal but concern others.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        self.asked.extend_from_slice(names);
    }

    /// Reports a field that is legal but cannot be honoured.
    pub(super) fn refuse(&mut self, findings: &mut Findings, name: &'static str) {
        if let Some(item) = self.optional(name).filter(|item| item.node.value != Value::List(Vec::new())) {
            item.error(findings, format!("{name} is not supported yet"), format!("remove {name}"));
        }
    }

    /// Every entry, for maps whose keys are data.
    pub(super) fn entries(&self) -> Vec<(&'n str, Item<'n>)> {
        self.entries
            .iter()
            .map(|entry| {
                let path = format!("{}[{}]", self.path, entry.key);
                (entry.key.as_str(), Item { node: &entry.node, path })
            })
            .collect()
    }

    /// Reports what was not asked for.
    pub(super) fn finish(self, findings: &mut Findings) {
        for entry in self.entries {
            if self.asked.contains(&entry.key.as_str()) {
                continue;
            }
            let near = closest(&entry.key, self.asked.iter().copied());
            let field = joined(&self.path, &entry.key);
            let message = format!("there is no field {:?} here", shortened(&entry.key));
            match near {
                Some(near) if findings.strict => {
                    findings.add(Severity::Error, entry.at, &field, message, format!("did you mean {near}?"));
                }
                None if findings.strict => {
                    let known = self.asked.join(", ");
                    findings.add(
                        Severity::Error,
                        entry.at,
                        &field,
                        message,
                        format!("known fields: {known}"),
                    );
                }
                // A lenient kind has many fields we never read: only a near miss of one we do read is worth a word.
                Some(near)
                    if !self.entries.iter().any(|other| other.key == near)
                        && is_near_miss(&entry.key, near) =>
                {
                    let message = format!("{message}, so it has no effect");
                    findings.add(
                        Severity::Warning,
                        entry.at,
                        &field,
                        message,
                        format!("did you mean {near}?"),
                    );
                }
                _ => {}
            }
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

// === Spelling ===

/// Longest word for which a neighbour is looked for.
const SPELLING_BYTES_MAX: usize = 64;

/// The candidate nearest to a word, if it is near enough to be meant.
pub(super) fn closest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    if word.len() > SPELLING_BYTES_MAX {
        return None;
    }
    let allowed = 1 + word.len() / 5;
    let word_lower = word.to_lowercase();
    candidates
        .filter(|candidate| candidate.len() <= SPELLING_BYTES_MAX)
        .map(|candidate| (separation(&word_lower, &candidate.to_lowercase()), candidate))
        .filter(|(separation, candidate)| *separation <= allowed && *separation < candidate.len())
        .min_by_key(|(separation, _)| *separation)
        .map(|(_, candidate)| candidate)
}

/// The distance, or 1 where a word is a good part of the candidate, as `prefix` is of `pathprefix`.
fn separation(word: &str, candidate: &str) -> usize {
    const PART_BYTES_MIN: usize = 5;
    if word != candidate && word.len() >= PART_BYTES_MIN && candidate.contains(word) {
        return 1;
    }
    distance(word, candidate)
}

/// One letter wrong, missing, too much or swapped.
fn is_near_miss(word: &str, candidate: &str) -> bool {
    candidate.len() > 3 && distance(word, candidate) <= 1
}

/// Edits between two words: insertion, deletion, substitution, and swap of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (row, letter) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let substituted = at(&previous, column) + usize::from(letter != other);
            let mut best = substituted.min(at(&previous, column + 1) + 1).min(at(&current, column) + 1);
            let swapped = row > 0
                && column > 0
                && left.get(row - 1) == Some(other)
                && right.get(column - 1) == Some(letter);
            if swapped {
                best = best.min(at(&before, column - 1) + 1);
            }
            current.push(best);
        }
        before = previous;
        previous = current;
    }
    at(&previous, right.len())
}

fn at(row: &[usize], index: usize) -> usize {
    row.get(index).copied().unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_proposed_and_far_ones_are_not() {
        let names = ["backendRefs", "filters", "matches", "name", "timeouts"];
        let propose = |word: &str| closest(word, names.into_iter());
        assert_eq!(propose("backendRef"), Some("backendRefs"));
        assert_eq!(propose("matchs"), Some("matches"));
        assert_eq!(propose("fitlers"), Some("filters"));
        assert_eq!(propose("Name"), Some("name"));
        assert_eq!(propose("sessionPersistence"), None);
        assert_eq!(propose("backend"), Some("backendRefs"));
        assert_eq!(propose("x"), None);
        assert_eq!(propose(&"n".repeat(1000)), None);
    }

    #[test]
    fn distance_counts_edits() {
        for (left, right, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "axc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), edits, "{left} {right}");
        }
    }
}
