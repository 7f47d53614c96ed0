//! YAML text to nodes that know where they stand.
//!
//! A text is cut into its documents first, so that a syntax error in one leaves the others readable. Everything is
//! bounded: nodes, depth and alias replays per document. The nodes carry no type but that of YAML's core schema;
//! what a field must be is decided by [`super::reader`].

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options, Spanned};

use super::catalog::Position;

/// Deepest nesting of a document; a Pod reaches about 12. Deserialisation recurses, so this bounds the stack too.
const DEPTH_MAX: usize = 32;
/// Most nodes of one document: a `List` of some 20,000 Pods.
const NODES_MAX: usize = 8_000_000;
/// Most nodes that aliases may add to one document.
const ALIAS_REPLAYS_MAX: usize = 100_000;
/// Most documents of one text.
const DOCUMENTS_MAX: usize = 100_000;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value; keys may repeat, the reader refuses that.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// Why a document could not be read at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) at: Position,
    pub(super) message: String,
    pub(super) fix: &'static str,
}

impl Node {
    /// The value of a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What the value is, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Null => String::from("nothing"),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(text) => format!("the text {:?}", shortened(text)),
            Value::List(_) => String::from("a list"),
            Value::Map(_) => String::from("a map"),
        }
    }
}

/// A text fit for a message of one line.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 80;
    if text.chars().count() <= SHOWN_CHARACTERS_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(SHOWN_CHARACTERS_MAX).collect();
    short.push('…');
    short
}

/// Reads every document of a text. Documents without content are left out.
pub(super) fn documents(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for (count, (line, chunk)) in chunks(text).into_iter().enumerate() {
        if count == DOCUMENTS_MAX {
            documents.push(Err(SyntaxError {
                at: Position { line, column: 1 },
                message: format!("more than {DOCUMENTS_MAX} documents in one file"),
                fix: "split the file",
            }));
            break;
        }
        match document(chunk, line) {
            Ok(Node { value: Value::Null, .. }) => {}
            other => documents.push(other),
        }
    }
    documents
}

/// Cuts at lines that begin with `---`, which no scalar may hold (YAML 1.2 section 9.1.2), and returns each piece
/// with the line it begins at. Directives and comments before a marker stay with the document they introduce.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut start_line = 1;
    let mut only_prologue = true;
    let mut offset = 0;
    let mut line_number = 0_u32;
    for line in text.split_inclusive('\n') {
        line_number = line_number.saturating_add(1);
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && !only_prologue {
            chunks.push((start_line, text.get(start..offset).unwrap_or_default()));
            start = offset;
            start_line = line_number;
        }
        let content = line.trim();
        only_prologue =
            !is_marker && only_prologue && (content.is_empty() || content.starts_with(['%', '#']));
        offset += line.len();
    }
    chunks.push((start_line, text.get(start..).unwrap_or_default()));
    chunks
}

fn document(chunk: &str, first_line: u32) -> Result<Node, SyntaxError> {
    let mut node: Node = serde_saphyr::from_str_with_options(chunk, options())
        .map_err(|error| syntax_error(&error, first_line))?;
    shift(&mut node, first_line.saturating_sub(1));
    Ok(node)
}

fn options() -> Options {
    let mut options = Options::default();
    let mut budget = options.budget.take().unwrap_or_default();
    budget.max_depth = DEPTH_MAX;
    budget.flow_nesting_limit = DEPTH_MAX;
    budget.max_nodes = NODES_MAX;
    budget.max_events = NODES_MAX.saturating_mul(2);
    budget.max_total_scalar_bytes = super::load::FILE_BYTES_MAX;
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = ALIAS_REPLAYS_MAX;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    // Kubernetes quotes what it writes; `yes` and `on` are texts to everyone else.
    options.strict_booleans = true;
    options.non_finite_float_policy = NonFiniteFloatPolicy::AsString;
    options.leading_zero_numbers_as_strings = true;
    options.underscored_numbers_as_strings = true;
    options.with_snippet = false;
    options
}

fn syntax_error(error: &serde_saphyr::Error, first_line: u32) -> SyntaxError {
    let (line, column) = error
        .location()
        .map_or((1, 1), |location| (saturating(location.line()), saturating(location.column())));
    let at =
        Position { line: first_line.saturating_sub(1).saturating_add(line.max(1)), column: column.max(1) };
    let text = error.to_string();
    // The position is told apart from the message already.
    let message = text.split(" at line ").next().unwrap_or(&text).trim();
    let fix = if message.contains("tab") {
        "indent with spaces"
    } else if message.contains("mapping values are not allowed") {
        "check the indentation, or quote a text that holds `: `"
    } else if message.contains("budget") || message.contains("limit") {
        "split the document, and write repeated parts out instead of aliases"
    } else {
        ""
    };
    SyntaxError { at, message: format!("this is not readable as YAML: {}", shortened(message)), fix }
}

fn saturating(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Positions count within the chunk; make them count within the file. Depth is bounded by [`DEPTH_MAX`].
fn shift(node: &mut Node, lines: u32) {
    node.at.line = node.at.line.saturating_add(lines);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => {
            for entry in entries {
                entry.at.line = entry.at.line.saturating_add(lines);
                shift(&mut entry.node, lines);
            }
        }
        _ => {}
    }
}

// === Deserialisation ===

fn position(location: &serde_saphyr::Location) -> Position {
    Position { line: saturating(location.line()), column: saturating(location.column()) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: position(&spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        i128::try_from(value).map(Value::Integer).map_err(|_| E::custom("the number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_bytes<E: serde::de::Error>(self, value: &[u8]) -> Result<Value, E> {
        let text = std::str::from_utf8(value).map_err(|_| E::custom("binary data is not read"))?;
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = access.next_entry::<Spanned<String>, Node>()? {
            if key.value.len() > KEY_BYTES_MAX {
                return Err(A::Error::custom(format!("a key is longer than {KEY_BYTES_MAX} bytes")));
            }
            entries.push(Entry { at: position(&key.referenced), key: key.value, node });
        }
        Ok(Value::Map(entries))
    }
}

/// Longest key; label keys end at 317.
const KEY_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(u32, u32)> {
        documents(text)
            .into_iter()
            .map(|document| match document {
                Ok(node) => (node.at.line, node.at.column),
                Err(error) => (error.at.line, 0),
            })
            .collect()
    }

    #[test]
    fn documents_keep_the_lines_of_the_file() {
        let text = "# head\na: 1\n---\n# note\nb:\n- 2\n---\n---\nc: {d: 3}\n...\n";
        assert_eq!(lines(text), [(2, 1), (5, 1), (9, 1)]);
        let second = documents(text).remove(1).unwrap();
        let item = second.get("b").unwrap();
        assert_eq!(item.at, Position { line: 6, column: 3 });
    }

    #[test]
    fn a_marker_opens_a_document_only_at_the_start_of_a_line() {
        assert_eq!(lines("a: |\n  ---\n  x\n--- # second\nb: 1\n"), [(1, 1), (5, 1)]);
        assert_eq!(lines("a: '---x'\n---x: 1\n"), [(1, 1)], "`---x` is a key");
        assert_eq!(lines("%YAML 1.2\n---\na: 1\n---\nb: 1\n"), [(3, 1), (5, 1)]);
        assert_eq!(lines("\u{feff}a: 1\r\n---\r\nb: 1\r\n"), [(1, 1), (3, 1)]);
    }

    #[test]
    fn a_broken_document_leaves_its_neighbours() {
        assert_eq!(lines("a: 1\n---\nb: [1\n---\nc: 3\n"), [(1, 1), (3, 0), (5, 1)]);
    }

    #[test]
    fn scalars_have_the_types_of_the_core_schema() {
        let node = documents("a: '80'\nb: 80\nc: yes\nd: true\ne: ~\nf: 1.5\ng: 0644\nh: !!str 5\ni: .nan\n")
            .remove(0);
        let node = node.unwrap();
        let value = |key: &str| node.get(key).unwrap().value.clone();
        assert_eq!(value("a"), Value::Text("80".into()));
        assert_eq!(value("b"), Value::Integer(80));
        assert_eq!(value("c"), Value::Text("yes".into()));
        assert_eq!(value("d"), Value::Bool(true));
        assert_eq!(value("e"), Value::Null);
        assert_eq!(value("f"), Value::Float(1.5));
        assert_eq!(value("g"), Value::Text("0644".into()));
        assert_eq!(value("h"), Value::Text("5".into()));
        assert_eq!(value("i"), Value::Text(".nan".into()));
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
        assert!(documents(&deep).remove(0).is_err());
        let block = (0..200).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n");
        assert!(documents(&block).remove(0).is_err());
        let mut bomb = vec![String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]")];
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            bomb.push(format!("a{level}: &a{level} [{}]", [alias.as_str(); 10].join(", ")));
        }
        let error = documents(&bomb.join("\n")).remove(0).unwrap_err();
        assert!(error.fix.contains("aliases"), "{error:?}");
        assert!(documents("a: &a {b: 1}\nc: *a\n").remove(0).is_ok(), "plain aliases are fine");
    }

    #[test]
    fn a_tab_is_named() {
        let error = documents("a:\n\tb: 1\n").remove(0).unwrap_err();
        assert_eq!((error.at.line, error.fix), (2, "indent with spaces"));
    }
}
