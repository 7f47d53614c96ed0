//! What is wrong with a piece of configuration: where it stands, why it is refused, how to mend it.
//!
//! A problem is data; [`render`] and [`to_json`] are its two printed forms. Reading never stops at the first one.

use std::fmt::{self, Write as _};
use std::sync::Arc;

/// An error refuses the object it names; a warning lets it pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Warning,
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding. `line` and `column` count from 1; 0 where the finding concerns the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Path relative to the configuration folder.
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
    /// `KIND NAMESPACE/NAME`, empty where no object could be made out.
    pub object: String,
    /// Path within the object, such as `spec.rules[0].to[0].operation.paths[1]`; empty for the object itself.
    pub field: String,
    pub message: String,
    /// What to write instead; empty where the message says it all.
    pub fix: String,
    pub severity: Severity,
}

impl Problem {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}: {}", self.severity, self.message)?;
        let place = [self.object.as_str(), self.field.as_str()];
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        if !place.is_empty() {
            write!(f, "\n    in:  {}", place.join(" "))?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n    fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// All problems for a reader, one after the other, and a last line that counts them.
pub fn render(problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{problem}");
    }
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let warnings = problems.len() - errors;
    let _ = writeln!(text, "{}, {}", counted(errors, "error"), counted(warnings, "warning"));
    text
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// All problems as a JSON array, in the order given.
pub fn to_json(problems: &[Problem]) -> String {
    // The structure holds only texts and numbers, which always serialise.
    serde_json::to_string_pretty(problems).unwrap_or_else(|_| String::from("[]"))
}
