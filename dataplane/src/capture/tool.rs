//! Runs `nft` and `ip` in a network namespace.

use std::fmt;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::net::{NamespaceError, NetworkNamespace};

/// Most of a program's complaint that an error quotes.
const COMPLAINT_BYTES_MAX: usize = 2_000;

/// A program of the system that we run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Nft,
    Ip,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("the command `{tool}` is not there: install the package `{}` (apt-get install {})", tool.package(), tool.package())]
    Missing { tool: Tool },
    #[error("the command `{tool}` cannot be run: {source}")]
    Start { tool: Tool, source: io::Error },
    #[error("`{tool}` refused: {complaint}")]
    Refused { tool: Tool, complaint: String },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

// === impl Tool ===

impl Tool {
    const fn program(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ip => "ip",
        }
    }

    /// The distribution's package that holds it.
    const fn package(self) -> &'static str {
        match self {
            Self::Nft => "nftables",
            Self::Ip => "iproute2",
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// Proves that both programs are installed, without changing anything.
pub fn check_tools() -> Result<(), ToolError> {
    run(Tool::Nft, &["--version"], "", None)?;
    run(Tool::Ip, &["-Version"], "", None)?;
    Ok(())
}

/// Runs `tool` in `namespace` with `input` as its standard input; what it printed.
///
/// Blocks for some milliseconds, so it is for the control side only.
pub fn run(
    tool: Tool,
    arguments: &[&str],
    input: &str,
    namespace: Option<&NetworkNamespace>,
) -> Result<String, ToolError> {
    let mut command = Command::new(tool.program());
    // Messages are read by programs: no colours, no translation.
    command.args(arguments).env("LC_ALL", "C").env("NO_COLOR", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = match namespace {
        // A child starts out in the namespace of the thread that forks it.
        Some(namespace) => namespace.within(|| command.spawn())?,
        None => command.spawn(),
    };
    let mut child = started.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ToolError::Missing { tool },
        _ => ToolError::Start { tool, source },
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on its standard error.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(|source| ToolError::Start { tool, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim();
    let kept = complaint.get(..complaint.floor_char_boundary(COMPLAINT_BYTES_MAX)).unwrap_or_default();
    Err(ToolError::Refused { tool, complaint: kept.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = ToolError::Missing { tool: Tool::Nft };
        assert_eq!(
            error.to_string(),
            "the command `nft` is not there: install the package `nftables` (apt-get install nftables)"
        );
    }

    #[test]
    fn a_refusal_carries_the_complaint() {
        let error = run(Tool::Ip, &["link", "show", "no-such-link"], "", None).unwrap_err();
        assert!(error.to_string().contains("no-such-link"), "{error}");
    }
}
