//! The check of a folder: every finding, its printed forms, and whether it passes.

use std::path::Path;

use super::catalog::MeshSettings;
use super::load::load_dir;
use super::problem::Problem;
use super::references::check_references;

/// Exit status of a folder without errors.
pub const EXIT_OK: u8 = 0;
/// Exit status of a folder with at least one error.
pub const EXIT_PROBLEMS: u8 = 3;

/// Reads a folder and looks at its references.
pub fn check(dir: &Path, mesh: &MeshSettings) -> Vec<Problem> {
    let mut loaded = load_dir(dir);
    loaded.problems.extend(check_references(&loaded.catalog, &mesh.with(&loaded.catalog)));
    // Findings of a file stay together, whatever found them.
    loaded.problems.sort_by(|left, right| {
        (&left.file, left.line, left.column).cmp(&(&right.file, right.line, right.column))
    });
    loaded.problems
}

/// Warnings alone pass.
pub fn exit_status(problems: &[Problem]) -> u8 {
    if problems.iter().any(Problem::is_error) { EXIT_PROBLEMS } else { EXIT_OK }
}
