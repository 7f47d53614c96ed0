//! A report as a page that stands alone: no script, no font, no picture from elsewhere.

mod defeat;
mod markdown;
mod page;
mod plot;

use std::fs;
use std::path::PathBuf;

use clap::Parser;

use crate::Failure;
use crate::compare::result::Report;

/// Shows what a comparison found: as a page for a browser, as a table for a README.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The JSON file of `perf compare`.
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Writes the page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the tables: into a file that has a line `<!-- perf report -->` and a line `<!-- end of perf report -->`
    /// between these, otherwise as a file of its own. Without any file they go to standard output.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let named = |error: std::io::Error, path: &PathBuf| format!("{}: {error}", path.display());
    let json = fs::read(&args.from).map_err(|error| named(error, &args.from))?;
    let report = Report::parse(&json).map_err(|error| format!("{}: {error}", args.from.display()))?;
    if let Some(path) = &args.html {
        fs::write(path, page::page(&report)?).map_err(|error| named(error, path))?;
    }
    let table = markdown::markdown(&report);
    match &args.markdown {
        Some(path) => {
            let whole = match fs::read_to_string(path) {
                Ok(text) => markdown::put_between(&text, &table).unwrap_or(table),
                Err(_) => table,
            };
            fs::write(path, whole).map_err(|error| named(error, path))?;
        }
        None if args.html.is_none() => print!("{table}"),
        None => {}
    }
    Ok(())
}
