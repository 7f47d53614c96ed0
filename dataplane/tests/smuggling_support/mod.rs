//! Ambiguous messages, and an application that records what it gets.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

pub mod corpus;
pub mod corpus2;
pub mod recorder;
