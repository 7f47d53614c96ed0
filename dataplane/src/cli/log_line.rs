//! A line of the program's own log, in its three forms. Plain and JSON are those of ztunnel, and of our access log.
//!
//! Invariant: whatever a field holds, a line stays one line, and a quoted value ends at its own closing quote.

use std::fmt::{self, Debug, Write as _};

use serde_json::Value;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::access_log::format::TIME;

/// What every JSON line begins with.
const HEAD: [&str; 4] = ["level", "time", "scope", "message"];

/// How lines are written.
#[derive(Debug)]
pub(super) enum LogForm {
    /// For those who read along.
    Human(Format),
    /// Time, level, scope, message and fields apart by tabs.
    Plain,
    /// An object a line.
    Json,
}

/// What a line says.
#[derive(Debug, Default)]
struct Line {
    level: &'static str,
    scope: String,
    message: String,
    /// In the order in which they were given.
    fields: Vec<(&'static str, FieldValue)>,
}

#[derive(Debug)]
enum FieldValue {
    /// Numbers and truth values.
    Bare(Value),
    /// Needs quotes in the plain form always.
    Text(String),
    /// What was given by its display or debug form: quoted in the plain form where it must be.
    Shown(String),
}

// === impl LogForm ===

impl<S, N> FormatEvent<S, N> for LogForm
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let write: fn(&Line, OffsetDateTime) -> String = match self {
            Self::Human(format) => return format.format_event(context, writer, event),
            Self::Plain => Line::plain,
            Self::Json => Line::json,
        };
        writeln!(writer, "{}", write(&Line::of(event), OffsetDateTime::now_utc()))
    }
}

// === impl Line ===

impl Line {
    fn of(event: &Event<'_>) -> Self {
        let about = event.metadata();
        let level = match *about.level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let mut line = Self { level, scope: about.target().to_owned(), ..Self::default() };
        event.record(&mut line);
        line
    }

    /// The plain form, without the end of line. The time must be in UTC.
    fn plain(&self, now: OffsetDateTime) -> String {
        let mut out = format!("{}\t{}\t", now.format(TIME).unwrap_or_default(), self.level);
        push_escaped(&mut out, &self.scope);
        out.push('\t');
        push_escaped(&mut out, &self.message);
        for (at, (name, value)) in self.fields.iter().enumerate() {
            out.push(if at == 0 { '\t' } else { ' ' });
            // Writing into a String cannot fail.
            let _ = match value {
                FieldValue::Bare(value) => write!(out, "{name}={value}"),
                FieldValue::Shown(value) if !needs_quotes(value) => write!(out, "{name}={value}"),
                FieldValue::Text(value) | FieldValue::Shown(value) => write!(out, "{name}={value:?}"),
            };
        }
        out
    }

    /// The JSON form, likewise.
    fn json(&self, now: OffsetDateTime) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let time = now.format(TIME).unwrap_or_default();
        let (scope, message) = (quoted(&self.scope), quoted(&self.message));
        let mut out =
            format!(r#"{{"level":"{}","time":"{time}","scope":{scope},"message":{message}"#, self.level);
        // A field that has the name of one of the first four does not take its place.
        for (name, value) in self.fields.iter().filter(|(name, _)| !HEAD.contains(name)) {
            let value = match value {
                FieldValue::Bare(value) => value.to_string(),
                FieldValue::Text(text) | FieldValue::Shown(text) => quoted(text),
            };
            let _ = write!(out, ",{}:{value}", quoted(name));
        }
        out.push('}');
        out
    }

    fn push(&mut self, field: &Field, value: FieldValue) {
        match (field.name(), value) {
            ("message", FieldValue::Text(text) | FieldValue::Shown(text)) => self.message = text,
            // Lines of libraries that use the `log` crate bring their scope as a field.
            ("log.target", FieldValue::Text(text) | FieldValue::Shown(text)) => self.scope = text,
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(field, FieldValue::Shown(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, FieldValue::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, FieldValue::Shown(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, FieldValue::Bare(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, FieldValue::Bare(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, FieldValue::Bare(value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, FieldValue::Bare(value.into()));
    }
}

/// Whether a reader could not tell where the value ends.
fn needs_quotes(value: &str) -> bool {
    value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
}

/// Control characters as escapes, so that a line stays one and its tabs are its own.
fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_debug()) } else { out.push(c) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use time::macros::datetime;

    use super::*;

    /// What is written by `tell` in this form, with the time in its place.
    fn written(form: LogForm, tell: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let into = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(form)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || into.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, tell);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn one_of_all() {
        let error = io::Error::other("connection refused");
        let address: std::net::SocketAddr = "10.0.0.1:15012".parse().unwrap();
        tracing::warn!(
            target: "xds", %address, %error, attempt = 3, late = true, name = "a b", kind = ?Some(1), short = 0.5,
            "no answer yet"
        );
    }

    #[test]
    fn the_plain_form_has_tabs_between_its_parts() {
        let line = written(LogForm::Plain, one_of_all);
        let (time, rest) = line.split_once('\t').unwrap();
        assert!(
            OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).is_ok(),
            "{time}"
        );
        assert_eq!((time.len(), &time[26..]), (27, "Z"));
        assert_eq!(
            rest,
            "warn\txds\tno answer yet\taddress=10.0.0.1:15012 error=\"connection refused\" attempt=3 late=true \
             name=\"a b\" kind=Some(1) short=0.5\n"
        );
    }

    #[test]
    fn the_json_form_has_level_time_scope_and_message_first() {
        let line = written(LogForm::Json, one_of_all);
        let (head, rest) = line.split_once(r#","scope""#).unwrap();
        let time = head.strip_prefix(r#"{"level":"warn","time":""#).unwrap().strip_suffix('"').unwrap();
        assert!(
            OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).is_ok(),
            "{time}"
        );
        assert_eq!(
            rest,
            concat!(
                r#":"xds","message":"no answer yet","address":"10.0.0.1:15012","error":"connection refused","#,
                r#""attempt":3,"late":true,"name":"a b","kind":"Some(1)","short":0.5}"#,
                "\n"
            )
        );
    }

    #[test]
    fn times_have_microseconds_in_both_forms() {
        let line = Line { level: "info", scope: "proxy".into(), message: "ready".into(), fields: Vec::new() };
        let now = datetime!(2026-01-02 03:04:05.000607 UTC);
        assert_eq!(line.plain(now), "2026-01-02T03:04:05.000607Z\tinfo\tproxy\tready");
        assert_eq!(
            line.json(now),
            r#"{"level":"info","time":"2026-01-02T03:04:05.000607Z","scope":"proxy","message":"ready"}"#
        );
    }

    #[test]
    fn a_field_cannot_end_its_line_nor_pass_for_another() {
        let tell = || {
            let peer = "x\nadmin=true";
            tracing::info!(target: "t", %peer, quoted = "a\" b=\"c", scope = "other", "one\n\ttwo");
        };
        let plain = written(LogForm::Plain, tell);
        assert_eq!(
            plain.split_once('\t').unwrap().1,
            "info\tt\tone\\n\\ttwo\tpeer=\"x\\nadmin=true\" quoted=\"a\\\" b=\\\"c\" scope=\"other\"\n"
        );
        let json = written(LogForm::Json, tell);
        assert_eq!(json.lines().count(), 1);
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["scope"], &value["peer"]), (&"t".into(), &"x\nadmin=true".into()));
    }

    #[test]
    fn fuzz_a_line_is_one_line_and_json_gives_back_its_fields() {
        bolero::check!().with_type::<(String, String, String)>().for_each(|(scope, message, value)| {
            let fields = vec![
                ("one", FieldValue::Shown(value.clone())),
                ("two", FieldValue::Text(value.clone())),
                ("last", FieldValue::Bare(1.into())),
            ];
            let line = Line { level: "info", scope: scope.clone(), message: message.clone(), fields };
            let now = datetime!(2026-01-02 03:04:05 UTC);
            let plain = line.plain(now);
            assert!(!plain.contains('\n') && plain.split('\t').count() == 5, "{plain:?}");
            assert!(plain.ends_with(" last=1"));
            let json = line.json(now);
            assert!(!json.contains('\n'));
            let parsed: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(
                (&parsed["scope"], &parsed["message"]),
                (&Value::from(&**scope), &Value::from(&**message))
            );
            assert_eq!((&parsed["one"], &parsed["two"]), (&Value::from(&**value), &Value::from(&**value)));
        });
    }
}
