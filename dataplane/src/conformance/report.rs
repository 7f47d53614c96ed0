//! Results: one JSON line a case for programs, a summary for people.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use super::Outcome;

/// What came of one case; its JSON form is a stable interface.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CaseResult {
    pub id: String,
    pub pass: bool,
    pub got: Option<String>,
    pub want: Option<String>,
    /// Why the case was not run.
    pub skipped: Option<String>,
    /// Name of the case file.
    #[serde(skip)]
    pub file: String,
}

/// All results, in the order of files and of cases in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub results: Vec<CaseResult>,
}

impl CaseResult {
    pub fn is_failure(&self) -> bool {
        !self.pass && self.skipped.is_none()
    }
}

impl Report {
    pub(super) fn add(&mut self, path: &Path, id: &str, outcome: Outcome) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (pass, got, want, skipped) = match outcome {
            Outcome::Compared { got, want } => (got == want, Some(got), Some(want), None),
            Outcome::Skipped(reason) => (false, None, None, Some(reason)),
        };
        self.results.push(CaseResult { id: id.to_owned(), pass, got, want, skipped, file });
    }

    pub fn failures(&self) -> impl Iterator<Item = &CaseResult> {
        self.results.iter().filter(|result| result.is_failure())
    }

    /// One JSON object a line.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        for result in &self.results {
            serde_json::to_writer(&mut *out, result)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// A table of files, then the failures, then the reasons of what was skipped.
    pub fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut files: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for result in &self.results {
            let counts = files.entry(&result.file).or_default();
            let [passed, failed, skipped] = counts;
            match &result.skipped {
                Some(reason) => {
                    *skipped += 1;
                    *reasons.entry(reason).or_default() += 1;
                }
                None if result.pass => *passed += 1,
                None => *failed += 1,
            }
        }
        writeln!(out, "{:<56}{:>8}{:>8}{:>9}", "file", "passed", "failed", "skipped")?;
        let mut total = [0; 3];
        for (file, counts) in &files {
            let [passed, failed, skipped] = counts;
            writeln!(out, "{file:<56}{passed:>8}{failed:>8}{skipped:>9}")?;
            for (sum, count) in total.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        for result in self.failures() {
            let (got, want) = (result.got.as_deref(), result.want.as_deref());
            writeln!(out, "FAILED {}", result.id)?;
            writeln!(out, "  got  {}", got.unwrap_or_default())?;
            writeln!(out, "  want {}", want.unwrap_or_default())?;
        }
        for (reason, count) in reasons {
            writeln!(out, "skipped {count:>4}  {reason}")?;
        }
        let [passed, failed, skipped] = total;
        writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_have_the_promised_fields() {
        let mut report = Report::default();
        let compared = |got: &str, want: &str| Outcome::Compared { got: got.into(), want: want.into() };
        report.add(Path::new("x/a.yaml"), "a/1", compared("allow", "deny"));
        report.add(Path::new("x/a.yaml"), "a/2", Outcome::Skipped("why".into()));
        let mut json = Vec::new();
        report.write_json(&mut json).unwrap();
        let expected = concat!(
            r#"{"id":"a/1","pass":false,"got":"allow","want":"deny","skipped":null}"#,
            "\n",
            r#"{"id":"a/2","pass":false,"got":null,"want":null,"skipped":"why"}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
        assert_eq!(report.failures().count(), 1);
        let mut table = Vec::new();
        report.write_table(&mut table).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains("FAILED a/1") && table.contains("0 passed, 1 failed, 1 skipped"), "{table}");
    }
}
