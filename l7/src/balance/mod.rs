//! How one of several endpoints is taken: in turn, or by a hash that sends like requests to one place.
//!
//! Nothing here knows endpoints: they are numbers with weights and names. Which of them may be taken at all, and how many
//! requests run at each, is the caller's to say.

mod hash;
mod key;
mod maglev;
mod ring;
mod table;
#[cfg(test)]
mod tests;
mod turns;

pub use hash::xxh64;
pub use key::{HashKey, HashSource, hash_key};
pub use table::{Member, PLACES_MAX, Table};
pub use turns::Turns;
