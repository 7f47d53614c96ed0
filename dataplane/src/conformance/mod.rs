//! The case files run against the very engine that serves: `corelane conformance PATH...`.
//!
//! Objects in a case are read by the YAML front end and compiled by the L7 crate, requests are parsed by the HTTP/1
//! code: nothing here knows what a policy or a route means. A case that this engine cannot express is skipped, with
//! the reason; it never counts as passed. Results come in the order of files (by path) and of cases in them.

mod attachment;
mod authorization;
mod custom;
mod effect;
mod framing;
mod objects;
mod report;
mod request;
mod routing;
mod stand_in;
mod tokens;
mod validation;
mod way;

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use report::{CaseResult, Report};

/// Largest case file that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Deepest folder below the one given.
const FOLDER_DEPTH_MAX: usize = 16;

/// Why the cases could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    #[error("{path} cannot be read: {source}; name a case file or a folder of them")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes; split it")]
    Size { path: PathBuf },
    #[error("{path} is no case file: {message}")]
    Format { path: PathBuf, message: String },
    #[error("no case file (*.yaml) was found below {0}")]
    Empty(String),
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Compared { got: String, want: String },
    Skipped(String),
}

/// Runs every case of the files given, and of the `*.yaml` files below the folders given.
pub fn run(paths: &[PathBuf]) -> Result<Report, ConformanceError> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, 0, &mut files)?;
    }
    files.sort();
    files.dedup();
    if files.is_empty() {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(ConformanceError::Empty(shown.join(", ")));
    }
    let mut report = Report::default();
    for file in files {
        run_file(&file, &mut report)?;
    }
    Ok(report)
}

fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), ConformanceError> {
    let unreadable = |source| ConformanceError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth > FOLDER_DEPTH_MAX {
        return Err(unreadable(std::io::Error::other(format!("deeper than {FOLDER_DEPTH_MAX} folders"))));
    }
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            collect(&path, depth + 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") && !is_base(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// Files whose name begins with an underscore hold objects that other files name as their base.
fn is_base(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('_'))
}

fn run_file(path: &Path, report: &mut Report) -> Result<(), ConformanceError> {
    let document = load(path)?;
    let mut sink = |id: &str, outcome: Outcome| report.add(path, id, outcome);
    match document.get("kind").and_then(Value::as_str) {
        Some("authz-cases") => authorization::run_requests(&typed(path, document)?, &mut sink),
        Some("authz-l4-cases") => authorization::run_connections(&typed(path, document)?, &mut sink),
        Some("authz-custom") => custom::run(&typed(path, document)?, &mut sink),
        Some("authz-validation") => validation::run(&typed(path, document)?, &mut sink),
        Some("authz-attachment") => attachment::run(&typed(path, document)?, &mut sink),
        Some("http1-framing-cases") => framing::run(&typed(path, document)?, &mut sink),
        Some(kind) => {
            let message = format!("cases of kind {kind:?} are not known");
            return Err(ConformanceError::Format { path: path.to_owned(), message });
        }
        None => {
            let file: routing::File = typed(path, document)?;
            let base = match &file.base {
                Some(name) => typed(path, load(&path.with_file_name(name))?)?,
                // The derived cases are written over the same Services as the suite's own mesh cases.
                None if file.is_mesh() => base_beside(path)?,
                None => Vec::new(),
            };
            routing::run(&file, &base, &mut sink);
        }
    }
    Ok(())
}

fn base_beside(path: &Path) -> Result<Vec<Value>, ConformanceError> {
    let base = path.with_file_name("_base-mesh.yaml");
    if base.exists() { typed(&base, load(&base)?) } else { Ok(Vec::new()) }
}

fn load(path: &Path) -> Result<Value, ConformanceError> {
    let unreadable = |source| ConformanceError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(ConformanceError::Size { path: path.to_owned() });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    // YAML 1.2 as Kubernetes reads it: `y` and `no` are texts.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| ConformanceError::Format { path: path.to_owned(), message: error.to_string() })
}

fn typed<T: DeserializeOwned>(path: &Path, document: Value) -> Result<T, ConformanceError> {
    serde_json::from_value(document)
        .map_err(|error| ConformanceError::Format { path: path.to_owned(), message: error.to_string() })
}
