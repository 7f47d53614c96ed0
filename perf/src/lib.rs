//! What the benches and the `perf` program share.

#![allow(clippy::expect_used)] // a bench that cannot be set up ends there

pub mod cores;
