//! `corelane log` and `corelane drain`: what changes something in a running proxy.

use std::fmt::Write;

use clap::Args;

use super::client::Client;
use super::{AdminArguments, print};
use crate::worker::BoxError;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  corelane log                                  the levels in force
  corelane log debug                            everything at debug
  corelane log info,dataplane::session=trace    one module more than the rest
  corelane log --reset                          as it was at the start")]
pub(in crate::cli) struct LogArguments {
    #[command(flatten)]
    admin: AdminArguments,

    /// A level (off, error, warn, info, debug, trace), or TARGET=LEVEL pairs with commas. The access log is the target
    /// `access`.
    #[arg(value_name = "LEVELS", conflicts_with = "reset")]
    levels: Option<String>,

    /// Back to the levels of the start.
    #[arg(long)]
    reset: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The proxy takes no new connections, lets those that are open go on until its deadline, cuts the rest and ends.")]
pub(in crate::cli) struct DrainArguments {
    #[command(flatten)]
    admin: AdminArguments,

    /// Cut what is still open after so many seconds, where that is sooner than the proxy's own deadline.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
}

impl LogArguments {
    pub(super) fn run(&self) -> Result<(), BoxError> {
        let path = match (&self.levels, self.reset) {
            (Some(levels), _) => format!("/logging?level={}", escaped(levels)),
            (None, true) => "/logging?reset".to_owned(),
            (None, false) => "/logging".to_owned(),
        };
        print(&Client::new(&self.admin.admin).post(&path)?)
    }
}

impl DrainArguments {
    pub(super) fn run(&self) -> Result<(), BoxError> {
        let path = self.grace.map_or_else(|| "/drain".to_owned(), |grace| format!("/drain?seconds={grace}"));
        print(&Client::new(&self.admin.admin).post(&path)?)
    }
}

/// A value for a query string (RFC 3986 section 2.3 leaves the rest as it is).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_pass_through_a_query_unchanged() {
        assert_eq!(escaped("info,a::b=trace"), "info%2Ca%3A%3Ab%3Dtrace");
    }
}
