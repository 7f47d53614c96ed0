//! Ambiguous messages, an application that records what it gets, and a judge of what it got. They know of no bed: a way to
//! the application is a function that connects.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

mod corpus;
mod corpus2;
pub mod judge;
pub mod recorder;

pub use judge::Way;

/// What policy denies, as a path of an AuthorizationPolicy. All else is allowed, so only what nobody has looked at gets there.
pub const SMUGGLED_PATHS: &str = "*/smuggled";
