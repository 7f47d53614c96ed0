//! Where a piece of configuration was written, for messages that name file and line.

use std::fmt;
use std::sync::Arc;

/// Position of an object in a file of the configuration folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct SourceRef {
    /// Path relative to the configuration folder.
    pub file: Arc<str>,
    /// Line of the object's first key, counted from 1.
    pub line: u32,
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
