//! Access log: one record for every connection, and for every request where HTTP is understood.
//!
//! A worker fills a [`Record`] of shared references and numbers (no text is built on the data path) and hands it to a
//! [`Recorder`], a bounded queue that never blocks: a record that finds the queue full is dropped and counted.
//! The control thread takes the records out of the [`Records`] end and formats them ([`format`]).

mod asked;
pub mod cause;
mod facts;
pub mod format;
pub mod queue;
pub mod record;
mod repeats;
pub mod writer;

pub use cause::CloseCause;
pub use queue::{Recorder, Records, queue};
pub use record::{Authority, Direction, HttpFacts, Level, Method, Party, Path, Record, Stage, TlsFacts};
pub use repeats::{REPEATS_KINDS_MAX, REPEATS_PERIOD};
pub use writer::{LogFormat, LogWriter};
