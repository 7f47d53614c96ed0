//! `corelane tunnel`: the tunnel alone.

use clap::Subcommand;

use crate::worker::BoxError;

#[derive(Debug, Subcommand)]
pub(super) enum Tunnel {}

impl Tunnel {
    pub(super) fn run(self) -> Result<(), BoxError> {
        match self {}
    }
}
